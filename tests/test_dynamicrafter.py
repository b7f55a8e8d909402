"""DynamiCrafter: the reference's numbers, an objective as in its training, samples that can be steered, and rules."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training import take_steps

from tests.parity.__main__ import main as parity
from trainers import lora
from trainers.families.base import ModelError, SampleRequest
from trainers.families.dynamicrafter.config import (
    TARGETS,
    DynamiCrafterSampleConfig,
    DynamiCrafterTrainConfig,
    findings,
    is_base,
)
from trainers.families.dynamicrafter.facts import HUB_BASES, PUBLISHED, facts_of, variant_in_name
from trainers.families.dynamicrafter.model import DynamiCrafter, fitted
from trainers.families.dynamicrafter.sampler import ddim, guided
from trainers.families.dynamicrafter.schedule import steps, timesteps
from trainers.noise import Draws
from trainers.settings import ConfigError, validate

DATA = Path(__file__).parent / "data" / "dynamicrafter"
VARIANTS = ("512", "256", "512-interp")
PICTURE = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


def train_model(base: Path, method: str = "lora", *, dataset=None, **changes) -> DynamiCrafter:
    settings = {
        "method": method,
        "base_model": str(base),
        "mixed_precision": "no",
        "adapter": {"rank": 4, "target_modules": ["to_q", "to_k_ip"]},
        "memory": {"gradient_checkpointing": "none"},
        "dataset": {"path": "clips", "num_frames": 4, "height": 64, "width": 64} | (dataset or {}),
        **changes,
    }
    return DynamiCrafter(DynamiCrafterTrainConfig(**settings), "train")


def sample_model(base: Path, **changes) -> DynamiCrafter:
    settings = {"base_model": str(base), "prompts": ["-"], "images": ["-"], "mixed_precision": "no", **changes}
    return DynamiCrafter(DynamiCrafterSampleConfig(**settings), "sample")


def batch(model: DynamiCrafter, clips: int = 1) -> dict[str, torch.Tensor]:
    pixels = torch.randint(0, 256, (clips, 4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    prompts, null = model.encode_prompt(["a red circle"] * clips), model.encode_prompt([""] * clips)
    rates = {"clip_fps": torch.full((clips,), 24.0), "frame_stride": torch.ones(clips)}
    return {
        **model.encode_video(pixels, Draws()),
        **prompts,
        "null_prompt_embeds": null["prompt_embeds"],
        **rates,
    }


def train(model: DynamiCrafter, count: int, learning_rate: float = 3e-3) -> list[float]:
    return take_steps(model, batch(model), count, learning_rate)


def request(**changes) -> SampleRequest:
    return replace(SampleRequest("a red circle", "", 64, 64, 4, 3, 7.5, image=PICTURE), **changes)


def frames(model: DynamiCrafter, seed: int = 1, **changes) -> np.ndarray:
    return model.sample(request(**changes), Draws(torch.Generator().manual_seed(seed)))


# --- the reference's numbers -----------------------------------------------------------------------------------------


def test_the_vectors_pass(tmp_path, capsys):
    """All but how a dataset's pictures are fitted."""
    shutil.copytree(DATA, tmp_path / "vectors")
    (tmp_path / "vectors" / "image_preprocess.safetensors.gz").unlink()
    assert parity(["dynamicrafter", str(tmp_path / "vectors")]) == 0
    *lines, totals = capsys.readouterr().out.splitlines()
    assert totals == f"totals passed={len(lines)} failed=0"
    named = "\n".join(lines)
    for name in (
        "unet_256 out",
        "image tokens",
        "train_loss_v loss",
        "train_loss_v_interp grad_norm_image_proj",
        "ddim_v_eta0_multicond out",
        "ddim_v_eta1_S7_clamped out",
        "ddim_eps_eta1 out",
        "numbers extracted from whole.ckpt",
        "network with the LoRA merged",
        "lora gradients",
    ):
        assert f"ok   {name}: " in named


@pytest.mark.parametrize("count", [1, 3, 9, 27, 36, 50, 61, 101, 103, 111, 121, 122, 1000])
def test_steps_are_within_the_schedule_also_where_the_reference_fails(count):
    trailing = timesteps("uniform_trailing", count)
    assert len(set(trailing)) == count
    assert trailing[-1] == 999
    assert trailing[0] >= 0
    uniform = timesteps("uniform", count)
    assert uniform[0] == 1
    assert uniform == sorted(set(uniform))
    assert max(uniform) <= 999
    assert len(uniform) >= min(count, 999)


