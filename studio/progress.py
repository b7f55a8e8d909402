"""A run's events as what a page shows: status line, loss table, samples, log tail. Pure functions but for reading."""

from __future__ import annotations

import re
import statistics
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from studio.jobs import Job, JobState
from trainers import events as event_log
from trainers.runs import RunFolder

Event = dict[str, Any]

#: Events that belong to a step, and are void when a run is resumed from an earlier one.
_OF_A_STEP = ("step", "validation", "sample", "measure", "checkpoint")

#: What is shown of a `measure` event, by its name for people: 0 to 1, or None where it is not known.
MEASURES: dict[str, Callable[[Event], float | None]] = {
    "new motion": lambda event: event["new_motion"],
    "old motion kept": lambda event: None if event["motion_change"] is None else 1 - event["motion_change"],
    "style drift": lambda event: event["style"],
}
#: Their colours, which stand out from a light ground and a dark one.
MEASURE_COLOURS = {"new motion": "#479a5c", "old motion kept": "#cf5c4c", "style drift": "#4a86c8"}
#: How to read them.
HOW_TO_READ = (
    "At the same prompts and seeds, from 0 to 1: choose a take after new motion (how much it moves like your training "
    "clips) has risen and before style drift (how far its colours and texture are from the base's) climbs; old motion "
    "kept is what is left of the base's movement."
)


@dataclass(frozen=True)
class Status:
    """How a run stands. None: not known. state None: not a job of the queue. line: all of it, for people."""

    state: JobState | None
    phase: str | None
    step: int | None
    total: int | None
    seconds_per_step: float | None
    seconds_left: float | None
    line: str


