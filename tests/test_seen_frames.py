"""What Configure shows of the clips before a run: the frames that train, cut and turned as they train."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import films
import gradio as gr
import numpy as np
import pytest
from PIL import Image

import studio
from studio.access import Access
from studio.parts.frames import first_samples, frames_key, seen_frames, strip
from studio.run_form import form_of, starting_values
from studio.tabs.configure import Wire
from studio.workspace import Workspace
from trainers.data.formats import open_dataset
from trainers.data.ledger import ledger
from trainers.data.loader import Batches, read_pixels
from trainers.families import get_family, parse_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six clips of different shapes and lengths with captions; the first is too short for eight frames."""
    found = tmp_path_factory.mktemp("videos")
    shapes = [(5, 64, 64), (24, 64, 128), (30, 128, 64), (26, 96, 64), (40, 64, 64), (20, 64, 64)]
    for number, (count, height, width) in enumerate(shapes):
        films.plain(found / f"{number}.mp4", count=count, height=height, width=width)
        (found / f"{number}.txt").write_text(f"<b>clip {number}</b>")
    return found


def config_of(folder: Path, **dataset):
    section = {"path": str(folder), "format": "sidecar", "num_frames": 8, "height": 64, "width": 96, **dataset}
    return parse_config(
        {"family": "animatediff", "method": "motion_module", "base_model": "b", "motion_adapter": "m", "seed": 5}
        | {"dataset": section}
    )


def picture(look: str) -> np.ndarray:
    kind, _, data = look.partition(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(float)


@pytest.mark.parametrize("fit", ["crop", "cut", "stretch", "buckets"])
@pytest.mark.parametrize("selection", ["first", "random", "windows", "uniform"])
def test_what_is_shown_is_what_trains(folder, fit, selection):
    """Geometry, frames and mirroring of every sample, against the pixels that the loader gives."""
    config = config_of(folder, fit=fit, frame_selection=selection, flip=True)
    family = get_family("animatediff")
    dataset = open_dataset(config.dataset)
    rows = ledger(dataset, config, family)
    shown = first_samples(dataset, rows, config.dataset, config.seed)
    trained = Batches(dataset, rows, config.dataset, config.seed).variants()[0]
    assert [sample.clip.name for sample in shown] == ["1.mp4", "2.mp4", "3.mp4", "4.mp4"]
    assert set(shown) <= set(trained)
    value = seen_frames(config, family, Path())
    for clip, sample in zip(value["clips"], shown, strict=True):
        assert clip["facts"] == f"8 frames at {sample.width} x {sample.height}"
        assert clip["text"] == f"<b>clip {sample.clip.name[0]}</b>"
        numbers = [sample.indices[place] for place in (0, 4, 7)]
        assert [found["number"] for found in clip["pictures"]] == [f"frame {number}" for number in numbers]
        pixels = read_pixels(sample).permute(0, 2, 3, 1).numpy().astype(float)
        for found, place in zip(clip["pictures"], (0, 4, 7), strict=True):
            look = picture(found["look"])
            assert look.shape == pixels[place].shape, "small ones stand there in their own size"
            assert np.abs(look - pixels[place]).mean() < 6
            assert np.abs(look[:, ::-1] - pixels[place]).mean() > 15, "the test can tell left from right"
    assert value["line"].startswith("The first 4 of 5 clips that can be used")
    assert value["key"] == frames_key(config)


def test_large_clips_are_shown_in_small(tmp_path):
    films.plain(tmp_path / "a.mp4", count=4, height=480, width=848)
    config = config_of(tmp_path, num_frames=1, height=480, width=848, frame_selection="first")
    value = seen_frames(config, get_family("animatediff"), Path())
    assert value["line"] == "The one clip that can be used."
    (shown,) = value["clips"][0]["pictures"]
    assert picture(shown["look"]).shape == (158, 280, 3)


def test_what_cannot_be_shown_is_a_sentence(folder, tmp_path):
    family = get_family("animatediff")
    assert seen_frames(config_of(tmp_path / "no"), family, Path())["line"].endswith("does not exist")
    assert seen_frames(config_of(folder, num_frames=16, frame_stride=9), family, Path())["line"] == (
        "No clip can be used."
    )
    config = config_of(folder)
    dataset = open_dataset(config.dataset)
    (sample, *_) = first_samples(dataset, ledger(dataset, config, family), config.dataset, 0)
    broken = strip(sample.__class__(**{**sample.__dict__, "file": tmp_path / "gone.mp4"}))
    assert broken["pictures"] == []
    assert broken["problem"].startswith("gone.mp4 cannot be read")


def test_the_key_tells_what_frames_depend_on(folder):
    key = frames_key(config_of(folder))
    assert frames_key(config_of(folder, batch_size=2, caption_dropout=0.3, repeats=4)) == key
    for change in ({"height": 32}, {"fit": "cut"}, {"frame_selection": "first"}, {"id_token": "sks"}, {"flip": True}):
        assert frames_key(config_of(folder, **change)) != key
    assert frames_key(None) == ""


def test_only_the_owner_sees_frames(tmp_path):
    """A form may name any video of the machine."""
    workspace = Workspace(tmp_path / "ws")
    workspace.add_demo()
    family = get_family("animatediff")
    form = form_of(family, workspace)
    page = type("Page", (), {"access": Access([("me", "x")]), "workspace": workspace})()
    wire = Wire(page, form)
    with pytest.raises(gr.Error):
        wire.look(type("Request", (), {"username": "guest"})(), *starting_values(form, workspace))


@pytest.mark.browser
def test_frames_in_a_browser(tmp_path, chromium, folder):
    workspace = Workspace(tmp_path / "ws")
    workspace.add_demo()
    workspace.db.touch()
    handle = studio.launch(workspace.root, devices=["cpu"], inline=False)
    handle.worker.close()
    context = chromium.new_context()
    tab = context.new_page()
    complaints: list[str] = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        tab.goto(handle.url)
        tab.wait_for_selector(".clip")
        tab.get_by_role("tab", name="Configure").click()
        tab.get_by_text("This run would start", exact=True).wait_for()
        assert tab.locator("#frames img").count() == 0
        tab.locator("#show-frames").click()
        tab.wait_for_function("document.querySelectorAll('#frames img').length === 12")
        tab.get_by_text("The first 4 of 12 clips that can be used").wait_for()
        tab.locator("#animatediff-max_train_steps input").fill("241")
        tab.wait_for_selector(r"#yaml .cm-line >> text=/^max_train_steps: 241$/")
        assert tab.locator("#frames img").count() == 12, "nothing that is shown has changed"
        tab.locator("#animatediff-dataset-height input").fill("32")
        tab.wait_for_function("document.querySelectorAll('#frames img').length === 0")
        tab.locator("#show-frames").click()
        tab.wait_for_function("document.querySelectorAll('#frames img').length === 12")
        assert complaints == []
    finally:
        context.close()
        handle.close()