@pytest.mark.parametrize("count", [7, 11, 14, 15, 20, 25, 33, 39, 62, 64])
def test_latents_are_numbers_at_counts_of_steps_at_which_the_references_are_not(count):
    planned = steps(PUBLISHED["512"], count, eta=1.0)
    assert (planned[0].timestep, planned[0].signal) == (999, 0)
    noise = torch.randn(1, 4, 2, 8, 8)
    assert all(found.isfinite().all() for found, _ in ddim(planned, "v", noise, lambda x, t: x, lambda _: noise))


# --- the objective ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_falls_and_only_the_meant_weights_change(dynamicrafter_bases, variant, method):
    model = train_model(dynamicrafter_bases(variant), method)
    model.network.eval()
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    losses = train(model, 6)
    assert losses[-1] < losses[0]
    changed = {key for key, value in model.network.state_dict().items() if not torch.equal(before[key], value)}
    if method == "lora":
        assert changed
        assert all(".lora_" in key and ("to_q" in key or "to_k_ip" in key) for key in changed)
    else:
        assert {key.split(".")[0] for key in changed} == {"unet", "resampler"}
        assert len(changed) > 0.9 * len(before)
    wanted = {"unet"} if method == "lora" else {"unet", "resampler"}
    assert {key.split(".")[0] for key, p in model.network.named_parameters() if p.requires_grad} == wanted


def test_the_defaults_put_a_lora_on_every_linear_layer_of_the_network_and_skip_what_is_asked(dynamicrafter_bases):
    base = dynamicrafter_bases("512")
    unet = train_model(base, adapter={"rank": 4}).network.unet
    linear = [path for path, module in unet.named_modules() if type(module) is torch.nn.Linear and "lora_" not in path]
    assert {path for path, _ in lora.layers(unet)} == {path.removesuffix(".base_layer") for path in linear}
    assert not any(path.startswith("init_attn.0.proj") for path, _ in lora.layers(unet)), (
        "convolutions in the reference"
    )
    scales = {layer.lora_alpha["default"] / layer.r["default"] for _, layer in lora.layers(unet)}
    assert scales == {0.5}
    adapter = {"rank": 4, "skip_layers": ["middle_block", "model.diffusion_model.input_blocks", "ff.net"]}
    left = {path for path, _ in lora.layers(train_model(base, adapter=adapter).network.unet)}
    assert left
    assert not any("ff.net" in path or path.startswith(("middle_block", "input_blocks")) for path in left)
    with pytest.raises(ModelError, match=r"adapter.skip_layers: 'nothing' is in the path of no layer"):
        train_model(base, adapter={"skip_layers": ["nothing"]})
    with pytest.raises(ModelError, match=r"leaves no layer"):
        train_model(base, adapter={"skip_layers": ["model"]})
    with pytest.raises(ModelError, match=r"'to_w' is no linear layer of the network; there are .*to_q"):
        train_model(base, adapter={"target_modules": ["to_w"]})


def test_every_default_target_is_a_layer_of_the_published_network():
    from trainers.families.dynamicrafter.unet import VideoUNet

    with torch.device("meta"):
        unet = VideoUNet(PUBLISHED["512"].unet)
    linear = [path for path, module in unet.named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) == 452
    for path in linear:
        assert any(path == name or path.endswith(f".{name}") for name in TARGETS), path


def test_text_and_image_are_dropped_in_the_references_shares(dynamicrafter_bases):
    model = train_model(dynamicrafter_bases("512"))
    drawn = torch.tensor([0.0, 0.049, 0.051, 0.099, 0.101, 0.149, 0.151, 0.99])
    text, image = model._dropped(drawn)
    assert text.tolist() == [True, True, True, True, False, False, False, False]
    assert image.tolist() == [False, False, True, True, True, True, False, False]
    neither = train_model(dynamicrafter_bases("512"), dataset={"caption_dropout": 0.0}, image_dropout=0.0)
    assert not any(mask.any() for mask in neither._dropped(drawn))


