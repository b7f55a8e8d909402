"""Images in the Compare tab: offered where the base begins from one, kept in the workspace, paired with the prompts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from studio import compare_form, ui
from studio.access import Access
from studio.comparisons import comparison_value
from studio.jobs import JobQueue
from studio.parts.pictures import looks_of, offered_clips, pictures_value, thumbnail
from studio.parts.runs import Runs, find
from studio.tabs import compare
from studio.worker import Worker
from studio.workspace import Workspace
from trainers.data.images import read_image
from trainers.families import FAMILIES, load_sample_config, parse_config, parse_sample_config

PROMPTS = ["a red circle", "a blue square", "a star"]
ORANGE, BLUE = (230, 120, 20), (20, 60, 230)


def write_base(folder: Path, in_channels: int) -> str:
    """As much of a base model as says whether it begins from an image."""
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "transformer" / "config.json").write_text(f'{{"in_channels": {in_channels}, "out_channels": 16}}')
    return str(folder)


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "ws")


@pytest.fixture
def from_image(workspace) -> str:
    return write_base(workspace.models / "from-image", 32)


@pytest.fixture
def from_text(workspace) -> str:
    return write_base(workspace.models / "from-text", 16)


@pytest.fixture
def form(workspace):
    return compare_form.form_of(FAMILIES["cogvideox"], workspace)


def picture(file: Path, colour=ORANGE, size=(90, 160)) -> Path:
    Image.fromarray(np.full((*size, 3), colour, np.uint8)).save(file)
    return file


def values(form, base, prompts=PROMPTS, **given):
    return form.starting_values({"prompts": list(prompts), "base_model": base, **given})


# --- where images are offered -----------------------------------------------------------------------------------------


def test_images_are_offered_where_the_base_begins_from_one(workspace, form, from_image, from_text):
    assert compare_form.begins_from_image(form, values(form, from_image))
    assert compare_form.begins_from_image(form, values(form, from_image, prompts=[], height=31)), (
        "with all else to mend"
    )
    assert not compare_form.begins_from_image(form, values(form, from_text))
    assert not compare_form.begins_from_image(form, values(form, ""))
    assert not compare_form.begins_from_image(form, values(form, str(workspace.models / "gone")))
    assert compare_form.begins_from_image(form, values(form, "somebody/unheard-of")), "it may, and cannot be asked yet"
    other = compare_form.form_of(FAMILIES["animatediff"], workspace)
    assert not compare_form.begins_from_image(other, values(other, from_image))


def test_images_that_are_out_of_sight_are_not_asked_for(tmp_path, form, from_text, from_image):
    image = str(picture(tmp_path / "a.png"))
    config, _ = compare_form.checked_config(form, [], values(form, from_text), [image])
    assert config.images == []
    config, _ = compare_form.checked_config(form, [], values(form, from_image), [image])
    assert config.images == [image]


# --- what is said of them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "This base model begins from an image: add one for each prompt, or a single one for all."),
        (["a", "a"], "Images are 2 for 3 prompts; give one for each prompt, or a single one for all"),
        (["gone"], "Images cannot be used: {gone} does not exist; give an image or a video file"),
        (["a"], ""),
        (["a", "a", "a"], ""),
    ],
)
def test_the_button_waits_for_the_images(tmp_path, form, from_image, images, said):
    given = {"a": str(picture(tmp_path / "a.png")), "gone": str(tmp_path / "gone.png")}
    files = [given[name] for name in images]
    now = values(form, from_image)
    problems = compare_form.checked_config(form, [], now, files)[1]
    amiss = compare_form.amiss_with_images(problems, files)
    assert amiss == said.format(gone=given["gone"])
    label, line, possible = compare_form.count_line(form, [], now, amiss)
    assert (label, possible) == (("Compare: see the images", False) if said else ("Compare 1 take", True))
    assert line == "" if said else "3 prompts" in line


def test_each_picture_says_what_it_is_for(tmp_path):
    one, other = str(picture(tmp_path / "a.png")), str(picture(tmp_path / "b.png", BLUE))
    shown = pictures_value([one, other], PROMPTS, "wrong")
    assert [found["for"] for found in shown["pictures"]] == PROMPTS[:2] and shown["problem"] == "wrong"
    assert pictures_value([one], PROMPTS, "")["pictures"][0]["for"] == "all prompts"
    assert pictures_value([one], PROMPTS[:1], "")["pictures"][0]["for"] == PROMPTS[0]
    assert [found["for"] for found in pictures_value([one, one], ["x"], "")["pictures"]] == ["x", "no prompt"]
    lost = pictures_value([str(tmp_path / "lost.png")], PROMPTS, "")["pictures"][0]
    assert (lost["look"], lost["name"]) == ("", "lost.png")


def test_a_thumbnail_is_of_the_file_as_it_is_now(tmp_path):
    file = picture(tmp_path / "a.png", size=(900, 1600))
    first = thumbnail(str(file))
    assert first.startswith("data:image/webp;base64,") and len(first) < 20_000
    picture(file, BLUE)
    assert thumbnail(str(file)) not in (first, "")
    file.write_text("no picture")
    assert thumbnail(str(file)) == "" == thumbnail(str(tmp_path / "gone.png"))
    again = str(picture(tmp_path / "b.png"))
    assert looks_of([], 2, 2) == [""] * 4
    assert looks_of([again], 2, 2) == [thumbnail(again)] * 4
    other = str(picture(tmp_path / "c.png", BLUE))
    assert looks_of([again, other], 2, 2) == [thumbnail(again)] * 2 + [thumbnail(other)] * 2


# --- what the form begins with ----------------------------------------------------------------------------------------


def test_a_runs_images_seeds_and_size_are_offered(tmp_path, workspace, form, from_image):
    image = str(picture(tmp_path / "a.png"))
    validation = {"prompts": PROMPTS, "images": [image], "samples_per_prompt": 2, "seed": 7, "height": 64, "width": 32}
    run = parse_config(
        {"family": "cogvideox", "method": "lora", "base_model": from_image, "dataset": {"path": "x"},
         "validation": validation}
    )  # fmt: skip
    assert compare_form.images_to_begin_with(workspace, {}, run) == [image]
    assert compare_form.images_to_begin_with(workspace, {}, None) == []
    given = compare_form.settings_of(run, form.config_class)
    assert (given["seeds"], given["height"], given["width"], given["num_frames"]) == ([7, 8], 64, 32, 49)
    config, problems = compare_form.checked_config(form, [], form.starting_values(given), [image])
    assert problems == [] and config.images == [image]


def test_a_browser_brings_back_only_images_that_the_studio_knows(tmp_path, workspace):
    """Else whoever may look at the page could look at any picture on this machine."""
    kept = str(workspace.add_image(picture(tmp_path / "a.png")))
    secret = str(picture(tmp_path / "secret.png", BLUE))
    (workspace.images / "own.png").write_bytes(Path(secret).read_bytes())
    asked = [secret, kept, f"{workspace.images}/../images/{Path(kept).name}", f"{workspace.images}/own.png", 7, kept]
    assert compare_form.images_to_begin_with(workspace, {"images": asked}, None) == [kept, kept]
    assert compare_form.images_to_begin_with(workspace, {"images": "all"}, None) == []


def test_clips_are_offered_by_their_captions(workspace):
    workspace.add_demo()
    offered = offered_clips(workspace, "orbit")
    clips = workspace.dataset("orbit").clips
    assert offered["choices"] == [(clip.text, clip.file_name) for clip in clips] and offered["visible"]
    assert offered["value"] is None and "orbit" in offered["label"]
    for unknown in (None, "gone", "../models"):
        assert offered_clips(workspace, unknown)["visible"] is False


def test_the_wall_shows_what_its_rows_begin_from(tmp_path, workspace, from_image):
    one, other = str(picture(tmp_path / "a.png")), str(picture(tmp_path / "b.png", BLUE))
    config = {"family": "cogvideox", "base_model": from_image, "prompts": PROMPTS[:2], "seeds": [1, 2]}
    queue = JobQueue(workspace.db)

    def rows(**images):
        folder = workspace.new_run(parse_sample_config({**config, **images}), "base")
        entry = find(Runs(workspace, queue).entries(), folder.id)
        return comparison_value(workspace, entry, [])["rows"]

    assert [row["look"] for row in rows(images=[one, other])] == [thumbnail(one)] * 2 + [thumbnail(other)] * 2
    assert [row["look"] for row in rows()] == [""] * 4


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def page(workspace, from_image, from_text, chromium):
    """The studio, with a dataset and two base models of which one begins from an image. Nothing is run."""
    workspace.add_demo()
    demo = ui.build(workspace, JobQueue(workspace.db), Worker(JobQueue(workspace.db), workspace, ["cpu"]), Access())
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True)
    opened = chromium.new_page(viewport={"width": 1200, "height": 900})
    opened.goto(url)
    opened.get_by_role("tab", name="Compare").click()
    opened.get_by_label("CogVideoX").click()
    yield opened
    opened.close()
    demo.close()


def choose_base(page, path: str) -> None:
    box = page.locator("#compare-cogvideox-base_model input")
    box.click()
    box.fill(path)
    box.press("Enter")


def captions(page) -> list[str]:
    return page.locator("#compare-cogvideox-images .for").all_inner_texts()


def wait_for(page, count: int) -> None:
    page.wait_for_function(f"document.querySelectorAll('#compare-cogvideox-images .picture').length === {count}")


@pytest.mark.browser
def test_from_pictures_to_a_comparison(page, workspace, from_image, from_text, tmp_path):
    pictures = page.locator("#compare-cogvideox-images")
    page.wait_for_selector("#compare-cogvideox-prompts")
    page.get_by_label("AnimateDiff").click()
    page.wait_for_selector("#compare-animatediff-prompts")
    assert page.locator(".pictures-room").count() == 0, "a family that begins from no image"
    page.get_by_label("CogVideoX").click()
    choose_base(page, from_text)
    page.locator("#compare-cogvideox-prompts textarea").fill("\n".join(PROMPTS))
    page.wait_for_selector("#compare-go >> text=Compare 1 take")
    assert not pictures.is_visible(), "a base that takes no image"
    choose_base(page, from_image)
    page.wait_for_selector("#compare-go >> text=Compare: see the images")
    assert "begins from an image" in pictures.inner_text() and page.locator("#compare-go").is_disabled()

    # Two uploads and a text that is called a picture, then the first frame of a clip.
    (tmp_path / "notes.png").write_text("not a picture")
    uploads = [picture(tmp_path / "orange.png"), tmp_path / "notes.png", picture(tmp_path / "blue.jpg", BLUE)]
    with page.expect_file_chooser() as chooser:
        page.locator("#compare-cogvideox-upload").click()
    chooser.value.set_files([str(file) for file in uploads])
    wait_for(page, 2)
    page.wait_for_selector("text=notes.png is neither an image nor a video")
    page.wait_for_selector("#compare-cogvideox-images >> text=are 2 for 3 prompts")
    clip = workspace.dataset("orbit").clips[0]
    page.locator("#compare-cogvideox-clips input").click()
    page.get_by_role("option", name=clip.text, exact=True).click()
    wait_for(page, 3)
    page.wait_for_selector("#compare-go:not([disabled]) >> text=Compare 1 take")
    assert captions(page) == PROMPTS
    assert pictures.locator("img").count() == 3

    # In another order, and there again after a reload.
    looks = pictures.locator("img").evaluate_all("images => images.map((image) => image.src)")
    pictures.get_by_role("button", name="Image 3 one place earlier").click()
    page.wait_for_function(
        "look => document.querySelectorAll('#compare-cogvideox-images img')[1].src === look", arg=looks[2]
    )
    page.reload()
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_selector("#compare-go:not([disabled]) >> text=Compare 1 take")
    wait_for(page, 3)
    assert pictures.locator("img").evaluate_all("images => images.map((image) => image.src)") == [
        looks[0], looks[2], looks[1],
    ]  # fmt: skip
    page.locator("#compare-go").click()
    page.wait_for_selector("#wall .row-head img")
    (info,) = workspace.runs("sample")
    config = load_sample_config(info.folder.config)
    assert [Path(file).parent for file in config.images] == [workspace.images] * 3
    assert tuple(read_image(Path(config.images[0]))[0, 0]) == ORANGE
    first = read_image(workspace.dataset("orbit").file(clip))
    assert np.array_equal(read_image(Path(config.images[1])), first)


@pytest.mark.browser
def test_a_single_picture_is_for_all_and_can_be_removed(page, from_image, tmp_path):
    choose_base(page, from_image)
    page.locator("#compare-cogvideox-prompts textarea").fill("\n".join(PROMPTS))
    with page.expect_file_chooser() as chooser:
        page.locator("#compare-cogvideox-upload").click()
    chooser.value.set_files([str(picture(tmp_path / "a.png"))])
    wait_for(page, 1)
    page.wait_for_selector("#compare-go:not([disabled]) >> text=Compare 1 take")
    assert captions(page) == ["all prompts"]
    page.locator("#compare-cogvideox-images").get_by_role("button", name="Remove image 1").click()
    wait_for(page, 0)
    page.wait_for_selector("#compare-go[disabled] >> text=Compare: see the images")


def test_only_owners_add_pictures(workspace, tmp_path):
    queue = JobQueue(workspace.db)
    page = SimpleNamespace(workspace=workspace, queue=queue, access=Access([("owner", "secret")]))
    wire = compare.Wire(page, Runs(workspace, queue), FAMILIES["cogvideox"])
    guest, owner = (type("Request", (), {"username": name})() for name in ("guest", "owner"))
    file = picture(tmp_path / "a.png")
    with pytest.raises(gr.Error, match="owner"):
        wire.add_files(guest, [str(file)], [])
    with pytest.raises(gr.Error, match="owner"):
        wire.add_clip(guest, "clips/a.mp4", "orbit", [])
    assert not workspace.images.exists() and file.exists()
    (added,) = wire.add_files(owner, [str(file)], [])
    assert workspace.has_image(added) and not file.exists()
    with pytest.raises(gr.Error, match="no dataset gone"):
        wire.add_clip(owner, "clips/a.mp4", "gone", [])
