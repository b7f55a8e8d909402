"""The Configure tab: what it says would start is what starts, and what would not is told where it can be mended."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image

import studio
from studio import run_form
from studio.forms import Form
from studio.jobs import JobQueue
from studio.run_form import (
    command,
    form_of,
    origins,
    preview,
    read_config,
    run_title,
    starting_values,
    values_from,
)
from studio.tabs.configure import headline
from studio.worker import launch_line
from studio.workspace import PROJECT, Workspace
from trainers.data.formats import webvid
from trainers.families import FAMILIES, load_config
from trainers.settings import ConfigError, to_yaml

DEMO_FAMILY = "animatediff"
FAMILY = FAMILIES[DEMO_FAMILY]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with the demo."""
    place = Workspace(tmp_path / "ws")
    place.add_demo()
    return place


@pytest.fixture
def form(workspace: Workspace) -> Form[Any]:
    return form_of(FAMILY, workspace)


def problems(form: Form[Any], values: list[Any], **given: Any) -> list[tuple[str, str]]:
    now = preview(form, FAMILY, form.merge(values, {path.replace("__", "."): value for path, value in given.items()}))
    assert not now.starts
    assert "would not start" in headline(now)
    return now.problems


def test_the_demo_would_start(workspace: Workspace, form: Form[Any]) -> None:
    now = preview(form, FAMILY, starting_values(form, workspace))
    assert now.starts, now.problems
    assert now.line == "12 of 12 clips used, 240 steps"
    assert "This run would start" in headline(now)
    assert now.config.dataset.cache_dir == str(workspace.cache)
    assert now.config == workspace.demo_config()


def test_images_are_looked_at_before_a_run_is_queued(workspace: Workspace, form: Form[Any], tmp_path: Path) -> None:
    """At their field: they cannot be read, they are too many, or the base model begins from none."""
    assert "validation.images" not in form.paths, "no model of this family begins from one"
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"in_channels": 32, "out_channels": 16}')
    family = FAMILIES["cogvideox"]
    other = form_of(family, workspace)
    given = {"base_model": str(tmp_path), "dataset.path": "x", "validation.prompts": ["x", "y"]}

    def said(images: list[str]) -> str:
        now = preview(other, family, other.starting_values({**given, "validation.images": images}))
        return next((text for where, text in now.problems if where == "validation.images"), "")

    assert said([str(tmp_path / "gone.png")]).startswith("Images cannot be used: ")
    assert said(["a", "b", "c"]) == "Images are 3 for 2 prompts; give one for each prompt, or a single one for all"
    assert "name an image in Images, or leave Validation prompts empty" in said([])
    image = tmp_path / "a.png"
    Image.new("RGB", (40, 30), "red").save(image)
    assert said([str(image)]) == said([str(image)] * 2) == ""
    (tmp_path / "transformer" / "config.json").write_text('{"in_channels": 16, "out_channels": 16}')
    assert said([str(image)]).startswith("Images are given, but CogVideoX with")


def test_a_pasted_config_is_told_that_images_reach_nothing() -> None:
    text = "family: animatediff\nmethod: lora\nbase_model: b\nvalidation: {images: [a.png]}\ndataset: {path: x}\n"
    assert ("warning", "validation.images is left out: AnimateDiff begins from no image") in read_config(text)[2]
    assert not [said for level, said in read_config(text.replace("[a.png]", "[]"))[2] if "images" in said]
    read_config(text.replace("{images: [a.png]}", "5"))


def test_each_problem_stands_at_the_field_to_mend(workspace: Workspace, form: Form[Any]) -> None:
    start = starting_values(form, workspace)
    empty = workspace.new_dataset("Empty")
    for given, where, part in (
        ({"base_model": "/no/such/model"}, "base_model", "does not exist"),
        ({"base_model": ""}, "base_model", "must be set"),
        ({"dataset__height": 250}, "dataset.height", "multiple of 8"),
        ({"dataset__num_frames": 40}, "dataset.num_frames", "16 positions"),
        ({"dataset__path": "/no/such/data"}, "dataset.path", "/no/such/data"),
        ({"dataset__path": str(empty.path)}, "dataset.path", "no clips yet"),
        ({"dataset__num_frames": 16, "dataset__frame_stride": 9}, "dataset.path", "None of the 12 clips can be used"),
        ({"motion_adapter": ""}, "motion_adapter", "must be set"),
        ({"optimizer__lr_warmup_steps": 999}, "optimizer.lr_warmup_steps", "only 240 steps"),
    ):
        found = problems(form, start, **given)
        assert found[0][0] == where, found
        assert part in found[0][1], found
        assert where in form.paths
        assert form.marks(start, found).problems[where] == found[0][1]