def test_what_is_dropped_is_replaced_and_the_latents_beside_stay(dynamicrafter_bases):
    model = train_model(dynamicrafter_bases("512"))
    given = batch(model, clips=2)
    fixed = {
        "posterior": torch.zeros(2, 4, 4, 8, 8), "noise": torch.randn(2, 4, 4, 8, 8), "cond_frame": torch.tensor([2]),
        "timesteps": torch.tensor([300, 999]),
    }  # fmt: skip
    example = model.example(given, Draws(given={**fixed, "dropout": torch.tensor([0.07, 0.5])}))
    assert torch.equal(example.conditions["text"][0], given["null_prompt_embeds"][0])
    assert torch.equal(example.conditions["image"][0], given["image_states"][0, -1])
    assert torch.equal(example.conditions["text"][1], given["prompt_embeds"][1])
    assert torch.equal(example.conditions["image"][1], given["image_states"][1, 2])
    beside = example.model_input[:, 4:]
    frame = given["latents_mean"][:, 2] * model.facts.scale_factor
    assert all(torch.allclose(beside[:, :, number], frame) for number in range(4)), "unscaled, at every frame"
    assert torch.allclose(example.model_input[1, :4], fixed["noise"][1]), "zero terminal SNR"
    grey = given["image_states"][:, -1]
    assert torch.equal(grey[0], grey[1])


@pytest.mark.parametrize(
    ("variant", "fps", "stride", "most", "told"),
    [
        ("512", 24.0, 1.0, None, 24),
        ("512", 60.0, 3.0, None, 20),
        ("512", 29.97, 1.0, None, 29),
        ("512", 25.0, 2.0, None, 12),
        ("512", 30.0, 3.7333, None, 8),
        ("512", 60.0, 1.0, 30, 30),
        ("512", 0.0, 1.0, None, 1),
        ("256", 24.0, 3.0, None, 3),
        ("256", 24.0, 2.5333, None, 3),
    ],
)
def test_the_model_is_told_the_pace_in_its_own_measure(dynamicrafter_bases, variant, fps, stride, most, told):
    model = train_model(dynamicrafter_bases(variant), fps_max=most)
    rates = {"clip_fps": torch.tensor([fps]), "frame_stride": torch.tensor([stride])}
    assert model._pace(rates).tolist() == [told]


def test_only_the_first_frame_is_seen_where_the_condition_is_never_another(dynamicrafter_bases):
    base = dynamicrafter_bases("512")
    any_frame, first = train_model(base), train_model(base, rand_cond_frame=False)
    pixels = torch.randint(0, 256, (1, 4, 3, 64, 64), dtype=torch.uint8)
    several, one = (model.encode_video(pixels, Draws())["image_states"] for model in (any_frame, first))
    assert several.shape[1] == 5  # each frame, and grey
    assert torch.allclose(several[:, [0, 4]], one, atol=1e-6)
    assert any_frame.fingerprint("video") != first.fingerprint("video")
    assert any_frame.fingerprint("prompt") == first.fingerprint("prompt")


def test_between_two_pictures_the_ends_are_given(dynamicrafter_bases):
    model = train_model(dynamicrafter_bases("512-interp"))
    assert model.interp
    example = model.example(batch(model), Draws.seeded(3))
    beside = example.model_input[:, 4:]
    assert beside[:, :, 0].any()
    assert beside[:, :, -1].any()
    assert not beside[:, :, 1:-1].any()
    assert not train_model(dynamicrafter_bases("512-interp"), interp_mode=False).interp


def test_checkpointed_blocks_and_half_weights_train_as_others(dynamicrafter_bases):
    base = dynamicrafter_bases("512")
    losses = []
    for policy in ("none", "full"):
        model = train_model(base, memory={"gradient_checkpointing": policy})
        torch.manual_seed(0)  # dropout
        losses.append(train(model, 2))
    assert losses[0] == losses[1]
    half = train_model(base, mixed_precision="bf16")
    assert {p.dtype for p in half.trained_parameters()} == {torch.float32}
    assert half.network.unet.input_blocks[0][0].weight.dtype == torch.bfloat16
    torch.manual_seed(0)
    assert train(half, 1)[0] == pytest.approx(losses[0][0], rel=0.05)


# --- samples ---------------------------------------------------------------------------------------------------------


def test_a_seed_gives_one_clip_and_settings_another(dynamicrafter_bases):
    base = dynamicrafter_bases("512")
    model = sample_model(base)
    drawn = frames(model)
    assert drawn.shape == (4, 64, 64, 3)
    assert drawn.dtype == np.uint8
    assert drawn.std() > 1
    assert np.array_equal(drawn, frames(model))
    assert np.array_equal(drawn, frames(train_model(base))), "as validation draws it"
    for other in (
        frames(model, seed=2),
        frames(model, prompt="a blue square"),
        frames(model, negative_prompt="a blue square"),
        frames(model, image=255 - PICTURE),
        frames(model, guidance_scale=1.0),
        frames(sample_model(base, fs=5)),
        frames(sample_model(base, eta=0.0)),
        frames(sample_model(base, guidance_rescale=0.0)),
        frames(sample_model(base, image_guidance_scale=2.0)),
    ):
        assert not np.array_equal(drawn, other)


