"""The Train tab: what it shows of a run, what its buttons do, and that nothing is sent when nothing happened."""

from __future__ import annotations

import inspect
import json
import time
from types import SimpleNamespace

import gradio as gr
import pandas as pd
import pytest

from studio import progress, ui
from studio.access import Access
from studio.jobs import JobError, JobQueue, JobState
from studio.parts.lists import head, head_value, job_list, jobs_value
from studio.parts.runs import Runs, find
from studio.tabs import train
from studio.worker import Worker
from studio.workspace import Workspace, WorkspaceError
from trainers.events import EventLog
from trainers.families import parse_config, parse_sample_config

PROMPTS = ["a red circle", "a blue square"]


def config(workspace, steps=60, prompts=PROMPTS, **validation):
    return parse_config(
        {
            "family": "animatediff",
            "method": "motion_module",
            "base_model": str(workspace.models / "tiny"),
            "max_train_steps": steps,
            "dataset": {"path": str(workspace.root / "datasets" / "none"), "height": 32, "width": 64},
            "validation": {"prompts": prompts, "every_steps": 20, **validation},
        }
    )


def sampled(folder, log, step):
    """The events and files of the samples at a step."""
    for row, prompt in enumerate(PROMPTS):
        file = folder.sample_dir(step) / f"{row:03d}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"no video is read by the page")
        path = file.relative_to(folder.path).as_posix()
        take = f"step-{step:06d}" if step else "base"
        log.write("sample", step=step, path=path, prompt=prompt, seed=42, take=take, strength=1.0, seconds=1.0)
        measured = {"motion": 0.01, "motion_change": step / 100, "new_motion": 0.4 + step / 200, "style": step / 400}
        log.write("measure", step=step, take=take, prompt=prompt, seed=42, **measured)


def checkpointed(folder, log, step, loss):
    with folder.new_checkpoint(step) as writing:
        (writing / "meta.json").write_text(json.dumps({"step": step, "validation_loss": loss}))
    log.write("checkpoint", step=step, path=f"checkpoints/step-{step:06d}", best=True)


def trained(workspace, title="orbit", upto=40):
    """A run folder as a trainer leaves it after `upto` of 60 steps."""
    folder = workspace.new_run(config(workspace), title)
    log = EventLog(folder.events)
    log.write(
        "run_started", step=0, max_train_steps=60, family="animatediff", method="motion_module", resumed=False, pid=1
    )
    log.write("phase", phase="training", done=0, total=60)
    for step in range(0, upto + 1, 20):
        if step:
            log.write("step", step=step, loss=1.0 / step, learning_rate=1e-3, seconds_per_step=0.5)
        log.write("validation", step=step, validation_loss=0.5 if step == 20 else 0.6)
        sampled(folder, log, step)
        if step:
            checkpointed(folder, log, step, 0.5 if step == 20 else 0.6)
    log.close()
    return folder


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "ws")


@pytest.fixture
def queue(workspace):
    return JobQueue(workspace.db)


def over(queue, folder, state, reason=""):
    queue.submit(folder.id, "train")
    job = queue.take("cpu")
    queue.end(job.id, state, reason)
    return job


def labels(workspace, queue, run, config=None):
    """label -> enabled, of the buttons that are shown for a run."""
    entries = Runs(workspace, queue).entries()
    waiting = [entry.id for entry in entries if entry.queued]
    shown = train.actions(find(entries, run), waiting, config)
    return {action.label: action.enabled for action in shown.values() if action.label}


# --- which run --------------------------------------------------------------------------------------------------------


def test_the_running_run_is_shown_at_first_and_a_choice_holds(workspace, queue):
    running, newest = trained(workspace, "first"), trained(workspace, "second")
    assert train.run_to_show(Runs(workspace, queue).entries(), None, None) == newest.id
    queue.submit(running.id, "train")
    queue.take("cpu")
    entries = Runs(workspace, queue).entries()
    assert train.run_to_show(entries, None, None) == running.id
    assert train.run_to_show(entries, newest.id, running.id) == newest.id
    assert train.run_to_show(entries, None, newest.id) == newest.id, "what is looked at does not jump away"
    assert train.run_to_show(entries, "gone-0009", None) == running.id


