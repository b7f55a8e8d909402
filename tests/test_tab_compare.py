"""The Compare tab: the wall of a comparison, the form that asks for one, and the wall itself in a browser."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

from studio import compare_form, ui
from studio.access import Access
from studio.comparisons import comparison_value, moved_value, take_columns
from studio.jobs import JobQueue, JobState
from studio.parts.runs import Runs, find
from studio.parts.wall import wall, wall_value
from studio.tabs import compare
from studio.worker import Worker
from studio.workspace import Workspace
from trainers.data.video import write_video
from trainers.events import EventLog
from trainers.families import FAMILIES, load_sample_config, parse_config, parse_sample_config
from trainers.settings import fields

PROMPTS = ["a red circle", "a blue square"]
OPENED = compare.OPENED


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    (workspace.models / "tiny").mkdir()
    (workspace.models / "tiny" / "model_index.json").write_text("{}")
    return workspace


@pytest.fixture
def queue(workspace):
    return JobQueue(workspace.db)


def run_config(workspace, **changes):
    return parse_config(
        {
            "family": "animatediff",
            "method": "motion_module",
            "base_model": str(workspace.models / "tiny"),
            "dataset": {"path": "somewhere", "num_frames": 12, "height": 32, "width": 64},
            "validation": {"prompts": PROMPTS, "seed": 7, "num_inference_steps": 9, "guidance_scale": 3, "fps": 6},
            **changes,
        }
    )


def trained(workspace, steps, title="orbit", best=None):
    """A run with checkpoints at `steps`."""
    folder = workspace.new_run(run_config(workspace), title)
    for step in steps:
        with folder.new_checkpoint(step) as writing:
            meta = {"step": step, "validation_loss": 0.1 if step == best else 0.5 + step / 10**6}
            (writing / "meta.json").write_text(json.dumps(meta))
    return folder


def sample_config(workspace, takes=(), **changes):
    given = {
        "family": "animatediff",
        "base_model": str(workspace.models / "tiny"),
        "checkpoints": [str(t) for t in takes],
    }
    return parse_sample_config({**given, "prompts": PROMPTS, "seeds": [1, 2], "height": 32, "width": 64, **changes})


def sample(folder, log, name, **values):
    """A sample event and its file."""
    file = folder.samples / f"{name}.mp4"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"no video is read by the page")
    given = {"step": 0, "prompt": PROMPTS[0], "seed": 1, "take": "base", "strength": 1.0, "seconds": 1.0}
    log.write("sample", path=f"samples/{name}.mp4", **{**given, **values})


def value_of(workspace, queue, folder):
    runs = Runs(workspace, queue)
    entry = find(runs.entries(), folder.id)
    return comparison_value(workspace, entry, runs.events(folder))


# --- the wall of a comparison -----------------------------------------------------------------------------------------


def test_columns_are_base_and_each_take_at_each_strength(workspace):
    run = trained(workspace, [100, 200], best=100)
    loose = workspace.root / "downloaded.safetensors"
    takes = [c.path for c in run.checkpoints()] + [loose]
    columns = take_columns(workspace, sample_config(workspace, takes, strengths=[0.5, 1]))
    seen = [(column["label"], column["sub"], column.get("mark")) for column in columns]
    assert seen == [
        ("base", "no take", None),
        ("orbit-0001 100", "strength 0.5", "best"),
        ("orbit-0001 100", "strength 1", "best"),
        ("orbit-0001 200", "strength 0.5", ""),
        ("orbit-0001 200", "strength 1", ""),
        ("downloaded", "strength 0.5", ""),
        ("downloaded", "strength 1", ""),
    ]
    assert len({column["key"] for column in columns}) == len(columns)


def test_cells_stand_where_their_events_say(workspace, queue):
    run = trained(workspace, [100])
    take = run.checkpoints()[0].path
    folder = workspace.new_run(sample_config(workspace, [take]), "orbit takes")
    log = EventLog(folder.events)
    sample(folder, log, "one", row=3, column=1, take=str(take), prompt=PROMPTS[1], seed=2)
    sample(folder, log, "two", prompt=PROMPTS[1], seed=1)  # an event that does not say where
    sample(folder, log, "three", take=str(take), seed=2)
    sample(folder, log, "beyond", row=9, column=0)
    queue.submit(folder.id, "sample")
    value = value_of(workspace, queue, folder)
    assert [(row["prompt"], row["seed"]) for row in value["rows"]] == [(p, s) for p in PROMPTS for s in (1, 2)]
    names = [[cell and Path(cell["video"]["path"]).stem for cell in row] for row in value["cells"]]
    assert names == [[None, None], [None, "three"], ["two", None], [None, "one"]]
    assert (value["frames"], value["fps"], value["width"], value["height"]) == (16, 8, 64, 32)
    assert value["pending"] == "waiting"


def measure(log, column, row, step=0, motion=0.01, change=0.0, new=None, style=0.0):
    prompt, seed = PROMPTS[row // 2], 1 + row % 2
    log.write(
        "measure", step=step, take="as the columns say", strength=1.0, prompt=prompt, seed=seed, column=column, row=row,
        motion=motion, motion_change=change, new_motion=new, style=style,
    )  # fmt: skip


def test_what_has_moved_stands_by_take_in_the_order_of_steps(workspace, queue):
    run = trained(workspace, [100, 200], best=100)
    late, early = (str(run.path / f"checkpoints/step-{step:06d}") for step in (200, 100))
    folder = workspace.new_run(sample_config(workspace, [late, early]), "orbit takes")
    runs, log = Runs(workspace, queue), EventLog(folder.events)

    def moved():
        return moved_value(workspace, find(runs.entries(), folder.id), runs.events(folder))["takes"]

    assert moved() == []
    for row in (0, 1):
        measure(log, 0, row)
        measure(log, 1, row, step=200, change=0.2 + 0.2 * row, style=0.5, new=0.8, motion=0.004)
        measure(log, 2, row, step=100, change=0.1, style=0.25)
    measure(log, 1, 1, step=200, change=0.6, style=0.5, new=0.9, motion=None)  # the comparison was started again
    measure(log, 7, 0)  # no such column
    takes = moved()
    assert [(take["label"], take["mark"]) for take in takes] == [
        ("base", ""), ("orbit-0001 100", "best"), ("orbit-0001 200", ""),
    ]  # fmt: skip
    bars = [{bar["name"]: bar["text"] for bar in take["bars"]} for take in takes]
    assert bars[0] == {"new motion": "", "old motion kept": "1.00", "style drift": "0.00"}
    assert bars[1] == {"new motion": "", "old motion kept": "0.90", "style drift": "0.25"}
    assert bars[2] == {"new motion": "0.85", "old motion kept": "0.60", "style drift": "0.50"}
    assert [take["moves"] for take in takes] == ["1 %", "1 %", "0.4 %"]
    (workspace.root / "runs" / folder.id / "config.yaml").write_text("family: nobody's")
    assert moved() == []


def test_the_card_appears_with_the_first_measure(workspace, queue):
    runs = Runs(workspace, queue)
    folder = workspace.new_run(sample_config(workspace), "base")
    shown, seen, *updates = compare.refresh(runs, None, {})
    assert dict(zip(compare.SHOWN, updates, strict=True))["moved"]["visible"] is False
    measure(EventLog(folder.events), 0, 0)
    updates = dict(zip(compare.SHOWN, compare.refresh(runs, shown, seen)[2:], strict=True))
    assert updates["moved"]["visible"] is True and updates["measures"]["takes"][0]["label"] == "base"


def test_a_comparison_that_ended_waits_for_nothing(workspace, queue):
    folder = workspace.new_run(sample_config(workspace), "base")
    log = EventLog(folder.events)
    sample(folder, log, "lost", row=0, column=0)
    (folder.samples / "lost.mp4").unlink()
    queue.submit(folder.id, "sample")
    queue.take("cpu")
    queue.end(queue.last_of(folder.id).id, JobState.FAILED, "out of memory")
    value = value_of(workspace, queue, folder)
    assert value["pending"] == "not sampled"
    assert "lost.mp4" in value["cells"][0][0]["error"]


def test_a_broken_config_is_said_where_the_wall_would_be(workspace, queue):
    folder = workspace.new_run(sample_config(workspace), "base")
    folder.config.write_text(folder.config.read_text() + "colour: red\n")
    value = value_of(workspace, queue, folder)
    assert "colour" in value["empty"] and not value["rows"]


# --- the form ---------------------------------------------------------------------------------------------------------


def test_the_form_begins_with_what_the_run_says(workspace):
    form = compare_form.form_of(FAMILIES["animatediff"], workspace)
    given = compare_form.settings_of(run_config(workspace), form.config_class)
    assert set(given) <= {path for path, _ in fields(form.config_class)}, "only settings of a comparison"
    config, problems = compare_form.checked_config(form, [], form.starting_values(given))
    assert problems == []
    assert (config.prompts, config.seeds, config.fps) == (PROMPTS, [7], 6)
    assert (config.num_frames, config.height, config.width) == (12, 32, 64)
    assert (config.num_inference_steps, config.guidance_scale) == (9, 3)
    assert config.base_model == str(workspace.models / "tiny")
    assert config.cache_dir == str(workspace.cache), "clips that were sampled before cost nothing"


def test_a_few_takes_are_all_chosen_of_many_the_telling_ones(workspace):
    few = trained(workspace, [100, 200, 300], "few")
    many = trained(workspace, range(100, 1100, 100), "many", best=400)
    many.wish("star", step=700)
    takes = workspace.takes()
    assert [Path(path).name for path in compare_form.takes_to_begin_with(takes, few.id)] == [
        f"step-{n:06d}" for n in (100, 200, 300)
    ]
    assert [Path(path).name for path in compare_form.takes_to_begin_with(takes, many.id)] == [
        f"step-{n:06d}" for n in (400, 700, 1000)
    ]
    assert compare_form.takes_to_begin_with(takes, None) == []
    assert {path for _, path in compare_form.take_choices(workspace, "animatediff")} == {
        str(take.path) for take in takes
    }
    assert compare_form.take_choices(workspace, "another") == []


def test_without_a_choice_the_newest_run_with_takes_is_offered(workspace, queue):
    older, newer = trained(workspace, [10], "older"), trained(workspace, [], "newer")
    entries = Runs(workspace, queue).entries()
    assert compare_form.run_to_begin_with(entries, None).id == older.id
    assert compare_form.run_to_begin_with(entries, newer.id).id == newer.id
    assert compare_form.run_to_begin_with([], None) is None


def test_a_kept_form_comes_back_only_for_its_run_and_a_known_family():
    kept = {
        "run": "orbit-0001",
        "family": "animatediff",
        "takes": None,
        "values": {"animatediff": {"prompts": "a ball"}},
    }
    draft = {"family": "animatediff", compare_form.DRAFT: kept}
    assert compare_form.left_off(draft, "orbit-0001") == kept
    assert compare_form.left_off(draft, "orbit-0002") == compare_form.left_off(draft, None) == {}
    assert compare_form.left_off({compare_form.DRAFT: {**kept, "family": "gone"}}, "orbit-0001") == {}
    assert compare_form.kept_form(None) == compare_form.kept_form({compare_form.DRAFT: "spoilt"}) == {}


def test_arriving_leaves_what_was_written_and_takes_in_what_is_new(workspace, queue):
    run = trained(workspace, [10])
    desk = compare.Desk(workspace, Runs(workspace, queue))

    def named(updates, *more):
        return dict(zip((*OPENED, *more), updates, strict=True))

    first = named(desk.fill(run.id, False, None, None))
    assert first["folded"]["open"], "nothing was compared yet"
    own = [str(checkpoint.path) for checkpoint in run.checkpoints()]
    assert (first["family"], first["own"], first["takes"]["value"]) == ("animatediff", own, own)
    kept = (first["filled"], own, own, None, None)
    again = named(desk.arrive(run.id, None, False, *kept), "fresh")
    for part in ("filled", "family", "pictures", "marks", "fresh"):
        assert again[part] == gr.skip(), "left alone"

    other = trained(workspace, [10], "another")
    with run.new_checkpoint(20) as writing:
        (writing / "meta.json").write_text('{"step": 20}')
    both = [str(checkpoint.path) for checkpoint in run.checkpoints()]
    joined = named(desk.arrive(run.id, None, False, *kept), "fresh")
    assert (joined["own"], joined["takes"]["value"]) == (both, both)
    assert joined["fresh"][1] == both, "the clips are counted again"
    chosen = named(desk.arrive(run.id, None, False, first["filled"], own, [], None, None), "fresh")
    assert "value" not in chosen["takes"], "who has chosen others keeps them"

    wish = {"run": other.id, "at": first["filled"]["at"] + 1}
    assert desk.arrive(run.id, wish, False, *kept) == [gr.skip()] * (1 + len(OPENED)), "left to what was asked for"
    begun = named(desk.begin(wish, *kept), "fresh")
    assert begun["filled"]["run"] == other.id and begun["folded"]["open"]
    wish["run"] = run.id
    assert named(desk.arrive(run.id, wish, False, *kept), "fresh")["takes"]["value"] == both


def test_another_familys_form_is_there_again_as_it_was_left(workspace, queue):
    run = trained(workspace, [10])
    runs = Runs(workspace, queue)
    desk = compare.Desk(workspace, runs)
    filled, own, *_ = desk.fill(run.id, False, None, None)
    wire = compare.Wire(SimpleNamespace(workspace=workspace), runs, FAMILIES["animatediff"])
    values = wire.form.merge(filled["values"], {"prompts": ["a green square"]})
    draft = wire.keep(own, filled, {"family": "mochi"}, own, [], *values)
    assert draft["family"] == "mochi", "what Configure keeps stays"
    switched = desk.switch("mochi", filled, None, draft, 1)
    there = dict(zip(OPENED, switched, strict=False))
    assert (there["family"], there["filled"]["family"], there["takes"]["value"]) == ("mochi", "mochi", [])
    back = dict(zip(OPENED, desk.switch("animatediff", there["filled"], None, switched[-1], 2), strict=False))
    assert back["filled"]["values"] == values
    assert back["takes"]["value"] == own


def test_without_a_comparison_the_head_says_what_there_is(workspace, queue):
    head = compare.refresh(Runs(workspace, queue), None, {})[2]
    count = len(workspace.takes())
    assert head["title"] == "No comparison yet"
    assert head["line"] == (f"{count} checkpoints to choose from." if count else compare.NO_TAKES)


def test_the_button_counts_what_it_will_do(workspace):
    form = compare_form.form_of(FAMILIES["animatediff"], workspace)

    def counted(takes, **given):
        return compare_form.count_line(
            form, takes, form.starting_values({"prompts": PROMPTS, "seeds": [1, 2, 3], **given})
        )

    label, line, possible = counted(["a", "b"], strengths=[0.5, 1.0])
    assert (label, possible) == ("Compare 5 takes", True)
    assert "5 takes x 2 prompts x 3 seeds = 30 clips" in line
    assert counted([])[0] == "Compare 1 take"
    assert counted([], include_base=False)[::2] == ("Compare: choose a take", False)
    assert counted(["a"], prompts=[])[::2] == ("Compare: write a prompt", False)
    assert counted(["a"], seeds=[])[::2] == ("Compare: write a seed", False)


@pytest.mark.parametrize(
    ("given", "where", "words"),
    [
        ({"height": 30}, "height", "multiple of 8"),
        ({"prompts": []}, "prompts", "at least 1"),
        ({"seeds": [-1]}, "seeds", "-1"),
        ({"base_model": "/nowhere/at/all"}, "base_model", "does not exist"),
        ({}, "checkpoints", "does not exist"),
    ],
)
def test_problems_name_their_field(workspace, given, where, words):
    form = compare_form.form_of(FAMILIES["animatediff"], workspace)
    values = form.starting_values({"prompts": PROMPTS, "base_model": str(workspace.models / "tiny"), **given})
    takes = [] if given else [str(workspace.root / "runs" / "gone-0001" / "checkpoints" / "step-000010")]
    config, problems = compare_form.checked_config(form, takes, values)
    assert config is None
    assert problems[0][0] == where and words in problems[0][1]


def test_a_comparison_is_queued_with_its_takes(workspace, queue):
    run = trained(workspace, [100, 200])
    takes = [str(checkpoint.path) for checkpoint in run.checkpoints()]
    form = compare_form.form_of(FAMILIES["animatediff"], workspace)
    values = form.starting_values(compare_form.settings_of(run_config(workspace), form.config_class))
    config, _ = compare_form.checked_config(form, takes, values)
    made = compare_form.queue_comparison(workspace, queue, config)
    assert made == "orbit-takes-0002"
    assert load_sample_config(workspace.run(made).config).checkpoints == takes
    assert queue.last_of(made).kind == "sample"
    queue.cancel(queue.last_of(made).id)
    compare.start_again(queue, made)
    assert queue.last_of(made).state is JobState.QUEUED


# --- refreshing -------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_when_nothing_happened_and_a_cell_when_one_came(workspace, queue):
    runs = Runs(workspace, queue)
    folder = workspace.new_run(sample_config(workspace), "base")
    queue.submit(folder.id, "sample")
    queue.take("cpu")
    shown, seen, *first = compare.refresh(runs, None, {})
    assert shown == folder.id and gr.skip() not in first
    assert compare.refresh(runs, shown, seen) == [gr.skip()] * (2 + len(compare.SHOWN))
    log = EventLog(folder.events)
    log.write("run_started", step=0, max_train_steps=0, family="animatediff", method="sample", resumed=False, pid=1)
    log.write("phase", phase="sampling", done=1, total=4)
    sample(folder, log, "one", row=0, column=0)
    updates = dict(zip(compare.SHOWN, compare.refresh(runs, shown, seen)[2:], strict=True))
    assert "sampling 1 of 4" in updates["head"]["line"] and updates["head"]["fraction"] == 0.25
    assert updates["wall"]["cells"][0][0]["video"] and updates["wall"]["cells"][1][0] is None
    assert updates["stop"] == gr.skip() and updates["earlier"] == gr.skip()


def test_earlier_comparisons_can_be_opened_again(workspace, queue):
    first, second = (workspace.new_run(sample_config(workspace), title) for title in ("one", "two"))
    runs = Runs(workspace, queue)
    assert compare.refresh(runs, None, {})[0] == second.id, "the newest at first"
    _, _, *updates = compare.refresh(runs, first.id, {})
    shown = dict(zip(compare.SHOWN, updates, strict=True))
    assert shown["earlier"]["value"] == first.id and shown["earlier"]["choices"] == [second.id, first.id]
    assert shown["wall"]["name"] == first.id


READS = {"open_page", "come", "begin", "look", "follow", "show", "switch", "count", "keep", "pictures", "offers"}
READS |= {"remove_image", "move_image", "draw"}


def test_every_handler_that_changes_something_is_the_owners(workspace, queue):
    page_of_a_guest = Access([("owner", "secret")])
    demo = ui.build(workspace, queue, Worker(queue, workspace, ["cpu"]), page_of_a_guest)
    handlers = {
        fn.fn.__name__: fn.fn for fn in demo.fns.values() if getattr(fn.fn, "__module__", "") == compare.__name__
    }
    page = SimpleNamespace(workspace=workspace, queue=queue, access=page_of_a_guest)
    wire = compare.Wire(page, Runs(workspace, queue), FAMILIES["cogvideox"])
    handlers |= dict(inspect.getmembers(wire, inspect.ismethod))  # those of the form, which is drawn for each visitor
    del handlers["__init__"]
    assert set(handlers) - READS == {"submit", "stop", "again", "add_files", "add_clip"}
    for name in set(handlers) - READS:
        parameters = inspect.signature(handlers[name]).parameters
        given = {key: None for key, p in parameters.items() if p.kind is not p.VAR_POSITIONAL}
        with pytest.raises(gr.Error, match="owner"):
            handlers[name](**{**given, "request": SimpleNamespace(username="guest")})
    assert not queue.jobs()


# --- the wall in a browser --------------------------------------------------------------------------------------------

HOSTILE = "${alert(1)} {{7*7}} <img src=x onerror=\"document.title='hit'\"> `x` 'y' \\n \\ \U0001f388"
FPS, FRAMES = 8, 16


@pytest.fixture(scope="module")
def wall_page(tmp_path_factory):
    """A page with a wall of three takes and two prompts, and a text box. Buttons bring a clip, and other words."""
    media = tmp_path_factory.mktemp("media")
    for name in range(6):
        frames = np.zeros((FRAMES, 32, 64, 3), np.uint8)
        for index in range(FRAMES):
            frames[index, :, : 4 * (index + 1)] = (40 * name + 50, 120, 200)
        write_video(media / f"{name}.mp4", frames, FPS)
    gr.set_static_paths([media])

    def value(count, text):
        clips = [
            {"video": {"path": str(media / f"{n}.mp4"), "meta": {"_type": "gradio.FileData"}}} for n in range(count)
        ]
        clips += [None] * (5 - count) + [{"error": text}]
        columns = [{"label": label, "sub": text, "mark": "best"} for label in ("base", text, "last")]
        rows = [{"prompt": text, "seed": 1}, {"prompt": "a plain one", "seed": 2}]
        return wall_value("w", columns, rows, [clips[:3], clips[3:]], fps=FPS, num_frames=FRAMES, height=32, width=64)

    with gr.Blocks() as demo:
        gr.Textbox(elem_id="note")
        more, reworded = gr.Button("more", elem_id="more"), gr.Button("reworded", elem_id="reworded")
        the_wall = wall(elem_id="wall")
        demo.load(lambda: value(4, HOSTILE), None, the_wall)
        more.click(lambda: value(5, HOSTILE), None, the_wall)
        reworded.click(lambda: value(5, HOSTILE + " again"), None, the_wall)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True)
    yield url
    demo.close()


def times(page):
    return page.eval_on_selector_all("#wall video", "videos => videos.map(video => video.currentTime)")


def all_at(page, frame):
    """Waits until every clip stands in the middle of a frame."""
    page.wait_for_function(
        "time => [...document.querySelectorAll('#wall video')].every("
        "video => !video.seeking && Math.abs(video.currentTime - time) < 1e-3)",
        arg=(frame + 0.5) / FPS,
    )


@pytest.fixture
def page(wall_page, chromium):
    page = chromium.new_page(viewport={"width": 1200, "height": 800})
    page.goto(wall_page)
    page.wait_for_function("[...document.querySelectorAll('#wall video')].filter(v => v.readyState >= 2).length === 4")
    yield page
    page.close()


@pytest.mark.browser
def test_text_on_the_wall_is_literal(page):
    def shows(text):
        assert page.locator("#wall .row-head b").first.text_content() == text
        assert page.locator("#wall .column-head b").nth(1).text_content() == text
        assert page.locator("#wall .column-head span").first.text_content() == text
        assert page.locator("#wall .cell[data-state=failed] .stage").text_content() == text

    shows(HOSTILE)
    assert page.locator("#wall .cell[data-state=waiting]").text_content() == "waiting"
    page.click("#reworded")
    page.wait_for_function("document.querySelectorAll('#wall video').length === 5")
    shows(HOSTILE + " again")
    assert page.locator("#wall img").count() == 0 and page.title() != "hit"


@pytest.mark.browser
def test_every_clip_shows_the_same_frame(page):
    all_at(page, 0)
    assert page.locator("#wall .timecode").text_content() == "frame 01 / 16"
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('#wall .wall').dataset.frame > 2")
    playing = times(page)
    assert max(playing) - min(playing) < 0.5 / FPS, "never off by more than half a frame"
    page.keyboard.press("Space")
    frame = int(page.get_attribute("#wall .wall", "data-frame"))
    all_at(page, frame)
    assert len(set(times(page))) == 1
    assert page.locator("#wall .timecode").text_content() == f"frame {frame + 1:02d} / 16"
    page.keyboard.press("Home")
    all_at(page, 0)
    for key, at in ((".", 1), (".", 2), (",", 1), (",", 0), (",", 15), (".", 0)):
        page.keyboard.press(key)
        all_at(page, at)
    page.locator("#wall .seek").fill("9")
    all_at(page, 9)
    page.locator("#wall .speed").select_option("0.25")
    assert page.eval_on_selector_all("#wall video", "videos => videos.map(v => v.playbackRate)") == [0.25] * 4


@pytest.mark.browser
def test_without_loop_playing_ends_on_the_last_frame(page):
    page.locator("#wall .seek").fill("12")
    page.get_by_label("Start again after the last frame").click()
    page.get_by_label("Play or pause (Space)").click()
    page.wait_for_function("document.querySelector('#wall .wall').dataset.playing === 'false'")
    all_at(page, FRAMES - 1)


@pytest.mark.browser
def test_keys_are_left_to_whoever_types(page):
    page.locator("#note textarea").click()
    page.keyboard.type("a. b, c")
    assert page.locator("#note textarea").input_value() == "a. b, c"
    all_at(page, 0)
    assert page.get_attribute("#wall .wall", "data-playing") == "false"


@pytest.mark.browser
def test_a_new_clip_joins_without_starting_the_others_again(page):
    page.eval_on_selector_all("#wall video", "videos => videos.forEach(video => { video.known = true; })")
    page.keyboard.press("Space")
    page.evaluate(
        "window.jumps = 0; "
        "document.querySelector('#wall video').addEventListener('emptied', () => { window.jumps += 1; })"
    )
    page.click("#more")
    page.wait_for_function("document.querySelectorAll('#wall video').length === 5")
    page.wait_for_function("[...document.querySelectorAll('#wall video')].every(v => !v.paused && v.readyState >= 2)")
    kept = page.eval_on_selector_all("#wall video", "videos => videos.map(v => v.known === true)")
    assert kept == [True] * 4 + [False] and page.evaluate("window.jumps") == 0
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    all_at(page, int(page.get_attribute("#wall .wall", "data-frame")))


@pytest.mark.browser
def test_a_clip_is_enlarged_and_stays_in_step(page):
    page.locator("#wall button.stage").nth(2).click()
    page.wait_for_selector("#wall dialog[open] video")
    assert page.locator("#wall dialog .large-title").text_content() == HOSTILE
    page.keyboard.press(".")
    all_at(page, 1)
    assert page.locator("#wall video").count() == 5
    page.keyboard.press("Escape")
    page.wait_for_function("document.querySelectorAll('#wall video').length === 4")
    assert page.locator("#wall .wall > .transport").count() == 1


@pytest.mark.browser
def test_on_a_phone_the_wall_scrolls_inside_itself(wall_page, chromium):
    page = chromium.new_page(viewport={"width": 400, "height": 500})
    page.goto(wall_page)
    page.wait_for_selector("#wall video")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    scroller = page.locator("#wall .scroller")
    assert scroller.evaluate("n => n.scrollWidth > n.clientWidth")
    assert page.locator("#wall .cell").first.bounding_box()["width"] >= 140, "cells stay readable"
    page.locator("#wall").evaluate("n => n.scrollIntoView()")
    scroller.evaluate("n => { n.scrollTop = n.scrollHeight; n.scrollLeft = n.scrollWidth; }")
    top = scroller.bounding_box()["y"]
    assert abs(page.locator("#wall .column-head").last.bounding_box()["y"] - top) < 2, "its heads stay"
    bar = page.locator("#wall .transport").bounding_box()
    assert bar["y"] >= -1 and bar["y"] + bar["height"] <= 500, "the transport stays in reach"
    page.close()
