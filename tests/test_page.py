"""The whole road in a browser, as a person walks it: the real app in a process of its own, the real trainer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest

from trainers.data.clips import Dataset
from trainers.data.video import write_video
from trainers.events import read
from trainers.runs import RunFolder

pytestmark = pytest.mark.browser

#: A caption that would do harm, or be mangled, wherever a page takes text for code.
HOSTILE = 'a red ball ${alert(1)} <img src=x onerror=alert(1)> {{7*7}} 🎬 \\n `tick` "quoted"'
PATIENCE = 120_000


class App:
    """app.py as a person starts it."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        line = [sys.executable, "app.py", "--workspace", str(self.workspace), "--port", str(self.port), "--no-browser"]
        self.log = (self.workspace.parent / "app.log").open("ab")
        self.process = subprocess.Popen(line, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 90
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(self.url, timeout=5)
                return
            except OSError:
                assert self.process.poll() is None, (self.workspace.parent / "app.log").read_text()
                time.sleep(0.2)
        raise AssertionError("the page did not come up in 90 s")

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(timeout=30)
        self.log.close()


@pytest.fixture
def app(tmp_path):
    running = App(tmp_path / "workspace")
    yield running
    running.stop(signal.SIGKILL)
    for process in psutil.process_iter(["cmdline"]):  # a trainer outlives its page
        if str(tmp_path) in " ".join(process.info["cmdline"] or []):
            process.kill()


@pytest.fixture
def page(app, chromium):
    opened = chromium.new_page(viewport={"width": 1400, "height": 900})
    opened.complaints = []
    opened.on("pageerror", lambda error: opened.complaints.append(f"page error: {error}"))
    opened.on("dialog", lambda dialog: (opened.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    opened.on(
        "request",
        lambda request: (
            None if request.url.startswith((app.url, "data:", "blob:")) else opened.complaints.append(request.url)
        ),
    )
    opened.goto(app.url)
    yield opened
    opened.close()


def clip(path: Path, colour: tuple[int, int, int]) -> Path:
    """A square of a colour that crosses a grey picture: 16 frames of 64 x 64."""
    frames = np.full((16, 64, 64, 3), 128, np.uint8)
    for number, frame in enumerate(frames):
        frame[24:40, 3 * number : 3 * number + 16] = colour
    write_video(path, frames, 8)
    return path


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def settle(condition, state=lambda: "", seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, state()
        time.sleep(0.1)


def test_from_two_clips_to_a_comparison(app, page, tmp_path):
    workspace = app.workspace

    # Dataset: a new one, three files of which one is no video, two captions.
    page.locator("#new-dataset-name input, #new-dataset-name textarea").fill("My shapes")
    page.locator("#new-dataset").click()
    page.wait_for_selector("#dataset-answer >> text=my-shapes")
    (tmp_path / "notes.mp4").write_text("this is no video")
    files = [clip(tmp_path / "red.mp4", (220, 40, 40)), clip(tmp_path / "blue.mp4", (40, 40, 220))]
    page.locator("#upload input[type=file]").set_input_files([*map(str, files), str(tmp_path / "notes.mp4")])
    page.wait_for_selector("#imported >> text=notes.mp4", timeout=PATIENCE)
    page.wait_for_function("document.querySelectorAll('#clips textarea').length === 2", timeout=PATIENCE)
    captions = page.locator("#clips textarea")
    captions.nth(0).fill(HOSTILE)
    captions.nth(1).fill("a blue square moves right")
    captions.nth(1).blur()
    dataset = Dataset.open(workspace / "datasets" / "my-shapes")
    settle(lambda: {c.text for c in Dataset.open(dataset.path).clips} == {HOSTILE, "a blue square moves right"})
    page.reload()
    page.wait_for_function("document.querySelectorAll('#clips textarea').length === 2")
    assert HOSTILE in [area.input_value() for area in page.locator("#clips textarea").all()]

    # Configure: from this dataset, a short run, two checkpoints.
    page.locator("#configure-run").click()
    settings = f"""
family: animatediff
method: motion_module
base_model: {workspace / "models" / "demo"}
max_train_steps: 6
mixed_precision: "no"
dataset: {{path: "{dataset.path}", num_frames: 4, height: 64, width: 64, cache_dir: "{workspace / "cache"}"}}
optimizer: {{learning_rate: 1e-2, lr_scheduler: constant}}
validation: {{every_steps: 3, prompts: ["a red ball"], num_inference_steps: 2, loss_draws: 1, seed: 3}}
checkpoint: {{every_steps: 3}}
tracking: {{every_steps: 1}}
"""
    page.get_by_text("Use a config of your own").click()
    page.locator("#paste-config textarea, #paste-config .cm-content").first.fill(settings)
    page.locator("#fill-form").click()
    page.wait_for_selector(r"#yaml .cm-line >> text=/^max_train_steps: 6$/")
    page.wait_for_selector("#configure-answer >> text=This run would start")
    steps = page.locator("#animatediff-max_train_steps input")
    settle(lambda: steps.input_value() == "6")
    page.reload()
    tab(page, "Configure")
    page.wait_for_selector(r"#yaml .cm-line >> text=/^max_train_steps: 6$/")
    settle(lambda: steps.input_value() == "6")
    page.wait_for_selector("#configure-answer >> text=This run would start")
    page.locator("#queue-run").click()

    # Train: it finishes; reloading on the way shows the same.
    page.wait_for_selector("#queue .job")
    page.reload()
    tab(page, "Train")
    page.wait_for_selector("#run-head .line >> text=/finished in/", timeout=PATIENCE)
    (run,) = [RunFolder(path) for path in (workspace / "runs").iterdir()]
    assert read(run.events)[0][-1]["status"] == "finished"
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [3, 6]
    page.wait_for_function("document.querySelectorAll('#samples video').length === 3")

    # Compare: base and both checkpoints, in step.
    page.locator("#act-compare").click()
    page.wait_for_selector("#compare-go:not([disabled]) >> text=Compare 3 takes")
    page.locator("#compare-go").click()
    page.wait_for_function("document.querySelectorAll('#wall video').length === 3", timeout=PATIENCE)
    settle(lambda: wall_is_loaded(page))
    for times in watch(page):
        assert len(set(times)) == 1, times
    with page.expect_download() as download:
        page.locator("#download-gif").click()
    assert Path(download.value.path()).read_bytes()[:3] == b"GIF"
    page.reload()
    tab(page, "Compare")
    page.wait_for_function("document.querySelectorAll('#wall video').length === 3")
    assert page.complaints == []


def wall_is_loaded(page) -> bool:
    return page.evaluate("[...document.querySelectorAll('#wall video')].every((v) => v.readyState >= 2)")


def watch(page) -> list[list[int]]:
    """Play, pause, step on, go back to the start; the times of all clips after each, in milliseconds."""
    times = "[...document.querySelectorAll('#wall video')].map((v) => Math.round(1000 * v.currentTime))"
    facts = "(v) => [v.currentTime, v.duration, v.readyState, v.paused, v.seeking, v.src]"
    shown = page.locator("#wall .wall")
    found = []

    def state() -> str:
        videos = page.evaluate(f"[...document.querySelectorAll('#wall video')].map({facts})")
        return f"{shown.evaluate('(e) => ({...e.dataset})')} {videos}"

    if shown.get_attribute("data-playing") != "true":
        page.locator("#wall").get_by_role("button", name="Play").first.click()
    settle(lambda: shown.get_attribute("data-frame") not in (None, "0"), state)
    page.locator("#wall").get_by_role("button", name="Pause").first.click()
    settle(lambda: shown.get_attribute("data-playing") != "true" and len(set(page.evaluate(times))) == 1, state)
    found.append(page.evaluate(times))
    for key, frame in (("Home", "0"), (".", "1"), (".", "2")):
        page.keyboard.press(key)
        settle(lambda at=frame: shown.get_attribute("data-frame") == at and len(set(page.evaluate(times))) == 1, state)
        found.append(page.evaluate(times))
    assert found[-1] != found[1], "two steps on is another frame than the first"
    return found


def test_a_closed_app_loses_nothing(app, page):
    """The page is killed while a run trains: the trainer goes on, and the next app finds it again."""
    tab(page, "Train")
    page.locator("#queue-demo").click()
    page.wait_for_selector("#queue .job")
    runs = app.workspace / "runs"
    settle(lambda: any(runs.glob("*/events.jsonl")))
    (run,) = [RunFolder(path) for path in runs.iterdir()]
    settle(lambda: any(e["type"] == "step" for e in read(run.events)[0]), seconds=120)
    app.stop(signal.SIGKILL)
    before = len(read(run.events)[0])
    settle(lambda: len(read(run.events)[0]) > before)  # it trains on alone
    app.start()
    page.goto(app.url)
    tab(page, "Train")
    page.wait_for_selector("#run-head .line >> text=/step|sampling|saving/")

    # Stop it: it saves and ends as cancelled; then resume it to its end.
    page.locator("#act-stop").click()
    settle(lambda: read(run.events)[0][-1]["type"] == "run_finished", seconds=90)
    assert read(run.events)[0][-1]["status"] in ("cancelled", "finished")
    page.wait_for_selector("#run-head .line >> text=/cancelled|finished/")
    assert run.checkpoints()


def test_only_media_is_served(app):
    """Files of the workspace that are no clips, thumbnails or samples cannot be fetched."""
    database = app.workspace / "studio.db"
    assert database.exists()
    metadata = app.workspace / "datasets" / "orbit" / "metadata.jsonl"
    for file in (database, metadata, Path(__file__), app.workspace / ".worker.lock"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{app.url}/gradio_api/file={file}", timeout=10)
        assert refused.value.code in (403, 404), file
    config = json.loads(urllib.request.urlopen(f"{app.url}/config", timeout=10).read())
    assert os.environ.get("HOME", "/root") + "/.ssh" not in json.dumps(config)
