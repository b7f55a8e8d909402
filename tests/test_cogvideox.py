"""CogVideoX: equal to the pipelines' frames, an objective in full precision, and rules that are told before a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
)
from PIL import Image
from training import take_steps

from trainers.families import FAMILIES, parse_config
from trainers.families.base import ModelError, SampleRequest
from trainers.families.cogvideox.config import (
    CogVideoXSampleConfig,
    CogVideoXTrainConfig,
    advice,
    findings,
    takes_image,
)
from trainers.families.cogvideox.facts import PUBLISHED, base_facts
from trainers.families.cogvideox.model import CogVideoX
from trainers.loop import loss_of
from trainers.noise import Draws
from trainers.settings import ConfigError

KINDS = ("cogvideox", "cogvideox-5b", "cogvideox-5b-i2v", "cogvideox-1.5", "cogvideox-1.5-i2v")
PICTURE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def train_model(base: Path, method: str = "lora", *, dataset=None, **changes) -> CogVideoX:
    settings = {
        "method": method,
        "base_model": str(base),
        "mixed_precision": "no",
        "adapter": {"rank": 4, "alpha": 8},
        "dataset": {"path": "clips", "num_frames": 9, "height": 64, "width": 64} | (dataset or {}),
        **changes,
    }
    return CogVideoX(CogVideoXTrainConfig(**settings), "train")


def sample_model(base: Path, **changes) -> CogVideoX:
    settings = {"base_model": str(base), "prompts": ["-"], "mixed_precision": "no", "vae_tiling": False, **changes}
    return CogVideoX(CogVideoXSampleConfig(**settings), "sample")


def batch(model: CogVideoX, clips: int = 1, frames: int = 9) -> dict[str, torch.Tensor]:
    pixels = torch.randint(0, 256, (clips, frames, 3, 64, 64), dtype=torch.uint8, generator=seeded(1))
    prompts = model.encode_prompt(["a red circle"] * clips)
    nulls = {f"null_{name}": value for name, value in model.encode_prompt([""] * clips).items()}
    return {**model.encode_video(pixels, Draws()), **prompts, **nulls}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def train(model: CogVideoX, count: int, learning_rate: float = 3e-3) -> list[float]:
    return take_steps(model, batch(model), count, learning_rate)


def pipeline(base: Path, scheduler: str = "dpm", **parts) -> CogVideoXPipeline | CogVideoXImageToVideoPipeline:
    """diffusers' own, in 32 bits."""
    kind = CogVideoXImageToVideoPipeline if "i2v" in base.name else CogVideoXPipeline
    made = kind.from_pretrained(base, torch_dtype=torch.float32, **parts)
    made.set_progress_bar_config(disable=True)
    if scheduler == "dpm":
        made.scheduler = CogVideoXDPMScheduler.from_config(made.scheduler.config)
    return made


def request_for(base: Path, frames: int = 9, size: tuple[int, int] = (64, 64)) -> SampleRequest:
    image = PICTURE if "i2v" in base.name else None
    return SampleRequest("a red circle moves", "blue", *size, frames, 3, 5.0, image=image)


def pipeline_frames(made, request: SampleRequest, seed: int, **options) -> np.ndarray:
    if request.image is not None:
        options["image"] = Image.fromarray(request.image)
    frames = made(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        height=request.height,
        width=request.width,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=seeded(seed),
        output_type="np",
        **options,
    ).frames[0]
    return (frames * 255).round().astype(np.uint8)


def our_frames(model: CogVideoX, request: SampleRequest, seed: int) -> np.ndarray:
    return model.sample(request, Draws(seeded(seed)))