def test_clips_that_are_left_out_are_named(workspace: Workspace, form: Form[Any], tiny_dataset: Path) -> None:
    shutil.copytree(tiny_dataset, workspace.root / "datasets" / "mixed")
    dataset = workspace.dataset("mixed")
    dataset.add(workspace.dataset("orbit").file(workspace.dataset("orbit").clips[0]))
    given = {"dataset.path": str(dataset.path), "dataset.num_frames": 16}
    values = form.merge(starting_values(form, workspace, "orbit"), given)
    now = preview(form, FAMILY, form.merge(values, {"dataset.frame_stride": 1}))
    assert now.starts
    assert now.line == "1 of 4 clips used, 240 steps"
    left_out = [text for _, text in now.remarks if text.startswith("Left out")]
    assert len(left_out) == 3
    for clip in dataset.clips[:3]:
        assert any(clip.name in text for text in left_out)


@pytest.fixture
def table(workspace: Workspace, tmp_path: Path) -> Path:
    """The demo's clips as somebody else has them: a folder of videos and a CSV file, outside the workspace."""
    return webvid.write(workspace.dataset("orbit"), tmp_path / "theirs")


def test_videos_are_used_where_they_lie(workspace: Workspace, form: Form[Any], table: Path) -> None:
    with table.open("a") as rows:
        rows.write("not there,gone.mp4\n")
    values = form.merge(
        starting_values(form, workspace),
        {
            "dataset.path": str(table),
            "dataset.format": "webvid",
            "dataset.video_folder": str(table.parent / "videos"),
            "dataset.repeats": 4,
            "dataset.frame_selection": "first",
            "dataset.num_frames": 8,
            "dataset.frame_stride": 1,
        },
    )
    now = preview(form, FAMILY, values)
    assert now.problems == []
    assert now.line == "12 of 13 clips used, each 4 times in a pass, 240 steps"
    told = [text for _, text in now.remarks]
    assert any(text.startswith("Left out: gone.mp4 is missing: there is no file") for text in told)
    assert sum("never seen: frames 8 to" in text for text in told) == 8
    assert "Of 4 more clips there is the like to say." in told
    assert not list(table.parent.rglob("*.webp"))
    assert now.config.dataset.format == "webvid"


def test_what_is_wrong_with_a_table_stands_at_its_field(workspace: Workspace, form: Form[Any], table: Path) -> None:
    start = form.merge(starting_values(form, workspace), {"dataset.format": "webvid"})
    gone = str(table.parent / "gone")
    headless = table.with_name("headless.csv")
    headless.write_text("".join(table.read_text().splitlines(keepends=True)[1:]))
    for given, where, part in (
        ({"dataset__path": f"{gone}.csv"}, "dataset.path", f"CSV file {gone}.csv cannot be read: it does not exist"),
        ({"dataset__path": str(headless)}, "dataset.path", "needs the columns name and contentUrl (or videoid)"),
        ({"dataset__path": str(table)}, "dataset.video_folder", "set Video folder to the folder of the videos"),
        ({"dataset__path": str(table), "dataset__video_folder": gone}, "dataset.video_folder", "does not exist"),
        (
            {"dataset__format": "list", "dataset__videos": "a\nb", "dataset__prompts": ""},
            "dataset.prompts",
            "0 prompts",
        ),
    ):
        found = problems(form, start, **given)
        assert found[0][0] == where, found
        assert part in found[0][1], found
        assert form.marks(form.merge(start, {}), found).problems[where] == found[0][1]


def test_a_dataset_of_the_hub_is_left_to_the_run(workspace: Workspace, form: Form[Any]) -> None:
    """The page neither waits for a network nor says that what may be there is not."""
    given = {"dataset.path": "somebody/clips", "dataset.format": "hub"}
    now = preview(form, FAMILY, form.merge(starting_values(form, workspace), given))
    assert now.starts, now.problems
    assert now.line == "240 steps, on clips that are not on this machine yet"
    (said,) = (text for level, text in now.remarks if level == "warning" and "somebody/clips" in text)
    assert said == (
        "somebody/clips is no folder on this machine; the run will look for it on the Hugging Face Hub and fetch it; "
        "what becomes of its clips is said in the run's log."
    )
    assert problems(form, form.merge(starting_values(form, workspace), given), dataset__path="no/such/folder")


