"""Every run as a list shows it: its place in the queue, its newest job, its status, read on by offset."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studio.jobs import Job, JobQueue, JobState
from studio.progress import Event, RunReader, Status, status
from studio.workspace import RunInfo, Workspace
from trainers.runs import RunFolder


@dataclass(frozen=True)
class Entry:
    """A run and how it stands. job: its newest, None when it is not in the queue. fraction: how far it is, 0 to 1.

    ahead: waiting jobs before this one. count: events read so far, so that a caller knows when there are new ones.
    """

    info: RunInfo
    job: Job | None
    status: Status
    fraction: float | None
    ahead: int
    count: int

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def state(self) -> str:
        return str(self.status.state) if self.status.state else "none"

    @property
    def running(self) -> bool:
        return self.job is not None and self.job.state is JobState.RUNNING

    @property
    def queued(self) -> bool:
        return self.job is not None and self.job.state is JobState.QUEUED

    @property
    def line(self) -> str:
        """The status in a sentence, with the place in the queue."""
        if not self.ahead:
            return self.status.line
        return f"{self.status.line}, behind {self.ahead} other {'run' if self.ahead == 1 else 'runs'}"


class Runs:
    """The runs of a workspace with their events. Sessions share it; what they do not ask for is not read."""

    def __init__(self, workspace: Workspace, queue: JobQueue) -> None:
        self.workspace = workspace
        self.queue = queue
        self._lock = threading.Lock()
        self._readers: dict[str, RunReader] = {}
        self._known: dict[str, tuple[tuple[int, Job | None], Status, float | None]] = {}

    def events(self, folder: RunFolder) -> list[Event]:
        """All events of a run so far."""
        with self._lock:
            reader = self._readers.setdefault(folder.id, RunReader(folder))
        return reader.events()

    def entries(self) -> list[Entry]:
        """Running, then waiting in order, then ended (newest first), then the runs that are not in the queue.

        Of several jobs of a run only the newest counts.
        """
        infos = {info.id: info for info in self.workspace.runs()}
        newest: dict[str, Job] = {}
        jobs = self.queue.jobs()
        for job in jobs:
            if job.run_id not in newest or job.id > newest[job.run_id].id:
                newest[job.run_id] = job
        listed, ahead = [], 0
        for job in jobs:
            if newest[job.run_id] is not job:
                continue
            waiting = job.state is JobState.QUEUED
            info = infos.pop(job.run_id) if job.run_id in infos else self._gone(job)
            listed.append(self._entry(info, job, ahead if waiting else 0))
            ahead += waiting
        return listed + [self._entry(info, None, 0) for info in infos.values()]

    def _gone(self, job: Job) -> RunInfo:
        """What is known of a run whose folder was moved or deleted."""
        folder = RunFolder(self.workspace.root / "runs" / job.run_id)
        return RunInfo(job.run_id, job.kind, job.run_id, "unknown", "", job.created, folder)

    def _entry(self, info: RunInfo, job: Job | None, ahead: int) -> Entry:
        events = self.events(info.folder)
        known = self._known.get(info.id)
        if known is None or known[0] != (len(events), job):
            now = status(events, job)
            known = ((len(events), job), now, _fraction(events, now, info.kind))
            self._known[info.id] = known
        return Entry(info, job, known[1], known[2], ahead, len(events))


def find(entries: Sequence[Entry], run: str | None) -> Entry | None:
    """The entry of that run."""
    return next((entry for entry in entries if entry.id == run), None)


def _fraction(events: Sequence[Event], now: Status, kind: str) -> float | None:
    """How far a run is that has not finished; None when there is nothing to tell."""
    if now.state is not JobState.RUNNING:
        return None
    if kind == "train":
        return min(1.0, now.step / now.total) if now.step is not None and now.total else 0.0
    phase: dict[str, Any] = next((e for e in reversed(events) if e["type"] == "phase" and e["phase"] == "sampling"), {})
    return min(1.0, phase["done"] / phase["total"]) if phase.get("total") else 0.0
