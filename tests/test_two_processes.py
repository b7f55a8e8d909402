"""Two processes train one run, on CPUs over gloo: as torchrun and accelerate launch start them on two GPUs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from examples import tiny
from trainers.events import read
from trainers.runs import RunFolder

FAMILIES = ("animatediff", "cogvideox")

ENDLESS = ("--set", "max_train_steps=2000", "--set", "validation.every_steps=null", "--set", "validation.prompts=[]")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups and gloo as on Linux")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def config(folder, tiny_dataset):
    """Write the config of a small run of a family; `changes` go into its sections."""

    def write(family: str, name: str = "run", **changes: Mapping) -> Path:
        base = folder / f"{family}-base"
        if not base.exists():
            tiny.write(family, base)
        data = {
            "family": family,
            "method": "lora",
            "base_model": str(base),
            "seed": 7,
            "max_train_steps": 4,
            "mixed_precision": "no",
            "dataset": {
                "path": str(tiny_dataset), "num_frames": 5, "fps": None, "height": 64, "width": 64,
                "cache_dir": str(folder / f"{family}-cache"),
            },
            "adapter": {"rank": 4},
            "optimizer": {"learning_rate": 1e-3, "lr_scheduler": "linear", "max_grad_norm": 0.05},
            "validation": {"every_steps": 2, "prompts": ["a red circle"], "num_inference_steps": 2, "loss_draws": 2},
            "checkpoint": {"every_steps": 2},
            "tracking": {"every_steps": 1},
        }  # fmt: skip
        if family == "animatediff":
            data["motion_adapter"] = str(base / "motion_adapter")
        for key, value in changes.items():
            data[key] = {**data[key], **value} if isinstance(value, dict) else value
        file = folder / f"{family}-{name}.yaml"
        file.write_text(yaml.safe_dump(data))
        return file

    return write


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def torchrun(*line: object) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    return [*start, *map(str, line)]


def training(config: Path, run: Path, *line: object) -> list[str]:
    return torchrun("-m", "trainers.train", "--config", config, "--run-dir", run, *line)


def launched(line: Sequence[str]) -> str:
    """What it printed; it must end well."""
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200)
    assert done.returncode == 0, done.stdout
    return done.stdout


def started(line: Sequence[str]) -> subprocess.Popen:
    """In a session of its own, as the studio starts a run."""
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def wait_for_step(run: RunFolder, step: int, timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while not any(event["type"] == "step" and event["step"] >= step for event in read(run.events)[0]):
        assert time.monotonic() < end, f"no step {step} within {timeout} s"
        time.sleep(0.05)


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    (file,) = (run / "checkpoints" / f"step-{step:06d}").rglob("*.safetensors")
    return load_file(file)


def assert_same(one: Path, other: Path, step: int, *, tolerance: float = 0.0) -> None:
    first, second = weights(one, step), weights(other, step)
    assert first.keys() == second.keys() and first
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=tolerance, msg=name)


def back_to(run: Path, step: int, copy: Path) -> Path:
    """A copy of a run as if it had been killed after a checkpoint."""
    shutil.copytree(run, copy)
    for checkpoint in RunFolder(copy).checkpoints():
        if checkpoint.step > step:
            shutil.rmtree(checkpoint.path)
    return copy


@pytest.fixture(scope="module")
def alone(config, folder):
    """The run of one process that adds up two batches for each step."""
    from trainers.train import main

    def run(family: str) -> Path:
        path = folder / f"{family}-alone"
        if not path.exists():
            file = config(family, "alone", optimizer={"gradient_accumulation_steps": 2})
            assert main(["--config", str(file), "--run-dir", str(path)]) == 0
        return path

    return run


@pytest.fixture(scope="module")
def together(config, folder):
    """The same by two processes, each of one batch."""

    def run(family: str) -> Path:
        path = folder / f"{family}-together"
        if not path.exists():
            launched(training(config(family), path))
        return path

    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_train_as_one_with_twice_the_batch(alone, together, family):
    path = together(family)
    assert_same(alone(family), path, 4)
    events, expected = (read(RunFolder(run).events)[0] for run in (path, alone(family)))
    kinds = [event["type"] for event in events if event["type"] != "phase"]
    assert kinds == [event["type"] for event in expected if event["type"] != "phase"], "one process writes, once"
    for name in ("loss", "learning_rate", "validation_loss"):
        own, other = ([event[name] for event in log if name in event] for log in (events, expected))
        assert own == pytest.approx(other, rel=1e-6), name
    for event in events:
        if event["type"] == "sample":
            assert (path / event["path"]).read_bytes() == (alone(family) / event["path"]).read_bytes()
    shared = [event["total"] for event in events if event["type"] == "phase" and event["phase"] == "encoding"]
    assert not shared or max(shared) < 3, "each process encodes its share of the three clips"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stop_saves_and_what_goes_on_ends_bit_for_bit_the_same(config, folder, together, family):
    path = folder / f"{family}-stopped"
    process = started(training(config(family), path, *ENDLESS))
    wait_for_step(RunFolder(path), 1)
    os.killpg(process.pid, signal.SIGTERM)
    told = process.communicate(timeout=60)[0]
    last = read(RunFolder(path).events)[0][-1]
    assert (last["type"], last["status"]) == ("run_finished", "cancelled"), told
    assert RunFolder(path).checkpoints()[-1].path.name in told

    resumed = back_to(together(family), 2, folder / f"{family}-resumed")
    assert "going on from step 2" in launched(training(config(family), resumed, "--resume"))
    assert_same(together(family), resumed, 4)


def test_a_process_that_vanishes_ends_the_others_with_a_sentence(config, folder):
    path = folder / "vanished"
    process = started(training(config("animatediff"), path, *ENDLESS))
    wait_for_step(RunFolder(path), 2)
    for child in psutil.Process(process.pid).children():
        if child.environ().get("RANK") == "1":
            child.kill()
    told = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    last = read(RunFolder(path).events)[0][-1]
    assert (last["type"], last["status"]) == ("run_finished", "failed")
    assert last["reason"].startswith("another process of this run ended without a word")
    assert "trainers/loop.py" not in told, "no traceback of ours"


FAILS_IN_THE_SECOND = """
import sys
from trainers.events import EventLog
from trainers.families import load_config
from trainers.processes import Processes
from trainers.terminal import Mendable, carry_out
from trainers.runs import RunFolder
from pathlib import Path