def test_the_list_has_each_run_once_with_its_newest_job(workspace, queue):
    ended, waits, saved = trained(workspace, "ended"), trained(workspace, "waits"), trained(workspace, "saved")
    first = over(queue, ended, JobState.FAILED, "out of memory")
    queue.submit(waits.id, "train")
    queue.retry(first.id)
    entries = Runs(workspace, queue).entries()
    assert [entry.id for entry in entries] == [waits.id, ended.id, saved.id]
    assert [entry.ahead for entry in entries] == [0, 1, 0]
    value = jobs_value(entries, waits.id, "")
    assert [job["group"] for job in value["jobs"]] == ["Queue", "Queue", "Not in the queue"]
    assert "behind 1 other run" in value["jobs"][1]["line"]


def test_a_job_whose_folder_is_gone_is_still_listed(workspace, queue):
    queue.submit("moved-0003", "train")
    assert [entry.id for entry in Runs(workspace, queue).entries()] == ["moved-0003"]


# --- buttons ----------------------------------------------------------------------------------------------------------


def test_buttons_of_a_running_run(workspace, queue):
    folder = trained(workspace)
    job = queue.submit(folder.id, "train")
    queue.take("cpu")
    with_prompts = config(workspace)
    shown = labels(workspace, queue, folder.id, with_prompts)
    assert shown == {"Compare takes": True, "Sample now": True, "Save now": True, "Stop and save": True}
    shown = labels(workspace, queue, folder.id, config(workspace, prompts=[]))
    assert shown["Sample now: no validation prompts"] is False
    queue.cancel(job.id)
    assert labels(workspace, queue, folder.id, with_prompts) == {"Compare takes": True, "Stopping": False}


def test_buttons_of_waiting_runs_say_why_they_cannot_move(workspace, queue):
    runs = [workspace.new_run(config(workspace), title) for title in ("a", "b")]
    for folder in runs:
        queue.submit(folder.id, "train")
    first, last = (labels(workspace, queue, folder.id) for folder in runs)
    assert first["Move up: already first"] is False and first["Move down"] is True
    assert last["Move up"] is True and last["Move down: already last"] is False
    assert first["Compare takes: no checkpoint yet"] is False
    assert "Cancel this run" in first


@pytest.mark.parametrize(
    ("state", "label"),
    [
        (JobState.INTERRUPTED, "Resume from step 40"),
        (JobState.CANCELLED, "Resume from step 40"),
        (JobState.FAILED, "Resume from step 40"),
        (JobState.FINISHED, None),
    ],
)
def test_an_ended_run_resumes_unless_it_is_finished(workspace, queue, state, label):
    folder = trained(workspace)
    over(queue, folder, state)
    shown = labels(workspace, queue, folder.id)
    starts = [text for text in shown if text.startswith(("Resume", "Start", "Queue"))]
    assert starts == ([label] if label else [])
    assert "Remove from queue" in shown


def test_a_saved_run_can_be_queued(workspace, queue):
    folder = workspace.new_run(config(workspace), "saved")
    assert "Queue this run" in labels(workspace, queue, folder.id)
    train.act("resume", workspace, queue, folder.id)
    assert queue.last_of(folder.id).state is JobState.QUEUED
    assert queue.last_of(folder.id).resume is False


def test_what_the_buttons_do(workspace, queue):
    folders = [trained(workspace, title) for title in ("a", "b")]
    for folder in folders:
        queue.submit(folder.id, "train")
    a, b = (folder.id for folder in folders)
    train.act("up", workspace, queue, b)
    assert [job.run_id for job in queue.jobs()] == [b, a]
    train.act("down", workspace, queue, b)
    assert [job.run_id for job in queue.jobs()] == [a, b]
    train.act("stop", workspace, queue, a)
    assert queue.last_of(a).state is JobState.CANCELLED
    train.act("resume", workspace, queue, a)
    assert queue.last_of(a).state is JobState.QUEUED and queue.last_of(a).resume is True
    train.act("stop", workspace, queue, a)
    train.act("remove", workspace, queue, a)
    assert [job.run_id for job in queue.jobs()] == [b], "every ended job of the run is removed"
    assert workspace.run(a).checkpoints(), "the run itself stays"
    assert train.act("save", workspace, queue, b) and train.act("sample", workspace, queue, b)
    assert [wish["act"] for wish in folders[1].wishes()[0]] == ["save", "sample"]
    with pytest.raises(JobError, match="choose a run"):
        train.act("stop", workspace, queue, None)


