"""The event log of a run: one JSON object a line, written by the trainer, read by anybody. No torch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

Listener = Callable[[dict[str, Any]], None]

#: Every type of event with the fields that it always has; more may stand beside them.
EVENTS: dict[str, tuple[str, ...]] = {
    "run_started": ("step", "max_train_steps", "family", "method", "resumed", "pid"),
    "phase": ("phase", "done", "total"),
    "step": ("step", "loss", "learning_rate", "seconds_per_step"),
    "validation": ("step", "validation_loss"),
    "sample": ("step", "path", "prompt", "seed", "take", "strength", "seconds"),
    # Of a sample: see trainers/metrics.py for what the numbers mean; one that cannot be known is null.
    "measure": ("step", "take", "prompt", "seed", "motion", "motion_change", "new_motion", "style"),
    "checkpoint": ("step", "path", "best"),
    "message": ("level", "text"),
    "run_finished": ("status", "reason"),
}

#: What `run_finished.status` can be.
STATUSES = ("finished", "failed", "cancelled")


class EventLog:
    """Appends events to RUN/events.jsonl. One writer per file: the trainer's first process.

    `path=None` makes a log that writes nothing, for the other processes of a distributed run. `listeners` are told
    each event as well: a screen, a tracker.
    """

    def __init__(self, path: Path | None, listeners: Sequence[Listener] = ()) -> None:
        self._file: TextIO | None = None
        self._listeners = list(listeners)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        self._file = path.open("a", encoding="utf-8")
        if torn:  # a killed writer left half a line: close it, so that ours begins on its own
            self._file.write("\n")

    def write(self, type: str, /, **values: Any) -> None:
        """Append one event. Numbers that are not finite become null, since JSON has none."""
        missing = set(EVENTS[type]) - set(values)
        if missing:
            raise ValueError(f"event {type} lacks {sorted(missing)}")
        if self._file is None:
            return
        clean = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}
        event = {"type": type, "time": time.time(), **clean}
        self._file.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._file.flush()
        for listener in self._listeners:
            listener(event)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Events from byte `offset` on, and the offset to go on from. An unfinished last line waits for the next call."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    return list(_events(data[:end])), offset + end


def _events(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # the half line of a killed writer
            continue
        if isinstance(event, dict) and event.get("type") in EVENTS:
            yield event