# --- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["dpm", "ddim"])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_pipelines(cogvideox_bases, kind, scheduler):
    """Seed for seed. 1.5 draws one latent frame more than it shows, and its image's latents are divided."""
    base = cogvideox_bases(kind)
    size = (64, 64) if kind == "cogvideox-5b-i2v" else (64, 96)
    request = request_for(base, size=size)
    if request.image is not None and size != (64, 64):  # what is left of a square picture
        request = SampleRequest(**{**vars(request), "image": PICTURE[:43]})
    ours = our_frames(sample_model(base, scheduler=scheduler), request, 3)
    theirs = pipeline_frames(pipeline(base, scheduler), request, 3)
    assert ours.shape == (9, *size, 3)
    assert ours.dtype == np.uint8
    assert ours.std() > 1
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_dynamic_guidance_is_the_pipelines(cogvideox_bases):
    base = cogvideox_bases("cogvideox-5b")
    request = request_for(base)
    ours = our_frames(sample_model(base, use_dynamic_cfg=True), request, 3)
    theirs = pipeline_frames(pipeline(base), request, 3, use_dynamic_cfg=True)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert not np.array_equal(ours, our_frames(sample_model(base), request, 3))


def test_tiles_are_the_pipelines(cogvideox_bases):
    """Of clips that are larger than a tile of the published models, which is half of their own size."""
    base = cogvideox_bases("cogvideox")
    request = request_for(base, frames=5, size=(256, 64))
    made = pipeline(base)
    made.vae.enable_tiling(240, 360)
    made.vae.enable_slicing()
    ours = our_frames(sample_model(base, vae_tiling=True), request, 3)
    assert np.abs(ours.astype(int) - pipeline_frames(made, request, 3)[3:]).max() <= 1
    assert not np.array_equal(ours, our_frames(sample_model(base), request, 3))


@pytest.mark.parametrize("kind", ["cogvideox-5b", "cogvideox-1.5"])
def test_a_sample_has_as_many_frames_as_are_asked_for(cogvideox_bases, kind):
    """Of an even number of latent frames the decoder makes three frames more, at the beginning."""
    base = cogvideox_bases(kind)
    request = request_for(base, frames=5)
    ours, theirs = our_frames(sample_model(base), request, 3), pipeline_frames(pipeline(base), request, 3)
    assert (len(ours), len(theirs)) == (5, 8)
    assert np.abs(ours.astype(int) - theirs[3:]).max() <= 1


def test_a_single_frame_and_no_guidance(cogvideox_bases):
    base = cogvideox_bases("cogvideox-5b")
    request = SampleRequest("a red circle", "", 64, 64, 1, 2, 1.0)
    ours = our_frames(sample_model(base), request, 0)
    assert ours.shape == (1, 64, 64, 3)
    assert np.abs(ours.astype(int) - pipeline_frames(pipeline(base), request, 0)).max() <= 1


def test_an_image_is_cut_to_the_clips_shape(cogvideox_bases):
    base = cogvideox_bases("cogvideox-1.5-i2v")
    model, draws = sample_model(base), lambda: Draws(seeded(0))
    wide = np.concatenate([np.zeros((64, 32, 3), np.uint8), PICTURE, np.zeros((64, 32, 3), np.uint8)], axis=1)
    request = request_for(base)
    assert np.array_equal(
        model.sample(request, draws()), model.sample(SampleRequest(**{**vars(request), "image": wide}), draws())
    )
    with pytest.raises(ModelError, match="name an image"):
        model.sample(SampleRequest(**{**vars(request), "image": None}), draws())
    with pytest.raises(ModelError, match="takes no image"):
        sample_model(cogvideox_bases("cogvideox")).sample(request, draws())


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_a_run_samples_as_a_comparison_does(cogvideox_bases, precision):
    """One code path: a fresh LoRA has no effect, so that a run's first sample is the base's."""
    base = cogvideox_bases("cogvideox-1.5-i2v")
    request = request_for(base)
    training = train_model(base, mixed_precision=precision, memory={"vae_tiling": False})
    ours = our_frames(training, request, 5)
    assert np.array_equal(ours, our_frames(sample_model(base, mixed_precision=precision), request, 5))
    assert training.transformer.training
    assert training._text is None, "sampling while training leaves no text encoder behind"