def act(log):
    processes = Processes(load_config(Path(sys.argv[1])))
    with processes.ending_together():
        assert processes.count == 2 and processes.gather(processes.rank) == [0, 1]
        assert processes.sums(processes.rank, 5) == [1, 10]
        if not processes.first:
            raise Mendable("clip_07.mp4 is gone")
        processes.wait()

started = dict(step=0, max_train_steps=1, family="f", method="m", resumed=False)
sys.exit(carry_out(RunFolder(Path(sys.argv[2])), started, act))
"""


def test_the_first_process_tells_why_another_failed(config, folder):
    script = folder / "fails.py"
    script.write_text(FAILS_IN_THE_SECOND)
    path = folder / "fails"
    line = torchrun(script, config("animatediff"), path)
    assert subprocess.run(line, capture_output=True, timeout=200).returncode != 0
    last = read(RunFolder(path).events)[0][-1]
    assert (last["status"], last["reason"]) == ("failed", "process 1 of 2 failed: clip_07.mp4 is gone")


def test_fsdp_trains_saves_and_goes_on(config, folder, alone, root):
    """Through accelerate launch with the configuration of the examples."""
    file = config("cogvideox", "sharded", method="full", memory={"gradient_checkpointing": "sac"})

    def sharded(run: Path, *more: str) -> list[str]:
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
        launch += ["--config_file", str(root / "examples" / "accelerate" / "fsdp2.yaml")]
        launch += ["--main_process_port", free_port(), "-m", "trainers.train"]
        return [*launch, "--config", str(file), "--run-dir", str(run), *more]

    path = folder / "sharded"
    launched(sharded(path))

    from trainers.train import main

    whole = folder / "whole"
    line = ["--config", str(file), "--run-dir", str(whole), "--set", "optimizer.gradient_accumulation_steps=2"]
    assert main(line) == 0
    assert_same(whole, path, 4, tolerance=1e-6)
    kept = [sorted(f.name for f in (run / "checkpoints" / "step-000004").rglob("*")) for run in (whole, path)]
    assert kept[0] == kept[1]
    configs = [next((run / "checkpoints" / "step-000004").rglob("config.json")).read_text() for run in (whole, path)]
    assert configs[0] == configs[1]

    resumed = back_to(path, 2, folder / "sharded-resumed")
    launched(sharded(resumed, "--resume"))
    assert_same(path, resumed, 4)

    on_its_own = back_to(path, 2, folder / "sharded-alone")
    assert main([*line[:3], str(on_its_own), *line[4:], "--resume"]) == 0
    assert_same(path, on_its_own, 4, tolerance=1e-6)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("optimizer.name=prodigy", "optimizer prodigy cannot work in shards; with FSDP, choose adamw or adam"),
        ("memory.offload_optimizer=true", "memory.offload_optimizer cannot work in shards; with FSDP, turn it off"),
    ],
)
def test_what_cannot_be_sharded_is_told_before_anything_is_loaded(config, monkeypatch, setting, sentence):
    from trainers.families import load_config, parse_config
    from trainers.processes import asked_layout
    from trainers.settings import apply_overrides, to_yaml
    from trainers.terminal import Mendable

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    settings = yaml.safe_load(to_yaml(load_config(config("animatediff"))))
    with pytest.raises(Mendable, match=sentence):
        asked_layout(parse_config(apply_overrides(settings, [setting])))
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(Mendable, match="set fsdp_version to 2"):
        asked_layout(parse_config(settings))
