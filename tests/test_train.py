"""The training door and loop, as a person uses them: a config, a process, a run folder."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
import torch
import yaml
from safetensors.torch import load_file

from trainers.events import read
from trainers.runs import RunFolder


@pytest.fixture
def config(tiny_base, tiny_dataset, tmp_path):
    """Write a small run's config; `changes` are dotted settings."""

    def write(name: str = "run.yaml", **changes) -> Path:
        data = {
            "family": "animatediff",
            "method": "lora",
            "base_model": str(tiny_base),
            "motion_adapter": str(tiny_base / "motion_adapter"),
            "seed": 7,
            "max_train_steps": 6,
            "mixed_precision": "no",
            "dataset": {
                "path": str(tiny_dataset),
                "num_frames": 4,
                "height": 64,
                "width": 64,
                "cache_dir": str(tmp_path / "cache"),
            },
            "adapter": {"rank": 4, "dropout": 0.1},
            "optimizer": {"learning_rate": 1e-3},
            "validation": {"every_steps": 3, "prompts": ["a red circle"], "num_inference_steps": 2, "loss_draws": 2},
            "checkpoint": {"every_steps": 2},
            "tracking": {"every_steps": 1},
        }
        for path, value in changes.items():
            here = data
            *parents, last = path.split("__")
            for parent in parents:
                here = here.setdefault(parent, {})
            here[last] = value
        file = tmp_path / name
        file.write_text(yaml.safe_dump(data))
        return file

    return write