# --- the objective ---------------------------------------------------------------------------------------------------


def test_an_example_is_the_papers(cogvideox_bases):
    model = train_model(cogvideox_bases("cogvideox"), dataset={"caption_dropout": 0.5})
    data = batch(model, clips=2)
    given = {
        "posterior": torch.randn(2, 3, 4, 8, 8, generator=seeded(0)),
        "noise": torch.randn(2, 3, 4, 8, 8, generator=seeded(1)),
        "timesteps": torch.tensor([10, 999]),
        "caption_dropout": torch.tensor([0.49, 0.5]),
    }
    example = model.example(data, Draws(given=given))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = torch.cumprod(1 - betas, 0)
    signal = (signal / (3 + (1 - 3) * signal)).sqrt()  # the shift of 2B
    signal = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1]))[given["timesteps"]].view(2, 1, 1, 1, 1)
    assert signal[1] == 0, "at the last timestep nothing is left of the clip"
    latents = data["latents_mean"] + (data["latents_logvar"] / 2).exp() * given["posterior"]
    latents = latents * 1.15258426
    noise = (1 - signal**2).sqrt()
    torch.testing.assert_close(example.model_input, (signal * latents + noise * given["noise"]).float())
    torch.testing.assert_close(example.target, (signal * given["noise"] - noise * latents).float())
    assert torch.equal(example.conditions["prompt_embeds"][0], data["null_prompt_embeds"][0])
    assert torch.equal(example.conditions["prompt_embeds"][1], data["prompt_embeds"][1])


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_the_least_noise_is_noise_in_any_precision(cogvideox_bases, precision):
    """In bfloat16 a noise level of 0.03 would be rounded away, and with it the whole gradient."""
    model = train_model(cogvideox_bases("cogvideox-5b"), mixed_precision=precision)
    data = batch(model)
    shape = data["latents_mean"].shape
    given = {"posterior": torch.zeros(shape), "noise": torch.ones(shape), "timesteps": torch.tensor([0])}
    example = model.example(data, Draws(given=given))
    signal = CogVideoXDDIMScheduler.from_pretrained(cogvideox_bases("cogvideox-5b") / "scheduler").alphas_cumprod[0]
    latents = data["latents_mean"] * 0.7
    expected = signal.sqrt() * latents + (1 - signal).sqrt()
    assert example.model_input.dtype == example.target.dtype == torch.float32
    torch.testing.assert_close(example.model_input, expected.float())
    loss_of(model.predict(example), example).backward()
    assert any(p.grad is not None and p.grad.any() for p in model.trained_parameters())