def test_equal_guidance_of_image_and_prompt_is_guidance_of_both():
    full, without, image = torch.randn(3, 2, 4, 2, 3, 3).unbind()
    both = guided(full, without, 5.0, 0.7)
    assert torch.allclose(both, guided(full, without, 5.0, 0.7, image, 5.0), atol=1e-5)
    assert torch.allclose(both.std(dim=(1, 2, 3, 4)) / full.std(dim=(1, 2, 3, 4)), torch.ones(2), atol=2)
    calmed = guided(full, without, 5.0, 1.0)
    assert torch.allclose(calmed.std(dim=(1, 2, 3, 4)), full.std(dim=(1, 2, 3, 4)), atol=1e-5)


def test_between_two_pictures_and_in_a_circle(dynamicrafter_bases):
    base = dynamicrafter_bases("512-interp")
    model = sample_model(base)
    drawn = frames(model, end_image=PICTURE[:, ::-1])
    assert drawn.shape[0] == 4
    assert not np.array_equal(drawn, frames(model, end_image=255 - PICTURE))
    circle = frames(sample_model(base, loop=True))
    assert circle.shape[0] == 3, "the last frame would be the first again"
    with pytest.raises(ModelError, match=r"name the second in end_images, or set loop"):
        frames(model)
    with pytest.raises(ModelError, match=r"leave end_images empty, or set interp_mode to true"):
        frames(sample_model(dynamicrafter_bases("512")), end_image=PICTURE)
    assert frames(sample_model(dynamicrafter_bases("512"), interp_mode=True), end_image=PICTURE).shape[0] == 4


def test_a_picture_is_cut_to_the_clips_shape_from_its_middle():
    wide = np.zeros((50, 200, 3), np.uint8)
    wide[:, 75:125] = 255
    assert fitted(wide, 64, 64).shape == (1, 3, 64, 64)
    assert bool((fitted(wide, 64, 64)[..., 2:-2] == 255).all())
    tall = fitted(np.full((300, 40, 3), 9, np.uint8), 64, 128)
    assert tall.shape == (1, 3, 64, 128)
    assert bool((tall == 9).all()), "no black bars"
    same = np.random.default_rng(1).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    assert np.array_equal(fitted(same, 64, 128)[0].permute(1, 2, 0).numpy(), same)


# --- rules -----------------------------------------------------------------------------------------------------------


def train_config(base: Path | str, **changes) -> DynamiCrafterTrainConfig:
    dataset = {"path": "clips", "num_frames": 4, "height": 64, "width": 64} | changes.pop("dataset", {})
    return DynamiCrafterTrainConfig(**{"base_model": str(base), "dataset": dataset, **changes})


def errors(config) -> list[str]:
    return [finding.text for finding in findings(config) if finding.level == "error"]


def test_three_frames_where_sixteen_are_needed(dynamicrafter_bases):
    base = dynamicrafter_bases("512")
    (said,) = errors(train_config(base, dataset={"num_frames": 3}))
    takes = "takes exactly 4 frames, for each of which it has tokens of the image: set 4"
    assert said == f"dataset.num_frames is 3, but {base} {takes}"
    (said,) = errors(train_config("Doubiiu/DynamiCrafter_512", dataset={"num_frames": 3}))
    assert "takes exactly 16 frames" in said
    with pytest.raises(ModelError, match=r"dataset.num_frames is 3, but .* takes exactly 4 frames"):
        train_model(base, dataset={"num_frames": 3})
    with pytest.raises(ModelError, match=r"num_frames is 16, but .* takes exactly 4 frames"):
        frames(sample_model(base), num_frames=16)
    (warning,) = findings(train_config(base, dataset={"frame_buckets": True}))
    assert "takes 4 frames only" in warning.text
    model = train_model(base)
    with pytest.raises(ModelError, match=r"a sample's number of frames is 2"):
        model.encode_video(torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8), Draws())


def test_sizes_are_multiples_of_64():
    with pytest.raises(ConfigError, match=r"dataset.width: is 500, but must be a multiple of 64: set 448 or 512"):
        validate(DynamiCrafterTrainConfig, {"base_model": "b", "dataset": {"path": "p", "width": 500}})
    with pytest.raises(ConfigError, match=r"height: is 32, but must be a multiple of 64: set 64"):
        validate(DynamiCrafterSampleConfig, {"base_model": "b", "prompts": ["-"], "height": 32})