def test_a_star_is_written_for_the_trainer_to_see(workspace):
    folder = trained(workspace)
    train.star(workspace, folder.id, 20, True)
    assert folder.starred() == {20}
    shown = {take["step"]: take for take in train.run_takes(folder, running=False)["takes"]}
    assert list(shown) == [40, 20], "newest first"
    assert shown[20] == {"step": 20, "loss": "0.5", "marks": ["best"], "starred": True}
    assert shown[40] == {"step": 40, "loss": "0.6", "marks": ["last"], "starred": False}
    train.star(workspace, folder.id, 20, False)
    assert folder.starred() == set()
    with pytest.raises(WorkspaceError, match="step 30"):
        train.star(workspace, folder.id, 30, True)


def test_the_demo_is_one_press_away(workspace, queue):
    run = train.queue_demo(workspace, queue)
    assert queue.last_of(run).state is JobState.QUEUED
    assert train.read_config(workspace.run(run)).dataset.path == str(workspace.root / "datasets" / "orbit")


# --- samples and losses -----------------------------------------------------------------------------------------------


def test_samples_stand_by_step_and_prompt(workspace, queue):
    folder = trained(workspace)
    events = Runs(workspace, queue).events(folder)
    value = train.samples_value(workspace, folder, events, config(workspace), running=True)
    assert [column["label"] for column in value["columns"]] == ["base", "step 20", "step 40", "step 60"]
    assert value["columns"][-1]["sub"] == "to come"
    assert [row["prompt"] for row in value["rows"]] == PROMPTS
    for row, cells in enumerate(value["cells"]):
        names = [cell and cell["video"]["path"].rsplit("/", 2)[1:] for cell in cells]
        assert names == [[f"step-{step:06d}", f"{row:03d}.mp4"] for step in (0, 20, 40)] + [None]
    ended = train.samples_value(workspace, folder, events, config(workspace), running=False)
    assert [column["label"] for column in ended["columns"]] == ["base", "step 20", "step 40"]


def test_each_prompt_has_a_row_for_each_of_its_seeds(workspace, queue):
    """Files are numbered over both; of two equal prompts the number tells which."""
    folder = workspace.new_run(config(workspace, prompts=["x", "x", "y"], samples_per_prompt=2), "orbit")
    log = EventLog(folder.events)

    def sampled_as(step, number, prompt, seed):
        file = folder.sample_dir(step) / f"{number:03d}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"no video is read by the page")
        path = file.relative_to(folder.path).as_posix()
        log.write("sample", step=step, path=path, prompt=prompt, seed=seed, take="t", strength=1.0, seconds=1.0)

    for number, (prompt, seed) in enumerate([(p, s) for p in "xxy" for s in (42, 43)]):
        sampled_as(20, number, prompt, seed)
    for number, (prompt, seed) in enumerate([("y", 42), ("gone", 42)]):  # before the run went on with these prompts
        sampled_as(0, number, prompt, seed)
    now = train.read_config(folder)
    value = train.samples_value(workspace, folder, Runs(workspace, queue).events(folder), now, running=False)
    assert [(row["prompt"], row["seed"]) for row in value["rows"]] == [(p, s) for p in "xxy" for s in (42, 43)]
    names = [[cell and cell["video"]["path"].rsplit("/", 1)[1] for cell in cells] for cells in value["cells"]]
    assert [column["label"] for column in value["columns"]] == ["step 20", "base"]
    assert [row[0] for row in names] == [f"{number:03d}.mp4" for number in range(6)]
    assert [row[1] for row in names] == [None] * 4 + ["000.mp4", None], "by what it shows, not by its number"


