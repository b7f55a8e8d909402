"""What tests share. Runs before anything imports torch."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Set before torch is imported, here and in every process that a test starts: more threads than this only wait for each
# other on tensors as small as ours. And a test that reaches for the network must fail the same way everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import pytest  # noqa: E402

#: Files that take longest, longest first: they begin, so that no process ends long after the other.
LONGEST = ("learning", "train", "two_processes", "readme", "page", "notebook", "dynamicrafter_weights", "tab_configure")

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))  # otherwise as they were


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A tiny random AnimateDiff base with the real classes; its motion adapter is below it, in motion_adapter/.

    Shared by the whole session: read it, never write into it.
    """
    from examples import tiny

    folder = tmp_path_factory.mktemp("tiny") / "base"
    tiny.write("animatediff", folder)
    return folder


@pytest.fixture(scope="session")
def cogvideox_bases(tmp_path_factory):
    """Gives the folder of a tiny random CogVideoX base by its kind, a name of examples.tiny. Shared: read it only."""
    from functools import cache

    from examples import tiny

    @cache
    def folder(kind: str) -> Path:
        out: Path = tmp_path_factory.mktemp("tiny") / kind
        tiny.write(kind, out)
        return out

    return folder


@pytest.fixture(scope="session")
def mochi_bases(tmp_path_factory):
    """Gives the settings that name a tiny random Mochi base: mochi, or mochi-genmo with the same layout as Genmo's
    files. Shared: read it only."""
    from functools import cache

    from examples import tiny

    @cache
    def settings(kind: str) -> dict[str, str]:
        return tiny.write(kind, tmp_path_factory.mktemp("tiny") / kind)

    return settings


@pytest.fixture(scope="session")
def dynamicrafter_bases(tmp_path_factory):
    """Gives the folder of a tiny random DynamiCrafter base of four frames by the published one whose rules it follows:
    512, 256 or 512-interp. Shared: read it only."""
    from functools import cache

    import torch

    from examples.tiny.dynamicrafter import write_dynamicrafter

    @cache
    def folder(variant: str) -> Path:
        out: Path = tmp_path_factory.mktemp("tiny") / variant
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            write_dynamicrafter(out, "tiny", variant, frames=4)
        return out

    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    """A dataset of three captioned clips of 12 frames, 64 x 64 at 12 fps. Shared: read it, never write into it."""
    from examples.demo import shapes

    folder = tmp_path_factory.mktemp("data") / "shapes"
    chosen = shapes.scenes(seed=0, count=3)
    shapes.write(folder, chosen, [scene.caption() for scene in chosen], num_frames=12)
    return folder


@pytest.fixture(scope="session")
def tiny_unet(tiny_base):
    """The denoiser of the tiny base, with its motion modules. Shared: read it, never train it."""
    from trainers.families import get_family, parse_config

    config = {
        "family": "animatediff",
        "method": "motion_module",
        "base_model": str(tiny_base),
        "motion_adapter": str(tiny_base / "motion_adapter"),
        "mixed_precision": "no",
        "dataset": {"path": ".", "num_frames": 4, "height": 64, "width": 64},
    }
    return get_family("animatediff").load(parse_config(config), "train").denoiser["denoiser"]


@pytest.fixture
def webvid_table(tmp_path, tiny_dataset) -> tuple[Path, Path]:
    """A CSV file of four rows, of which three have their video, and the folder of these."""
    import csv

    folder = tmp_path / "videos"
    shutil.copytree(tiny_dataset / "clips", folder)
    names = sorted(file.name for file in folder.iterdir())
    with (tmp_path / "train.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["videoid", "name", "contentUrl"])
        rows.writerows([Path(n).stem, f"a clip {n}", f"https://example.org/{n}"] for n in [*names, "gone.mp4"])
    return tmp_path / "train.csv", folder


@pytest.fixture(scope="module")
def chromium():
    """Headless Chromium, driven by Playwright; `chromium.new_page()` gives a page.

    One per module: Playwright keeps an event loop running in the thread for as long as it lives.
    """
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        reason = "no chromium, chromium-browser or google-chrome on the path: the page cannot be driven"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=CHROMIUM_FLAGS)
        browser.new_page, browser.new_context = _patient(browser.new_page), _patient(browser.new_context)
        yield browser
        browser.close()


def _patient(make):
    """What opens pages, so that they wait for a machine that does much else: two test processes and what they start."""

    def opened(**options):
        found = make(**options)
        found.set_default_timeout(90_000)
        return found

    return opened
