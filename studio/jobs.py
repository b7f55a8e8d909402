"""What waits, runs and ran: jobs in a SQLite file, shared by the page and the worker, and by several processes.

Every change of state is one UPDATE that names the state it leaves, so that two processes can never both make it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from trainers.runs import RunFolder

Kind = Literal["train", "sample"]


class JobError(Exception):
    """What cannot be done to a job: one sentence."""


class JobState(StrEnum):
    """Where a job is. interrupted: its process vanished without a word."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    @property
    def ended(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True)
class Job:
    """One start of a run, waiting, running or over. Times are seconds since the epoch.

    pid, pid_started: the first process of the job's group. events_offset: size of the run's event log when the job
    was started; what stands before it is of an earlier job. stopped: when the group was told to end.
    """

    id: int
    run_id: str
    kind: Kind
    state: JobState
    resume: bool
    device: str | None
    pid: int | None
    pid_started: float | None
    created: float
    started: float | None
    ended: float | None
    reason: str
    cancel_requested: bool
    events_offset: int = 0
    stopped: float | None = None


_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    position INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('train', 'sample')),
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'finished', 'failed', 'cancelled', 'interrupted')),
    resume INTEGER NOT NULL,
    device TEXT,
    pid INTEGER,
    pid_started REAL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    reason TEXT NOT NULL DEFAULT '',
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    events_offset INTEGER NOT NULL DEFAULT 0,
    stopped REAL
);
CREATE UNIQUE INDEX IF NOT EXISTS one_open_job_of_a_run ON jobs (run_id) WHERE state IN ('queued', 'running');
CREATE UNIQUE INDEX IF NOT EXISTS one_running_job_on_a_device ON jobs (device) WHERE state = 'running';
"""

_ORDER = """
ORDER BY CASE state WHEN 'running' THEN 0 WHEN 'queued' THEN 1 ELSE 2 END,
         CASE state WHEN 'running' THEN started WHEN 'queued' THEN position ELSE -ended END,
         -id
