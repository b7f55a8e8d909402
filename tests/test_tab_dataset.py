"""The Dataset tab: what it says of clips, imports that name what they refuse, captions that survive anything."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import httpx
import pytest

import studio
from studio.imports import Imports
from studio.tabs.dataset import dataset_choices, import_list, seen_config, seen_defaults, view
from studio.workspace import Workspace
from trainers.families import FAMILIES
from trainers.settings import ConfigError

EVIL = "${alert(1)} {{7*7}} <img src=x onerror=alert(1)> \\ ` \" ' 😀"
FAMILY = next(iter(FAMILIES))


@pytest.fixture
def workspace(tmp_path: Path, tiny_dataset: Path) -> Workspace:
    """A workspace with one dataset, `shapes`, of three clips of 12 frames."""
    place = Workspace(tmp_path / "ws")
    shutil.copytree(tiny_dataset, place.root / "datasets" / "shapes")
    return place


@pytest.fixture
def page(workspace: Workspace):
    """The open studio on that workspace."""
    workspace.db.touch()  # not a new workspace: it gets no demo
    handle = studio.launch(workspace.root, devices=["cpu"], inline=False)
    yield handle
    handle.close()


def settled(imports: Imports, name: str) -> None:
    limit = time.monotonic() + 60
    while imports.busy(name):
        assert time.monotonic() < limit, "the import does not end"
        time.sleep(0.02)


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_the_answer_counts_what_training_would_use(workspace: Workspace) -> None:
    now = view(workspace, "shapes", FAMILY, [8, 64, 64, 1])
    assert now.num_clips == 3
    assert "3 clips" in now.answer
    assert [card["status"] for card in now.grid["clips"]] == ["used"] * 3
    assert all("64 x 64" in card["verdict"] for card in now.grid["clips"])


def test_clips_that_are_too_short_are_left_out_with_the_reason(workspace: Workspace) -> None:
    now = view(workspace, "shapes", FAMILY, [16, 64, 64, 1])
    assert now.num_clips == 3
    assert "3 left out" in now.answer
    for card in now.grid["clips"]:
        assert card["status"] == "dropped"
        assert card["verdict"].startswith("Left out: ")
        assert "12 frames" in card["verdict"]
        assert "lower Frames to" in card["verdict"], "a setting is called as at its control"


@pytest.mark.parametrize(
    ("seen", "part"),
    [([8, 250, 64, 1], "Height is 250"), ([None, 64, 64, 1], "Num frames is empty"), ([8, 64, 64, 0], "Frame stride")],
)
def test_a_size_that_cannot_be_is_told_and_clips_stay(workspace: Workspace, seen: list, part: str) -> None:
    now = view(workspace, "shapes", FAMILY, seen)
    assert part in now.answer
    assert "bad" in now.answer
    assert len(now.grid["clips"]) == 3


def test_no_dataset_and_an_empty_one_say_what_belongs_there(workspace: Workspace) -> None:
    assert "No dataset yet" in view(workspace, None, FAMILY, seen_defaults(FAMILY)).answer
    name = workspace.new_dataset("Empty").name
    now = view(workspace, name, FAMILY, seen_defaults(FAMILY))
    assert "No clips yet" in now.answer
    assert "Add video files" in now.grid["empty"]
    assert [value for _, value in dataset_choices(workspace)] == ["empty", "shapes"]


def test_a_dataset_that_went_away_is_a_sentence(workspace: Workspace) -> None:
    now = view(workspace, "gone", FAMILY, seen_defaults(FAMILY))
    assert "gone" in now.answer
    assert now.grid["clips"] == []


def test_a_clip_whose_file_is_missing_is_named(workspace: Workspace) -> None:
    dataset = workspace.dataset("shapes")
    dataset.file(dataset.clips[0]).unlink()
    now = view(workspace, "shapes", FAMILY, [8, 64, 64, 1])
    assert now.grid["clips"][0]["status"] == "dropped"
    assert now.grid["clips"][0]["video"] is None
    assert now.num_clips == 3


def test_names_and_captions_are_data_never_markup(workspace: Workspace) -> None:
    dataset = workspace.dataset("shapes")
    dataset.set_text(dataset.clips[0].file_name, EVIL)
    now = view(workspace, "shapes", FAMILY, [8, 64, 64, 1])
    assert now.grid["clips"][0]["text"] == EVIL
    assert "<img" not in now.answer + now.seen
    assert "<img" not in view(workspace, "<img src=x>", FAMILY, [8, 64, 64, 1]).answer


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_can_be_looked_with(workspace: Workspace, name: str) -> None:
    config = seen_config(workspace.dataset("shapes"), name, {"dataset.frame_stride": 1})
    assert config.family == name
    with pytest.raises(ConfigError):
        seen_config(workspace.dataset("shapes"), name, {"dataset.height": -3})


# --- imports ----------------------------------------------------------------------------------------------------------


def test_one_bad_file_never_stops_the_others(workspace: Workspace, tmp_path: Path) -> None:
    clips = sorted((workspace.root / "datasets" / "shapes" / "clips").glob("*.mp4"))
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    files = [inbox / "text.mp4", inbox / "good.mp4", inbox / "cut.mp4", inbox / "notes.txt", inbox / "again.mp4"]
    files[0].write_text("this is no video")
    shutil.copy(clips[0], files[1])
    files[2].write_bytes(clips[1].read_bytes()[:700])
    files[3].write_text("hello")
    shutil.copy(clips[2], files[4])
    dataset = workspace.new_dataset("Inbox")
    imports = Imports()
    imports.start(dataset, files)
    settled(imports, "inbox")
    outcome = {entry.name: entry.outcome for entry in imports.of("inbox")}
    assert outcome["good.mp4"] == outcome["again.mp4"] == ""
    for name in ("text.mp4", "cut.mp4", "notes.txt"):
        assert name in outcome[name], "a refusal names its file"
    assert [clip.source["name"] for clip in workspace.dataset("inbox").clips] == ["good.mp4", "again.mp4"]
    shown = import_list(imports.of("inbox"))
    assert "Added 2: good.mp4, again.mp4" in shown
    assert shown.count("Refused") == 3
    assert not any(file.exists() for file in files), "uploads do not pile up"
    imports.forget("inbox")
    assert imports.of("inbox") == []


def test_a_second_upload_queues_behind_the_first(workspace: Workspace, tmp_path: Path) -> None:
    clips = sorted((workspace.root / "datasets" / "shapes" / "clips").glob("*.mp4"))
    copies = [Path(shutil.copy(clip, tmp_path / f"n{i}.mp4")) for i, clip in enumerate(clips)]
    dataset = workspace.new_dataset("More")
    imports = Imports()
    imports.start(dataset, copies[:2])
    imports.start(dataset, copies[2:])
    settled(imports, "more")
    assert len(workspace.dataset("more").clips) == 3


# --- the page's own calls ---------------------------------------------------------------------------------------------


def call(url: str, name: str, wish: dict, client: httpx.Client) -> httpx.Response:
    config = client.get(f"{url}/config").json()
    grid = next(c for c in config["components"] if c["props"].get("elem_id") == "clips")
    body = {"data": wish, "component_id": grid["id"], "fn_name": name, "session_hash": "test"}
    return client.post(f"{url}/gradio_api/component_server", json=body)


def test_captions_are_stored_literally_and_clips_removed(page, workspace: Workspace) -> None:
    first = workspace.dataset("shapes").clips[0].file_name
    with httpx.Client() as client:
        answer = call(page.url, "save_caption", {"dataset": "shapes", "id": first, "text": EVIL}, client)
        assert answer.json() == {}
        assert workspace.dataset("shapes").clips[0].text == EVIL
        assert call(page.url, "remove_clip", {"dataset": "shapes", "id": first}, client).json() == {}
    assert first not in [clip.file_name for clip in workspace.dataset("shapes").clips]


@pytest.mark.parametrize(
    "wish",
    [
        {"dataset": "../..", "id": "x", "text": ""},
        {"dataset": "shapes", "id": "../../studio.db", "text": ""},
        {"dataset": "nothing", "id": "x", "text": ""},
    ],
)
def test_no_text_becomes_a_path(page, workspace: Workspace, wish: dict) -> None:
    with httpx.Client() as client:
        for name in ("save_caption", "remove_clip"):
            assert "error" in call(page.url, name, wish, client).json()
    assert workspace.db.exists()
    assert len(workspace.dataset("shapes").clips) == 3


def test_with_a_login_only_its_owner_changes_captions(workspace: Workspace) -> None:
    workspace.db.touch()
    first = workspace.dataset("shapes").clips[0].file_name
    handle = studio.launch(workspace.root, devices=["cpu"], inline=False, auth=("ann", "secret"))
    try:
        with httpx.Client() as stranger:
            body = {"data": {}, "component_id": 1, "fn_name": "save_caption", "session_hash": "test"}
            assert stranger.post(f"{handle.url}/gradio_api/component_server", json=body).status_code == 401
            assert stranger.get(f"{handle.url}/config").status_code == 401
        with httpx.Client() as owner:
            login = owner.post(f"{handle.url}/login", data={"username": "ann", "password": "secret"})
            assert login.status_code == 200
            wish = {"dataset": "shapes", "id": first, "text": "by ann"}
            assert call(handle.url, "save_caption", wish, owner).json() == {}
    finally:
        handle.close()
    assert workspace.dataset("shapes").clips[0].text == "by ann"


def test_only_media_folders_are_served(page, workspace: Workspace) -> None:
    view(workspace, "shapes", FAMILY, [8, 64, 64, 1])
    clip = sorted((workspace.root / "datasets" / "shapes" / "clips").glob("*.mp4"))[0]
    served = f"{page.url}/gradio_api/file="
    assert httpx.get(f"{served}{clip}").status_code == 200
    for secret in (workspace.db, workspace.root / "datasets" / "shapes" / "metadata.jsonl", Path(__file__)):
        assert httpx.get(f"{served}{secret}").status_code == 403


@pytest.mark.browser
def test_the_grid_in_a_browser(page, workspace: Workspace, chromium) -> None:
    dataset = workspace.dataset("shapes")
    dataset.set_text(dataset.clips[1].file_name, EVIL)
    tab = chromium.new_page()
    errors: list[str] = []
    hosts: set[str] = set()
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: hosts.add(httpx.URL(request.url).host))
    tab.goto(page.url)
    tab.wait_for_selector(".clip")
    captions = tab.locator(".clip textarea")
    assert captions.count() == 3
    assert captions.nth(1).input_value() == EVIL
    captions.nth(0).fill(f"new {EVIL}")
    captions.nth(0).blur()
    tab.locator(".clip .state.ok").first.wait_for()
    assert workspace.dataset("shapes").clips[0].text == f"new {EVIL}"
    tab.reload()
    tab.wait_for_selector(".clip")
    assert tab.locator(".clip textarea").nth(0).input_value() == f"new {EVIL}"

    tab.locator(".clip .screen").first.hover()
    tab.locator(".clip video").wait_for()
    tab.mouse.move(2, 2)
    tab.wait_for_function("document.querySelectorAll('.clip video').length === 0")
    tab.keyboard.press("/")
    tab.keyboard.type("new ")
    tab.wait_for_function("document.querySelector('.clipgrid .count').textContent === '1 of 3 clips'")
    tab.locator(".clipgrid .search").fill("")

    tab.get_by_role("button", name="Remove ").last.click()
    tab.get_by_role("button", name="Keep", exact=True).click()
    assert len(workspace.dataset("shapes").clips) == 3
    tab.get_by_role("button", name="Remove ").last.click()
    tab.get_by_role("button", name="Remove", exact=True).click()
    tab.wait_for_function("document.querySelectorAll('.clip').length === 2")
    assert len(workspace.dataset("shapes").clips) == 2
    assert errors == []
    assert hosts <= {"127.0.0.1", ""}
    tab.close()


@pytest.mark.browser
def test_an_unsaved_caption_survives_a_reload(page, workspace: Workspace, chromium) -> None:
    context = chromium.new_context()
    tab = context.new_page()
    tab.goto(page.url)
    tab.wait_for_selector(".clip")
    tab.route(re.compile("component_server"), lambda route: route.abort())
    tab.locator(".clip textarea").nth(2).fill("kept in the browser")
    tab.locator(".clip textarea").nth(2).blur()
    tab.locator(".clip .state.bad").first.wait_for()
    assert workspace.dataset("shapes").clips[2].text != "kept in the browser"
    tab.unroute_all()
    tab.reload()
    tab.wait_for_selector(".clip")
    assert tab.locator(".clip textarea").nth(2).input_value() == "kept in the browser"
    tab.locator(".clip .state.ok").first.wait_for()
    assert workspace.dataset("shapes").clips[2].text == "kept in the browser"
    context.close()


@pytest.mark.browser
def test_uploading_in_a_browser(page, workspace: Workspace, chromium, tmp_path: Path) -> None:
    clips = sorted((workspace.root / "datasets" / "shapes" / "clips").glob("*.mp4"))
    inbox = tmp_path / "in"
    inbox.mkdir()
    good = shutil.copy(clips[0], inbox / "good.mp4")
    bad = inbox / "bad.mp4"
    bad.write_text("no video")
    tab = chromium.new_page()
    tab.goto(page.url)
    tab.wait_for_selector(".clip")
    tab.locator("#new-dataset-name input").fill("Ünique <b> name")
    tab.locator("#new-dataset").click()
    tab.get_by_text("No clips yet", exact=True).first.wait_for()
    tab.locator("#upload input[type=file]").set_input_files([good, bad])
    tab.get_by_text("Added 1: good.mp4").wait_for()
    tab.get_by_text("Refused: bad.mp4").wait_for()
    tab.wait_for_selector(".clip")
    assert json.loads((workspace.root / "datasets" / "unique-b-name" / "metadata.jsonl").read_text())["file_name"]
    tab.locator("#delete-dataset").click()
    tab.locator("#delete-yes").click()
    tab.wait_for_function("document.querySelectorAll('.clip').length === 3")
    assert workspace.datasets() == ["shapes"]
    tab.close()