class RunReader:
    """The events of one run, read on from where the last call ended. Threads may share it."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._offset = 0
        self._head = b""
        self._events: list[Event] = []

    def events(self) -> list[Event]:
        """All events so far."""
        with self._lock:
            if self._begun_anew():
                self._reset()
            found, self._offset = event_log.read(self.folder.events, self._offset)
            self._events.extend(found)
            if not self._head and self._offset:
                self._head = self._first_bytes(min(self._offset, 200))
            return list(self._events)

    def _begun_anew(self) -> bool:
        # A run that started over writes a new log. Size or inode would not tell: the new log may have outgrown the
        # old one, and file systems reuse inodes. The first event carries its time.
        return bool(self._head) and self._first_bytes(len(self._head)) != self._head

    def _first_bytes(self, count: int) -> bytes:
        try:
            with self.folder.events.open("rb") as file:
                return file.read(count)
        except FileNotFoundError:
            return b""


# --- events -----------------------------------------------------------------------------------------------------------


def valid_events(events: Iterable[Event]) -> list[Event]:
    """The events without those of steps that a later start made void: it went on from an earlier step."""
    kept: list[Event] = []
    for event in events:
        if event["type"] == "run_started":
            from_step = event["step"] or 0
            kept = [old for old in kept if old["type"] not in _OF_A_STEP or (old["step"] or 0) <= from_step]
        kept.append(event)
    return kept


def best_step(events: Iterable[Event]) -> int | None:
    """The step with the lowest validation loss, the earliest of equals; None without any."""
    losses = _points(valid_events(events), "validation", "validation_loss")
    return min(losses, key=lambda point: (point[1], point[0]))[0] if losses else None


def samples(events: Iterable[Event]) -> list[Event]:
    """The sample events that hold, in order; of several that wrote the same file, the last."""
    return list({event["path"]: event for event in valid_events(events) if event["type"] == "sample"}.values())


def loss_table(events: Iterable[Event], max_points: int = 1000, smoothing: float = 0.9) -> pd.DataFrame:
    """Rows of (step, loss, series), at most `max_points` of each series: loss, smoothed, validation.

    smoothed is the exponential moving average with the weight `smoothing` on the past, divided by the weight it has
    seen so far, so that it begins at the first loss instead of zero.
    """
    valid = valid_events(events)
    losses = _points(valid, "step", "loss")
    series = {
        "loss": losses,
        "smoothed": _smooth(losses, smoothing),
        "validation": _points(valid, "validation", "validation_loss"),
    }
    rows = [(step, loss, name) for name, points in series.items() for step, loss in _thin(points, max_points)]
    table = pd.DataFrame(rows, columns=["step", "loss", "series"])
    return table.astype({"step": "int64", "loss": "float64", "series": "object"})


def measure_table(events: Iterable[Event]) -> pd.DataFrame:
    """Rows of (step, value, series): the means over the samples at each step that has some, of each of `MEASURES`."""
    by_step: dict[int, dict[Any, Event]] = {}
    for event in valid_events(events):
        if event["type"] == "measure":
            asked = event.get("row"), event["prompt"], event["seed"]
            by_step.setdefault(event["step"], {})[asked] = event
    means = {step: measure_means(found.values()) for step, found in sorted(by_step.items())}
    points = [(step, means[step][name], name) for name in MEASURES for step in means]
    rows = [point for point in points if point[1] is not None]
    table = pd.DataFrame(rows, columns=["step", "value", "series"])
    return table.astype({"step": "int64", "value": "float64", "series": "object"})


def measure_means(measures: Collection[Event]) -> dict[str, float | None]:
    """The mean of each of `MEASURES` over events; None where no event knows it."""
    return {name: _mean(map(give, measures)) for name, give in MEASURES.items()}


def mean_motion(measures: Collection[Event]) -> float | None:
    """How far a pixel moves from frame to frame, as a share of the diagonal; the mean over events, None if unknown."""
    return _mean(event["motion"] for event in measures)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _points(events: Iterable[Event], type: str, value: str) -> list[tuple[int, float]]:
    """(step, value) by rising step, the last word on each; values that were not finite (null) are left out."""
    found = {event["step"]: event[value] for event in events if event["type"] == type and event[value] is not None}
    return sorted(found.items())


def _smooth(points: Sequence[tuple[int, float]], weight: float) -> list[tuple[int, float]]:
    average, seen = 0.0, 0.0
    smoothed = []
    for step, value in points:
        average = weight * average + (1 - weight) * value
        seen = weight * seen + (1 - weight)
        smoothed.append((step, average / seen))
    return smoothed


def _thin(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most `most` points at even distances, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    if most < 2:
        return list(points[-1:])
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]


# --- status -----------------------------------------------------------------------------------------------------------


def status(events: Sequence[Event], job: Job | None) -> Status:
    """How a run stands, from its events and the newest job on it (None: there is none in the queue)."""
    valid = valid_events(events)
    start = _last(valid, "run_started")
    since = valid[valid.index(start) :] if start else []
    trained = [event["step"] for event in valid if event["type"] == "step"]
    step = trained[-1] if trained else (start["step"] if start else None)
    total = (start["max_train_steps"] or None) if start else None
    if job is not None and job.kind == "sample":
        step = total = None  # a comparison has clips, no steps

    phase, done, clips = _phase(since)
    per_step = left = None
    state = _state(valid, job)
    if state is JobState.RUNNING and not _waits_for_first_event(since, job):
        per_step = _recent([event["seconds_per_step"] for event in since if event["type"] == "step"])
        if total is None and phase == "sampling" and clips:
            per_clip = _recent([event["seconds"] for event in since if event["type"] == "sample"])
            waiting = clips - (done or 0)
            left = per_clip * waiting if per_clip is not None and waiting > 0 else None
        elif per_step is not None and step is not None and total:
            left = per_step * max(0, total - step)

    found = Status(state, phase, step, total, per_step, left, line="")
    if job is None and state is None:
        line = f"not in the queue; its log ends{_at(found)}" if start else "not started"
    elif job is not None and state is JobState.QUEUED:
        line = f"waits for {job.device or 'a free device'}" + (", then goes on from its last checkpoint" * job.resume)
    elif job is not None and state is JobState.RUNNING:
        line = _running_line(found, since, job)
    else:
        line = _ended_line(found, valid, job)
    return replace(found, line=line)


def _state(valid: Sequence[Event], job: Job | None) -> JobState | None:
    if job is not None:
        return job.state
    ends = [event for event in valid if event["type"] in ("run_started", "run_finished")]
    if ends and ends[-1]["type"] == "run_finished" and ends[-1]["status"] in event_log.STATUSES:
        return JobState(ends[-1]["status"])
    return None  # it may run outside the queue, or may have vanished: the log cannot tell


def _waits_for_first_event(since: Sequence[Event], job: Job | None) -> bool:
    """Whether the log holds only what an earlier job wrote."""
    return not since or (job is not None and job.started is not None and since[0]["time"] < job.started)


def _phase(since: Sequence[Event]) -> tuple[str | None, int | None, int | None]:
    """(phase, done, total) of the last start; a step says that it trains, whatever phase was named before."""
    for event in reversed(since):
        if event["type"] == "step":
            return "training", None, None
        if event["type"] == "phase":
            return event["phase"], event["done"], event["total"]
    return None, None, None


def _running_line(found: Status, since: Sequence[Event], job: Job) -> str:
    if job.cancel_requested:
        return f"stopping{_at(found)}: saves what is trained, then ends" if job.kind == "train" else "stopping"
    if _waits_for_first_event(since, job):
        return "starting"
    if since[-1]["type"] == "run_finished":
        return "ending: its processes are being waited for"
    phase, done, of = _phase(since)
    training = phase == "training" and found.step is not None
    if training:
        parts = [f"training, step {found.step}" + (f" of {found.total}" if found.total else "")]
        parts += [speed(found.seconds_per_step)] if found.seconds_per_step else []
    elif phase in ("encoding", "sampling") and of:
        parts = [f"{phase} {done or 0} of {of} clips"]
    else:
        parts = [(phase or "starting") + (_at(found) if phase == "saving" else "")]
    if found.seconds_left is not None and (training or found.total is None):
        parts.append(f"{about(found.seconds_left)} left")
    return ", ".join(parts)


def _ended_line(found: Status, valid: Sequence[Event], job: Job | None) -> str:
    finish = _last(valid, "run_finished")
    reason = job.reason if job is not None else ((finish["reason"] if finish else "") or "")
    if found.state is JobState.FINISHED:
        seconds = _seconds(_last(valid, "run_started"), finish, job)
        best = best_step(valid)
        line = "finished" + (f" in {duration(seconds)}" if seconds is not None else "")
        if job is not None and job.kind == "sample":
            return line + (f": {reason}" if reason else "")
        return line + (f", best at step {best}" if best is not None else "")
    if found.state is JobState.FAILED:
        return f"failed: {reason or 'no reason was given'}"
    if found.state is JobState.CANCELLED:
        if reason.startswith("cancelled "):
            return reason  # before it started
        return f"cancelled{_at(found)}" + (f": {reason}" if reason and reason != "cancelled" else "")
    if job is not None and job.kind == "sample":
        return "interrupted; start it again to sample what is missing"
    saved = [event["step"] for event in valid if event["type"] == "checkpoint"]
    if saved:
        return f"interrupted{_at(found)}; it can go on from step {saved[-1]}"
    return f"interrupted{_at(found)}, before anything was saved; start it again from the beginning"


def _at(found: Status) -> str:
    return f" at step {found.step} of {found.total}" if found.step is not None and found.total else ""


def _seconds(start: Event | None, finish: Event | None, job: Job | None) -> float | None:
    if job is not None and job.started is not None and job.ended is not None:
        return job.ended - job.started
    if start is not None and finish is not None and finish["time"] >= start["time"]:
        return float(finish["time"] - start["time"])
    return None


def _last(events: Sequence[Event], type: str) -> Event | None:
    return next((event for event in reversed(events) if event["type"] == type), None)


def _recent(values: Sequence[float | None], count: int = 20) -> float | None:
    """The median of the last values: one slow step (a checkpoint, a first compilation) does not move it."""
    known = [value for value in values[-count:] if value is not None]
    return statistics.median(known) if known else None


# --- words ------------------------------------------------------------------------------------------------------------


def speed(seconds_per_step: float) -> str:
    """``1.4 s/step``, or ``29 steps/s`` where a step takes less than a tenth of a second."""
    if seconds_per_step < 0.1:
        return f"{1 / seconds_per_step:.0f} steps/s"
    return f"{seconds_per_step:.0f} s/step" if seconds_per_step >= 10 else f"{seconds_per_step:.1f} s/step"


def duration(seconds: float) -> str:
    """``3 min 12 s``; two units at most."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, rest = divmod(round(whole / 60), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def about(seconds: float) -> str:
    """A duration that is only an estimate: one unit under an hour."""
    return duration(seconds if seconds < 59.5 else round(seconds / 60) * 60)


# --- log --------------------------------------------------------------------------------------------------------------

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_TAIL_BYTES = 64 * 1024


def log_tail(folder: RunFolder, lines: int = 40) -> str:
    """The last lines of RUN/log.txt as a terminal would leave them: progress bars once, no colour codes."""
    try:
        with folder.log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    text = _ESCAPES.sub("", text.replace("\r\n", "\n"))
    shown = [line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.rstrip().split("\n")]
    if size > _TAIL_BYTES:
        shown = shown[1:]  # the first is the end of a longer one
    return "\n".join(shown[-lines:])