def test_a_lost_sample_is_named_where_it_stood(workspace, queue):
    folder = trained(workspace)
    (folder.sample_dir(20) / "001.mp4").unlink()
    events = Runs(workspace, queue).events(folder)
    value = train.samples_value(workspace, folder, events, config(workspace), running=False)
    assert "001.mp4" in value["cells"][1][1]["error"]
    assert "video" in value["cells"][0][1]


def test_without_samples_the_wall_says_why(workspace, queue):
    folder = workspace.new_run(config(workspace), "new")
    assert "appear here" in train.samples_value(workspace, folder, [], config(workspace), True)["empty"]
    assert (
        "no validation prompts"
        in train.samples_value(workspace, folder, [], config(workspace, prompts=[]), True)["empty"]
    )


def test_a_plot_shows_what_has_moved_as_soon_as_there_is_a_line_to_draw(workspace, queue):
    runs, folder = Runs(workspace, queue), trained(workspace, "orbit", upto=0)
    _, seen, sent = look(runs, folder.id)
    assert sent["moved"]["visible"] is False and "measures" not in sent
    log = EventLog(folder.events)
    log.write("step", step=20, loss=0.1, learning_rate=1e-3, seconds_per_step=0.5)
    sampled(folder, log, 20)
    _, seen, sent = look(runs, folder.id, folder.id, seen)
    assert sent["moved"]["visible"] is True
    table = sent["measures"]["value"]
    assert set(table["series"]) == set(progress.MEASURES)
    kept = table[table["series"] == "old motion kept"]
    assert list(zip(kept["step"], kept["value"], strict=True)) == [(0, 1.0), (20, 0.8)]
    comparison = look(runs, folder.id, folder.id, seen)
    assert comparison[2] == {}, "nothing new, nothing sent"


def test_each_series_stands_in_the_first_table(workspace, queue):
    """Gradio's plot draws only the series that the first table had: one that comes later stands there without value."""
    table = pd.DataFrame({"step": [0, 20], "value": [0.0, 0.1], "series": ["style drift"] * 2})
    drawn = train.with_all(table, progress.MEASURES)
    assert set(drawn["series"]) == set(progress.MEASURES)
    assert drawn.loc[drawn["series"] != "style drift", "value"].isna().all()
    assert train.with_all(drawn, progress.MEASURES) is drawn


def test_plots_of_a_run_do_not_stay_beside_another(workspace, queue):
    """A comparison has no losses."""
    runs, folder = Runs(workspace, queue), trained(workspace)
    given = {"family": "animatediff", "base_model": str(workspace.models / "tiny"), "prompts": PROMPTS, "seeds": [1]}
    comparison = workspace.new_run(parse_sample_config(given), "takes")
    _, seen, sent = look(runs, folder.id)
    assert sent["plot"]["visible"] is True and sent["moved"]["visible"] is True
    _, seen, sent = look(runs, comparison.id, folder.id, seen)
    assert sent["plot"]["visible"] is False and sent["moved"]["visible"] is False
    _, _, sent = look(runs, folder.id, comparison.id, seen)
    assert sent["plot"]["visible"] is True and sent["moved"]["visible"] is True


# --- refreshing -------------------------------------------------------------------------------------------------------


def look(runs, chosen=None, shown=None, seen=None):
    """(shown, seen, name -> update) of a refresh; what is skipped is left out."""
    found = train.refresh(runs, chosen, shown, seen or {})
    updates = dict(zip(train.SHOWN, found[2:], strict=True))
    sent = {name: update for name, update in updates.items() if update != gr.skip()}
    return (
        shown if found[0] == gr.skip() else found[0],
        (seen or {}) if found[1] == gr.skip() else found[1],
        sent,
    )


def test_nothing_is_sent_when_nothing_happened(workspace, queue):
    runs = Runs(workspace, queue)
    folder = trained(workspace)
    queue.submit(folder.id, "train")
    queue.take("cpu")
    shown, seen, sent = look(runs)
    assert shown == folder.id
    assert set(sent) == set(train.SHOWN), "at first everything is sent"
    assert train.refresh(runs, None, shown, seen) == [gr.skip()] * (2 + len(train.SHOWN))