def test_many_videos_are_looked_at_bit_by_bit(
    workspace: Workspace, form: Form[Any], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_form, "PATIENCE", 0)
    given = {
        "dataset.path": str(table),
        "dataset.format": "webvid",
        "dataset.video_folder": str(table.parent / "videos"),
    }
    values = form.merge(starting_values(form, workspace), given)
    seen = []
    while (now := preview(form, FAMILY, values)).unfinished:
        assert not now.starts
        assert now.problems[0][0] == "dataset.path"
        seen.append(int(now.problems[0][1].split(": ")[1].split(" of 12 so far")[0]))
    assert seen == sorted(set(seen)), "each answer is further than the one before"
    assert 0 < len(seen) < 12
    assert now.starts


def test_a_preset_says_how_to_train_and_not_on_what(workspace: Workspace, form: Form[Any], table: Path) -> None:
    given = {"dataset.path": str(table), "dataset.format": "webvid", "dataset.max_clips": 3, "seed": 7}
    now = form.merge(starting_values(form, workspace), given)
    filled = values_from(f"preset:{next(iter(FAMILY.presets))}", form, FAMILY, workspace, now)
    shown = dict(zip(form.paths, filled, strict=True))
    assert {path: shown[path] for path in given} == {**given, "dataset.max_clips": "3", "seed": "42"}


def test_what_a_preset_names_is_as_it_says(workspace: Workspace, form: Form[Any]) -> None:
    now = starting_values(form, workspace)
    shown = dict(zip(form.paths, now, strict=True))
    assert shown["motion_adapter"]
    (name,) = (name for name, given in FAMILY.presets.items() if given.get("motion_adapter", ...) is None)
    filled = values_from(f"preset:{name}", form, FAMILY, workspace, now)
    after = dict(zip(form.paths, filled, strict=True))
    assert (after["motion_adapter"], after["method"]) == ("", "motion_module")
    assert after["base_model"] == shown["base_model"]
    of_new_ones = {"motion_max_seq_length", "motion_mid_block"}
    assert of_new_ones <= form.marks(now).hidden
    assert not of_new_ones & form.marks(filled).hidden
    config = preview(form, FAMILY, form.merge(filled, {"dataset.num_frames": 8, "dataset.frame_stride": 1})).config
    assert config.motion_adapter is None


def test_the_command_is_what_the_queue_runs(workspace: Workspace, form: Form[Any], tmp_path: Path) -> None:
    config = preview(form, FAMILY, starting_values(form, workspace)).config
    expected = workspace.next_run_id("Two words; rm -rf /")
    folder = workspace.new_run(config, "Two words; rm -rf /")
    assert folder.id == expected
    queue = JobQueue(workspace.db, workspace.root / "runs")
    words = shlex.split(command(workspace, folder.id).replace("\\\n", " "))
    assert words[1:] == launch_line(queue.submit(folder.id, "train"), folder)[1:]
    assert load_config(folder.config) == config
    inside = SimpleNamespace(root=PROJECT / "workspace")
    assert "--run-dir workspace/runs/x-0001" in command(inside, "x-0001"), "short, from the project's folder"


def test_a_title_is_made_where_none_was_given(workspace: Workspace, form: Form[Any]) -> None:
    config = preview(form, FAMILY, starting_values(form, workspace)).config
    assert run_title("  ", config) == "orbit lora"
    assert run_title(" Mine ", config) == "Mine"


def test_a_new_dataset_starts_with_a_run_that_would_start(workspace: Workspace, form: Form[Any]) -> None:
    """The default method needs a motion adapter; where the workspace has one, it is chosen."""
    made = workspace.new_dataset("Mine")
    made.add(workspace.dataset("orbit").file(workspace.dataset("orbit").clips[0]), "a red ball")
    now = preview(form, FAMILY, starting_values(form, workspace, made.name))
    assert (now.problems, now.starts) == ([], True)
    assert now.config.motion_adapter in workspace.motion_adapters()


