"""Trackers: they are told what the event log is told, and own nothing."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from trainers.runs import RunFolder


class TensorBoard:
    """Writes the curves of a run to RUN/tensorboard; of a resumed run, what came after its checkpoint is replaced."""

    def __init__(self, run: RunFolder, first_step: int) -> None:
        self._run, self._first_step = run, first_step

    @cached_property
    def _writer(self) -> Any:
        """Made at the first event: only then the folder is surely ours."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._run.tensorboard), purge_step=self._first_step + 1 if self._first_step else None)

    def __call__(self, event: dict[str, Any]) -> None:
        if event["type"] in ("step", "validation"):
            for name in ("loss", "learning_rate", "seconds_per_step", "validation_loss"):
                if event.get(name) is not None:
                    self._writer.add_scalar(name, event[name], event["step"], walltime=event["time"])
        elif event["type"] == "run_finished":
            self._writer.close()
