"""AnimateDiff beyond one short clip: windows, stretched positions, inversion, and what a line of names means."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_animatediff import DATA, REQUEST, batch, sample_model, saved, seeded, train, train_model

from trainers.families.animatediff.checkpoint import read_take, to_original
from trainers.families.animatediff.config import FAMILY, AnimateDiffSampleConfig, AnimateDiffTrainConfig
from trainers.families.animatediff.denoiser import chosen_parameters, lora_targets, stretched
from trainers.families.animatediff.positions import motion_positions
from trainers.families.animatediff.windows import windows
from trainers.families.base import ModelError, SampleRequest
from trainers.families.weights import evaluating
from trainers.noise import Draws
from trainers.train import findings


@pytest.fixture(scope="session")
def base(tiny_base) -> Path:
    return tiny_base


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", json.loads((DATA / "context_windows.json").read_text()), ids=str)
def test_windows_are_the_originals(case):
    made = windows(case["step"], case["n"], case["context_size"], case["strides"], case["overlap"])
    assert made == case["windows"]


@pytest.mark.parametrize("step", range(5))
def test_windows_leave_no_frame_out(step):
    for frames, length, stride, overlap in [(24, 16, 3, 4), (25, 8, 2, 3), (100, 16, 4, 15), (17, 16, 1, 0)]:
        made = windows(step, frames, length, stride, overlap)
        assert set().union(*made) == set(range(frames))
        assert {len(window) for window in made} == {length}


def test_a_window_as_long_as_the_clip_changes_nothing(base):
    whole = sample_model(base).sample(REQUEST, Draws(seeded(3)))
    windowed = sample_model(base, context_length=4, context_overlap=1).sample(REQUEST, Draws(seeded(3)))
    np.testing.assert_array_equal(whole, windowed)


def test_windows_draw_more_frames_than_the_module_has_positions(base):
    model = sample_model(base, context_length=8, context_overlap=2, context_stride=2)
    positions = model._facts.positions
    request = SampleRequest("a red circle", "", 64, 64, positions + 8, 2, 4.0)
    asked = []
    network = model.unet.forward
    model.unet.forward = lambda sample, *args, **kwargs: (
        asked.append(sample.shape[2]) or network(sample, *args, **kwargs)
    )
    clip = model.sample(request, Draws(seeded(0)))
    assert clip.shape == (positions + 8, 64, 64, 3)
    assert set(asked) == {8} and len(asked) == sum(len(windows(step, positions + 8, 8, 2, 2)) for step in range(2))
    with pytest.raises(ModelError, match=f"num_frames is {positions + 8}.*set context_length to {positions}"):
        sample_model(base).sample(request, Draws(seeded(0)))


def test_windows_meet_without_a_seam_where_every_frame_is_the_same(base):
    """The mean over windows equals the prediction of any one of them when frames do not see each other."""
    model = sample_model(base, motion_adapter=None, context_length=4, context_overlap=2, context_stride=1)
    latents = torch.randn(1, 4, 1, 8, 8, generator=seeded(1)).expand(-1, -1, 9, -1, -1)
    embeds = model._embed(["a red circle"])
    with torch.no_grad(), evaluating(model.denoiser.values()):
        prediction = model._predict_clip(latents, 500, embeds, 1)
    torch.testing.assert_close(prediction, prediction[:, :, :1].expand_as(prediction), atol=1e-5, rtol=0)


# --- stretched positions ---------------------------------------------------------------------------------------------


def test_positions_are_stretched_in_place():
    encoding = torch.randn(1, 24, 32)
    state = stretched({"a.pos_embed.pe": encoding, "a.weight": encoding}, 2)
    assert torch.equal(state["a.pos_embed.pe"][0, 7], encoding[0, 3])
    assert state["a.pos_embed.pe"].shape == (1, 48, 32) and state["a.weight"] is encoding


def test_a_stretched_module_trains_saves_and_is_compared_with_its_base(base, tmp_path):
    positions = motion_positions(str(base / "motion_adapter"))
    frames = positions + 2
    for method in ("motion_module", "lora"):
        with pytest.raises(ModelError, match="motion_module_pe_multiplier to 2"):
            train_model(base, method, dataset={"num_frames": frames})
        model = train_model(base, method, dataset={"num_frames": frames}, motion_module_pe_multiplier=2)
        assert model._facts.positions == 2 * positions
        example = model.example(batch(model, frames=frames), Draws.seeded(1))
        loss = (model.predict(example) - example.target).pow(2).mean()
        loss.backward()
        checkpoint = saved(model, tmp_path / method)
        if method == "motion_module":
            assert read_take(checkpoint).facts.positions == 2 * positions
        compared = sample_model(base, checkpoints=[str(checkpoint)], num_frames=frames)
        request = SampleRequest("a red circle", "", 64, 64, frames, 2, 1.0)
        compared.load([])
        assert compared.sample(request, Draws(seeded(0))).shape[0] == frames
        compared.load([(checkpoint, 1.0)])
        assert compared.sample(request, Draws(seeded(0))).shape[0] == frames


# --- positions without weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "safetensors", "ckpt", "wrapped"])
def test_positions_are_read_from_every_form(base, tmp_path, form):
    adapter = base / "motion_adapter"
    state = read_take(adapter).state
    original = {key: value.clone() for key, value in to_original(state).items()}
    file = tmp_path / f"mm.{'safetensors' if form == 'safetensors' else 'ckpt'}"
    if form == "safetensors":
        save_file(original, file)
    elif form != "folder":
        torch.save({"state_dict": original, "global_step": 3} if form == "wrapped" else original, file)
    expected = next(value.shape[1] for key, value in state.items() if key.endswith("pos_embed.pe"))
    assert motion_positions(str(adapter if form == "folder" else file)) == expected


def test_positions_of_what_is_no_module_are_unknown_and_nothing_is_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harmed",))

    with zipfile.ZipFile(tmp_path / "evil.ckpt", "w") as archive:
        archive.writestr("evil/data.pkl", pickle.dumps({"a.pos_encoder.pe": Harm()}))
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "short.ckpt").write_bytes(b"PK")
    for name in ("evil.ckpt", "text.safetensors", "short.ckpt", "missing.ckpt"):
        assert motion_positions(str(tmp_path / name)) is None
    assert motion_positions(None) is None
    assert not (tmp_path / "harmed").exists()


def test_a_lora_in_the_place_of_a_motion_module_is_found_before_the_run(base):
    file = DATA / "motion_lora_original_naming.safetensors"
    settings = {"base_model": str(base), "motion_adapter": str(file), "dataset": {"path": "clips"}}
    (finding,) = FAMILY.findings(AnimateDiffTrainConfig(**settings))
    assert (finding.level, finding.where) == ("error", "motion_adapter")
    assert "is a LoRA, not a motion module" in finding.text


def test_too_many_frames_are_found_before_the_run(base):
    positions = motion_positions(str(base / "motion_adapter"))
    settings = {
        "base_model": str(base),
        "motion_adapter": str(base / "motion_adapter"),
        "dataset": {"path": "clips", "num_frames": positions + 1},
    }
    (finding,) = FAMILY.findings(AnimateDiffTrainConfig(**settings))
    assert finding.where == "dataset.num_frames" and "set motion_module_pe_multiplier to 2" in finding.text
    assert not FAMILY.findings(AnimateDiffTrainConfig(**settings, motion_module_pe_multiplier=2))

    settings["dataset"]["num_frames"] = 4
    drawn = {"prompts": ["a"], "num_frames": positions + 1}
    (finding,) = FAMILY.findings(AnimateDiffTrainConfig(**settings, validation=drawn))
    assert finding.where == "validation.num_frames" and "set context_length" in finding.text
    assert not FAMILY.findings(AnimateDiffTrainConfig(**settings, validation=drawn, context_length=8))
    (finding,) = FAMILY.findings(AnimateDiffTrainConfig(**settings, validation=drawn, context_length=positions + 1))
    assert finding.where == "validation.num_frames"

    shown = {"base_model": str(base), "motion_adapter": str(base / "motion_adapter"), "prompts": ["a"]}
    (finding,) = FAMILY.findings(AnimateDiffSampleConfig(**shown, num_frames=positions + 1))
    assert "set context_length" in finding.text
    assert not FAMILY.findings(AnimateDiffSampleConfig(**shown, num_frames=positions + 1, context_length=8))


# --- inversion -------------------------------------------------------------------------------------------------------


def test_inversion_takes_each_step_of_the_sampler_back(base):
    """With a denoiser that answers the same at every place, inversion and sampling undo each other exactly."""
    model = train_model(base, num_inversion_steps=10)
    assert model.starts_from_clip and not train_model(base).starts_from_clip
    torch.nn.init.zeros_(model.unet.conv_out.weight)
    torch.nn.init.constant_(model.unet.conv_out.bias, 0.7)
    start = {name: value[0] for name, value in batch(model).items() if name.startswith("latents_")}
    latents = start["latents_mean"].transpose(0, 1)[None] * model._scaling_factor
    with torch.no_grad():
        noise = model._inverted(start, tuple(latents.shape))
        meant = model._decode(latents).astype(int)
    last = model._ddim().alphas_cumprod[999]  # a tenth of the schedule's steps at a time, from the clip to the end
    assert torch.allclose(noise, last.sqrt() * latents + (1 - last).sqrt() * 0.7, atol=0.1)
    again = model.sample(SampleRequest("", "", 64, 64, 4, 10, 1.0, start=start), Draws())  # no noise is drawn
    assert np.abs(again - meant).max() <= 1
    with pytest.raises(ModelError, match="4 frames at 64 x 64 cannot begin a sample of 6 frames"):
        model.sample(SampleRequest("", "", 64, 64, 6, 2, 1.0, start=start), Draws())


def test_inversion_depends_on_the_clip_and_on_the_denoiser(base):
    model = train_model(base, num_inversion_steps=5)
    clip = {name: value[0] for name, value in batch(model).items() if name.startswith("latents_")}
    mirrored = {name: value.flip(-1) for name, value in clip.items()}
    drawn = [model.sample(SampleRequest("", "", 64, 64, 4, 5, 1.0, start=one), Draws()) for one in (clip, mirrored)]
    assert (drawn[0] != drawn[1]).any()


# --- which layers a line means ---------------------------------------------------------------------------------------


def test_lines_name_layers_by_ending_or_by_regular_expression(base):
    unet = train_model(base).unet
    linear = {name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear)}
    motion = {name for name in linear if ".motion_modules." in name}
    assert set(lora_targets(unet, ["to_q"])) == {name for name in motion if name.endswith(".to_q")}
    assert set(lora_targets(unet, [r".*motion_modules.*"])) == motion
    everywhere = set(lora_targets(unet, [r".*\.to_(q|k)"]))
    assert everywhere == {name for name in linear if name.endswith((".to_q", ".to_k"))} and everywhere - motion
    with pytest.raises(ModelError, match=r"'to_x' is no linear layer of the motion modules; there are .*attn1.to_q"):
        lora_targets(unet, ["to_x"])
    with pytest.raises(ModelError, match="no regular expression"):
        lora_targets(unet, ["(to_q"])


def test_regular_expressions_choose_parameters(base):
    unet = train_model(base).unet
    names = {id(p): name for name, p in unet.named_parameters()}

    def chosen(*lines):
        return {names[id(p)] for p in chosen_parameters(unet, lines)}

    motion = {name for name in names.values() if ".motion_modules." in name}
    assert chosen() == chosen(r".*motion_modules.*") == motion
    assert chosen(r".*\.to_q\.weight") == chosen("to_q") == {name for name in motion if name.endswith("to_q.weight")}
    assert chosen(r".*bias") == {name for name in motion if name.endswith("bias")}
    with pytest.raises(ModelError, match="is no part of the motion modules"):
        chosen(r"conv_in.*")


def test_a_lora_beyond_the_motion_modules_trains_and_comes_back(base, tmp_path):
    model = train_model(base, "lora", adapter={"rank": 2, "target_modules": [r".*attn\d\.to_q"]})
    train(model, 2)
    checkpoint = saved(model, tmp_path / "all")
    keys = load_file(checkpoint / "pytorch_lora_weights.safetensors")
    assert any(".attentions." in key for key in keys) and any(".motion_modules." in key for key in keys)
    plain = sample_model(base, motion_adapter=str(base / "motion_adapter"))
    before = plain.sample(REQUEST, Draws(seeded(0)))
    plain.load([(checkpoint, 1.0)])
    assert (plain.sample(REQUEST, Draws(seeded(0))) != before).any()


def test_samples_that_cannot_begin_from_any_clip_are_told_before_the_run(tiny_base, tiny_dataset):
    """Clips of 12 frames train with 12 where 16 are asked for; a sample of 16 has nothing to begin from."""
    settings = {
        "method": "motion_module",
        "base_model": str(tiny_base),
        "motion_adapter": str(tiny_base / "motion_adapter"),
        "num_inversion_steps": 2,
        "dataset": {"path": str(tiny_dataset), "num_frames": 16, "height": 64, "width": 64, "frame_buckets": True},
        "validation": {"prompts": ["a ball"]},
    }
    (finding,) = [f for f in findings(AnimateDiffTrainConfig(**settings)) if f.level == "error"]
    assert finding.where == "num_inversion_steps"
    assert "none trains with 16 frames at 64 x 64; lower dataset.num_frames to 12" in finding.text
    settings["dataset"]["num_frames"] = 12
    assert not [f for f in findings(AnimateDiffTrainConfig(**settings)) if f.level == "error"]
