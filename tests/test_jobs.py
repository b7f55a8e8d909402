import threading
from pathlib import Path

import pytest

from studio.jobs import Job, JobError, JobQueue, JobState


@pytest.fixture
def queue(tmp_path: Path) -> JobQueue:
    return JobQueue(tmp_path / "studio.db")


def ended(queue: JobQueue, run_id: str, state: JobState = JobState.FAILED, reason: str = "why") -> Job:
    job = queue.submit(run_id, "train")
    taken = queue.take("cpu")
    assert taken is not None and taken.id == job.id
    queue.end(job.id, state, reason)
    return queue.job(job.id)


def test_a_job_is_on_disk_as_it_was_submitted(queue):
    job = queue.submit("orbit-0001", "train")
    assert (job.state, job.kind, job.resume, job.device, job.pid) == (JobState.QUEUED, "train", False, None, None)
    assert JobQueue(queue.db).job(job.id) == job


def test_running_then_queued_in_order_then_ended_newest_first(queue):
    first_ended, second_ended = ended(queue, "a"), ended(queue, "b")
    running, waits, waits_longer = (queue.submit(run, "train") for run in "cde")
    assert queue.take("cpu").id == running.id
    ids = [job.id for job in queue.jobs()]
    assert ids == [running.id, waits.id, waits_longer.id, second_ended.id, first_ended.id]


def test_move_changes_places_and_stops_at_the_ends(queue):
    a, b, c = (queue.submit(run, "train").id for run in "abc")
    queue.move(c, -1)
    assert [job.id for job in queue.jobs()] == [a, c, b]
    queue.move(a, 1)
    assert [job.id for job in queue.jobs()] == [c, a, b]
    queue.move(c, -1)
    queue.move(b, 1)
    assert [job.id for job in queue.jobs()] == [c, a, b]
    assert queue.take("cpu").id == c


def test_only_waiting_jobs_move(queue):
    job = queue.submit("a", "train")
    queue.take("cpu")
    with pytest.raises(JobError, match="does not wait"):
        queue.move(job.id, 1)


def test_cancel_ends_a_waiting_job_and_asks_a_running_one(queue):
    waiting, running = queue.submit("a", "train"), queue.submit("b", "train")
    assert queue.cancel(waiting.id).state is JobState.CANCELLED
    assert queue.take("cpu").id == running.id
    asked = queue.cancel(running.id)
    assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
    queue.end(running.id, JobState.FINISHED, "")
    over = queue.cancel(running.id)
    assert over.state is JobState.FINISHED


def test_a_run_has_one_open_job(queue):
    queue.submit("a", "train")
    with pytest.raises(JobError, match="run a is in the queue already"):
        queue.submit("a", "train")
    queue.cancel(1)
    assert queue.submit("a", "train").state is JobState.QUEUED


def test_retry_resumes_where_there_is_a_checkpoint(queue, tmp_path):
    fresh, saved = ended(queue, "fresh"), ended(queue, "saved", JobState.INTERRUPTED)
    (tmp_path / "runs" / "saved" / "checkpoints" / "step-000010").mkdir(parents=True)
    again = queue.retry(fresh.id)
    assert (again.run_id, again.resume, again.state) == ("fresh", False, JobState.QUEUED)
    assert queue.retry(saved.id).resume is True
    assert queue.job(saved.id).state is JobState.INTERRUPTED
    with pytest.raises(JobError, match="is queued"):
        queue.retry(again.id)


def test_remove_refuses_a_running_job(queue):
    job = queue.submit("a", "train")
    queue.take("cpu")
    with pytest.raises(JobError, match="is running"):
        queue.remove(job.id)
    queue.end(job.id, JobState.FINISHED, "")
    queue.remove(job.id)
    assert queue.jobs() == []
    with pytest.raises(JobError, match="no job 1"):
        queue.job(job.id)


def test_an_id_is_never_given_twice(queue):
    first = queue.submit("a", "train")
    queue.remove(first.id)
    assert queue.submit("a", "train").id > first.id


def test_a_device_takes_one_job_at_a_time(queue):
    queue.submit("a", "train")
    queue.submit("b", "train")
    assert queue.take("cpu") is not None
    assert queue.take("cpu") is None
    assert queue.take("cuda:0").run_id == "b"


def test_an_ended_job_stays_as_it_ended(queue):
    job = ended(queue, "a", JobState.FAILED, "no memory")
    queue.end(job.id, JobState.FINISHED, "")
    queue.set_process(job.id, 12, 34.0)
    assert queue.job(job.id) == job


def test_last_of_gives_the_newest_job_of_a_run(queue):
    assert queue.last_of("a") is None
    ended(queue, "a")
    newest = queue.submit("a", "train")
    ended_other = queue.submit("b", "train")
    assert queue.last_of("a").id == newest.id
    assert queue.last_of("b").id == ended_other.id


def test_no_job_is_taken_twice(queue):
    count = 24
    for number in range(count):
        queue.submit(f"run-{number}", "train")
    taken: list[int] = []

    def work(device: str) -> None:
        own = JobQueue(queue.db)
        while (job := own.take(device)) is not None:
            taken.append(job.id)
            own.end(job.id, JobState.FINISHED, "")

    threads = [threading.Thread(target=work, args=(f"cuda:{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, count + 1))
    assert {job.state for job in queue.jobs()} == {JobState.FINISHED}


def test_a_file_that_is_no_job_list_is_named(tmp_path):
    db = tmp_path / "studio.db"
    db.write_text("not a database, but long enough to be read as the header of one" * 20)
    with pytest.raises(JobError, match=r"studio\.db cannot be used"):
        JobQueue(db)
