"""The worker with real processes: small scripts in the place of the trainers."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from studio.jobs import Job, JobQueue, JobState
from studio.worker import PROJECT, Worker, device_slots, launch_line
from studio.workspace import Workspace
from trainers.runs import RunFolder

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and groups of POSIX")

SCRIPT = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

run, act = Path(sys.argv[1]), sys.argv[2]


def event(type, **values):
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"type": type, "time": time.time(), **values}) + "\\n")


def ready():
    (run / "ready").write_text(str(os.getpid()))


def save_slowly(*_):
    time.sleep(0.5)
    event("run_finished", status="cancelled", reason="asked to stop")
    sys.exit(0)


if act == "finish":
    event("run_finished", status="finished", reason="")
elif act == "fail":
    event("run_finished", status="failed", reason="loss is not finite at step 3")
    sys.exit(1)
elif act == "silent":
    print("the model does not fit into memory", file=sys.stderr)
    sys.exit(3)
elif act == "environment":
    (run / "device").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    event("run_finished", status="finished", reason="")
elif act == "wait":
    signal.signal(signal.SIGTERM, save_slowly)
    ready()
    time.sleep(60)
elif act == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready()
    time.sleep(60)
elif act == "lingering":  # ends at once; what it started goes on for a while
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1.2)"
    child = subprocess.Popen([sys.executable, "-c", child])
    (run / "child").write_text(str(child.pid))
    time.sleep(0.3)
    event("run_finished", status="finished", reason="")
elif act == "parent":  # its child holds the device, too, and must be told to end as well
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (run / "child").write_text(str(child.pid))
    signal.signal(signal.SIGTERM, save_slowly)
    ready()
    time.sleep(60)
"""


