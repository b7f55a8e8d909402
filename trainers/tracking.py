"""Trackers: they are told what the event log is told, and own nothing."""

from __future__ import annotations

from typing import Any

from trainers.runs import RunFolder


class TensorBoard:
    """Writes the curves of a run to RUN/tensorboard; of a resumed run, what came after its checkpoint is replaced."""

    def __init__(self, run: RunFolder, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.tensorboard), purge_step=first_step + 1 if first_step else None)

    def __call__(self, event: dict[str, Any]) -> None:
        if event["type"] in ("step", "validation"):
            for name in ("loss", "learning_rate", "seconds_per_step", "validation_loss"):
                if event.get(name) is not None:
                    self._writer.add_scalar(name, event[name], event["step"], walltime=event["time"])
        elif event["type"] == "run_finished":
            self._writer.close()
