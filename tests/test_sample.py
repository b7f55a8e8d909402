"""Comparisons and exports, through their doors."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from trainers import export, sample
from trainers.data.video import probe, read_frames, read_metadata
from trainers.events import read
from trainers.train import main as train


@pytest.fixture(scope="module")
def run(tiny_base, tiny_dataset, tmp_path_factory):
    """A finished motion-module run with two checkpoints and a sample of each."""
    folder = tmp_path_factory.mktemp("trained")
    data = {
        "family": "animatediff",
        "method": "motion_module",
        "base_model": str(tiny_base),
        "motion_adapter": str(tiny_base / "motion_adapter"),
        "max_train_steps": 4,
        "mixed_precision": "no",
        "dataset": {"path": str(tiny_dataset), "num_frames": 4, "height": 64, "width": 64},
        "optimizer": {"learning_rate": 1e-2, "lr_scheduler": "constant"},
        "validation": {
            "every_steps": 2,
            "prompts": ["a red circle"],
            "num_inference_steps": 3,
            "seed": 5,
            "loss_draws": 1,
        },
        "checkpoint": {"every_steps": 2},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(data))
    assert train(["--config", str(folder / "run.yaml"), "--run-dir", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def compare(run, tiny_base, tmp_path):
    """Run a comparison; gives (exit code, its sample events)."""

    def go(name: str = "one", **changes):
        data = {
            "family": "animatediff",
            "base_model": str(tiny_base),
            "checkpoints": [str(run / "checkpoints" / "step-000002"), str(run / "checkpoints" / "step-000004")],
            "prompts": ["a red circle", "a blue square"],
            "seeds": [5],
            "num_frames": 4,
            "height": 64,
            "width": 64,
            "num_inference_steps": 3,
            "mixed_precision": "no",
            "cache_dir": str(tmp_path / "cache"),
        } | changes
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(data))
        code = sample.main(["--config", str(file), "--run-dir", str(tmp_path / name)])
        events = read(tmp_path / name / "events.jsonl")[0]
        return code, [e | {"file": tmp_path / name / e["path"]} for e in events if e["type"] == "sample"], events

    return go


def frames_of(file):
    return read_frames(file, range(4)).astype(int)


def test_every_take_meets_every_prompt_and_takes_differ(compare):
    code, cells, events = compare()
    assert code == 0 and events[-1]["status"] == "finished"
    assert [(c["column"], c["row"]) for c in cells] == [(c, r) for c in range(3) for r in range(2)]
    base, middle, last = (frames_of(cells[i]["file"]) for i in (0, 2, 4))
    assert np.abs(base - middle).mean() > 0.5
    assert np.abs(middle - last).mean() > 0.5
    assert read_metadata(cells[0]["file"])["prompt"] == "a red circle"


def test_a_comparison_can_be_passed_on_as_one_file(compare, tmp_path):
    """A row for each prompt, a column for each take, as a clip and as a GIF."""
    _, cells, _ = compare()
    grid = tmp_path / "one" / "samples" / "grid.mp4"
    found = probe(grid)
    assert (found.width, found.height, found.num_frames, found.fps) == (3 * 64, 2 * 64, 4, 8)
    picture = frames_of(grid)
    for cell in cells:
        top, left = 64 * cell["row"], 64 * cell["column"]
        part = picture[:, top : top + 64, left : left + 64]
        assert np.abs(part - frames_of(cell["file"])).mean() < 8
    assert probe(grid.with_suffix(".gif")).num_frames == 4


def test_a_training_sample_and_a_comparison_are_one_code_path(compare, run):
    """The sample that training drew and the one that a comparison draws later are the same frames."""
    _, cells, _ = compare(prompts=["a red circle"])
    for cell, step in zip(cells, (0, 2, 4), strict=True):
        trained = run / "samples" / f"step-{step:06d}" / "000.mp4"
        assert np.array_equal(frames_of(cell["file"]), frames_of(trained)), step


def test_asking_again_loads_no_model_and_a_new_take_costs_only_itself(compare, run, monkeypatch):
    assert compare()[0] == 0
    from trainers.families.animatediff.model import AnimateDiff

    drawn = []
    honest = AnimateDiff.sample
    monkeypatch.setattr(AnimateDiff, "sample", lambda self, *a: drawn.append(1) or honest(self, *a))
    code, cells, events = compare("again")
    assert code == 0 and len(cells) == 6 and not drawn
    assert "0 new" in events[-1]["reason"]
    code, cells, _ = compare("stronger", strengths=[1.0, 0.5])
    assert code == 0 and len(cells) == 10 and len(drawn) == 4


def test_the_same_frames_give_the_same_file_every_time(compare, tmp_path):
    """x264 on its own chooses routines by where memory lies, which a model's comings and goings change."""
    files = set()
    for number in range(4):
        _, cells, _ = compare(f"again{number}", prompts=["a red circle"], cache_dir=str(tmp_path / f"cache{number}"))
        files.add(tuple(cell["file"].read_bytes() for cell in cells))
    assert len(files) == 1


