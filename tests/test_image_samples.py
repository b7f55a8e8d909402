"""Samples that begin from images, with a tiny image-to-video model: drawn while training, and compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from trainers import sample
from trainers.data.images import read_image, sha256_of_image
from trainers.data.video import read_frames, read_metadata, write_video
from trainers.events import EventLog, read
from trainers.families import load_config
from trainers.loop import lacks_samples
from trainers.metrics import Measures
from trainers.runs import RunFolder
from trainers.train import main as train

PROMPT = "a red circle"
ORANGE, BLUE = (230, 120, 20), (20, 60, 230)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    from examples import tiny

    folder = tmp_path_factory.mktemp("i2v") / "base"
    tiny.write("cogvideox-1.5-i2v", folder)
    return folder


def picture(file: Path, colour: tuple[int, int, int], **options) -> str:
    """A plain picture of another shape than the samples."""
    Image.fromarray(np.full((90, 160, 3), colour, np.uint8)).save(file, **options)
    return str(file)


@pytest.fixture(scope="module")
def run(base, tiny_dataset, tmp_path_factory) -> RunFolder:
    """A run that asks twice for the same prompt, from two images and with two seeds each."""
    folder = tmp_path_factory.mktemp("trained")
    images = [picture(folder / "orange.png", ORANGE), picture(folder / "blue.png", BLUE)]
    data = {
        "family": "cogvideox",
        "method": "lora",
        "base_model": str(base),
        "max_train_steps": 2,
        "mixed_precision": "no",
        "dataset": {"path": str(tiny_dataset), "num_frames": 5, "height": 64, "width": 64},
        "adapter": {"rank": 4},
        "optimizer": {"learning_rate": 1e-2, "lr_scheduler": "constant"},
        "validation": {
            "every_steps": 2, "prompts": [PROMPT, PROMPT], "images": images, "samples_per_prompt": 2,
            "num_inference_steps": 2, "seed": 5, "loss_draws": 1,
        },
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(data))
    assert train(["--config", str(folder / "run.yaml"), "--run-dir", str(folder / "run")]) == 0
    return RunFolder(folder / "run")


def frames_of(file: Path) -> np.ndarray:
    return read_frames(file, range(5)).astype(int)


def test_files_count_over_prompts_and_their_samples(run):
    events = read(run.events)[0]
    for step in (0, 2):
        drawn = [e for e in events if e["type"] == "sample" and e["step"] == step]
        assert [Path(e["path"]).name for e in drawn] == ["000.mp4", "001.mp4", "002.mp4", "003.mp4"]
        assert [(e["row"], e["seed"]) for e in drawn] == [(0, 5), (1, 6), (2, 5), (3, 6)]
        measured = [e for e in events if e["type"] == "measure" and e["step"] == step]
        assert [(e["row"], e["seed"]) for e in measured] == [(0, 5), (1, 6), (2, 5), (3, 6)]
        assert all((e["motion_change"] == 0) == (step == 0) for e in measured), "each against its own base"
    assert [e["total"] for e in events if e["type"] == "phase" and e["phase"] == "sampling"][:4] == [4] * 4


def test_a_sample_begins_from_the_image_of_its_prompt(run):
    images = load_config(run.config).validation.images
    hashes = [sha256_of_image(read_image(Path(file))) for file in images]
    files = [run.sample_dir(0) / f"{number:03d}.mp4" for number in range(4)]
    assert [read_metadata(file)["image"] for file in files] == [hashes[0], hashes[0], hashes[1], hashes[1]]
    clips = [frames_of(file) for file in files]
    assert np.abs(clips[0] - clips[2]).mean() > 1, "same prompt, same seed, another image"
    assert np.abs(clips[0] - clips[1]).mean() > 1, "same prompt, same image, another seed"


def test_missing_samples_are_noticed(run, tmp_path):
    validation = load_config(run.config).validation
    assert not lacks_samples(run, 2, validation)
    assert lacks_samples(run, 2, validation.model_copy(update={"samples_per_prompt": 3}))
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    (copy.sample_dir(2) / "003.mp4").unlink()
    assert lacks_samples(copy, 2, validation)


def test_a_base_that_began_from_another_image_is_no_measure(run, tmp_path):
    file, log = run.sample_dir(2) / "000.mp4", EventLog(tmp_path / "events.jsonl")
    clip = read_frames(file, range(5))
    asked = read_metadata(run.sample_dir(0) / "000.mp4")
    write_video(tmp_path / "other.mp4", clip, 8, {**asked, "image": "another"})
    write_video(tmp_path / "none.mp4", clip, 8, {key: value for key, value in asked.items() if key != "image"})
    for other in (run.sample_dir(0) / "000.mp4", tmp_path / "other.mp4", tmp_path / "none.mp4"):
        Measures(log).write(file, other, None, step=2, take="t", prompt=PROMPT, seed=5)
    known = [event["motion_change"] is not None for event in read(tmp_path / "events.jsonl")[0]]
    assert known == [True, False, False]


@pytest.fixture
def compare(base, run, tmp_path):
    """Run a comparison; gives (exit code, its sample events with their files, its last event)."""

    def go(name: str, **changes):
        data = {
            "family": "cogvideox",
            "base_model": str(base),
            "checkpoints": [str(run.path / "checkpoints" / "step-000002")],
            "prompts": [PROMPT, PROMPT],
            "images": load_config(run.config).validation.images,
            "seeds": [5, 6],
            "num_frames": 5,
            "height": 64,
            "width": 64,
            "num_inference_steps": 2,
            "mixed_precision": "no",
            "cache_dir": str(tmp_path / "cache"),
        } | changes
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(data))
        code = sample.main(["--config", str(tmp_path / f"{name}.yaml"), "--run-dir", str(tmp_path / name)])
        events = read(tmp_path / name / "events.jsonl")[0]
        drawn = [e | {"file": tmp_path / name / e["path"]} for e in events if e["type"] == "sample"]
        return code, drawn, events[-1] if events else None

    return go


def test_a_comparison_draws_what_training_drew(compare, run):
    code, cells, _ = compare("one")
    assert code == 0 and [(c["column"], c["row"]) for c in cells] == [(c, r) for c in (0, 1) for r in range(4)]
    for cell in cells:
        trained = run.sample_dir(2 * cell["column"]) / f"{cell['row']:03d}.mp4"
        assert read_metadata(cell["file"])["image"] == read_metadata(trained)["image"]
        assert np.array_equal(frames_of(cell["file"]), frames_of(trained)), (cell["column"], cell["row"])


def test_cells_are_known_by_what_their_image_shows(compare, tmp_path):
    images = [picture(tmp_path / "a.png", ORANGE), picture(tmp_path / "b.png", BLUE)]
    asked = {"include_base": True, "checkpoints": [], "seeds": [5]}
    assert "2 new" in compare("first", images=images, **asked)[2]["reason"]
    moved = [picture(tmp_path / "elsewhere.bmp", ORANGE), images[1]]
    assert "0 new" in compare("moved", images=moved, **asked)[2]["reason"], "another file of the same picture"
    picture(tmp_path / "a.png", (0, 0, 0))
    assert "1 new" in compare("changed", images=images, **asked)[2]["reason"], "another picture in the same file"
    code, cells, end = compare("single", images=[images[1]], **asked)
    assert code == 0 and "0 new" in end["reason"], "one for all: both prompts are the same"
    assert len({cell["file"].name for cell in cells}) == 1


def test_a_comparison_says_what_its_base_was_not_made_for(compare, tmp_path):
    assert compare("hint", include_base=True, checkpoints=[], seeds=[5])[0] == 0
    said = [e["text"] for e in read(tmp_path / "hint" / "events.jsonl")[0] if e["type"] == "message"]
    assert said[:1] == [
        "CogVideoX 1.5 was made for 768 x 1360, not for 64 x 64; from an image, the longer side may be shorter"
    ]


def test_what_is_amiss_is_said_before_a_model_is_loaded(compare, run, capfd):
    cases = [
        ({"images": ["gone.png"]}, 1, "images cannot be used: gone.png does not exist"),
        ({"images": []}, 1, "so samples need one: name an image in images"),
        ({"images": ["1", "2", "3"]}, 2, "images: are 3 for 2 prompts; give one for each prompt"),
    ]
    for number, (changes, code, words) in enumerate(cases):
        assert compare(f"bad{number}", **changes)[0] == code
        error = capfd.readouterr().err
        assert words in error and "Traceback" not in error
    config = run.path.parent / "run.yaml"
    change = ["--set", "validation.images=[gone.png]"]
    assert train(["--config", str(config), "--run-dir", str(run.path.parent / "never"), *change]) == 1
    assert "validation.images cannot be used: gone.png does not exist" in capfd.readouterr().err
    assert not (run.path.parent / "never").exists()
