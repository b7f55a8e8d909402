import json
from dataclasses import replace
from pathlib import Path

import pytest

from studio import progress
from studio.jobs import Job, JobState
from studio.progress import (
    MEASURE_COLOURS,
    MEASURES,
    RunReader,
    best_step,
    log_tail,
    loss_table,
    mean_motion,
    measure_means,
    measure_table,
    samples,
    status,
)
from trainers.events import EventLog
from trainers.runs import RunFolder

JOB = Job(
    id=1, run_id="a", kind="train", state=JobState.RUNNING, resume=False, device="cpu", pid=1, pid_started=1.0,
    created=90.0, started=99.0, ended=None, reason="", cancel_requested=False,
)  # fmt: skip


def started(step=0, total=1200, time=100.0):
    return {"type": "run_started", "time": time, "step": step, "max_train_steps": total, "family": "f", "method": "m",
            "resumed": step > 0, "pid": 1}  # fmt: skip


def phase(name, done=None, total=None):
    return {"type": "phase", "time": 101.0, "phase": name, "done": done, "total": total}


def step(number, loss=1.0, seconds=1.4):
    return {"type": "step", "time": 102.0, "step": number, "loss": loss, "learning_rate": 1e-4,
            "seconds_per_step": seconds}  # fmt: skip


def validation(number, loss):
    return {"type": "validation", "time": 103.0, "step": number, "validation_loss": loss}


def sample(number, path, seconds=2.0):
    return {"type": "sample", "time": 104.0, "step": number, "path": path, "prompt": "p", "seed": 1, "take": "base",
            "strength": 1.0, "seconds": seconds}  # fmt: skip


def measure(number, prompt="p", motion=0.01, change=0.25, new=0.5, style=0.1):
    return {"type": "measure", "time": 104.5, "step": number, "take": "t", "prompt": prompt, "seed": 1,
            "motion": motion, "motion_change": change, "new_motion": new, "style": style}  # fmt: skip


def checkpoint(number):
    return {"type": "checkpoint", "time": 105.0, "step": number, "path": f"checkpoints/step-{number:06d}", "best": True}


def finished(status="finished", reason="", time=300.0):
    return {"type": "run_finished", "time": time, "status": status, "reason": reason}


def ended(state, reason="", **changes):
    return replace(JOB, state=state, reason=reason, ended=291.0, **changes)


# --- the status line


@pytest.mark.parametrize(
    ("events", "line"),
    [
        ([], "starting"),
        ([started(), phase("loading")], "loading"),
        ([started(), phase("encoding", 12, 38)], "encoding 12 of 38 clips"),
        ([started(), phase("training"), step(744)], "training, step 744 of 1200, 1.4 s/step, 11 min left"),
        ([started(), phase("training"), step(1190, seconds=0.02)], "training, step 1190 of 1200, 50 steps/s, 0 s left"),
        ([started(), step(500), phase("sampling", 2, 8)], "sampling 2 of 8 clips"),
        ([started(), step(500), phase("saving", 500, 1200)], "saving at step 500 of 1200"),
        ([started(), step(1200), finished()], "ending: its processes are being waited for"),
    ],
)
def test_line_of_a_running_job(events, line):
    assert status(events, JOB).line == line


def test_status_has_the_numbers_of_its_line():
    found = status([started(), phase("training"), step(740, seconds=2.0), step(744, seconds=2.0)], JOB)
    assert (found.state, found.phase, found.step, found.total) == (JobState.RUNNING, "training", 744, 1200)
    assert found.seconds_per_step == 2.0
    assert found.seconds_left == 2.0 * (1200 - 744)


def test_one_slow_step_does_not_move_the_speed():
    events = [started(), *(step(n, seconds=1.0) for n in range(1, 10)), step(10, seconds=90.0)]
    assert status(events, JOB).seconds_per_step == 1.0


def test_what_an_earlier_job_wrote_is_not_taken_for_this_one():
    events = [started(time=50.0), step(10), finished("failed", "no memory", time=60.0)]
    assert status(events, JOB).line == "starting"
    assert status(events, replace(JOB, state=JobState.QUEUED, started=None, device=None)).line == (
        "waits for a free device"
    )


def test_line_of_a_waiting_job():
    queued = replace(JOB, state=JobState.QUEUED, started=None)
    assert status([], queued).line == "waits for cpu"
    assert "last checkpoint" in status([], replace(queued, resume=True)).line