def test_takes_are_measured_against_the_base_column(compare, run):
    """Cells that come from the cache too, and like the samples of training."""
    code, cells, events = compare(strengths=[1.0, 0.0])
    measured = [e for e in events if e["type"] == "measure"]
    assert code == 0 and [(m["column"], m["row"]) for m in measured] == [(c["column"], c["row"]) for c in cells]
    for measure in measured:
        same_as_base = measure["take"] == "base" or measure["strength"] == 0
        assert (measure["motion_change"] == 0) == same_as_base == (measure["style"] == 0)
    again = [e for e in compare("again", strengths=[1.0, 0.0])[2] if e["type"] == "measure"]
    assert [m | {"time": 0} for m in again] == [m | {"time": 0} for m in measured]
    trained = [e for e in read(run / "events.jsonl")[0] if e["type"] == "measure"]
    numbers = ("motion", "motion_change", "new_motion", "style")
    here = {m["step"]: m for m in measured if m["prompt"] == "a red circle" and m["strength"] == 1}
    assert [[m[key] for key in numbers] for m in trained] == [
        [here[m["step"]][key] for key in numbers] for m in trained
    ]
    without = [e for e in compare("alone", include_base=False)[2] if e["type"] == "measure"]
    assert len(without) == 4 and all(m["motion_change"] is None and m["motion"] is not None for m in without)


def test_strength_zero_is_the_base(compare):
    _, cells, _ = compare(strengths=[0.0], prompts=["a red circle"])
    base, none, _ = (frames_of(cell["file"]) for cell in cells)
    assert np.array_equal(base, none)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"checkpoints": ["nowhere"]}, 1, "checkpoint nowhere does not exist"),
        ({"base_model": "nowhere"}, 1, "base_model nowhere does not exist"),
        ({"prompts": []}, 2, "prompts"),
        ({"height": 65}, 2, "height: is 65, but must be a multiple of 8: set 64 or 72"),
        ({"checkpoints": [], "include_base": False}, 1, "nothing to sample"),
        ({"seeds": [-1]}, 2, "seed -1"),
    ],
)
def test_bad_comparisons_get_a_sentence(compare, capfd, changes, code, words):
    assert compare(**changes)[0] == code
    error = capfd.readouterr().err
    assert words in error and "Traceback" not in error


def test_exports_load_where_they_are_used(run, tmp_path, capsys):
    import torch
    from diffusers import MotionAdapter
    from safetensors.torch import load_file

    checkpoint = run / "checkpoints" / "step-000004"
    assert export.main([str(checkpoint), "--format", "original", "--out", str(tmp_path / "mm.safetensors")]) == 0
    assert "keys matched" in capsys.readouterr().out
    assert export.main([str(checkpoint), "--format", "diffusers", "--out", str(tmp_path / "adapter")]) == 0
    keys = load_file(tmp_path / "mm.safetensors")
    assert any(key.endswith("pos_encoder.pe") for key in keys)
    assert not any(key.startswith("module.") for key in keys)
    adapter = MotionAdapter.from_pretrained(tmp_path / "adapter").state_dict()
    trained = MotionAdapter.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(adapter[key], trained[key]) for key in trained)


def test_bad_exports_get_a_sentence(run, tmp_path, capsys):
    checkpoint = str(run / "checkpoints" / "step-000004")
    assert export.main([checkpoint, "--format", "gguf", "--out", str(tmp_path / "x")]) == 1
    assert "known: original, diffusers" in capsys.readouterr().err
    assert export.main([str(tmp_path), "--format", "original", "--out", str(tmp_path / "x")]) == 1
    assert "is not a checkpoint folder" in capsys.readouterr().err
    (tmp_path / "taken").write_text("mine")
    assert export.main([checkpoint, "--format", "original", "--out", str(tmp_path / "taken")]) == 1
    assert (tmp_path / "taken").read_text() == "mine"
