"""Two processes train one run, on CPUs over gloo: as torchrun and accelerate launch start them on two GPUs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from examples import tiny
from trainers.events import read
from trainers.runs import RunFolder

#: Steps of a run: enough that one can be ended in between.
STEPS = 12

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups and gloo as on Linux")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two")


def write_config(folder: Path, dataset: Path, family: str, name: str, **changes: Any) -> Path:
    """The config of a small run."""
    base = folder / f"{name}-base"
    tiny.write(family, base)
    data = {
        "family": family,
        "method": "lora",
        "base_model": str(base),
        "seed": 7,
        "max_train_steps": STEPS,
        "mixed_precision": "no",
        "dataset": {
            "path": str(dataset), "num_frames": 5, "fps": None, "height": 64, "width": 64,
        },
        "adapter": {"rank": 4},
        "optimizer": {"learning_rate": 1e-3, "lr_scheduler": "linear", "max_grad_norm": 0.05},
        "validation": {
            "every_steps": STEPS // 2, "prompts": ["a red circle"], "num_inference_steps": 2, "loss_draws": 2,
        },
        "checkpoint": {"every_steps": STEPS // 4},
        "tracking": {"every_steps": 1},
        **changes,
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def torchrun(*line: object) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    return [*start, *map(str, line)]


class DiedInNativeCode(Exception):
    """A process that no line of Python ended."""


def launched(line: Sequence[str], **options: Any) -> str:
    """What it printed; it must end well."""
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200, **options)
    if "(SIGABRT)" in done.stdout:
        raise DiedInNativeCode(done.stdout)
    assert done.returncode == 0, done.stdout
    return done.stdout


def resumed(line: Sequence[str]) -> str:
    """What it printed as it went on to its end.

    PyTorch 2.13 in shards over gloo has died once of a broken heap ("double free or corruption"), and not again in over
    a thousand saves, with and without an allocator that checks every free. A run that dies so is resumed, here too.
    """
    try:
        return launched([*line, "--resume"])
    except DiedInNativeCode as death:
        return str(death) + launched([*line, "--resume"])


@contextmanager
def started(line: Sequence[str]) -> Iterator[subprocess.Popen]:
    """In a session of its own, as the studio starts a run; whatever of it lives at the end is killed."""
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(run: Path, event: str, count: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 150
    while sum(e["type"] == event for e in read(run / "events.jsonl")[0]) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"no {event} within 150 s"
        time.sleep(0.02)


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = RunFolder(run).checkpoints()[-1]
    assert checkpoint.step == STEPS
    (file,) = checkpoint.path.rglob("*.safetensors")
    return load_file(file)


def assert_same(one: Path, other: Path, tolerance: float = 0.0) -> None:
    first, second = last_weights(one), last_weights(other)
    assert first.keys() == second.keys() and first
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=tolerance, msg=name)


def train_alone(config: Path, run: Path) -> None:
    """The run of one process that adds up two batches for each step."""
    from trainers.train import main

    line = ["--config", str(config), "--run-dir", str(run), "--set", "optimizer.gradient_accumulation_steps=2"]
    assert main(line) == 0


@pytest.fixture(scope="module")
def config(folder, tiny_dataset) -> Path:
    return write_config(folder, tiny_dataset, "cogvideox", "lora")


@pytest.fixture(scope="module")
def together(config, folder, root) -> Path:
    """A run of two processes, each with a batch of its own, in the folder that they choose."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    launched(torchrun("-m", "trainers.train", "--config", config), cwd=folder, env=environment)
    (run,) = (folder / "runs").iterdir()
    return run