def test_only_what_changed_is_sent(workspace, queue):
    runs = Runs(workspace, queue)
    folder = trained(workspace)
    queue.submit(folder.id, "train")
    queue.take("cpu")
    shown, seen, _ = look(runs)
    log = EventLog(folder.events)
    log.write("step", step=45, loss=0.1, learning_rate=1e-3, seconds_per_step=0.5)
    shown, seen, sent = look(runs, None, shown, seen)
    assert "plot" in sent and "samples" not in sent and "takes" not in sent
    folder.wish("star", step=20)
    shown, seen, sent = look(runs, None, shown, seen)
    assert set(sent) == {"takes"}
    folder.log.write_text("loading\n")
    _, _, sent = look(runs, None, shown, seen)
    assert sent == {"log": "loading"}


def test_a_reload_shows_the_same(workspace, queue):
    folder = trained(workspace)
    over(queue, folder, JobState.FAILED, "the disk is full")
    first, again = look(Runs(workspace, queue)), look(Runs(workspace, queue))
    assert first[2]["head"] == again[2]["head"]
    assert "the disk is full" in first[2]["head"]["line"]
    assert first[2]["samples"] == again[2]["samples"]


def test_an_empty_page_says_what_belongs_here(workspace, queue):
    _, _, sent = look(Runs(workspace, queue))
    assert sent["demo"]["visible"] is True
    assert "demo" in sent["jobs"]["empty"]
    assert sent["training"]["visible"] is False


# --- the page ---------------------------------------------------------------------------------------------------------


READS = {"look", "look_anew", "pick", "compare"}


def test_every_handler_that_changes_something_is_the_owners(workspace, queue):
    access = Access([("owner", "secret")])
    demo = ui.build(workspace, queue, Worker(queue, workspace, ["cpu"]), access)
    handlers = {fn.fn.__name__: fn.fn for fn in demo.fns.values() if getattr(fn.fn, "__module__", "") == train.__name__}
    assert set(handlers) - READS == {"press", "demo", "toggle_star"}
    folder = trained(workspace)
    given = {"request": SimpleNamespace(username="guest"), "event": SimpleNamespace(run=folder.id, step=20, on=True)}
    for name in set(handlers) - READS:
        arguments = {key: given.get(key) for key in inspect.signature(handlers[name]).parameters}
        with pytest.raises(gr.Error, match="owner"):
            handlers[name](**arguments)
    assert not queue.jobs() and not folder.starred()


HOSTILE = "${alert(1)} {{7*7}} <img src=x onerror=\"document.title='hit'\"> `x` \\n \U0001f388"


@pytest.fixture(scope="module")
def small_page(tmp_path_factory):
    """A queue and a head that show hostile text, and what was picked last."""
    workspace = Workspace(tmp_path_factory.mktemp("ws"))
    queue = JobQueue(workspace.db)
    over(queue, trained(workspace), JobState.FAILED, HOSTILE)
    entries = Runs(workspace, queue).entries()
    with gr.Blocks() as demo:
        jobs, top, picked = job_list(), head("top"), gr.Textbox(elem_id="picked")

        def pick(event: gr.EventData):
            return event.run

        jobs.pick(pick, None, picked)
        values = (jobs_value(entries, None, ""), head_value(HOSTILE, HOSTILE, state="failed"))
        demo.load(lambda: values, None, [jobs, top])
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True)
    yield url
    demo.close()


@pytest.mark.browser
def test_text_is_shown_literally_and_a_run_is_picked(small_page, chromium):
    page = chromium.new_page()
    page.goto(small_page)
    page.wait_for_selector("#queue .job")
    assert page.locator("#queue .job .line").text_content() == f"failed: {HOSTILE}"
    page.wait_for_function("text => document.querySelector('#top .title').textContent === text", arg=HOSTILE)
    assert page.locator("#top .line").text_content() == HOSTILE
    assert page.title() != "hit" and page.locator("#queue img, #top img").count() == 0
    page.locator("#queue .job").click()
    deadline = time.monotonic() + 10
    while page.locator("#picked textarea").input_value() == "" and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    assert page.locator("#picked textarea").input_value() == "orbit-0001"
    page.close()