def test_line_of_a_stopping_job():
    found = status([started(), step(7)], replace(JOB, cancel_requested=True))
    assert found.line == "stopping at step 7 of 1200: saves what is trained, then ends"


def test_lines_of_ended_jobs():
    events = [started(), step(744), validation(700, 0.5), validation(744, 0.6), checkpoint(700)]
    assert status(events, ended(JobState.FINISHED)).line == "finished in 3 min 12 s, best at step 700"
    assert status(events, ended(JobState.FAILED, "no memory")).line == "failed: no memory"
    assert status(events, ended(JobState.CANCELLED)).line == "cancelled at step 744 of 1200"
    assert status(events, ended(JobState.INTERRUPTED)).line == (
        "interrupted at step 744 of 1200; it can go on from step 700"
    )
    assert "before anything was saved" in status([started(), step(3)], ended(JobState.INTERRUPTED)).line


def test_a_comparison_counts_clips():
    job = replace(JOB, kind="sample")
    events = [started(total=0), phase("sampling", 3, 9), sample(0, "samples/a.mp4", seconds=20.0)]
    found = status(events, job)
    assert found.line == "sampling 3 of 9 clips, 2 min left"
    assert (found.step, found.total, found.seconds_left) == (None, None, 120.0)
    done = ended(JobState.FINISHED, "9 clips, 4 new and 5 from the cache", kind="sample")
    assert status(events, done).line == "finished in 3 min 12 s: 9 clips, 4 new and 5 from the cache"


def test_without_a_job_the_log_alone_is_believed():
    assert status([], None).line == "not started"
    assert status([started(), step(5), finished(time=292.0)], None).line == "finished in 3 min 12 s"
    unknown = status([started(), step(5)], None)
    assert unknown.state is None
    assert unknown.line == "not in the queue; its log ends at step 5 of 1200"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (192, "3 min 12 s"), (3600, "1 h"), (7530, "2 h 6 min")],
)
def test_duration(seconds, text):
    assert progress.duration(seconds) == text


# --- resumed runs


def test_steps_after_a_later_start_are_void():
    events = [
        started(), validation(0, 1.0), step(10, 0.9), checkpoint(10), validation(10, 0.8), step(20, 0.1),
        validation(20, 0.1), sample(20, "samples/step-000020/0.mp4"), started(step=10), step(20, 0.7),
        validation(20, 0.6),
    ]  # fmt: skip
    table = loss_table(events)
    assert table[table.series == "loss"][["step", "loss"]].values.tolist() == [[10, 0.9], [20, 0.7]]
    assert table[table.series == "validation"]["loss"].tolist() == [1.0, 0.8, 0.6]
    assert samples(events) == []
    assert best_step(events) == 20
    assert status(events[:9], JOB).step == 10


def test_best_step_is_the_earliest_of_equals_and_needs_a_validation():
    assert best_step([validation(0, 0.9), validation(10, 0.5), validation(20, 0.5), validation(30, None)]) == 10
    assert best_step([started(), step(1)]) is None


# --- the table


def test_loss_table_leaves_out_what_was_not_finite():
    table = loss_table([started(), step(1, 0.5), step(2, None), step(3, 0.3)])
    assert table[table.series == "loss"]["step"].tolist() == [1, 3]


def test_loss_table_of_nothing_has_its_columns():
    table = loss_table([])
    assert list(table.columns) == ["step", "loss", "series"] and table.empty


def test_smoothed_is_the_exponential_average_from_the_first_loss_on():
    table = loss_table([step(1, 4.0), step(2, 2.0)], smoothing=0.5)
    smoothed = table[table.series == "smoothed"]["loss"].tolist()
    assert smoothed == pytest.approx([4.0, (0.25 * 4.0 + 0.5 * 2.0) / 0.75])


def test_each_series_is_thinned_from_first_to_last():
    table = loss_table([step(n, float(n)) for n in range(1, 5001)] + [validation(100, 1.0)], max_points=100)
    for name in ("loss", "smoothed"):
        steps = table[table.series == name]["step"].tolist()
        assert len(steps) == 100 and steps[0] == 1 and steps[-1] == 5000 and steps == sorted(set(steps))
    assert len(table[table.series == "validation"]) == 1


