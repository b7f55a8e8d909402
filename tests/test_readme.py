"""What the README says is so: every command in it runs, in the order in which a reader would type them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import yaml

from trainers.config import DatasetConfig
from trainers.data.video import probe, read_frames
from trainers.events import read
from trainers.families import FAMILIES, load_config, load_sample_config
from trainers.runs import RunFolder
from trainers.settings import choices

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPEN = "pip install -r requirements.txt && python app.py"
TEST = "pip install -r requirements.txt -r tests/requirements.txt && python -m pytest -n 2"


def commands() -> list[str]:
    """The lines of the README's bash blocks, in order."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def to_run() -> list[str]:
    return [command for command in commands() if command not in (OPEN, TEST)]


def front_matter() -> dict:
    return yaml.safe_load(README.split("---\n")[1])


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Run the README's commands with runs/ in a folder of our own; (that folder, (command, result) pairs)."""
    runs = tmp_path_factory.mktemp("readme") / "runs"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    results = []
    for command in to_run():
        words = shlex.split(command.replace("runs/", f"{runs}/"))
        assert words[:2] == ["python", "-m"], command
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment
        )
        results.append((command, done))
    return runs, results


# --- the commands ----------------------------------------------------------------------------------------------------


def test_the_two_commands_for_a_bare_machine_are_there():
    assert commands().count(OPEN) == 1
    assert commands().count(TEST) == 1
    assert "python -m pytest -n 2" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_every_command_of_the_readme_runs(walked):
    _, results = walked
    assert len(results) >= 6
    for command, done in results:
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, command


def test_the_commands_in_the_configs_comments_are_those_of_the_readme():
    text = (ROOT / "examples" / "demo" / "compare.yaml").read_text(encoding="utf-8")
    command = " ".join(line.removeprefix("#").strip().removesuffix("\\").strip() for line in text.splitlines()[1:3])
    assert command in README


# --- the demo --------------------------------------------------------------------------------------------------------


def test_the_demo_run_finishes_and_learns(walked):
    run = RunFolder(walked[0] / "demo")
    events, _ = read(run.events)
    assert events[0]["type"] == "run_started"
    assert (events[-1]["type"], events[-1]["status"]) == ("run_finished", "finished")
    config = load_config(run.config)
    assert config.method == "motion_module"
    assert config.max_train_steps >= 60
    assert config.optimizer.learning_rate == 1e-3
    losses = [event["validation_loss"] for event in events if event["type"] == "validation"]
    assert len(losses) >= 3
    assert losses[-1] <= 0.9 * losses[0]
    steps = [checkpoint.step for checkpoint in run.checkpoints()]
    assert steps[-1] == config.max_train_steps
    assert f"step-{steps[-1]:06d}" in README


def test_the_demo_samples_are_playable_and_change(walked):
    run = RunFolder(walked[0] / "demo")
    samples = [event for event in read(run.events)[0] if event["type"] == "sample"]
    assert {event["take"] for event in samples} >= {"base", "step-000060"}
    for event in samples:
        found = probe(run.path / event["path"])
        assert (found.codec, found.num_frames, found.width, found.height) == ("h264", 8, 64, 64)


def test_base_and_last_take_of_the_comparison_differ(walked):
    run = RunFolder(walked[0] / "demo-compare")
    events, _ = read(run.events)
    assert events[-1]["status"] == "finished"
    clips = {}
    for event in events:
        if event["type"] == "sample":
            frames = read_frames(run.path / event["path"], range(8))
            clips.setdefault((event["prompt"], event["seed"]), {})[event["take"]] = frames.astype(float)
    assert len(clips) == 4
    for takes in clips.values():
        base, trained = takes["base"], takes[next(take for take in takes if take != "base")]
        assert base.shape == trained.shape == (8, 64, 64, 3)
        assert np.abs(base - trained).mean() > 1


