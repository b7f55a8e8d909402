"""Opening the page: from app.py and from a notebook, who may reach it, and what it keeps to itself."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import studio
from studio.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def root(tmp_path: Path):
    """A workspace that is not new: it gets no demo. What is open on it is closed afterwards."""
    place = Workspace(tmp_path / "ws")
    place.db.touch()
    yield place.root
    for handle in list(studio._open):
        handle.close()


def test_importing_the_studio_is_light() -> None:
    code = (
        "import sys, studio; print([m for m in ('gradio', 'torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_building_the_page_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, studio; studio.build_app(sys.argv[1], devices=['cpu']);"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'peft', 'accelerate') if m in sys.modules])"
    )
    line = [sys.executable, "-c", code, str(tmp_path / "ws")]
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_door_opens_the_page_and_takes_the_next_free_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = [sys.executable, "app.py", "--workspace", str(tmp_path / "ws"), "--port", str(port), "--no-browser"]
        log = (tmp_path / "log").open("w+")
        environment = {**os.environ, "GRADIO_SHARE": "true"}  # not even this makes it public
        door = subprocess.Popen([*line, "--devices", "cpu"], cwd=ROOT, stdout=log, stderr=log, env=environment)
        try:
            limit = time.monotonic() + 90
            while not (found := re.search(r"open at (http://127\.0\.0\.1:(\d+))", (tmp_path / "log").read_text())):
                assert door.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < limit
                time.sleep(0.1)
            assert int(found[2]) != port
            assert httpx.get(found[1]).status_code == 200
            assert httpx.get(f"{found[1]}/config").json()["title"] == "Dailies"
            assert "Share link" not in (tmp_path / "log").read_text()
        finally:
            door.terminate()
            door.wait(20)
            log.close()
    assert Workspace(tmp_path / "ws").datasets() == ["orbit"], "a new workspace gets the demo"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["--auth", "nobody"], "name:password"), (["--host", "not.an.address.invalid"], "not a name or address")],
)
def test_what_cannot_open_is_a_sentence(tmp_path: Path, arguments: list[str], part: str) -> None:
    line = [sys.executable, "app.py", "--workspace", str(tmp_path / "ws"), "--no-browser", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_opening_again_closes_the_earlier_page(root: Path) -> None:
    first = studio.launch(root, devices=["cpu"], inline=False)
    assert httpx.get(first.url).status_code == 200
    second = studio.launch(root, devices=["cpu"], inline=False)
    assert httpx.get(second.url).status_code == 200
    assert studio._open == [second]
    if second.url != first.url:
        with pytest.raises(httpx.TransportError):
            httpx.get(first.url)
    second.close()
    with pytest.raises(httpx.TransportError):
        httpx.get(second.url)
    assert second.share_url is None


def test_beyond_this_computer_a_login_is_made_and_told_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handle = studio.launch(root, host="0.0.0.0", devices=["cpu"], inline=False)
    told = capsys.readouterr().out
    name, password = re.search(r"name (\S+), password (\S+)", told).groups()
    assert "needs a login" in told
    assert httpx.get(f"{handle.url}/config").status_code == 401
    with httpx.Client() as owner:
        wrong = owner.post(f"{handle.url}/login", data={"username": name, "password": "guess"})
        assert wrong.status_code == 400
        assert owner.post(f"{handle.url}/login", data={"username": name, "password": password}).status_code == 200
        assert owner.get(f"{handle.url}/config").status_code == 200


def test_on_this_computer_no_login_is_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handle = studio.launch(root, devices=["cpu"], inline=False)
    assert "password" not in capsys.readouterr().out
    assert httpx.get(f"{handle.url}/config").status_code == 200


def test_nothing_is_sent_home_and_uploads_stay_in_the_workspace(root: Path) -> None:
    handle = studio.launch(root, devices=["cpu"], inline=False, max_file_size="1kb")
    config = httpx.get(f"{handle.url}/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("footer_links")
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    upload = f"{handle.url}/gradio_api/upload"
    small = httpx.post(upload, files={"files": ("../../x.mp4", b"0" * 100)})
    assert Path(small.json()[0]).resolve().is_relative_to(root / ".uploads")
    assert httpx.post(upload, files={"files": ("x.mp4", b"0" * 5000)}).status_code == 413


def test_a_workspace_that_lost_its_demo_does_not_get_it_again(root: Path) -> None:
    studio.launch(root, devices=["cpu"], inline=False)
    assert Workspace(root).datasets() == []


@pytest.mark.browser
def test_first_paint_is_quick_and_asks_no_other_host(root: Path, chromium) -> None:
    handle = studio.launch(root, devices=["cpu"], inline=False)
    tab = chromium.new_page()
    hosts: set[str] = set()
    errors: list[str] = []
    tab.on("request", lambda request: hosts.add(httpx.URL(request.url).host))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(handle.url)  # a first visit warms the server
    tab.wait_for_selector("[role=tab]")
    started = time.monotonic()
    tab.goto(handle.url)
    tab.wait_for_selector("[role=tab]")
    assert time.monotonic() - started < 3
    for name in ("Configure", "Train", "Compare", "Dataset"):
        tab.get_by_role("tab", name=name).click()
        tab.wait_for_timeout(300)
    assert hosts <= {"127.0.0.1", ""}
    assert errors == []
    tab.close()