def test_pictures_that_lack_or_have_no_use_are_said_before_a_run(dynamicrafter_bases):
    def sample(variant, **changes):
        given = {"base_model": str(dynamicrafter_bases(variant)), "prompts": ["a"], "num_frames": 4, **changes}
        return errors(DynamiCrafterSampleConfig(**given))

    assert "name an image in images" in sample("512")[0]
    assert sample("512", images=["a.png"]) == []
    assert "draws what lies between two images" in sample("512-interp", images=["a.png"])[0]
    assert sample("512-interp", images=["a.png"], loop=True) == []
    assert sample("512-interp", images=["a.png"], end_images=["b.png"]) == []
    assert "draws what follows one image" in sample("512", images=["a.png"], end_images=["b.png"])[0]
    for wrong, said in (
        ({"images": ["a"], "end_images": ["b"], "loop": True}, "loop: ends where it began"),
        ({"images": ["a"], "end_images": ["b", "c"]}, "end_images: are 2 for 1 prompt"),
    ):
        with pytest.raises(ConfigError, match=said):
            validate(DynamiCrafterSampleConfig, {"base_model": "b", "prompts": ["-"], **wrong})
    (said,) = errors(train_config(dynamicrafter_bases("512"), validation={"prompts": ["a"]}))
    assert said.endswith("name an image in validation.images, or leave validation.prompts empty")


def test_dropping_shares_must_have_room():
    with pytest.raises(ConfigError, match=r"image_dropout: is 0.8: together with half of dataset.caption_dropout"):
        given = {"base_model": "b", "dataset": {"path": "p", "caption_dropout": 0.6}, "image_dropout": 0.8}
        validate(DynamiCrafterTrainConfig, given)


def test_which_model_a_base_is(tmp_path, dynamicrafter_bases):
    assert [variant_in_name(name) for name in HUB_BASES] == ["512", "256", "512-interp", "1024"]
    for name, variant in (
        ("checkpoints/dynamicrafter_512_v1/model.ckpt", "512"),
        ("models/dynamicrafter_512_interp_fp16.safetensors", "512-interp"),
        ("x/dynamicrafter_1024_v1/model.ckpt", "1024"),
        ("checkpoints/dynamicrafter_256_v1/model.ckpt", "256"),
    ):
        assert variant_in_name(name) == variant
        assert facts_of(name) == PUBLISHED[variant]
    assert facts_of("somewhere/model.ckpt") is None
    assert facts_of("somewhere/model.ckpt", "1024") == PUBLISHED["1024"]
    weights = tmp_path / "net" / "model.safetensors"
    weights.parent.mkdir()
    shutil.copyfile(dynamicrafter_bases("512") / "model.safetensors", weights)
    assert is_base(weights.parent)
    (said,) = errors(train_config(weights))
    assert "nothing tells which of the models" in said
    assert "set variant to 256, 512, 512-interp or 1024" in said
    for variant in VARIANTS:
        facts = facts_of(str(dynamicrafter_bases(variant)))
        assert facts is not None
        assert facts.variant == variant
        assert (facts.parameterization, facts.fs_kind) == (("eps", "stride") if variant == "256" else ("v", "fps"))
    (said,) = errors(train_config(dynamicrafter_bases("256"), variant="512"))
    assert "its parameterization is that of 256, but variant is 512" in said
    (weights.parent / "config.yaml").write_text("model: {params: {unet_config: {params: {use_linear: false}}}}")
    (said,) = errors(train_config(weights))
    assert "unet_config.use_linear is False, but this network has only True" in said


def test_a_file_of_something_else_is_said_before_a_run(tmp_path, dynamicrafter_bases):
    from safetensors.torch import save_file

    state = {"visual.conv1.weight": torch.zeros(1), "transformer.resblocks.0.ln_1.weight": torch.zeros(1)}
    save_file(state, tmp_path / "clip_512.safetensors")
    torch.save(state, tmp_path / "clip_512.ckpt")
    for name in ("clip_512.safetensors", "clip_512.ckpt"):
        (said,) = errors(train_config(tmp_path / name))
        way = "give a whole model, as model.ckpt of the Hub is one"
        assert said == f"base_model {tmp_path / name} holds no DynamiCrafter network; {way}"
    assert not is_base(tmp_path)
    assert "has no model.safetensors and no model.ckpt" in errors(train_config(tmp_path))[0]
    assert "does not exist" in errors(train_config(tmp_path / "gone.ckpt"))[0]
    assert "start_from gone does not exist" in errors(train_config(dynamicrafter_bases("512"), start_from="gone"))[0]