def test_two_processes_train_as_one_with_twice_the_batch(config, folder, together):
    alone = folder / "alone"
    train_alone(config, alone)
    assert_same(alone, together)
    events, expected = ([e for e in read(run / "events.jsonl")[0] if e["type"] != "phase"] for run in (together, alone))
    assert [e["type"] for e in events] == [e["type"] for e in expected], "one process writes, and once"
    for name in ("loss", "learning_rate", "validation_loss"):
        own, other = ([e[name] for e in log if name in e] for log in (events, expected))
        assert own == pytest.approx(other, rel=1e-6), name
    samples = [e["path"] for e in events if e["type"] == "sample"]
    assert len(samples) == 3 and all((together / s).read_bytes() == (alone / s).read_bytes() for s in samples)


def test_each_process_encodes_its_share(together):
    phases = [e for e in read(together / "events.jsonl")[0] if e["type"] == "phase" and e["phase"] == "encoding"]
    assert {phase["total"] for phase in phases} == {2}, "of three clips"
    assert len(list((together / "cache").iterdir())) == 3 + 4, "clips, and captions with the empty one"


def test_a_process_that_vanishes_ends_the_other_and_the_run_goes_on_bit_for_bit(config, folder, together):
    run = folder / "vanished"
    line = torchrun("-m", "trainers.train", "--config", config, "--run-dir", run)
    with started(line) as process:
        wait_for(run, "checkpoint", 1, process)
        (second,) = [p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == "1"]
        second.kill()
        told = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    last = read(run / "events.jsonl")[0][-1]
    assert (last["type"], last["status"]) == ("run_finished", "failed")
    assert last["reason"].startswith("another process of this run ended without a word")
    assert "trainers/loop.py" not in told, "no traceback of ours"

    told = launched([*line, "--resume"])
    assert f"going on from step {STEPS // 4}" in told
    assert_same(together, run)


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


def test_the_first_process_tells_why_another_failed(config, folder, root):
    script, run = folder / "fails.py", folder / "fails"
    script.write_text(FAILS_IN_THE_SECOND)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    assert subprocess.run(torchrun(script, config, run), capture_output=True, timeout=200, env=environment).returncode
    last = read(run / "events.jsonl")[0][-1]
    assert (last["status"], last["reason"]) == ("failed", "process 1 of 2 failed: clip_07.mp4 is gone")


def test_a_model_in_shards_is_stopped_saved_and_goes_on(folder, tiny_dataset, root):
    """FSDP2 through accelerate launch, with the configuration of the examples."""
    memory = {"gradient_checkpointing": "sac"}
    config = write_config(folder, tiny_dataset, "cogvideox", "full", method="full", memory=memory)
    run, alone = folder / "sharded", folder / "whole"
    line = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", free_port()]
    line += ["--config_file", str(root / "examples" / "accelerate" / "fsdp2.yaml"), "--num_processes", "2"]
    line += ["-m", "trainers.train", "--config", str(config), "--run-dir", str(run)]

    with started(line) as process:
        wait_for(run, "step", 1, process)
        os.killpg(process.pid, signal.SIGTERM)
        told = process.communicate(timeout=60)[0]
    last = read(run / "events.jsonl")[0][-1]
    assert (last["type"], last["status"]) == ("run_finished", "cancelled"), told
    reached = RunFolder(run).checkpoints()[-1].step
    assert 0 < reached < STEPS, "it was over before it could be stopped"

    assert f"going on from step {reached}" in resumed(line)
    train_alone(config, alone)
    assert_same(alone, run, tolerance=2e-6)
    own, other = (RunFolder(path).checkpoints()[-1].path for path in (run, alone))
    assert {file.name for file in own.rglob("*")} == {file.name for file in other.rglob("*")}
    written = [next(path.rglob("config.json")).read_text() for path in (own, other)]
    assert written[0] == written[1], "FSDP leaves no trace"


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
    settings = yaml.safe_load(to_yaml(load_config(config)))
    with pytest.raises(Mendable, match=sentence):
        asked_layout(parse_config(apply_overrides(settings, [setting])))
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(Mendable, match="set fsdp_version to 2"):
        asked_layout(parse_config(settings))