class Stage:
    """A workspace whose runs do what their name says: ``finish-1`` finishes."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root / "workspace")
        self.queue = JobQueue(self.workspace.db)
        self.script = root / "trainer.py"
        self.script.write_text(SCRIPT)
        self.workers: list[Worker] = []

    def command(self, job: Job, folder: RunFolder) -> list[str]:
        act = "environment" if job.run_id == "environment" else job.run_id.rsplit("-", 1)[0]
        return [sys.executable, str(self.script), str(folder.path), act]

    def run(self, id: str) -> RunFolder:
        folder = RunFolder(self.workspace.root / "runs" / id)
        folder.path.mkdir(exist_ok=True)
        folder.config.write_text("family: none\n")
        return folder

    def submit(self, id: str, resume: bool = False) -> Job:
        self.run(id)
        return self.queue.submit(id, "train", resume)

    def worker(self, *devices: str, grace: float = 20.0, **options) -> Worker:
        options.setdefault("command", self.command)
        worker = Worker(self.queue, self.workspace, devices or ("cpu",), grace=grace, **options)
        self.workers.append(worker)
        return worker

    def until(self, worker: Worker, job: Job, *states: JobState) -> Job:
        """Tick until the job is in one of the states, ended by default."""
        return tick_until(worker, lambda: (now := self.queue.job(job.id)) and _in(now, states) and now)

    def until_ready(self, worker: Worker, job: Job) -> Job:
        ready = self.run(job.run_id).path / "ready"
        tick_until(worker, lambda: ready.exists() and ready.read_text())
        return self.queue.job(job.id)

    def clean(self) -> None:
        for worker in self.workers:
            worker.close()
        for process in psutil.process_iter():
            try:
                if str(self.script) in process.cmdline():
                    process.kill()
            except psutil.Error:
                continue


def _in(job: Job, states: tuple[JobState, ...]) -> bool:
    return job.state in states if states else job.state.ended


def tick_until(worker, condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not (met := condition()):
        assert time.monotonic() < end, "it did not come to this in time"
        worker.tick()
        time.sleep(0.03)
    return met


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    stage.clean()


# --- outcomes


def test_a_job_runs_to_its_end(stage):
    job = stage.submit("finish-1")
    done = stage.until(stage.worker(), job)
    assert (done.state, done.reason, done.device) == (JobState.FINISHED, "", "cpu")
    assert done.pid is not None and done.created <= done.started <= done.ended


def test_the_last_event_says_why_a_job_failed_and_the_next_one_starts(stage):
    failing, after = stage.submit("fail-1"), stage.submit("finish-1")
    worker = stage.worker()
    assert stage.until(worker, after).state is JobState.FINISHED
    failed = stage.queue.job(failing.id)
    assert (failed.state, failed.reason) == (JobState.FAILED, "loss is not finite at step 3")


def test_a_process_that_says_nothing_is_quoted_from_its_log(stage):
    done = stage.until(stage.worker(), stage.submit("silent-1"))
    assert done.state is JobState.FAILED
    assert done.reason == ("the model does not fit into memory (the last line of its log; exit code 3)")


def test_what_cannot_be_started_fails_and_blocks_nothing(stage):
    lost, broken, after = stage.submit("finish-1"), stage.submit("finish-2"), stage.submit("finish-3")
    stage.run("finish-1").config.unlink()

    def command(job, folder):
        return ["/no/such/program"] if job.id == broken.id else stage.command(job, folder)

    assert stage.until(stage.worker(command=command), after).state is JobState.FINISHED
    assert stage.queue.job(lost.id).reason.startswith("there is no run finish-1")
    assert (
        stage.queue.job(broken.id).reason == "could not be started: /no/such/program cannot be used: it does not exist"
    )


@posix
def test_a_killed_process_is_interrupted(stage):
    worker = stage.worker()
    job = stage.until_ready(worker, stage.submit("wait-1"))
    os.killpg(job.pid, signal.SIGKILL)
    done = stage.until(worker, job)
    assert done.state is JobState.INTERRUPTED and "SIGKILL" in done.reason


# --- stopping


@posix
def test_cancel_waits_for_the_whole_group_and_believes_the_last_event(stage):
    worker = stage.worker()
    job = stage.until_ready(worker, stage.submit("parent-1"))
    child = int((stage.run("parent-1").path / "child").read_text())
    stage.queue.cancel(job.id)
    worker.tick()
    worker.tick()
    assert stage.queue.job(job.id).state is JobState.RUNNING  # it is saving
    done = stage.until(worker, job)
    assert (done.state, done.reason) == (JobState.CANCELLED, "asked to stop")
    assert done.ended - done.stopped >= 0.5
    assert not alive(job.pid) and not alive(child)


@posix
def test_who_ignores_the_wish_is_killed_after_the_grace_time(stage):
    worker = stage.worker(grace=0.4)
    job = stage.until_ready(worker, stage.submit("stubborn-1"))
    stage.queue.cancel(job.id)
    done = stage.until(worker, job)
    assert done.state is JobState.CANCELLED and "killed" in done.reason
    assert 0.4 <= done.ended - done.stopped < 10
    assert not alive(job.pid)


@posix
def test_a_device_is_not_given_on_while_the_group_lives(stage):
    first, second = stage.submit("lingering-1"), stage.submit("finish-1")
    worker = stage.worker()
    note = stage.run("lingering-1").path / "child"
    child = int(tick_until(worker, lambda: note.exists() and note.read_text()))
    leader = stage.queue.job(first.id).pid
    tick_until(worker, lambda: not alive(leader))
    assert alive(child)
    worker.tick()
    assert stage.queue.job(first.id).state is JobState.RUNNING
    assert stage.queue.job(second.id).state is JobState.QUEUED
    tick_until(worker, lambda: stage.queue.job(second.id).state is not JobState.QUEUED)
    assert not alive(child)
    assert stage.queue.job(first.id).state is JobState.FINISHED


# --- restarts


ORPHAN = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from studio.jobs import JobQueue
from studio.worker import Worker
from studio.workspace import Workspace
workspace = Workspace(Path(sys.argv[2]))
line = lambda job, folder: [sys.executable, sys.argv[3], str(folder.path), job.run_id.rsplit("-", 1)[0]]
Worker(JobQueue(workspace.db), workspace, ["cpu"], command=line).tick()
os._exit(0)
"""


@posix
def test_a_running_trainer_survives_the_app_and_is_found_again(stage):
    job = stage.submit("wait-1")
    app = [sys.executable, "-c", ORPHAN, str(PROJECT), str(stage.workspace.root), str(stage.script)]
    subprocess.run(app, check=True, timeout=60)
    worker = stage.worker()
    running = stage.until_ready(worker, job)
    assert running.state is JobState.RUNNING and alive(running.pid)
    stage.queue.cancel(job.id)
    done = stage.until(worker, job)
    assert (done.state, done.reason, done.pid) == (JobState.CANCELLED, "asked to stop", running.pid)


@posix
def test_the_next_worker_finds_the_process_even_if_it_was_not_noted(stage):
    first = stage.worker()
    job = stage.until_ready(first, stage.submit("wait-1"))
    first.close()
    with closing(
        sqlite3.connect(stage.queue.db, isolation_level=None)
    ) as connection:  # as if the app had died between the start and the note
        connection.execute("UPDATE jobs SET pid = NULL, pid_started = NULL")
    second = stage.worker()
    second.tick()
    found = stage.queue.job(job.id)
    assert (found.state, found.pid) == (JobState.RUNNING, job.pid)
    assert found.pid_started == pytest.approx(job.pid_started, abs=2)


@posix
def test_a_trainer_that_vanished_meanwhile_is_interrupted(stage):
    first = stage.worker()
    job = stage.until_ready(first, stage.submit("wait-1"))
    first.close()
    os.killpg(job.pid, signal.SIGKILL)
    done = stage.until(stage.worker(), job)
    assert done.state is JobState.INTERRUPTED and "vanished" in done.reason