"""


class JobQueue:
    """The jobs in a SQLite file. Safe to share between threads and processes: each call opens its own connection.

    runs: the folder of the run folders, by default next to the file; `retry` looks there for checkpoints.
    """

    def __init__(self, db: Path, runs: Path | None = None) -> None:
        self.db = db
        self.runs = runs if runs is not None else db.parent / "runs"
        db.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._open() as connection:
                # Readers never wait for the writer. A file system that cannot do it keeps its own journal.
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise JobError(
                f"the job list {db} cannot be used ({error}); move the file away to begin a new one"
            ) from error

    # --- for the page ------------------------------------------------------------------------------------------------

    def submit(self, run_id: str, kind: Kind, resume: bool = False) -> Job:
        """A new job at the end of the queue. JobError when the run waits or runs already."""
        with self._transaction() as connection:
            try:
                cursor = connection.execute(
                    "INSERT INTO jobs (position, run_id, kind, state, resume, created) "
                    "SELECT COALESCE(MAX(position), 0) + 1, ?, ?, 'queued', ?, ? FROM jobs",
                    (run_id, kind, resume, time.time()),
                )
            except sqlite3.IntegrityError as error:
                raise JobError(f"run {run_id} is in the queue already; cancel that job first") from error
            return _job(connection, cursor.lastrowid)

    def jobs(self) -> list[Job]:
        """Running jobs, then queued ones in their order, then ended ones, newest first."""
        with self._open() as connection:
            return [_from_row(row) for row in connection.execute("SELECT * FROM jobs" + _ORDER)]

    def job(self, id: int) -> Job:
        """One job; JobError when there is none."""
        with self._open() as connection:
            return _job(connection, id)

    def last_of(self, run_id: str) -> Job | None:
        """The newest job of a run, or None."""
        with self._open() as connection:
            row = connection.execute(
                "SELECT * FROM jobs WHERE run_id = ? ORDER BY id DESC LIMIT 1", (run_id,)
            ).fetchone()
            return _from_row(row) if row else None

    def move(self, id: int, by: Literal[-1, 1]) -> None:
        """Change places with the queued job before (-1) or after (+1). At the end of the queue nothing happens."""
        before = by < 0
        with self._transaction() as connection:
            job = connection.execute("SELECT position FROM jobs WHERE id = ? AND state = 'queued'", (id,)).fetchone()
            if job is None:
                raise JobError(f"job {id} does not wait in the queue; only waiting jobs can be moved")
            other = connection.execute(
                "SELECT id, position FROM jobs WHERE state = 'queued' AND position < ? ORDER BY position DESC LIMIT 1"
                if before
                else "SELECT id, position FROM jobs WHERE state = 'queued' AND position > ? ORDER BY position LIMIT 1",
                (job["position"],),
            ).fetchone()
            if other is None:
                return
            connection.execute("UPDATE jobs SET position = ? WHERE id = ?", (other["position"], id))
            connection.execute("UPDATE jobs SET position = ? WHERE id = ?", (job["position"], other["id"]))

    def cancel(self, id: int) -> Job:
        """A waiting job is cancelled at once, a running one is asked to save and end; an ended one stays as it is."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE jobs SET state = 'cancelled', ended = ?, reason = 'cancelled before it started' "
                "WHERE id = ? AND state = 'queued'",
                (time.time(), id),
            )
            connection.execute("UPDATE jobs SET cancel_requested = 1 WHERE id = ? AND state = 'running'", (id,))
            return _job(connection, id)

    def retry(self, id: int) -> Job:
        """A new job on the run of an ended one; it resumes when the run has a checkpoint, else it starts over."""
        job = self.job(id)
        if not job.state.ended:
            raise JobError(f"job {id} is {job.state}; cancel it before you start it again")
        return self.submit(job.run_id, job.kind, resume=bool(RunFolder(self.runs / job.run_id).checkpoints()))

    def remove(self, id: int) -> None:
        """Strike a job from the list; its run stays on disk. JobError while it runs."""
        with self._transaction() as connection:
            job = _job(connection, id)
            if connection.execute("DELETE FROM jobs WHERE id = ? AND state != 'running'", (id,)).rowcount == 0:
                raise JobError(f"job {id} of run {job.run_id} is running; cancel it first")

    # --- for the worker ----------------------------------------------------------------------------------------------

    def take(self, device: str) -> Job | None:
        """The next waiting job, now running on `device`; None when nothing waits or the device has a running job."""
        with self._transaction() as connection:
            next_job = connection.execute(
                "SELECT id FROM jobs WHERE state = 'queued' "
                "AND NOT EXISTS (SELECT 1 FROM jobs WHERE state = 'running' AND device = ?) ORDER BY position LIMIT 1",
                (device,),
            ).fetchone()
            if next_job is None:
                return None
            taken = connection.execute(
                "UPDATE jobs SET state = 'running', device = ?, started = ? WHERE id = ? AND state = 'queued'",
                (device, time.time(), next_job["id"]),
            )
            return _job(connection, next_job["id"]) if taken.rowcount else None

    def set_events_offset(self, id: int, offset: int) -> None:
        """Note where the events of this start begin. Before the process is started."""
        self._update("UPDATE jobs SET events_offset = ? WHERE id = ? AND state = 'running'", (offset, id))

    def set_process(self, id: int, pid: int, started: float) -> None:
        """Note the first process of a running job."""
        self._update("UPDATE jobs SET pid = ?, pid_started = ? WHERE id = ? AND state = 'running'", (pid, started, id))

    def set_stopped(self, id: int) -> None:
        """Note that the group of a running job was told to end, now."""
        self._update("UPDATE jobs SET stopped = ? WHERE id = ? AND state = 'running'", (time.time(), id))

    def end(self, id: int, state: JobState, reason: str) -> None:
        """A running job is over."""
        self._update(
            "UPDATE jobs SET state = ?, reason = ?, ended = ? WHERE id = ? AND state = 'running'",
            (state.value, reason, time.time(), id),
        )

    # --- the file ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.db, timeout=15, isolation_level=None)
        connection.row_factory = sqlite3.Row
        try:
            connection.execute("PRAGMA synchronous=NORMAL")
            yield connection
        finally:
            connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _update(self, sql: str, values: tuple[Any, ...]) -> None:
        with self._open() as connection:
            connection.execute(sql, values)


_FIELDS = tuple(field.name for field in fields(Job))


def _job(connection: sqlite3.Connection, id: int | None) -> Job:
    row = connection.execute("SELECT * FROM jobs WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise JobError(f"there is no job {id}; it was removed")
    return _from_row(row)


def _from_row(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in _FIELDS}
    values["state"] = JobState(values["state"])
    values["resume"] = bool(values["resume"])
    values["cancel_requested"] = bool(values["cancel_requested"])
    return Job(**values)