def test_both_exports_load(walked):
    from diffusers import MotionAdapter
    from safetensors.torch import load_file

    exports = walked[0] / "demo" / "exports"
    original = load_file(exports / "motion_module.safetensors")
    assert original
    assert all("motion_modules." in key for key in original)
    adapter = MotionAdapter.from_pretrained(exports / "motion_adapter")
    assert sum(weight.numel() for weight in adapter.parameters()) > 0


# --- the demo's files ------------------------------------------------------------------------------------------------


def test_the_demos_clips_play_in_a_browser():
    for file in (ROOT / "examples" / "demo" / "dataset" / "clips").iterdir():
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p"), file.name


def test_the_demos_base_has_the_real_layout():
    base = ROOT / "examples" / "demo" / "base"
    assert (base / "model_index.json").is_file()
    assert (base / "motion_adapter" / "config.json").is_file()


def test_the_tiny_models_table_has_every_family(tmp_path):
    from examples import tiny

    assert set(tiny.FAMILIES) == set(FAMILIES)
    with pytest.raises(ValueError, match="known: "):
        tiny.write("unheard", tmp_path)


# --- examples --------------------------------------------------------------------------------------------------------

YAMLS = sorted(path for path in (ROOT / "examples").rglob("*.yaml") if path.parent.name != "accelerate")


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.relative_to(ROOT / "examples").as_posix())
def test_every_example_is_a_valid_config(path):
    if "prompts" in yaml.safe_load(path.read_text(encoding="utf-8")):
        load_sample_config(path)
    else:
        load_config(path)


@pytest.mark.parametrize(
    "path",
    [p for p in YAMLS if p.parent.name != "demo" and not p.stem.startswith("from_")],
    ids=lambda p: f"{p.parent.name}-{p.stem}",
)
def test_an_example_would_start_on_a_dataset_that_exists(path):
    """Its own dataset is a placeholder: without one the dry run says so and fails, with one it would start."""
    command = [sys.executable, "-m", "trainers.train", "--config", str(path), "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "would not start" in done.stdout
    command += ["--set", "dataset.path=examples/demo/dataset", "--set", "dataset.frame_stride=1"]
    command += ["--set", "dataset.frame_buckets=true", "--set", "dataset.upscale=true"]  # the demo's are short, small
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert path.stem.endswith(yaml.safe_load(done.stdout)["method"])


def test_every_method_of_every_family_has_an_example():
    for family in FAMILIES.values():
        for method in family.methods:
            assert load_config(ROOT / "examples" / family.name / f"{method}.yaml").method == method


# --- tables and front matter -----------------------------------------------------------------------------------------


def test_the_table_of_datasets_names_every_format():
    rows = [line for line in README.splitlines() if line.startswith("|")]
    for name in choices(DatasetConfig.model_fields["format"]):
        assert any(row.startswith(f"| `{name}` |") for row in rows), name


def test_the_tables_name_every_family_method_and_format():
    rows = [line for line in README.splitlines() if line.startswith("|")]
    for family in FAMILIES.values():
        assert any(family.title in row and f"`{family.name}`" in row for row in rows)
        for name in (*family.methods, *family.export_formats):
            assert any(f"| `{name}` |" in row for row in rows), name


def test_files_that_the_readme_names_exist():
    for name in re.findall(r"`(examples/[\w./]+)`", README) + re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / name).exists(), name


def test_the_front_matter_makes_the_repository_a_space():
    matter = front_matter()
    assert matter["sdk"] == "gradio"
    assert (ROOT / matter["app_file"]).is_file()
    assert matter["python_version"] == "3.11"
    assert matter["license"] == "apache-2.0"
    assert len(matter["short_description"]) <= 60
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {matter["colorFrom"], matter["colorTo"]} <= colours
    wanted = next(line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("gradio"))
    from packaging.requirements import Requirement

    assert Requirement(wanted).specifier.contains(matter["sdk_version"])