def test_a_run_can_start_from_what_is_there(workspace: Workspace, form: Form[Any]) -> None:
    config = preview(
        form, FAMILY, form.merge(starting_values(form, workspace), {"seed": 7, "max_train_steps": 19})
    ).config
    run = workspace.new_run(config, "Earlier")
    values = {value for _, value in origins(workspace, FAMILY)}
    assert {"defaults", "demo", f"run:{run.id}"} <= values
    assert form.check(values_from(f"run:{run.id}", form, FAMILY, workspace))[0] == config
    assert form.check(values_from("demo", form, FAMILY, workspace))[0] == workspace.demo_config()
    assert values_from("here", form, FAMILY, workspace, ["as", "it is"]) == ["as", "it is"]
    defaults = dict(zip(form.paths, values_from("defaults", form, FAMILY, workspace), strict=True))
    assert defaults["max_train_steps"] == 1000
    assert defaults["dataset.path"] == str(workspace.root / "datasets" / "orbit")
    for family in FAMILIES.values():
        its = form_of(family, workspace)
        begun = dict(zip(its.paths, values_from("defaults", its, family, workspace), strict=True))["base_model"]
        assert begun in family.hub_bases or family.is_base(Path(begun))
        for name in family.presets:
            assert its.check(values_from(f"preset:{name}", its, family, workspace)) is not None


def test_a_config_of_ones_own_fills_the_form(workspace: Workspace, form: Form[Any]) -> None:
    config = workspace.demo_config().model_copy(update={"seed": 99})
    name, settings, said = read_config(to_yaml(config))
    assert (name, said) == (DEMO_FAMILY, [])
    assert form.check(form.shown(settings))[0] == config


