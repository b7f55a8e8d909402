"""How the demo's base is built: its captions, its image stage by the product's trainer, and the weights it keeps."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from examples import tiny
from examples.demo import build_base, shapes
from examples.demo.score import Asked, load, promised, questions, request, seen
from trainers.data.video import read_frames
from trainers.families import get_family
from trainers.families.base import Example
from trainers.noise import Draws
from trainers.runs import RunFolder
from trainers.sample import sample_clip
from trainers.shape_tracking import track


def test_no_caption_is_too_long_for_the_text_model(tmp_path):
    tiny.write_clip_tokenizer(tmp_path, [*shapes.WORDS, *tiny.WORDS], build_base.MAX_TOKENS)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    for scene in shapes.scenes(0, 40, shapes.KNOWN + shapes.NEW):
        caption = scene.caption()
        assert len(tokenizer(caption).input_ids) <= build_base.MAX_TOKENS
        assert tokenizer.decode(tokenizer(caption).input_ids, skip_special_tokens=True) == caption


def test_captions_tell_what_they_say():
    rng = random.Random(0)
    unsaid = set()
    for _ in range(300):
        caption, told = build_base.random_caption(rng)
        for (name, values), number in zip(build_base.TOLD.items(), told, strict=True):
            if number == len(values):
                unsaid.add(name)
                continue
            said = shapes.VERBS[values[number]] if name == "motion" else values[number]
            if said == shapes.DEFAULT_BACKGROUND and said not in caption:
                assert "night" not in caption
            else:
                assert f" {said} " in f" {caption} "
    assert unsaid == set(build_base.TOLD)  # each is left out now and then, in the empty caption all of them


def test_a_stage_keeps_the_mean_of_its_last_checkpoints(tmp_path):
    run = RunFolder(tmp_path)
    for step in range(1, 6):
        with run.new_checkpoint(step) as folder:
            weights = {"a.weight": torch.full((2,), float(step)), "b.motion_modules.c": torch.ones(1)}
            save_file(weights, folder / "x.safetensors")
            (folder / "meta.json").write_text("{}", encoding="utf-8")
    found = build_base.averaged(run, ".motion_modules.", keep=False)
    assert list(found) == ["a.weight"]
    assert found["a.weight"].tolist() == [3.5, 3.5]  # of the steps 2 to 5


def test_training_on_single_frames_is_training_the_image_model_alone(tiny_base, tiny_dataset):
    family = get_family("animatediff")
    config = family.train_config(
        method="full", base_model=str(tiny_base), mixed_precision="no",
        dataset={"path": str(tiny_dataset), "num_frames": 1, "height": 64, "width": 64},
        validation={"every_steps": None},
    )  # fmt: skip
    model = family.load(config, "train")
    image = UNet2DConditionModel.from_pretrained(tiny_base / "unet").float()
    assert sum(p.numel() for p in model.trained_parameters()) == sum(p.numel() for p in image.parameters())
    draws = Draws.seeded(0)
    noisy, embeds = draws.normal("noisy", (2, 4, 1, 8, 8)), draws.normal("embeds", (2, 77, 32))
    steps = torch.tensor([10, 900])
    with torch.no_grad():
        got = model.predict(Example(noisy, steps, None, conditions={"prompt_embeds": embeds}))
        wanted = image.eval()(noisy[:, :, 0], steps, embeds).sample
    assert torch.allclose(got[:, :, 0], wanted, atol=1e-5)


def test_pictures_show_where_a_motion_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(build_base, "PICTURE_CLIPS", 10)
    monkeypatch.setattr(build_base, "write_clips", lambda folder, rows: kept.extend(rows))
    kept: list[tuple[np.ndarray, str]] = []
    build_base.picture_clips(tmp_path)
    for frames, caption in kept:
        x, y = np.nanmean(track(frames).centres, axis=0) / shapes.SIZE - 0.5
        towards = {"left": -x, "right": x, "up": -y, "down": y}
        for word, far in towards.items():
            if f"moves {word}" in caption:
                assert far > 0.04


def test_scoring_asks_for_everything_once_and_reads_the_card(tmp_path):
    asked = questions([1, 2], shapes.KNOWN)
    assert len({(a.shape, a.colour, a.motion) for a in asked}) == 90
    assert len({a.seed for a in asked}) == len(asked) == 180
    assert promised(tmp_path) == {}
    (tmp_path / "README.md").write_text("It scores at least shape=0.90 colour=0.95 direction=0.85.\n", encoding="utf-8")
    assert promised(tmp_path) == pytest.approx({"shape": 0.9, "colour": 0.95, "direction": 0.85})


def test_a_build_goes_through_its_stages_and_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    small = {"VAE_IMAGES": 16, "VAE_STEPS": 2, "DECODER_STEPS": 2, "TEXT_STEPS": 2, "PICTURE_CLIPS": 5, "CLIPS": 5,
             "IMAGE_STEPS": 3, "MOTION_STEPS": 3, "IMAGE_BATCH": 2, "MOTION_BATCH": 2, "KEPT_EVERY": 1,
             "WARMUP_STEPS": 1}  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(build_base, name, value)
    work = tmp_path / "work"
    assert build_base.main(["--work", str(work), "--out", str(tmp_path / "base")]) == 0
    clip = sample_clip(load(tmp_path / "base", None), request("a red circle moves left"), 1)
    assert clip.shape == (8, 64, 64, 3)
    assert not list((tmp_path / "base").rglob("state.pt"))
    assert all(str(tmp_path) not in file.read_text() for file in (tmp_path / "base").rglob("*.json"))

    assert build_base.main(["--work", str(work)]) == 1  # it holds a build already
    before = (work / "base" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    more = ["--work", str(work), "--resume", "--again", "motion", "--set", "max_train_steps=5"]
    assert build_base.main(more) == 0
    assert (work / "base" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    assert [c.step for c in RunFolder(work / "motion").checkpoints()] == [2, 3, 4, 5]


# --- the committed base -----------------------------------------------------------------------------------------------

DEMO = Path(build_base.__file__).parent


def test_the_base_is_small_and_draws_what_it_is_asked_for():
    """One clip for each known motion; the whole table is python -m examples.demo.score."""
    base = DEMO / "base"
    assert sum(file.stat().st_size for file in base.rglob("*") if file.is_file()) < 12_000_000
    assert set(promised(base)) == {"shape", "colour", "direction"}
    model = load(base, None)
    marks = []
    for number, motion in enumerate(shapes.KNOWN):
        asked = Asked(shapes.SHAPES[number % 3], [*shapes.COLOURS][number], motion, seed=number)
        marks.append(seen(sample_clip(model, request(asked.prompt), asked.seed)).right(asked))
    assert sum(mark["shape"] and mark["colour"] for mark in marks) >= 4
    assert sum(mark["direction"] for mark in marks) >= 4


def test_the_clips_of_the_orbit_are_what_the_generator_draws():
    rows = [json.loads(line) for line in (DEMO / "dataset" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = shapes.orbit_scenes()
    assert [row["text"] for row in rows] == [scene.caption(False, False) for scene in chosen]
    assert {scene.shape for scene in chosen} == set(shapes.SHAPES)
    assert {scene.colour for scene in chosen} == set(shapes.COLOURS)
    for row, scene in zip(rows, chosen, strict=True):
        shown = track(read_frames(DEMO / "dataset" / row["file_name"], range(0, 2 * shapes.NUM_FRAMES, 2)))
        assert (shown.shape, shown.named_colour(shapes.COLOURS), shown.path) == (scene.shape, scene.colour, "orbit")