def test_clips_and_captions_are_encoded_as_the_pipeline_does(cogvideox_bases):
    base = cogvideox_bases("cogvideox")
    model = train_model(base, memory={"vae_tiling": False})
    pixels = torch.randint(0, 256, (2, 9, 3, 64, 64), dtype=torch.uint8, generator=seeded(0))
    encoded = model.encode_video(pixels, Draws())
    vae = AutoencoderKLCogVideoX.from_pretrained(base / "vae")
    with torch.no_grad():
        posterior = vae.encode(pixels[1:].float().transpose(1, 2) / 127.5 - 1).latent_dist
    assert encoded.keys() == {"latents_mean", "latents_logvar"}
    assert encoded["latents_mean"].shape == encoded["latents_logvar"].shape == (2, 3, 4, 8, 8)
    torch.testing.assert_close(encoded["latents_mean"][1:], posterior.mean.transpose(1, 2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoded["latents_logvar"][1:], posterior.logvar.transpose(1, 2), atol=1e-4, rtol=1e-4)
    embeds, empty = pipeline(base).encode_prompt(["a red circle"], [""])
    ours = model.encode_prompt(["a red circle", ""])["prompt_embeds"]
    assert ours.shape == (2, 226, 32)
    torch.testing.assert_close(ours, torch.cat([embeds, empty]).detach())


def test_an_odd_number_of_latent_frames_begins_with_the_first_twice(cogvideox_bases):
    model = train_model(cogvideox_bases("cogvideox-1.5"))
    data = batch(model)
    shape = (1, 4, 4, 8, 8)
    given = {"posterior": torch.zeros(1, 3, 4, 8, 8), "noise": torch.zeros(shape), "timesteps": torch.tensor([999])}
    example = model.example(data, Draws(given=given))
    latents = -example.target
    torch.testing.assert_close(latents[:, 1:], data["latents_mean"] * 0.7)
    assert torch.equal(latents[:, 0], latents[:, 1])
    assert model.predict(example).shape == shape


def image_condition(model: CogVideoX, data: dict[str, torch.Tensor], seed: int = 1) -> torch.Tensor:
    """What stands beside the noisy latents, (b, F, c, h, w)."""
    return model.example(data, Draws.seeded(seed)).model_input[:, :, 4:]


@pytest.mark.parametrize(("kind", "factor"), [("cogvideox-5b-i2v", 0.7), ("cogvideox-1.5-i2v", 1 / 0.7)])
def test_an_image_stands_in_the_first_latent_frame_at_the_pipelines_scale(cogvideox_bases, kind, factor):
    model = train_model(cogvideox_bases(kind), image_noise=False, image_noise_dropout=0.0, memory={"vae_tiling": False})
    data = batch(model, clips=2)
    assert torch.equal(data["first_frame"], data["first_frame"][:1].repeat(2, 1, 1, 1)) is False
    condition = image_condition(model, data)
    assert not condition[:, 1:].any()
    mean, _ = model._posterior(data["first_frame"][:, None].float() / 127.5 - 1)
    assert (condition[:, :1] - mean * factor).abs().max() < 0.2  # the posterior's own noise is small
    other = train_model(cogvideox_bases(kind), image_noise=False, image_noise_dropout=0.0, image_latent_scale="video",
                        memory={"vae_tiling": False})  # fmt: skip
    torch.testing.assert_close(image_condition(other, data), condition * 0.7 / factor)


def test_every_sample_of_every_step_has_image_noise_of_its_own(cogvideox_bases):
    model = train_model(cogvideox_bases("cogvideox-1.5-i2v"), image_noise_dropout=0.0)
    data = batch(model, clips=2)
    shown = []
    encoder = model._encoder
    model._encoder = SimpleNamespace(encode=lambda pixels: shown.append(pixels[:, :, 0]) or encoder.encode(pixels))
    for seed in range(100):
        image_condition(model, data, seed)
    clean = data["first_frame"].float() / 127.5 - 1
    sigmas = torch.stack([(pixels - clean).flatten(1).std(dim=1) for pixels in shown])  # (steps, clips)
    assert len(sigmas.unique()) == 200
    assert abs(float(sigmas.log().mean()) + 3) < 0.15
    assert abs(float(sigmas.log().std()) - 0.5) < 0.1


def test_images_are_dropped_one_by_one(cogvideox_bases):
    model = train_model(cogvideox_bases("cogvideox-5b-i2v"), image_noise_dropout=0.5)
    data = batch(model, clips=4)
    kept = torch.stack([image_condition(model, data, seed).flatten(1).any(dim=1) for seed in range(20)])
    assert 0.3 < kept.float().mean() < 0.7
    assert any(row.any() and not row.all() for row in kept)


def test_other_sizes_stand_where_the_options_say(cogvideox_bases):
    tall = train_model(cogvideox_bases("cogvideox-5b"), dataset={"height": 96, "width": 64})
    counted = train_model(cogvideox_bases("cogvideox-5b"), rotary="integers")
    assert not torch.equal(tall.rotary(3, 12, 8)[0], counted.rotary(3, 12, 8)[0])
    assert torch.equal(tall.rotary(3, 8, 8)[0], counted.rotary(3, 8, 8)[0]), "the base's own size"
    base = cogvideox_bases("cogvideox-1.5")
    newer = [train_model(base, rotary=how).rotary(4, 12, 8) for how in ("pipeline", "integers")]
    assert torch.equal(newer[0][0], newer[1][0])
    assert newer[0][0].shape == (2 * 6 * 4, 16)


# --- learned positions -----------------------------------------------------------------------------------------------


def test_learned_positions_forbid_other_sizes_unless_left_out(cogvideox_bases):
    base = cogvideox_bases("cogvideox-5b-i2v")
    wide = {"height": 64, "width": 96}
    with pytest.raises(ModelError, match="learned_positions to false"):
        train_model(base, dataset=wide)
    model = train_model(base, dataset=wide, learned_positions=False)
    assert not hasattr(model.transformer.patch_embed, "pos_embedding")
    assert model.transformer.config.use_learned_positional_embeddings is False
    without = sample_model(base, learned_positions=False)
    assert our_frames(without, request_for(base, size=(64, 96)), 0).shape == (9, 64, 96, 3)
    own = request_for(base)
    assert not np.array_equal(our_frames(without, own, 0), our_frames(sample_model(base), own, 0))
    with pytest.raises(ModelError, match="learned_positions to false"):
        our_frames(sample_model(base), request_for(base, size=(64, 96)), 0)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_only_the_meant_weights_change(cogvideox_bases, method, precision):
    model = train_model(cogvideox_bases("cogvideox-5b"), method, mixed_precision=precision)
    before = {key: value.clone() for key, value in model.transformer.state_dict().items()}
    train(model, 2)
    changed = {key for key, value in model.transformer.state_dict().items() if not torch.equal(value, before[key])}
    expected = {key for key in before if ".lora_" in key} if method == "lora" else set(before)
    assert changed <= expected
    assert len(changed) > 0.9 * len(expected)
    assert all(parameter.dtype == torch.float32 for parameter in model.trained_parameters())
    frozen = {parameter.dtype for parameter in model.transformer.parameters() if not parameter.requires_grad}
    assert frozen == (set() if method == "full" else {torch.float32 if precision == "no" else torch.bfloat16})


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_on_one_example(cogvideox_bases, kind):
    losses = train(train_model(cogvideox_bases(kind), adapter={"rank": 16}), 25, 1e-2)
    assert losses[-1] < 0.9 * losses[0]


def test_a_lora_lies_on_the_attention_of_every_block(cogvideox_bases):
    model = train_model(cogvideox_bases("cogvideox"))
    names = {name.split(".lora_")[0] for name, p in model.transformer.named_parameters() if p.requires_grad}
    layers = ("to_q", "to_k", "to_v", "to_out.0")
    assert names == {f"transformer_blocks.{block}.attn1.{layer}" for block in range(2) for layer in layers}
    more = train_model(cogvideox_bases("cogvideox"), adapter={"target_modules": [r".*\.ff\.net\.2", "to_q"], "rank": 2})
    assert len(more.trained_parameters()) == 2 * 2 * 2
    with pytest.raises(ModelError, match=r"no linear layer.*attn1\.to_q"):
        train_model(cogvideox_bases("cogvideox"), adapter={"target_modules": ["nosuch"]})


@pytest.mark.parametrize("policy", ["full", "sac"])
def test_checkpointing_changes_no_gradient(cogvideox_bases, policy):
    gradients = []
    for chosen in ("none", policy):
        model = train_model(cogvideox_bases("cogvideox-5b"), memory={"gradient_checkpointing": chosen})
        example = model.example(batch(model), Draws.seeded(1))
        loss_of(model.predict(example), example).backward()
        gradients.append([parameter.grad for parameter in model.trained_parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_building_a_model_leaves_the_global_generator_alone(cogvideox_bases):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    train_model(cogvideox_bases("cogvideox"))
    assert torch.equal(torch.rand(2), expected)


def test_encoders_are_freed_but_for_what_an_image_needs(cogvideox_bases):
    for kind, kept in (("cogvideox", False), ("cogvideox-5b-i2v", True)):
        model = train_model(cogvideox_bases(kind))
        data = batch(model)
        model.release("encoders")
        assert model._text is None
        assert (model._encoder is not None) is kept
        assert model._decoder is None
        again = model.encode_prompt(["a red circle"])["prompt_embeds"]
        assert torch.equal(again, data["prompt_embeds"])


def test_fingerprints_tell_what_is_encoded_otherwise(cogvideox_bases):
    models = [
        train_model(cogvideox_bases("cogvideox-5b")),
        train_model(cogvideox_bases("cogvideox-5b"), memory={"vae_tiling": False}),
        train_model(cogvideox_bases("cogvideox-5b-i2v")),
    ]
    assert len({model.fingerprint("video") for model in models}) == 3
    assert models[0].fingerprint("prompt") == models[1].fingerprint("prompt") != models[2].fingerprint("prompt")
    assert train_model(cogvideox_bases("cogvideox-5b")).fingerprint("video") == models[0].fingerprint("video")


# --- rules and findings ----------------------------------------------------------------------------------------------


def config(base: Path | str, *, dataset=None, **changes) -> CogVideoXTrainConfig:
    data = {"path": "clips", "num_frames": 9, "height": 64, "width": 64, "id_token": "SKS"} | (dataset or {})
    made = parse_config({"family": "cogvideox", "base_model": str(base), "dataset": data, **changes})
    assert isinstance(made, CogVideoXTrainConfig)
    return made


def told(made, level: str = "error") -> str:
    return "; ".join(f"{finding.where}: {finding.text}" for finding in findings(made) if finding.level == level)


@pytest.mark.parametrize(("available", "within"), [(0, 0), (1, 1), (4, 1), (5, 5), (48, 45), (49, 49), (100, 97)])
def test_frames_are_one_and_then_fours(available, within):
    assert FAMILIES["cogvideox"].frames_within(available) == within


@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        ({"num_frames": 16}, "dataset.num_frames: is 16, but CogVideoX takes 4k \\+ 1 frames.*set 13 or 17"),
        ({"num_frames": 2}, "set 1 or 5"),
        ({"height": 72}, "dataset.height: is 72, but must be a multiple of 16: set 64 or 80"),
        ({"width": 8}, "dataset.width: is 8, but must be a multiple of 16: set 16"),
    ],
)
def test_bad_numbers_come_with_good_ones(dataset, problem):
    with pytest.raises(ConfigError, match=problem):
        config("base", dataset=dataset)


def test_defaults_are_the_published_models():
    made = parse_config({"family": "cogvideox", "base_model": "b", "dataset": {"path": "c"}})
    assert (made.dataset.num_frames, made.dataset.height, made.dataset.width, made.dataset.fps) == (49, 480, 720, 8)
    assert (made.adapter.rank, made.adapter.alpha) == (128, None)
    assert (made.optimizer.beta1, made.optimizer.beta2, made.optimizer.weight_decay) == (0.9, 0.95, 1e-4)
    assert made.memory.gradient_checkpointing == "full"
    assert made.dataset.caption_dropout == 0


def test_what_a_base_is_is_told_without_weights(cogvideox_bases, tmp_path):
    assert {kind: base_facts(str(cogvideox_bases(kind))).takes_image for kind in KINDS} == {
        kind: "i2v" in kind for kind in KINDS
    }
    assert base_facts("THUDM/CogVideoX-5b-I2V") == PUBLISHED["CogVideoX-5b-I2V"]
    assert PUBLISHED["CogVideoX-5b-I2V"].native == (49, 480, 720)
    assert takes_image(config("zai-org/CogVideoX1.5-5B-I2V")) is True
    assert takes_image(config("somebody/something")) is None
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text("{")
    assert base_facts(str(tmp_path)) is None


def test_a_base_that_is_none_is_told(tmp_path):
    assert "does not exist" in told(config(tmp_path / "nosuch"))
    assert "no transformer/config.json" in told(config(tmp_path))
    with pytest.raises(ModelError, match="no transformer/"):
        train_model(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        train_model(tmp_path / "nosuch")


def test_samples_of_an_image_model_need_an_image(cogvideox_bases):
    base = cogvideox_bases("cogvideox-5b-i2v")
    assert "validation.images: " in told(config(base, validation={"prompts": ["a"]}))
    assert not told(config(base, validation={"prompts": ["a"], "images": ["a.png"]}))
    assert not told(config(base))
    compared = {"base_model": str(base), "prompts": ["a"], "num_frames": 9, "height": 64, "width": 64}
    assert "images: " in told(CogVideoXSampleConfig(**compared))
    assert not told(CogVideoXSampleConfig(**compared, images=["a.png"]))


def test_learned_positions_are_told_before_the_run(cogvideox_bases, tmp_path):
    base = cogvideox_bases("cogvideox-5b-i2v")
    text = told(config(base, dataset={"height": 96}))
    assert "dataset.height: " in text and "64 x 64 only" in text and "learned_positions to false" in text
    assert not told(config(base, dataset={"height": 96}, learned_positions=False))
    assert "dataset.fit: " in told(config(base, dataset={"fit": "buckets"}))
    assert "9 frames" in told(config(base, dataset={"num_frames": 5}), "warning")
    drawn = {"prompts": ["a"], "images": ["a.png"], "width": 96}
    assert "validation.width: " in told(config(base, validation=drawn))
    compared = {
        "base_model": str(base),
        "prompts": ["a"],
        "images": ["a.png"],
        "num_frames": 9,
        "height": 64,
        "width": 96,
    }
    assert "width: " in told(CogVideoXSampleConfig(**compared))
    assert not told(CogVideoXSampleConfig(**compared, learned_positions=False))
    (tmp_path / "meta.json").write_text('{"learned_positions": false}')
    (tmp_path / "weights.safetensors").touch()
    for take in (tmp_path, tmp_path / "weights.safetensors"):
        assert not told(CogVideoXSampleConfig(**compared, checkpoints=[str(take)])), "as the take was trained"


def test_hints_on_precision_and_frames(cogvideox_bases):
    small, large = cogvideox_bases("cogvideox"), cogvideox_bases("cogvideox-5b")
    assert "trained in bf16" in told(config(large, mixed_precision="fp16"), "warning")
    assert "trained in fp16" in told(config(small, mixed_precision="bf16"), "info")
    assert not told(config(large, mixed_precision="bf16"), "warning")
    drawn = {"prompts": ["a"], "num_frames": 13}
    assert "cut from 16" in told(config(large, validation=drawn), "info")
    assert "768 x 1360" in told(config(cogvideox_bases("cogvideox-1.5")), "info")


def clip_rows(clips: int, text: str = "a") -> list[SimpleNamespace]:
    return [
        SimpleNamespace(clip=SimpleNamespace(sha256=str(n), name=f"clip {n}", text=text), status="used")
        for n in range(clips)
    ]


def advised(made: CogVideoXTrainConfig, clips: int = 30, text: str = "a") -> dict[str, str]:
    return {finding.where: finding.text for finding in advice(made, clip_rows(clips, text))}


def test_the_guides_advice_stands_at_its_field():
    good = config("base", adapter={"rank": 64})
    assert advised(good) == {}
    assert "25 or more" in advised(good, clips=24)["dataset.path"]
    assert "64 or more" in advised(config("base", adapter={"rank": 32}))["adapter.rank"]
    assert "hardly learns" in advised(config("base", adapter={"rank": 128, "alpha": 1}))["adapter.alpha"]
    assert "adapter.alpha" not in advised(config("base", adapter={"rank": 128, "alpha": 32}))
    nameless = config("base", adapter={"rank": 64}, dataset={"id_token": None})
    assert "before every caption" in advised(nameless)["dataset.id_token"]
    assert "226 tokens" in advised(good, text="word " * 230)["dataset.path"]
    assert "adapter.rank" not in advised(config("base", method="full", adapter={"rank": 4}))