def test_of_samples_with_one_path_the_last_counts():
    again = sample(0, "samples/step-000000/0.mp4", seconds=9.0)
    found = samples([sample(0, "samples/step-000000/0.mp4"), sample(10, "samples/step-000010/0.mp4"), again])
    assert [(event["step"], event["seconds"]) for event in found] == [(0, 9.0), (10, 2.0)]


# --- files


def curve(table, name):
    rows = table[table["series"] == name]
    return list(zip(rows["step"], rows["value"].round(6), strict=True))


def test_measures_are_means_over_the_prompts_by_step():
    events = [
        started(),
        measure(20, "p"),
        measure(0, "p", change=0, style=0),
        measure(0, "q", change=0, style=0, new=1),
    ]
    events += [measure(20, "q", change=0.75, new=0.9, style=0.3)]
    table = measure_table(events)
    assert curve(table, "new motion") == [(0, 0.75), (20, 0.7)]
    assert curve(table, "old motion kept") == [(0, 1.0), (20, 0.5)]
    assert curve(table, "style drift") == [(0, 0.0), (20, 0.2)]
    assert set(MEASURES) == set(MEASURE_COLOURS)
    assert measure_table([started()]).empty


def test_equal_prompts_from_different_images_count_each():
    events = [started(), {**measure(0, new=0.2), "row": 0}, {**measure(0, new=0.8), "row": 1}]
    events += [{**measure(0, new=0.4), "row": 0}]  # drawn again
    assert curve(measure_table(events), "new motion") == [(0, 0.6)]


def test_what_is_not_known_is_left_out_of_the_means():
    one_frame = measure(0, motion=None, change=None, new=None, style=0.2)
    assert set(measure_table([one_frame])["series"]) == {"style drift"}
    assert measure_means([one_frame, measure(0, style=None)]) == {
        "new motion": 0.5, "old motion kept": 0.75, "style drift": 0.2,
    }  # fmt: skip
    assert measure_means([]) == {"new motion": None, "old motion kept": None, "style drift": None}
    assert mean_motion([one_frame]) is None and mean_motion([one_frame, measure(0, motion=0.03)]) == 0.03


def test_measures_of_steps_that_a_resumed_run_made_void_are_gone():
    events = [started(), measure(0), measure(20, new=0.1), measure(40), started(20), measure(20, new=0.3)]
    assert curve(measure_table(events), "new motion") == [(0, 0.5), (20, 0.3)]


def test_reader_goes_on_where_it_was(tmp_path: Path):
    folder = RunFolder(tmp_path)
    reader = RunReader(folder)
    assert reader.events() == []
    log = EventLog(folder.events)
    log.write("message", level="info", text="one")
    assert [event["text"] for event in reader.events()] == ["one"]
    with folder.events.open("a") as file:
        file.write('{"type": "message", "level"')
    assert len(reader.events()) == 1
    with folder.events.open("a") as file:
        file.write(': "info", "text": "two"}\n')
    assert [event["text"] for event in reader.events()] == ["one", "two"]


def test_reader_begins_again_with_a_new_log_even_a_longer_one(tmp_path: Path):
    folder = RunFolder(tmp_path)
    reader = RunReader(folder)
    folder.events.write_text(json.dumps(started(time=1.0)) + "\n")
    reader.events()
    folder.events.write_text(json.dumps(started(time=2.0)) + "\n" + json.dumps(step(1)) + "\n")
    assert [event["type"] for event in reader.events()] == ["run_started", "step"]
    assert reader.events()[0]["time"] == 2.0
    folder.events.unlink()
    assert reader.events() == []


def test_log_tail_is_what_a_terminal_would_show(tmp_path: Path):
    folder = RunFolder(tmp_path)
    assert log_tail(folder) == ""
    folder.log.write_bytes(b"loading\n  0%\r 50%\r100%\n\x1b[31mred\x1b[0m \xff\nlast\r\n")
    assert log_tail(folder) == "loading\n100%\nred \ufffd\nlast"
    assert log_tail(folder, 1) == "last"


def test_log_tail_reads_only_the_end_of_a_long_log(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.log.write_text("\n".join(f"line {n:06d}" for n in range(20000)))
    tail = log_tail(folder, 100000).split("\n")
    assert tail[-1] == "line 019999" and len(tail) < 10000 and all(len(line) == 11 for line in tail)