def test_what_a_config_has_wrong_is_told_and_the_rest_is_used(workspace: Workspace, form: Form[Any]) -> None:
    text = to_yaml(workspace.demo_config()).replace("max_train_steps: 240", "max_train_step: 240\nseed2: 1")
    name, settings, said = read_config(text)
    told = [line for _, line in said]
    assert any("max_train_step is not a setting; did you mean max_train_steps?" in line for line in told)
    assert any("seed2" in line for line in told)
    shown = dict(zip(form.paths, form.shown(settings), strict=True))
    assert shown["dataset.height"] == 64
    assert name == DEMO_FAMILY


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [", "not valid YAML (line 1)"),
        ("just words", "does not hold settings"),
        ("method: lora", "must be set; known: "),
        ("family: nothing", "not a known family"),
        ("seed: 1\nseed: 2", "stands twice"),
    ],
)
def test_what_is_no_config_is_a_sentence(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(text)
    assert part in str(caught.value)


@pytest.mark.browser
def test_configuring_in_a_browser(workspace: Workspace, chromium) -> None:
    workspace.db.touch()
    handle = studio.launch(workspace.root, devices=["cpu"], inline=False)
    handle.worker.close()  # what is queued stays queued
    context = chromium.new_context()
    tab = context.new_page()
    try:
        tab.goto(handle.url)
        tab.wait_for_selector(".clip")
        tab.locator("#configure-run").click()
        tab.get_by_text("This run would start", exact=True).wait_for()

        height = tab.locator(f"#{DEMO_FAMILY}-dataset-height")
        height.locator("input").fill("250")
        height.get_by_text("Height is 250, but must be a multiple of 8: set 248 or 256").wait_for()
        assert "problem" in height.get_attribute("class")
        assert tab.locator("#queue-run").is_disabled()
        height.locator("input").fill("32")
        tab.get_by_text("This run would start", exact=True).wait_for()
        assert "problem" not in height.get_attribute("class")
        assert "height: 32" in tab.locator("#yaml").inner_text()

        rank = tab.locator(f"#{DEMO_FAMILY}-adapter-rank")
        rank.wait_for()
        tab.get_by_test_id("motion_module-radio-label").click()
        rank.wait_for(state="detached")
        tab.get_by_text("This run would start", exact=True).wait_for()

        tab.reload()
        tab.wait_for_selector("#configure-answer")
        tab.get_by_text("This run would start", exact=True).wait_for()
        assert height.locator("input").input_value() == "32", "a reload keeps what was typed"

        prompts = tab.locator(f"#{DEMO_FAMILY}-validation-prompts textarea")
        prompts.click()
        tab.keyboard.insert_text("pasted, not typed ")  # no key is pressed
        tab.wait_for_selector("#yaml >> text=pasted, not typed")

        tab.locator("#save-run").click()
        tab.get_by_text("Saved as orbit-motion-module-0001").wait_for()
        tab.get_by_label("Title").fill("By key")
        tab.get_by_label("Title").press("Control+Enter")
        tab.locator("[role=tab][aria-selected=true]", has_text="Train").wait_for()
    finally:
        context.close()
        handle.close()
    assert [info.id for info in workspace.runs("train")] == ["by-key-0002", "orbit-motion-module-0001"]
    assert [job.run_id for job in JobQueue(workspace.db, workspace.root / "runs").jobs()] == ["by-key-0002"]
    saved = yaml.safe_load(workspace.run("by-key-0002").config.read_text())
    assert saved["dataset"]["height"] == 32
    assert json.dumps(saved)


@pytest.mark.browser
def test_the_form_in_sight_is_the_chosen_familys(workspace: Workspace, chromium) -> None:
    """Drawn when it is chosen; what was typed in another one is there again; an empty number stays empty."""
    workspace.db.touch()
    handle = studio.launch(workspace.root, devices=["cpu"], inline=False)
    handle.worker.close()
    context = chromium.new_context()
    tab = context.new_page()
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))

    def steps(family: str) -> Any:
        return tab.locator(f"#{family}-max_train_steps input")

    def choose(family: str) -> None:
        tab.locator("#family label", has_text=FAMILIES[family].title).click()
        steps(family).wait_for()

    try:
        tab.goto(handle.url)
        tab.get_by_role("tab", name="Configure").click()  # while the page still loads
        for name, family in FAMILIES.items():
            choose(name)
            assert tab.locator("[id$=-max_train_steps]").count() == 1
            tab.wait_for_selector(f"#yaml >> text=family: {name}")
            (default,) = (v for p, v in zip(*starting(family, workspace), strict=True) if p == "max_train_steps")
            assert steps(name).input_value() == str(default)
            assert tab.locator(f"#{name}-dataset-max_clips input").input_value() == ""
        steps("dynamicrafter").fill("123")
        tab.wait_for_selector("#yaml >> text=max_train_steps: 123")
        choose("mochi")
        tab.locator("#family label", has_text=FAMILIES["dynamicrafter"].title).click()
        tab.wait_for_function("getComputedStyle(document.querySelector('#configure-form > *')).visibility === 'hidden'")
        steps("dynamicrafter").wait_for()
        assert steps("dynamicrafter").input_value() == "123"
        steps("dynamicrafter").fill("124")
        tab.wait_for_selector("#yaml >> text=max_train_steps: 124")
        tab.locator("#origin input").click()
        tab.get_by_role("option", name="Defaults").click()
        tab.wait_for_selector("#yaml >> text=max_train_steps: 1000")
        tab.wait_for_function("document.querySelector('#dynamicrafter-max_train_steps input').value === '1000'")
        assert errors == []
    finally:
        context.close()
        handle.close()


def starting(family: Any, workspace: Workspace) -> tuple[list[str], list[Any]]:
    form = form_of(family, workspace)
    return form.paths, starting_values(form, workspace)


@pytest.mark.browser
def test_a_page_looks_on_until_every_video_is_known(
    workspace: Workspace, table: Path, chromium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_form, "PATIENCE", 0)
    workspace.db.touch()
    config = yaml.safe_load(to_yaml(workspace.demo_config()))
    config["dataset"] |= {"path": str(table), "format": "webvid", "video_folder": str(table.parent / "videos")}
    handle = studio.launch(workspace.root, devices=["cpu"], inline=False)
    handle.worker.close()
    context = chromium.new_context()
    tab = context.new_page()
    try:
        tab.goto(handle.url)
        tab.wait_for_selector(".clip")
        tab.get_by_role("tab", name="Configure").click()
        tab.get_by_text("This run would start", exact=True).wait_for()
        tab.get_by_text("Use a config of your own").click()
        tab.locator("#paste-config textarea").fill(yaml.safe_dump(config))
        tab.locator("#fill-form").click()
        tab.get_by_text(re.compile(r"The videos are being looked at, which is done once: \d+ of 12")).first.wait_for()
        assert tab.locator("#queue-run").is_disabled()
        tab.get_by_text("This run would start", exact=True).wait_for()
        assert "format: webvid" in tab.locator("#yaml").inner_text()
    finally:
        context.close()
        handle.close()