def door(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "trainers.train", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "trainers.train", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait_for(run: RunFolder, event: str, count: int = 1, timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while sum(e["type"] == event for e in read(run.events)[0]) < count:
        assert time.monotonic() < end, f"no {event} within {timeout} s"
        time.sleep(0.01)


def last_weights(run: Path) -> dict:
    checkpoint = RunFolder(run).checkpoints()[-1]
    (file,) = checkpoint.path.glob("*.safetensors")
    return load_file(file)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = last_weights(one), last_weights(other)
    assert first.keys() == second.keys() and first
    for name, tensor in first.items():
        assert tensor.equal(second[name]), name


def test_a_run_leaves_all_that_it_promises(config, tmp_path):
    from trainers.train import main

    run = RunFolder(tmp_path / "run")
    assert main(["--config", str(config()), "--run-dir", str(run.path)]) == 0
    events = read(run.events)[0]
    assert events[0]["type"] == "run_started"
    assert events[-1]["type"] == "run_finished" and events[-1]["status"] == "finished"
    assert [e["step"] for e in events if e["type"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert {e["step"] for e in events if e["type"] == "validation"} >= {0, 3, 6}
    assert [c.path.name for c in run.checkpoints()] == ["step-000002", "step-000004", "step-000006"]
    assert {p.name for p in (run.path / "checkpoints").iterdir()} == {c.path.name for c in run.checkpoints()}
    assert run.checkpoints()[0].meta()["step"] == 2
    samples = [e for e in events if e["type"] == "sample"]
    assert [e["step"] for e in samples] == [0, 3, 6]
    for sample in samples:
        with av.open(str(run.path / sample["path"])) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert sum(1 for _ in container.decode(stream)) == 4
    assert yaml.safe_load(run.config.read_text())["adapter"]["rank"] == 4
    measures = [e for e in events if e["type"] == "measure"]
    assert [(e["step"], e["take"]) for e in measures] == [(0, "base"), (3, "step-000003"), (6, "step-000006")]
    assert (measures[0]["motion_change"], measures[0]["style"]) == (0, 0)
    for measure in measures:
        assert measure["prompt"] == "a red circle" and measure["motion"] > 0 and 0 < measure["new_motion"] < 1
    for measure in measures[1:]:
        assert 0 < measure["motion_change"] < 1 and 0 < measure["style"] < 1

    # A folder that holds a run is not written over, and a finished run says that it is finished.
    assert main(["--config", str(config()), "--run-dir", str(run.path)]) == 1
    before = run.events.read_bytes()
    assert main(["--config", str(config()), "--run-dir", str(run.path), "--resume"]) == 0
    assert run.events.read_bytes() == before

    # More steps: the finished run goes on.
    assert main(["--config", str(config()), "--run-dir", str(run.path), "--resume", "--set", "max_train_steps=7"]) == 0
    assert run.checkpoints()[-1].step == 7
    last = [e for e in read(run.events)[0] if e["type"] == "measure"][-1]
    assert last["step"] == 7 and last["motion_change"] > 0, "measured against the base that the first start drew"
    told = [e["text"] for e in read(run.events)[0] if e["type"] == "message"]
    assert "changed since this run began: max_train_steps: 7, was 6" in told


@pytest.mark.parametrize("method", ["lora", "motion_module"])
def test_killed_and_resumed_is_bit_identical(config, tmp_path, method):
    from trainers.train import main

    settings = {"method": method, "max_train_steps": 9, "dataset__flip": True, "dataset__variants": 2}
    settings |= {"optimizer__gradient_accumulation_steps": 2, "optimizer__lr_warmup_steps": 2}
    file = config(**settings)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert main(["--config", str(file), "--run-dir", str(straight)]) == 0

    process = start("--config", file, "--run-dir", broken)
    wait_for(RunFolder(broken), "checkpoint", 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert RunFolder(broken).checkpoints()[-1].step < 9, "the run was over before it could be killed"
    assert read(RunFolder(broken).events)[0][-1]["type"] != "run_finished"

    resumed = door("--config", file, "--run-dir", broken, "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert_same_weights(straight, broken)
    assert read(RunFolder(broken).events)[0][-1]["status"] == "finished"


def test_sigterm_saves_and_ends_as_cancelled(config, tmp_path):
    file = config(max_train_steps=2000, checkpoint__every_steps=None, validation__every_steps=None)
    run = RunFolder(tmp_path / "run")
    process = start("--config", file, "--run-dir", run.path)
    wait_for(run, "step", 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    last = read(run.events)[0][-1]
    assert (last["type"], last["status"]) == ("run_finished", "cancelled")
    assert run.checkpoints()[-1].step >= 3
    assert not (run.path / ".writing").exists()


def test_wishes_are_granted(config, tmp_path):
    run = RunFolder(tmp_path / "run")
    file = config(max_train_steps=2000, checkpoint__every_steps=None, validation__every_steps=None)
    process = start("--config", file, "--run-dir", run.path)
    wait_for(run, "step", 2)
    run.wish("save")
    run.wish("sample")
    wait_for(run, "checkpoint")
    wait_for(run, "sample")
    run.wish("stop_after")
    assert process.wait(timeout=60) == 0
    assert read(run.events)[0][-1]["status"] == "cancelled"


def test_same_seed_same_weights_other_seed_others(config, tmp_path):
    from trainers.train import main

    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        settings = {"seed": seed, "max_train_steps": 2, "validation__every_steps": None}
        assert main(["--config", str(config(f"{name}.yaml", **settings)), "--run-dir", str(tmp_path / name)]) == 0
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert any(not t.equal(last_weights(tmp_path / "c")[n]) for n, t in last_weights(tmp_path / "a").items())


def test_a_warm_epoch_decodes_no_frame_and_loads_no_encoder(config, tmp_path, monkeypatch):
    from trainers.data.video import frames_decoded
    from trainers.families.animatediff.model import AnimateDiff
    from trainers.train import main

    settings = {"max_train_steps": 4, "validation__prompts": []}
    assert main(["--config", str(config(**settings)), "--run-dir", str(tmp_path / "cold")]) == 0

    def refuse(*arguments):
        raise AssertionError("an encoder was used in a warm run")

    monkeypatch.setattr(AnimateDiff, "encode_video", refuse)
    monkeypatch.setattr(AnimateDiff, "encode_prompt", refuse)
    before = frames_decoded()
    assert main(["--config", str(config(**settings)), "--run-dir", str(tmp_path / "warm")]) == 0
    assert frames_decoded() == before
    assert_same_weights(tmp_path / "cold", tmp_path / "warm")


def test_without_cache_the_same_samples_give_the_same_weights(config, tmp_path):
    """One variant drawn once is what an uncached first epoch draws, so one epoch agrees."""
    from trainers.train import main

    settings = {"max_train_steps": 3, "validation__every_steps": None}  # three clips: one epoch
    assert main(["--config", str(config(**settings)), "--run-dir", str(tmp_path / "cached")]) == 0
    assert main(["--config", str(config(dataset__cache=False, **settings)), "--run-dir", str(tmp_path / "live")]) == 0
    assert_same_weights(tmp_path / "cached", tmp_path / "live")
    assert not list((tmp_path / "live").rglob("cache"))


def test_held_out_clips_are_never_trained_on(config, tiny_dataset):
    from pathlib import Path

    from trainers.data.clips import Dataset
    from trainers.data.ledger import ledger
    from trainers.data.loader import Batches
    from trainers.families import get_family, load_config
    from trainers.loop import held_samples, hold_out

    settings = load_config(config(validation__holdout=1))
    dataset = Dataset.open(Path(tiny_dataset))
    rows = ledger(dataset, settings, get_family(settings.family))
    trained, held = hold_out(rows, settings)
    assert (len(trained), len(held)) == (2, 1)
    assert hold_out(rows, settings) == (trained, held), "the same choice every time"
    batches = Batches(dataset, trained, settings.dataset, settings.seed)
    seen = {sample.clip.file_name for number in range(20) for sample in batches[number]}
    measured = {sample.clip.file_name for sample in held_samples(dataset, batches, held, settings)}
    assert measured == {held[0].clip.file_name}
    assert seen == {row.clip.file_name for row in trained}


def test_copies_of_a_held_out_clip_are_held_out_with_it(config, tiny_dataset):
    from trainers.data.formats import open_dataset
    from trainers.data.ledger import ledger, nothing_to_train
    from trainers.families import get_family, load_config
    from trainers.loop import hold_out

    videos = sorted(str(file) for file in (tiny_dataset / "clips").iterdir())
    settings = load_config(
        config(dataset__format="list", dataset__videos=videos * 2, dataset__prompts=["a"], validation__holdout=1)
    )
    rows = ledger(open_dataset(settings.dataset), settings, get_family("animatediff"))
    trained, held = hold_out(rows, settings)
    assert (len(rows), len(trained), len(held)) == (6, 4, 1)
    assert held[0].clip.sha256 not in {row.clip.sha256 for row in trained}
    settings.validation.holdout = 3
    assert "only 3 clips" in nothing_to_train(open_dataset(settings.dataset), rows, settings)[1]


def test_accumulation_counts_optimizer_steps(config, tmp_path):
    from trainers.train import main

    settings = {"optimizer__gradient_accumulation_steps": 3, "optimizer__lr_scheduler": "linear", "max_train_steps": 4}
    assert main(["--config", str(config(**settings)), "--run-dir", str(tmp_path / "run")]) == 0
    rates = [e["learning_rate"] for e in read(tmp_path / "run" / "events.jsonl")[0] if e["type"] == "step"]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_batch(config, tmp_path, capfd):
    from trainers.train import main

    settings = {
        "method": "full",
        "optimizer__learning_rate": 1e30,
        "max_train_steps": 50,
        "optimizer__max_grad_norm": None,
    }
    run = RunFolder(tmp_path / "run")
    arguments = ["--config", str(config(validation__every_steps=None, **settings)), "--run-dir", str(run.path)]
    assert main(arguments) == 1
    last = read(run.events)[0][-1]
    assert last["status"] == "failed"
    assert "stopped being a number at step" in last["reason"] and ".mp4" in last["reason"]
    assert "Traceback" not in capfd.readouterr().err
    for checkpoint in run.checkpoints():
        assert all(
            tensor.isfinite().all() for tensor in load_file(next(checkpoint.path.glob("*.safetensors"))).values()
        )


@pytest.mark.skipif(sys.platform == "win32", reason="limits a process's file size with setrlimit")
def test_a_full_disk_costs_one_checkpoint_and_no_other(config, tmp_path):
    import resource

    from trainers.train import main

    file = config(max_train_steps=4, validation__every_steps=None)
    run = RunFolder(tmp_path / "run")
    given = ["--config", str(file), "--run-dir", str(run.path)]
    assert main([*given, "--set", "max_train_steps=2"]) == 0
    small = max(p.stat().st_size for p in (tmp_path / "cache").rglob("*")) + 4096
    assert small < run.checkpoints()[-1].state.stat().st_size

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (small, small))

    failed = door(*given, "--resume", preexec_fn=limit)
    assert failed.returncode == 1
    last = read(run.events)[0][-1]
    assert last["status"] == "failed" and "step 4 could not be saved" in last["reason"]
    assert "goes on from step 2, the last whole checkpoint" in last["reason"]
    assert "a file grew larger than the disk or a limit allows" in last["reason"]
    assert [c.step for c in run.checkpoints()] == [2]
    assert "Traceback" not in failed.stdout + failed.stderr
    assert main([*given, "--resume"]) == 0
    assert run.checkpoints()[-1].step == 4


def test_retention_keeps_the_best_and_the_starred(config, tmp_path):
    from trainers.train import main

    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.wish("star", step=1)
    settings = {"max_train_steps": 5, "checkpoint__every_steps": 1, "checkpoint__keep_last": 1}
    assert main(["--config", str(config(validation__prompts=[], **settings)), "--run-dir", str(run.path)]) == 0
    kept = {c.step for c in run.checkpoints()}
    best = run.best()
    assert best is not None and kept == {1, best.step, 5}


def test_dry_run_prints_the_config_first_and_loads_nothing(config, tmp_path):
    script = (
        "import sys; from trainers.train import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'accelerate'} & set(sys.modules);"
        "print('heavy:', sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    arguments = ["--config", str(config()), "--dry-run", "--set", "adapter.rank=5"]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stderr
    assert done.stdout.startswith("family: animatediff\n")
    assert yaml.safe_load(done.stdout)["adapter"]["rank"] == 5
    assert done.stdout.rstrip().endswith("# this run would start")
    assert "3 used" in done.stdout


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"base_model": "nowhere/at/all"}, 1, "base_model nowhere/at/all does not exist"),
        ({"dataset__height": 60}, 2, "dataset.height: is 60, but must be a multiple of 8: set 56 or 64"),
        ({"dataset__num_frames": 33}, 1, "32 positions"),
        ({"motion_adapter": None, "method": "motion_module", "dataset__num_frames": 33}, 2, "32 positions"),
        ({"dataset__num_frames": 20}, 1, "12 frames"),
        ({"dataset__path": "no-such-dataset"}, 1, "no-such-dataset"),
        (
            {"optimizer__learnig_rate": 1},
            2,
            "optimizer.learnig_rate: is not a setting; did you mean optimizer.learning_rate?",
        ),
        ({"validation__holdout": 3}, 1, "validation.holdout is 3"),
        ({"motion_adapter": None}, 2, "motion_adapter: must be set for method lora"),
    ],
)
def test_bad_input_gets_a_sentence(config, tmp_path, capfd, changes, code, words):
    from trainers.train import main

    file = config(**changes)
    assert main(["--config", str(file), "--run-dir", str(tmp_path / "run")]) == code
    error = capfd.readouterr().err
    assert words in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()
    assert main(["--config", str(file), "--dry-run"]) == code


def test_an_empty_dataset_says_so(config, tmp_path, capfd):
    from trainers.data.clips import Dataset
    from trainers.train import main

    Dataset.create(tmp_path / "empty")
    assert (
        main(["--config", str(config(dataset__path=str(tmp_path / "empty"))), "--run-dir", str(tmp_path / "run")]) == 1
    )
    assert "is empty; add clips to it first" in capfd.readouterr().err


def test_resume_needs_a_run(config, tmp_path, capfd):
    from trainers.train import main

    assert main(["--config", str(config()), "--run-dir", str(tmp_path / "none"), "--resume"]) == 1
    assert "there is no run to resume" in capfd.readouterr().err
    assert main(["--config", str(config()), "--resume"]) == 1
    assert "--resume needs --run-dir" in capfd.readouterr().err


def test_killed_before_its_last_samples_it_finishes_with_them(config, tmp_path):
    from trainers.train import main

    run = RunFolder(tmp_path / "run")
    arguments = ["--config", str(config(max_train_steps=2)), "--run-dir", str(run.path)]
    assert main(arguments) == 0
    lines = run.events.read_text().splitlines()
    saved = max(number for number, line in enumerate(lines) if json.loads(line)["type"] == "checkpoint")
    run.events.write_text("\n".join(lines[: saved + 1]) + "\n")
    (sample,) = run.sample_dir(2).iterdir()
    whole = sample.read_bytes()
    sample.unlink()
    assert main([*arguments, "--resume"]) == 0
    events = read(run.events)[0]
    assert events[-1]["type"] == "run_finished" and events[-1]["status"] == "finished"
    assert sample.read_bytes() == whole
    assert [c.step for c in run.checkpoints()] == [2]


@pytest.mark.parametrize("name", ["state.pt", "pytorch_lora_weights.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "garbage"])
def test_a_damaged_checkpoint_says_how_to_go_on(config, tmp_path, capfd, damage, name):
    from trainers.train import main

    run = RunFolder(tmp_path / "run")
    file = config(max_train_steps=2, checkpoint__every_steps=1, validation__every_steps=None)
    arguments = ["--config", str(file), "--run-dir", str(run.path)]
    assert main(arguments) == 0
    last = run.checkpoints()[-1]
    file = last.path / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:500] if damage == "cut off" else b"garbage")
    assert main([*arguments, "--resume", "--set", "max_train_steps=3"]) == 1
    shown = capfd.readouterr()
    assert "remove this folder to resume from the checkpoint before it" in shown.out
    assert "Traceback" not in shown.err
    shutil.rmtree(last.path)
    assert main([*arguments, "--resume", "--set", "max_train_steps=3"]) == 0
    assert "going on from step 1" in capfd.readouterr().out


def test_resuming_follows_a_changed_config_or_says_why_not(config, tmp_path, capfd):
    from trainers.train import main

    settings = {"method": "motion_module", "validation__every_steps": None, "optimizer__lr_scheduler": "constant"}
    file = config(max_train_steps=1, trainable_modules=["to_q"], **settings)
    run = RunFolder(tmp_path / "run")
    arguments = ["--config", str(file), "--run-dir", str(run.path)]
    assert main(arguments) == 0
    arguments += ["--resume", "--set", "max_train_steps=2"]
    assert main([*arguments, "--set", "trainable_modules=[to_q, to_k]"]) == 1
    shown = capfd.readouterr()
    assert "was saved while other weights were trained" in shown.out and "Traceback" not in shown.err
    assert main([*arguments, "--set", "optimizer.learning_rate=5e-4"]) == 0
    assert [e["learning_rate"] for e in read(run.events)[0] if e["type"] == "step"] == [1e-3, 5e-4]


def test_the_largest_seed_is_a_seed(config, tmp_path):
    from trainers.train import main

    settings = {"seed": 2**63 - 1, "max_train_steps": 1, "validation__prompts": []}
    assert main(["--config", str(config(**settings)), "--run-dir", str(tmp_path / "run")]) == 0


def test_a_validation_loss_that_is_no_number_is_not_saved(config, tmp_path, capfd):
    from trainers.train import main

    settings = {"method": "full", "optimizer__learning_rate": 1e30, "optimizer__lr_scheduler": "constant"}
    settings |= {"validation__every_steps": 1, "validation__prompts": [], "checkpoint__every_steps": 1}
    run = RunFolder(tmp_path / "run")
    assert main(["--config", str(config(**settings)), "--run-dir", str(run.path)]) == 1
    shown = capfd.readouterr()
    assert "validation loss is not a number at step 1; no checkpoint was saved yet" in shown.out
    assert "Traceback" not in shown.err
    assert not run.checkpoints()


def test_a_terminal_without_emoji_does_not_end_a_run(config, tmp_path):
    import os

    file = config(max_train_steps=1, validation__prompts=["a 😀"])
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = door("--config", file, "--run-dir", tmp_path / "run", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\\U0001f600" in done.stdout


def test_a_full_disk_while_encoding_is_a_sentence(config, tmp_path, monkeypatch, capfd):
    from safetensors import SafetensorError

    from trainers.data import cache
    from trainers.train import main

    def full(*args, **kwargs) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(cache, "save_file", full)
    assert main(["--config", str(config()), "--run-dir", str(tmp_path / "run")]) == 1
    assert "no space is left on the disk" in read(tmp_path / "run" / "events.jsonl")[0][-1]["reason"]
    assert "Traceback" not in capfd.readouterr().err


def test_two_trainers_never_share_a_folder(config, tmp_path):
    from filelock import FileLock

    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    with FileLock(run.lock):
        done = door("--config", config(), "--run-dir", run.path)
    assert done.returncode == 1
    assert "another process is working in" in done.stderr and "Traceback" not in done.stderr
    assert not run.config.exists(), "the config of a run that goes on is its own"


def test_mixed_precision_keeps_trained_weights_in_32_bits(config, tmp_path):
    from trainers.train import main

    settings = {"mixed_precision": "bf16", "max_train_steps": 2, "memory__gradient_checkpointing": "full"}
    assert main(["--config", str(config(**settings)), "--run-dir", str(tmp_path / "run")]) == 0
    assert {str(t.dtype) for t in last_weights(tmp_path / "run").values()} == {"torch.float32"}


def test_buckets_train_clips_of_several_shapes(config, tiny_dataset, tmp_path):
    import numpy as np

    from trainers.data.clips import Dataset
    from trainers.data.video import write_video
    from trainers.train import main

    data = Dataset.create(tmp_path / "mixed")
    random = np.random.default_rng(0)
    for index, (height, width, frames) in enumerate([(64, 64, 6), (64, 128, 6), (128, 64, 3)]):
        source = tmp_path / f"{index}.mp4"
        write_video(source, random.integers(0, 255, (frames, height, width, 3), dtype=np.uint8), 8)
        data.add(source, f"clip {index}")
    settings = {"dataset__path": str(tmp_path / "mixed"), "dataset__fit": "buckets", "dataset__frame_buckets": True}
    settings |= {"dataset__batch_size": 2, "max_train_steps": 3, "validation__prompts": []}
    assert main(["--config", str(config(**settings)), "--run-dir", str(tmp_path / "run")]) == 0


def test_tensorboard_gets_the_curves(config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from trainers.train import main

    settings = {"tracking__tracker": "tensorboard", "validation__prompts": []}
    assert main(["--config", str(config(**settings)), "--run-dir", str(tmp_path / "run")]) == 0
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [scalar.step for scalar in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert len(board.Scalars("validation_loss")) == len(
        [e for e in read(tmp_path / "run" / "events.jsonl")[0] if e["type"] == "validation"]
    )


def test_events_are_json_lines(config, tmp_path):
    from trainers.train import main

    settings = {"max_train_steps": 1, "validation__prompts": ["${alert(1)} <img onerror=x> \\ 🎬"]}
    assert main(["--config", str(config(**settings)), "--run-dir", str(tmp_path / "run")]) == 0
    lines = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    sample = next(e for e in map(json.loads, lines) if e["type"] == "sample")
    assert sample["prompt"] == "${alert(1)} <img onerror=x> \\ 🎬"
    assert (tmp_path / "run" / sample["path"]).exists()


def test_a_run_counts_on_from_the_steps_its_weights_have_behind_them(config, tmp_path):
    from trainers.train import main

    path = config(
        start_step=10, max_train_steps=16, optimizer__lr_scheduler="linear", validation__every_steps=3,
        dataset__num_frames=4, validation__num_frames=2, validation__height=32, validation__width=48,
    )  # fmt: skip
    assert main(["--config", str(path), "--run-dir", str(tmp_path / "run")]) == 0
    run = RunFolder(tmp_path / "run")
    events = read(run.events)[0]
    steps = [(e["step"], e["learning_rate"]) for e in events if e["type"] == "step"]
    assert [step for step, _ in steps] == list(range(11, 17))
    assert [rate for _, rate in steps] == pytest.approx([1e-3 * (16 - step) / 16 for step in range(10, 16)])
    assert [c.step for c in run.checkpoints()] == [12, 14, 16]
    assert [(e["step"], e["take"]) for e in events if e["type"] == "sample"] == [
        (10, "base"), (12, "step-000012"), (15, "step-000015"), (16, "step-000016"),
    ]  # fmt: skip
    with av.open(str(run.path / next(e["path"] for e in events if e["type"] == "sample"))) as clip:
        stream = clip.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (48, 32, 2)


def test_fp16_on_a_machine_without_a_gpu_says_what_it_does_instead(config, tmp_path):
    from trainers.train import main

    if torch.cuda.is_available():
        pytest.skip("this machine trains in fp16")
    assert main(["--config", str(config(mixed_precision="fp16")), "--run-dir", str(tmp_path / "run")]) == 0
    said = [e["text"] for e in read(RunFolder(tmp_path / "run").events)[0] if e["type"] == "message"]
    assert any("fp16 needs a CUDA device" in text for text in said)


def test_a_run_says_what_its_dry_run_says(config, tmp_path, capfd):
    from trainers.train import main

    file = config(max_train_steps=1, validation__every_steps=None, optimizer__name="prodigy")
    assert main(["--config", str(file), "--dry-run"]) == 0
    lines = [line.removeprefix("# ") for line in capfd.readouterr().out.splitlines() if line.startswith("# ")]
    found = [tuple(line.split(": ", 1)) for line in lines if line != "this run would start"]
    assert any("1 is usual" in text for level, text in found if level == "warning")
    run = RunFolder(tmp_path / "run")
    assert main(["--config", str(file), "--run-dir", str(run.path)]) == 0
    said = [(e["level"], e["text"]) for e in read(run.events)[0] if e["type"] == "message"]
    assert said[: len(found)] == found
    assert len(said) == len(set(said)), "nothing is said twice"


def test_samples_that_begin_from_a_training_clip(config, tmp_path):
    from trainers.train import main

    path = config(num_inversion_steps=3, max_train_steps=2, validation__every_steps=2)
    assert main(["--config", str(path), "--run-dir", str(tmp_path / "run")]) == 0
    other = config("other.yaml", max_train_steps=2, validation__every_steps=2)
    assert main(["--config", str(other), "--run-dir", str(tmp_path / "other")]) == 0
    name = "samples/step-000000/000.mp4"
    assert (tmp_path / "run" / name).read_bytes() != (tmp_path / "other" / name).read_bytes()