@posix
def test_a_trainer_that_finished_meanwhile_has_its_outcome(stage):
    first = stage.worker()
    job = stage.until_ready(first, stage.submit("wait-1"))
    first.close()
    os.killpg(job.pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while alive(job.pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert stage.until(stage.worker(), job).state is JobState.CANCELLED


@posix
def test_a_number_that_went_to_another_process_is_left_alone(stage):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        job = stage.submit("wait-1")
        assert stage.queue.take("cpu") is not None
        stage.queue.set_process(job.id, bystander.pid, psutil.Process(bystander.pid).create_time() - 1000)
        stage.queue.cancel(job.id)
        done = stage.until(stage.worker(grace=0.0), job)
        assert done.state is JobState.INTERRUPTED
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


# --- starting again


def test_a_run_that_saved_nothing_starts_in_a_clean_folder(stage):
    folder = stage.run("finish-1")
    folder.sample_dir(0).mkdir(parents=True)
    folder.events.write_text('{"type": "message", "time": 1.0, "level": "info", "text": "old"}\n')
    folder.log.write_text("old words\n")
    assert stage.until(stage.worker(), stage.submit("finish-1")).state is JobState.FINISHED
    assert not folder.samples.exists()
    assert "old" not in folder.events.read_text() and folder.log.read_text() == ""
    assert folder.config.exists()


def test_a_resumed_run_keeps_its_log_and_is_not_judged_by_it(stage):
    folder = stage.run("silent-1")
    (folder.path / "checkpoints" / "step-000010").mkdir(parents=True)
    old = '{"type": "run_finished", "time": 1.0, "status": "finished", "reason": ""}\n'
    folder.events.write_text(old)
    done = stage.until(stage.worker(), stage.submit("silent-1", resume=True))
    assert (done.state, done.events_offset) == (JobState.FAILED, len(old))
    assert folder.events.read_text() == old


def test_checkpoints_are_never_cleared_away(stage):
    folder = stage.run("finish-1")
    (folder.path / "checkpoints" / "step-000010").mkdir(parents=True)
    folder.events.write_text("")
    folder.sample_dir(10).mkdir(parents=True)
    stage.until(stage.worker(), stage.submit("finish-1"))
    assert folder.sample_dir(10).is_dir() and folder.checkpoints()


# --- devices and workers


def test_two_devices_run_two_jobs_each_seeing_its_own(stage, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    worker = stage.worker("cuda:0", "cuda:3")
    jobs = [stage.until_ready(worker, stage.submit("wait-1")), stage.submit("environment")]
    done = stage.until(worker, jobs[1])
    assert stage.queue.job(jobs[0].id).state is JobState.RUNNING
    assert (jobs[0].device, done.device) == ("cuda:0", "cuda:3")
    assert (stage.run("environment").path / "device").read_text() == "3"


def test_one_device_runs_one_job(stage):
    worker = stage.worker()
    first, second = stage.submit("wait-1"), stage.submit("wait-2")
    stage.until_ready(worker, first)
    worker.tick()
    assert stage.queue.job(second.id).state is JobState.QUEUED


def test_of_two_workers_one_is_active_and_the_other_takes_over(stage):
    first, second = stage.worker(), stage.worker()
    first.tick()
    second.tick()
    assert first.active and not second.active
    job = stage.submit("finish-1")
    second.tick()
    assert stage.queue.job(job.id).state is JobState.QUEUED
    first.close()
    assert stage.until(second, job).state is JobState.FINISHED
    assert second.active and not first.active


def test_the_thread_works_by_itself_and_close_leaves_trainers_running(stage):
    worker = stage.worker(interval=0.05)
    worker.start()
    job = stage.submit("wait-1")
    ready = stage.run("wait-1").path / "ready"
    deadline = time.monotonic() + 20
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.close()
    assert not worker.active
    assert alive(stage.queue.job(job.id).pid)


def test_the_launch_line(stage):
    folder = stage.run("orbit-0001")
    job = stage.submit("orbit-0001", resume=True)
    line = launch_line(job, folder)
    assert line[1:3] == ["-m", "trainers.train"]
    assert line[3:] == ["--config", str(folder.config), "--run-dir", str(folder.path), "--resume"]
    stage.run("wall-0002")
    sample = stage.queue.submit("wall-0002", "sample")
    assert launch_line(sample, folder)[2] == "trainers.sample" and "--resume" not in launch_line(sample, folder)


@posix
def test_device_slots_are_the_cards_that_the_app_may_use(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device_slots() == ["cpu"]
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 0\necho 1\n")
    smi.chmod(0o755)
    assert device_slots() == ["cuda:0", "cuda:1"]
    assert device_slots(visible="1") == ["cuda:1"]
    assert device_slots(visible="") == ["cpu"]
