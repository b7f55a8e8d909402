"""One process group for each device: start, watch, stop, and find again after the app was restarted.

The outcome of a job is the last event of its run, and the exit code only where there is none. A device is free when
the whole group of its job is gone: the first process may end long before those that hold the device.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil
from filelock import FileLock, Timeout

from studio.jobs import Job, JobQueue, JobState
from studio.progress import log_tail
from studio.workspace import PROJECT, Workspace, WorkspaceError
from trainers import events as event_log
from trainers.errors import named
from trainers.runs import RunFolder

log = logging.getLogger(__name__)

Command = Callable[[Job, RunFolder], list[str]]

#: Start times are reckoned from the clock of the last boot, which is known to a second and may be adjusted by one.
_SAME_START = 2.0


def launch_line(job: Job, folder: RunFolder) -> list[str]:
    """The command of a job, as an argument list."""
    line = [sys.executable, "-m", f"trainers.{job.kind}", "--config", str(folder.config), "--run-dir", str(folder.path)]
    return [*line, "--resume"] if job.resume and job.kind == "train" else line


def device_slots(visible: str | None = None) -> list[str]:
    """The devices that can each run a job: one ``cuda:N`` for each NVIDIA GPU that this process may use, else ``cpu``.

    visible: the door's CUDA_VISIBLE_DEVICES, whose choice of devices holds for the trainers, too; N is one of its
    entries. None: every device counts, by its number.
    """
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True, stdin=subprocess.DEVNULL,
        ).stdout.split()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ["cpu"]
    if visible is not None:
        listed = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    return [f"cuda:{name}" for name in listed] or ["cpu"]


@dataclass
class _Watched:
    """The processes of a running job.

    leader: the first process, which gives the group its id; None where it was gone before this worker came.
    child: set where this worker started it and can ask for its exit code.
    """

    pid: int
    leader: psutil.Process | None
    child: subprocess.Popen[bytes] | None = None
    seen: set[psutil.Process] = field(default_factory=set)  # Windows alone, where no group can be asked

    def leader_lives(self) -> bool:
        if self.child is not None:
            return self.child.poll() is None
        return self.leader is not None and _lives(self.leader)

    def exit_code(self) -> int | None:
        return self.child.poll() if self.child is not None else None

    def members(self) -> list[psutil.Process]:
        """The living processes of the group and session; the device is free when there are none."""
        self.leader_lives()  # collects an ended child, which would count as a member
        if sys.platform == "win32":
            if self.leader is not None:
                self.seen.add(self.leader)
            for known in list(self.seen):
                try:
                    self.seen.update(known.children(recursive=True))
                except psutil.Error:
                    continue
            return [process for process in self.seen if _lives(process)]
        return [process for pid in psutil.pids() if self._holds(pid) and (process := _process(pid)) is not None]

    def _holds(self, pid: int) -> bool:
        if sys.platform == "win32":
            return False
        try:
            return self.pid in (os.getpgid(pid), os.getsid(pid))
        except OSError:  # it ended meanwhile, or is not ours to ask
            return False

    def tell(self, members: Sequence[psutil.Process], kill: bool) -> None:
        """Ask every member to end, or end it."""
        if sys.platform == "win32":
            if not kill and self.leader is not None and self.leader_lives():
                self.leader.send_signal(signal.CTRL_BREAK_EVENT)
                return
            for process in members:
                try:
                    process.kill()
                except psutil.Error:
                    continue
            return
        for group in {os.getpgid(process.pid) for process in members if self._holds(process.pid)}:
            try:
                os.killpg(group, signal.SIGKILL if kill else signal.SIGTERM)
            except ProcessLookupError:
                continue


class Worker:
    """Runs the jobs of a queue, one on each device. Of several on the same workspace only one is active.

    grace: seconds between the wish to stop and the end by force. command: what is started for a job.
    """

    def __init__(
        self,
        queue: JobQueue,
        workspace: Workspace,
        devices: Sequence[str],
        *,
        grace: float = 60.0,
        interval: float = 0.5,
        command: Command = launch_line,
    ) -> None:
        self.queue = queue
        self.workspace = workspace
        self.devices = list(devices)
        self.grace = grace
        self.interval = interval
        self.command = command
        self._watched: dict[int, _Watched] = {}
        # Not bound to a thread: the worker's own thread may take it, and close() gives it back.
        self._lock = FileLock(workspace.root / ".worker.lock", thread_local=False)
        self._ticking = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def active(self) -> bool:
        """Whether this worker runs the jobs. False: another one does; this takes over when that one closes."""
        return self._lock.is_locked

    def start(self) -> None:
        """Find what still runs, then work on in a thread."""
        if self._thread is not None:
            return
        self._closing.clear()
        self._tick_safely()
        self._thread = threading.Thread(target=self._work, name="dailies-worker", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop working. Trainers go on, and the next worker finds them."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._ticking:
            self._lock.release()

    def tick(self) -> None:
        """One pass: see what ended, stop what was cancelled, start what waits."""
        with self._ticking:
            if not self._acquire():
                return
            running = [job for job in self.queue.jobs() if job.state is JobState.RUNNING]
            for job in running:
                try:
                    self._look_after(job)
                except (OSError, psutil.Error):  # this pass failed for one job; the others go on
                    log.exception("job %s of run %s could not be looked after", job.id, job.run_id)
            for device in self.devices:
                while (taken := self.queue.take(device)) is not None and not self._start(taken):
                    pass  # it has failed to start: the next one gets the device

    def _work(self) -> None:
        while not self._closing.wait(self.interval):
            self._tick_safely()

    def _tick_safely(self) -> None:
        try:
            self.tick()
        except Exception:  # the queue must outlive a full disk or a locked file
            log.exception("the worker could not finish a pass; it tries again")

    def _acquire(self) -> bool:
        if self._lock.is_locked:
            return True
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    # --- one running job ---------------------------------------------------------------------------------------------

    def _look_after(self, job: Job) -> None:
        watched = self._watched.get(job.id) or self._find(job)
        members = watched.members() if watched is not None else []
        if watched is None or not members:
            state, reason = self._outcome(job, watched.exit_code() if watched is not None else None)
            self.queue.end(job.id, state, reason)
            self._watched.pop(job.id, None)
            return
        self._watched[job.id] = watched
        if job.stopped is None:
            # Once the first process is gone, what it left behind holds the device for nothing.
            if job.cancel_requested or not watched.leader_lives():
                watched.tell(members, kill=False)
                self.queue.set_stopped(job.id)
        elif time.time() - job.stopped > self.grace:
            watched.tell(members, kill=True)

    def _find(self, job: Job) -> _Watched | None:
        """The processes of a job that an earlier worker started, or None when they are gone."""
        held = False  # whether the number belongs to another process now
        if job.pid is not None and job.pid_started is not None:
            try:
                leader = psutil.Process(job.pid)
                if abs(leader.create_time() - job.pid_started) < _SAME_START:
                    return _Watched(job.pid, leader)
                held = True
            except psutil.NoSuchProcess:
                held = False
        # Not noted (the app died between the start and the note), or the clock was set: the launch line tells.
        if (found := self._find_by_command(job)) is not None:
            self.queue.set_process(job.id, found.pid, found.create_time())
            return _Watched(found.pid, found)
        # The first process is gone. Its group may live, unless its number went to another process or the machine
        # was started again.
        if job.pid is None or job.pid_started is None or held or psutil.boot_time() > job.pid_started + _SAME_START:
            return None
        return _Watched(job.pid, None)

    def _find_by_command(self, job: Job) -> psutil.Process | None:
        try:
            line = self.command(job, self.workspace.run(job.run_id))
        except WorkspaceError:
            return None
        for process in psutil.process_iter():
            try:
                # The interpreter may have put another path in the first place.
                same = len(line) > 1 and process.cmdline()[1:] == line[1:]
                if same and _leads_group(process.pid) and _lives(process):
                    return process
            except psutil.Error:
                continue
        return None

    def _outcome(self, job: Job, exit_code: int | None) -> tuple[JobState, str]:
        try:
            folder = self.workspace.run(job.run_id)
        except WorkspaceError as error:
            return JobState.INTERRUPTED, str(error)
        events, _ = event_log.read(folder.events, job.events_offset)
        for event in reversed(events):
            if event["type"] == "run_finished" and event["status"] in event_log.STATUSES:
                return JobState(event["status"]), str(event["reason"] or "")
        last_words = log_tail(folder, 1)
        said = f"; the last line of its log: {last_words}" if last_words else "; its log is empty"
        if job.stopped is not None and job.cancel_requested:
            if time.time() - job.stopped > self.grace:
                return JobState.CANCELLED, f"did not end within {self.grace:.0f} s and was killed, unsaved"
            return JobState.CANCELLED, "ended without saving"
        if exit_code == 0:
            return JobState.FINISHED, ""
        if exit_code is None:
            return JobState.INTERRUPTED, f"the process vanished without a word{said}"
        if exit_code < 0:
            return JobState.INTERRUPTED, f"the process was killed by {_signal_name(-exit_code)}{said}"
        if last_words:
            return JobState.FAILED, f"{last_words} (the last line of its log; exit code {exit_code})"
        return JobState.FAILED, f"the process ended without a word (exit code {exit_code}); its log is empty"

    # --- the next job ------------------------------------------------------------------------------------------------

    def _start(self, job: Job) -> bool:
        """Start a job that was taken; where that fails the job has failed, with the reason."""
        try:
            folder = self.workspace.run(job.run_id)
            if not job.resume and (job.kind == "sample" or not folder.checkpoints()):
                _clear(folder)
            self.queue.set_events_offset(job.id, folder.events.stat().st_size if folder.events.exists() else 0)
            with folder.log.open("ab") as output:
                child = _popen(self.command(job, folder), output.fileno(), _environment(job.device))
        except WorkspaceError as error:
            self.queue.end(job.id, JobState.FAILED, str(error))
            return False
        except OSError as error:
            self.queue.end(job.id, JobState.FAILED, f"could not be started: {named(error)}")
            return False
        leader = _process(child.pid)
        self._watched[job.id] = _Watched(child.pid, leader, child)
        self.queue.set_process(job.id, child.pid, leader.create_time() if leader is not None else time.time())
        return True


def _popen(line: Sequence[str], output: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The process, leading a group (and, where there are such, a session) of its own."""
    if sys.platform == "win32":
        return subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=PROJECT, env=environment,
            creationflags=subprocess.CREATE_NEW_PROCESS_GROUP,
        )  # fmt: skip
    return subprocess.Popen(
        line, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=PROJECT, env=environment,
        start_new_session=True,
    )  # fmt: skip


def _environment(device: str | None) -> dict[str, str]:
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if device is not None and device.startswith("cuda:"):
        if "CUDA_VISIBLE_DEVICES" not in environment:  # nvidia-smi counts by bus; CUDA, left alone, by speed
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        environment["CUDA_VISIBLE_DEVICES"] = device.removeprefix("cuda:")
    return environment


def _clear(folder: RunFolder) -> None:
    """Remove what an earlier start left that saved nothing: a trainer refuses a folder that holds a run."""
    folder.events.unlink(missing_ok=True)
    folder.log.unlink(missing_ok=True)
    if folder.samples.exists():
        shutil.rmtree(folder.samples)


def _process(pid: int) -> psutil.Process | None:
    """The living process of that number, or None."""
    try:
        process = psutil.Process(pid)
    except psutil.Error:
        return None
    return process if _lives(process) else None


def _lives(process: psutil.Process) -> bool:
    """Whether it runs; an ended one that nobody has collected does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _leads_group(pid: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        return os.getpgid(pid) == pid
    except OSError:
        return False


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
