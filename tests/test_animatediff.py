"""AnimateDiff: equal to the original's numbers, trains what is meant, and comes back from disk as it was."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.models.attention_processor import Attention
from safetensors.torch import load, load_file, save_file
from training import take_steps
from transformers import CLIPTextModel, CLIPTokenizer

from examples import tiny
from trainers import lora
from trainers.families.animatediff import base_model as base_models
from trainers.families.animatediff import model as models
from trainers.families.animatediff.checkpoint import motion_part, read_motion, read_take, to_original
from trainers.families.animatediff.config import AnimateDiffSampleConfig, AnimateDiffTrainConfig
from trainers.families.animatediff.export import export
from trainers.families.animatediff.model import AnimateDiff
from trainers.families.animatediff.norms import ClipNorm
from trainers.families.base import Example, ExportRequest, ModelError, SampleRequest
from trainers.noise import Draws

DATA = Path(__file__).parent / "data" / "animatediff"
METHODS = ("lora", "motion_module", "full")
REQUEST = SampleRequest("a red circle", "blurry", 64, 64, 4, 3, 4.0)


@pytest.fixture(scope="session")
def base(tiny_base) -> Path:
    return tiny_base


def train_model(base: Path, method: str = "motion_module", *, dataset=None, **changes) -> AnimateDiff:
    settings = {
        "method": method,
        "base_model": str(base),
        "motion_adapter": str(base / "motion_adapter"),
        "mixed_precision": "no",
        "adapter": {"rank": 4, "alpha": 8},
        "dataset": {"path": "clips", "num_frames": 4, "height": 64, "width": 64} | (dataset or {}),
        **changes,
    }
    return AnimateDiff(AnimateDiffTrainConfig(**settings), "train")


def sample_model(base: Path, **changes) -> AnimateDiff:
    settings = {"base_model": str(base), "prompts": ["a red circle"], "mixed_precision": "no", **changes}
    return AnimateDiff(AnimateDiffSampleConfig(**settings), "sample")


def batch(model: AnimateDiff, clips: int = 1, frames: int = 4) -> dict[str, torch.Tensor]:
    pixels = torch.randint(0, 256, (clips, frames, 3, 64, 64), dtype=torch.uint8, generator=seeded(1))
    prompts = model.encode_prompt(["a red circle"] * clips)
    nulls = {f"null_{name}": value for name, value in model.encode_prompt([""] * clips).items()}
    return {**model.encode_video(pixels, Draws()), **prompts, **nulls}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def train(model: AnimateDiff, count: int, learning_rate: float = 3e-3) -> list[float]:
    return take_steps(model, batch(model), count, learning_rate)


def saved(model: AnimateDiff, folder: Path) -> Path:
    """A checkpoint as the loop writes it."""
    folder.mkdir(parents=True)
    meta = model.save(folder)
    (folder / "meta.json").write_text(json.dumps({**meta, "step": 1}))
    return folder


def weights(model: AnimateDiff) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.unet.state_dict().items()}


# --- the original's numbers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def reference(base, tmp_path_factory) -> Path:
    """A pipeline folder around the reference UNet, and the motion module's three versions as original files."""
    folder = tmp_path_factory.mktemp("reference")
    described = json.loads((DATA / "unet_config.json").read_text())
    unet = UNet2DConditionModel(
        **described["unet_config"],
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    packed = load(gzip.decompress((DATA / "base_unet_int8.safetensors.gz").read_bytes()))
    unet.load_state_dict({key: value.float() / 64 for key, value in packed.items()})
    unet.save_pretrained(folder / "unet")
    for part in ("vae", "text_encoder", "tokenizer"):
        (folder / part).symlink_to(base / part)
    module = load_file(DATA / "motion_module_v2_like.safetensors")
    header = {"dailies": json.dumps({"heads": described["motion_num_attention_heads"]})}
    for version, facts in described["variants"].items():
        own = {key: value for key, value in module.items() if facts["mid_block"] or not key.startswith("mid_block")}
        own = {k: v[:, : facts["pe"]].contiguous() if k.endswith(".pe") else v for k, v in own.items()}
        save_file(own, folder / f"{version}.safetensors", metadata=header)
    return folder


def predict_reference(reference: Path, version: str, frames: int, semantics: str) -> torch.Tensor:
    model = sample_model(
        reference, motion_adapter=str(reference / f"{version}.safetensors"), norm_semantics=semantics, num_frames=frames
    )
    inputs = load_file(DATA / "unet_inputs.safetensors")
    example = Example(
        inputs[f"sample_f{frames}"],
        inputs["timesteps"],
        None,
        conditions={"prompt_embeds": inputs["encoder_hidden_states"]},
    )
    with torch.no_grad():
        return model.predict(example)


@pytest.mark.parametrize("case", ["v1_f3", "v2_f1", "v2_f3", "v3_f1", "v3_f3"])
def test_predictions_equal_the_originals(reference, case):
    version, frames = case.split("_f")
    expected = load_file(DATA / "unet_outputs.safetensors")[case]
    predicted = predict_reference(reference, version, int(frames), "original")
    assert (predicted - expected).abs().max() < 1e-4
    stock = (predict_reference(reference, version, int(frames), "diffusers") - expected).abs().max()
    assert stock < 1e-4 if frames == "1" else stock > 0.05


def test_a_motion_module_alone_equals_the_originals(reference):
    model = sample_model(reference, motion_adapter=str(reference / "v2.safetensors"))
    module = model.unet.up_blocks[3].motion_modules[0]
    inputs, outputs = load_file(DATA / "unet_inputs.safetensors"), load_file(DATA / "unet_outputs.safetensors")
    for name in ("module_in", "module_in_pe_multiplied"):
        given, expected = inputs[name], outputs[name.replace("_in", "_out")]
        if name.endswith("multiplied"):
            module.transformer_blocks[0].pos_embed.pe = outputs["pe_multiplied"]
        images = given.transpose(1, 2).flatten(0, 1)
        with torch.no_grad():
            out = module(images, num_frames=given.shape[2])
        assert (out.unflatten(0, (given.shape[0], -1)).transpose(1, 2) - expected).abs().max() < 1e-4


def test_norm_semantics_keep_names_and_parameters(base):
    model = train_model(base, "full")
    names, parameters = list(model.unet.state_dict()), {id(p) for p in model.trained_parameters()}
    models.set_norms(model.unet, "original", joint=True)
    models.set_norms(model.unet, "diffusers", joint=True)
    assert list(model.unet.state_dict()) == names
    assert {id(p) for p in model.trained_parameters()} == parameters


def test_the_sampler_equals_diffusers_pipeline(base):
    ours = sample_model(base, motion_adapter=str(base / "motion_adapter"), norm_semantics="diffusers")
    latents = torch.randn(1, 4, 4, 8, 8, generator=seeded(3))
    frames = ours.sample(REQUEST, Draws(given={"latents": latents}))
    assert frames.shape == (4, 64, 64, 3)
    assert frames.dtype == np.uint8
    theirs = pipeline_frames(pipeline(base), latents)
    assert np.abs(frames.astype(int) - theirs).max() <= 1
    assert frames.std() > 1


def pipeline(base: Path) -> AnimateDiffPipeline:
    made = AnimateDiffPipeline(
        vae=AutoencoderKL.from_pretrained(base / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(base / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(base / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(base / "unet", torch_dtype=torch.float32),
        motion_adapter=MotionAdapter.from_pretrained(base / "motion_adapter"),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="linear",
            clip_sample=False,
            steps_offset=1,
            timestep_spacing="linspace",
        ),
    )
    made.set_progress_bar_config(disable=True)
    return made


def pipeline_frames(made: AnimateDiffPipeline, latents: torch.Tensor) -> np.ndarray:
    frames = made(
        REQUEST.prompt,
        negative_prompt=REQUEST.negative_prompt,
        num_frames=4,
        height=64,
        width=64,
        num_inference_steps=REQUEST.num_inference_steps,
        guidance_scale=REQUEST.guidance_scale,
        latents=latents,
        output_type="np",
    ).frames[0]
    return (frames * 255).round().astype(int)


def test_new_motion_modules_leave_every_frame_to_the_image_model(base):
    model = train_model(base, motion_adapter=None)
    unet2d = UNet2DConditionModel.from_pretrained(base / "unet", torch_dtype=torch.float32)
    sample = torch.randn(1, 4, 3, 8, 8, generator=seeded(0))
    embeds = torch.randn(1, 77, 32, generator=seeded(1))
    timesteps = torch.tensor([500])
    with torch.no_grad():
        clip = model.predict(Example(sample, timesteps, None, conditions={"prompt_embeds": embeds}))
        for frame in range(3):
            alone = unet2d(sample[:, :, frame], timesteps, embeds).sample
            assert (clip[:, :, frame] - alone).abs().max() < 1e-5
    again = train_model(base, motion_adapter=None)
    assert all(torch.equal(a, b) for a, b in zip(weights(model).values(), weights(again).values(), strict=True))


def test_building_a_model_leaves_the_global_generator_alone(base):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    train_model(base, "lora")
    train_model(base, motion_adapter=None)
    assert torch.equal(torch.rand(2), expected)


# --- the objective ---------------------------------------------------------------------------------------------------


def test_an_example_is_the_papers(base):
    model = train_model(base, dataset={"caption_dropout": 0.5})
    data = batch(model, clips=2)
    given = {
        "posterior": torch.randn(2, 4, 4, 8, 8, generator=seeded(0)),
        "noise": torch.randn(2, 4, 4, 8, 8, generator=seeded(1)),
        "timesteps": torch.tensor([10, 900]),
        "caption_dropout": torch.tensor([0.49, 0.5]),
    }
    example = model.example(data, Draws(given=given))
    betas = torch.linspace(0.00085, 0.012, 1000)
    alphas = torch.cumprod(1 - betas, 0)[given["timesteps"]].view(2, 1, 1, 1, 1)
    latents = data["latents_mean"] + (data["latents_logvar"] / 2).exp() * given["posterior"]
    latents = latents.permute(0, 2, 1, 3, 4) * 0.18215
    expected = alphas.sqrt() * latents + (1 - alphas).sqrt() * given["noise"]
    torch.testing.assert_close(example.model_input, expected)
    assert torch.equal(example.target, given["noise"])
    assert torch.equal(example.conditions["prompt_embeds"][0], data["null_prompt_embeds"][0])
    assert torch.equal(example.conditions["prompt_embeds"][1], data["prompt_embeds"][1])
    assert not torch.equal(data["null_prompt_embeds"][1], data["prompt_embeds"][1])

    velocity = train_model(base, prediction_type="v_prediction", beta_schedule="scaled_linear")
    example = velocity.example(data, Draws(given=given))
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[given["timesteps"]]
    alphas = alphas.view(2, 1, 1, 1, 1)
    torch.testing.assert_close(example.target, alphas.sqrt() * given["noise"] - (1 - alphas).sqrt() * latents)
    base_schedule = train_model(base, beta_schedule="base").example(data, Draws(given=given))
    torch.testing.assert_close(base_schedule.model_input, example.model_input)


def test_clips_are_encoded_as_the_vae_does_in_any_chunks(base):
    model = train_model(base, memory={"encode_frames": 3})
    pixels = torch.randint(0, 256, (2, 4, 3, 64, 64), dtype=torch.uint8, generator=seeded(0))
    encoded = model.encode_video(pixels, Draws())
    vae = AutoencoderKL.from_pretrained(base / "vae")
    with torch.no_grad():
        posterior = vae.encode(pixels[1, 2:3].float() / 127.5 - 1).latent_dist
    assert encoded["latents_mean"].shape == encoded["latents_logvar"].shape == (2, 4, 4, 8, 8)
    torch.testing.assert_close(encoded["latents_mean"][1, 2], posterior.mean[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoded["latents_logvar"][1, 2], posterior.logvar[0], atol=1e-4, rtol=1e-4)


def test_encoders_are_freed_and_read_again(base):
    model = train_model(base)
    first = model.encode_prompt(["a red circle"])["prompt_embeds"]
    assert first.shape == (1, 77, 32)
    model.release("encoders")
    model.sample(REQUEST, Draws.seeded(0))
    assert model._text is None, "sampling while training leaves no text encoder behind"
    assert torch.equal(model.encode_prompt(["a red circle"])["prompt_embeds"], first)


def test_fingerprints_follow_the_files(base, tmp_path):
    model = train_model(base)
    prints = {model.fingerprint("video"), model.fingerprint("prompt")}
    assert len(prints) == 2
    assert prints == {train_model(base).fingerprint("video"), train_model(base).fingerprint("prompt")}
    tiny.write("animatediff", tmp_path / "other", seed=9)
    other = train_model(tmp_path / "other")
    assert not prints & {other.fingerprint("video"), other.fingerprint("prompt")}


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_only_the_meant_weights_change(base, method, precision):
    model = train_model(base, method, mixed_precision=precision)
    before = weights(model)
    train(model, 2)
    changed = {key for key, value in model.unet.state_dict().items() if not torch.equal(value, before[key])}
    expected = {
        "lora": {key for key in before if ".lora_" in key},
        "motion_module": {key for key in before if "motion_modules" in key and not key.endswith(".pe")},
        "full": {key for key in before if not key.endswith(".pe")},
    }[method]
    # biases of keys and the like get no gradient worth a change; nothing beyond the meant ones may
    assert changed <= expected
    assert len(changed) > 0.9 * len(expected)
    assert all(parameter.dtype == torch.float32 for parameter in model.trained_parameters())
    frozen = {parameter.dtype for parameter in model.unet.parameters() if not parameter.requires_grad}
    if method == "lora" and precision == "bf16":
        assert frozen == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for key, value in before.items() if key.endswith(".pe"))


def test_chosen_parts_of_the_motion_modules(base):
    model = train_model(base, trainable_modules=["attn1.to_q", "ff"])
    trained = {name for name, parameter in model.unet.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("motion_modules" in name and (".attn1.to_q." in name or ".ff." in name) for name in trained)
    before = weights(model)
    train(model, 1)
    changed = {key for key, value in model.unet.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == trained


def test_loss_falls_on_one_example(base):
    losses = train(train_model(base, motion_adapter=None), 20, 1e-2)
    assert losses[-1] < 0.7 * losses[0]


def test_a_lora_learns_and_reaches_the_projections(base):
    model = train_model(
        base, "lora", adapter={"rank": 4, "target_modules": ["to_q", "to_out.0", "proj_in", "proj_out", "ff.net.2"]}
    )
    losses = train(model, 12, 1e-2)
    assert losses[-1] < losses[0]
    touched = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in lora.parameters(model.unet)}
    assert {"to_q", "proj_in", "proj_out"} <= touched


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_changes_no_bit(base, method):
    gradients, predictions = [], []
    for policy in ("none", "full", "sac"):
        model = train_model(base, method, memory={"gradient_checkpointing": policy})
        if method == "lora":
            fill_lora(model)
        example = model.example(batch(model), Draws.seeded(2))
        prediction = model.predict(example)
        (prediction - example.target).pow(2).mean().backward()
        predictions.append(prediction.detach())
        gradients.append([parameter.grad for parameter in model.trained_parameters()])
    for policy in (1, 2):
        assert torch.equal(predictions[0], predictions[policy])
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], gradients[policy], strict=True))


def test_gradient_checkpointing_keeps_no_activations_of_the_blocks(base):
    kept = {}
    for policy in ("none", "full"):
        model = train_model(base, memory={"gradient_checkpointing": policy})
        example = model.example(batch(model), Draws.seeded(2))
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            model.predict(example)
        kept[policy] = sum(sizes)
    assert kept["full"] < 0.3 * kept["none"]


def test_bf16_stays_near_fp32(base):
    predictions = []
    for precision in ("no", "bf16"):
        model = train_model(base, "lora", mixed_precision=precision)
        with torch.no_grad():
            predictions.append(model.predict(model.example(batch(model), Draws.seeded(2))))
    assert predictions[1].dtype == torch.float32
    assert (predictions[0] - predictions[1]).abs().mean() < 0.02
    assert not torch.equal(*predictions)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sampling_in_half_precision(base, precision):
    full = sample_model(base, motion_adapter=str(base / "motion_adapter")).sample(REQUEST, Draws.seeded(1))
    model = sample_model(base, motion_adapter=str(base / "motion_adapter"), mixed_precision=precision)
    assert {parameter.dtype for parameter in model.unet.parameters()} == {models.PRECISIONS[precision]}
    assert np.abs(model.sample(REQUEST, Draws.seeded(1)).astype(int) - full).mean() < 3


def test_sampling_while_training_restores_the_mode_and_asks_the_named_denoiser(base):
    class Wrapper(torch.nn.Module):
        calls = 0

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            Wrapper.calls += 1
            assert not self.module.training
            return self.module(*args, **kwargs)

    model = train_model(base)
    plain = model.sample(REQUEST, Draws.seeded(4))
    model.denoiser["denoiser"] = Wrapper(model.unet)
    assert np.array_equal(model.sample(REQUEST, Draws.seeded(4)), plain)
    assert Wrapper.calls == REQUEST.num_inference_steps
    assert model.unet.training
    assert not np.array_equal(model.sample(REQUEST, Draws.seeded(5)), plain)


def test_xformers_that_does_not_work_gives_way_with_a_message(base, caplog):
    if torch.cuda.is_available():
        pytest.skip("xformers may well work here")
    model = train_model(base, memory={"attention": "xformers"})
    assert "PyTorch's own attention" in caplog.text
    kinds = {type(module.processor).__name__ for module in model.unet.modules() if isinstance(module, Attention)}
    assert kinds == {"AttnProcessor2_0"}


# --- to disk and back ------------------------------------------------------------------------------------------------


def fill_lora(model: AnimateDiff) -> None:
    """Give a LoRA an effect."""
    generator = seeded(11)
    with torch.no_grad():
        for _, parameter in lora.parameters(model.unet):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.fixture(scope="session")
def checkpoints(base, tmp_path_factory) -> dict[str, Path]:
    """One checkpoint of each method, each with a visible effect."""
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for method in METHODS:
        model = train_model(base, method)
        train(model, 2)
        if method == "lora":
            fill_lora(model)
        found[method] = saved(model, folder / method)
    return found


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_restores_every_bit_in_place(base, tmp_path, method, precision):
    model = train_model(base, method, mixed_precision=precision)
    train(model, 2)
    folder = saved(model, tmp_path / "step-000002")
    again = train_model(base, method, mixed_precision=precision)
    parameters = {id(parameter) for parameter in again.trained_parameters()}
    assert any(not torch.equal(a, b) for a, b in zip(weights(model).values(), weights(again).values(), strict=True))
    start = weights(again)
    again.load([(folder, 1.0)])
    assert {id(parameter) for parameter in again.trained_parameters()} == parameters
    restored, expected = weights(again), weights(model)
    assert restored.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in restored.items())
    again.load([])
    if method != "lora":
        assert all(torch.equal(value, start[key]) for key, value in again.unet.state_dict().items())
    sampled = sample_model(base, checkpoints=[str(folder)])
    sampled.load([(folder, 1.0)])
    if precision == "no":
        assert np.array_equal(sampled.sample(REQUEST, Draws.seeded(1)), model.sample(REQUEST, Draws.seeded(1)))


def test_takes_replace_each_other_and_scale(base, checkpoints):
    model = sample_model(base, checkpoints=[str(path) for path in checkpoints.values()])
    plain = model.sample(REQUEST, Draws.seeded(1))
    start = weights(model)
    seen = {}
    for method, path in checkpoints.items():
        model.load([(path, 1.0)])
        seen[method] = model.sample(REQUEST, Draws.seeded(1))
        assert not np.array_equal(seen[method], plain)
        model.load([(path, 0.0)])
        assert np.array_equal(model.sample(REQUEST, Draws.seeded(1)), plain)
    assert len({clip.tobytes() for clip in seen.values()}) == 3
    model.load([(checkpoints["motion_module"], 0.5)])
    take = read_take(checkpoints["motion_module"])
    for key, value in model.unet.state_dict().items():
        expected = (start[key] + take.state[key]) / 2 if key in take.state else start[key]
        torch.testing.assert_close(value, expected)
    model.load([])
    assert list(model.unet.state_dict()) == list(start)
    assert all(torch.equal(value, start[key]) for key, value in model.unet.state_dict().items())


def test_loras_stack(base, checkpoints):
    model = sample_model(base, checkpoints=[str(checkpoints["lora"])])
    model.load([(checkpoints["lora"], 0.5), (checkpoints["lora"], 0.5)])
    stacked = model.sample(REQUEST, Draws.seeded(1)).astype(int)
    model.load([(checkpoints["lora"], 1.0)])
    assert np.abs(model.sample(REQUEST, Draws.seeded(1)) - stacked).max() <= 1


def test_a_lora_acts_in_diffusers_as_it_does_here(base, checkpoints):
    ours = sample_model(base, checkpoints=[str(checkpoints["lora"])], norm_semantics="diffusers")
    latents = torch.randn(1, 4, 4, 8, 8, generator=seeded(3))
    plain = ours.sample(REQUEST, Draws(given={"latents": latents})).astype(int)
    ours.load([(checkpoints["lora"], 1.0)])
    frames = ours.sample(REQUEST, Draws(given={"latents": latents})).astype(int)
    theirs = pipeline(base)
    theirs.load_lora_weights(checkpoints["lora"], weight_name="pytorch_lora_weights.safetensors")
    assert np.abs(frames - pipeline_frames(theirs, latents)).max() <= 1
    assert np.abs(frames - plain).max() > 5


def test_checkpoints_are_diffusers_own_folders(checkpoints):
    adapter, report = MotionAdapter.from_pretrained(checkpoints["motion_module"], output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert adapter.config.motion_max_seq_length == 32
    unet, report = UNetMotionModel.from_pretrained(checkpoints["full"], output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}


def test_a_take_brings_its_conventions_and_its_form(base, tmp_path):
    module, _ = read_motion(base / "motion_adapter")
    short = {k: v[:, :24] if k.endswith(".pe") else v for k, v in module.items() if not k.startswith("mid_block")}
    file = tmp_path / "v1.safetensors"
    save_file(to_original(short), file, metadata={"dailies": json.dumps({"heads": 4})})
    trained = train_model(
        base, motion_adapter=str(file), norm_semantics="diffusers", beta_schedule="scaled_linear",
        prediction_type="v_prediction",
    )  # fmt: skip
    train(trained, 1)
    own = saved(trained, tmp_path / "own")
    fresh = train_model(base, motion_adapter=None, motion_max_seq_length=20)
    train(fresh, 1)
    new = saved(fresh, tmp_path / "new")

    model = sample_model(base, checkpoints=[str(own), str(new)])
    assert model.conventions.norm_semantics == "diffusers"
    for path, source, positions in ((own, trained, 24), (new, fresh, 20)):
        model.load([(path, 1.0)])
        assert model.conventions == source.conventions
        assert np.array_equal(model.sample(REQUEST, Draws.seeded(1)), source.sample(REQUEST, Draws.seeded(1)))
        with pytest.raises(ModelError, match=f"num_frames is 25.* {positions} positions"):
            model.sample(SampleRequest("x", "", 64, 64, 25, 1, 1.0), Draws.seeded(1))
    model.load([])
    assert motion_part(model.unet.state_dict()).keys() == motion_part(trained.unet.state_dict()).keys()
    bare = sample_model(base, checkpoints=[str(file)])
    bare.load([(file, 1.0)])
    told = sample_model(base, motion_adapter=str(file))
    assert np.array_equal(bare.sample(REQUEST, Draws.seeded(1)), told.sample(REQUEST, Draws.seeded(1)))
    wrong = sample_model(base, motion_adapter=str(base / "motion_adapter"))
    with pytest.raises(ModelError, match="mid_block"):
        wrong.load([(own, 1.0)])


@pytest.mark.parametrize(("positions", "version"), [(24, "v1"), (32, "v3")])
def test_new_motion_modules_without_a_mid_block_come_back_as_what_they_are(base, tmp_path, positions, version):
    fresh = train_model(base, motion_adapter=None, motion_max_seq_length=positions, motion_mid_block=False)
    assert any(isinstance(module, ClipNorm) for module in fresh.unet.modules()) == (version == "v1")
    train(fresh, 2)
    folder = saved(fresh, tmp_path / "new")
    assert not MotionAdapter.from_pretrained(folder).config.use_motion_mid_block
    facts = json.loads((folder / "meta.json").read_text())["motion"]
    assert (facts["positions"], facts["mid_block"], facts["version"]) == (positions, False, version)
    drawn = fresh.sample(REQUEST, Draws.seeded(1))
    for changes in ({"checkpoints": [str(folder)]}, {"motion_adapter": str(folder)}):
        model = sample_model(base, **changes)
        model.load([(Path(path), 1.0) for path in changes.get("checkpoints", [])])
        assert np.array_equal(model.sample(REQUEST, Draws.seeded(1)), drawn), changes
    again = train_model(base, motion_adapter=None, motion_max_seq_length=positions, motion_mid_block=False)
    again.load([(folder, 1.0)])
    wanted = weights(fresh)
    assert all(torch.equal(value, wanted[key]) for key, value in weights(again).items())
    with pytest.raises(ModelError, match="has no mid block"):
        train_model(base, motion_adapter=None, motion_max_seq_length=positions).load([(folder, 1.0)])
    export(ExportRequest(folder, "original", tmp_path / "new.ckpt"))  # a pickle has no header: the weights tell
    assert read_motion(tmp_path / "new.ckpt")[1].version == version


# --- what a person may get wrong -------------------------------------------------------------------------------------


def test_missing_or_wrong_models_are_named(base, tmp_path):
    for given, text in (
        ({"base_model": str(tmp_path / "no where")}, "base_model .* does not exist"),
        ({"base_model": str(tmp_path)}, "is not a Stable Diffusion 1.5 pipeline folder"),
        ({"motion_adapter": str(tmp_path / "no where")}, "motion_adapter .* does not exist"),
        ({"motion_adapter": str(tmp_path)}, "not a checkpoint"),
        ({"motion_adapter": str(base / "unet")}, "UNet2DConditionModel, not a MotionAdapter"),
        ({"motion_adapter": str(base / "vae" / "diffusion_pytorch_model.safetensors")}, "is not a motion module"),
        ({"dataset": {"num_frames": 33}}, "dataset.num_frames is 33, .*32 positions; lower it to 32"),
        ({"trainable_modules": ["attn_temp"]}, "'attn_temp' .*attn1.to_q"),
    ):
        with pytest.raises(ModelError, match=text):
            train_model(**({"base": base} | given))
    with pytest.raises(ModelError, match=r"'conv1' .*to_out\.0"):
        train_model(base, "lora", adapter={"target_modules": ["to_q", "conv1"]})


def test_a_damaged_base_is_named(base, tmp_path):
    for part in ("vae", "text_encoder", "tokenizer"):
        (tmp_path / part).symlink_to(base / part)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_bytes((base / "unet" / "config.json").read_bytes())
    weights_file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    whole = (base / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    weights_file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="unet"):
        train_model(tmp_path, motion_adapter=None)
    state = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    del state["conv_in.weight"]
    save_file(state, weights_file)
    with pytest.raises(ModelError, match=r"conv_in\.weight"):
        train_model(tmp_path, motion_adapter=None)


class Program:
    """In a pickle, what would run when it is opened carelessly."""

    def __reduce__(self):
        return Path.touch, (Path("opened"),)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("base.ckpt", "base.ckpt holds more than plain tensors"),
        ("base/unet/diffusion_pytorch_model.bin", "holds more than plain tensors"),
        ("base/text_encoder/pytorch_model.bin", "holds more than plain tensors"),
        ("empty.pth", "empty.pth is empty"),
        ("module.safetensors", "UNet2DConditionModel of base_model .*missing in the checkpoint"),
    ],
)
def test_a_base_of_something_else_is_told_in_one_sentence(base, tmp_path, monkeypatch, place, says):
    monkeypatch.chdir(tmp_path)
    file = Path(place)
    if file.parent != Path():
        shutil.copytree(base, "base", ignore=shutil.ignore_patterns("*.safetensors"))
        for part in {"unet", "text_encoder", "vae"} - {file.parent.name}:
            for weights in (base / part).glob("*.safetensors"):
                shutil.copy(weights, f"base/{part}")
    if file.suffix == ".safetensors":
        save_file({f"{block}.motion_modules.0.norm.weight": torch.ones(8) for block in ("a", "b")}, file)
    elif file.stem == "empty":
        file.touch()
    else:
        torch.save({"weight": Program()}, file)
    with pytest.raises(ModelError, match=says) as caught:
        train_model(Path("base") if file.parent != Path() else file, motion_adapter=None).encode_prompt(["a"])
    assert "\n" not in str(caught.value)
    assert not Path("opened").exists()


def test_a_lora_file_needs_its_motion_adapter(base, checkpoints, tmp_path):
    """On new motion modules, which are zero, it would look like the base and nobody would know why."""
    bare = tmp_path / "bare.safetensors"
    shutil.copy(checkpoints["lora"] / lora.FILE_NAME, bare)
    with pytest.raises(ModelError, match=r"bare\.safetensors is a LoRA .*set motion_adapter"):
        sample_model(base, checkpoints=[str(bare)])
    model = sample_model(base, checkpoints=[str(checkpoints["lora"])])
    with pytest.raises(ModelError, match=r"bare\.safetensors is a LoRA .*set motion_adapter"):
        model.load([(bare, 1.0)])
    model.load([(checkpoints["lora"], 1.0)])
    meant = model.sample(REQUEST, Draws.seeded(1))
    own = checkpoints["lora"] / lora.FILE_NAME  # stands for its checkpoint
    for take, settings in ((own, {}), (bare, {"motion_adapter": str(base / "motion_adapter")})):
        model = sample_model(base, checkpoints=[str(take)], **settings)
        model.load([(take, 1.0)])
        assert np.array_equal(model.sample(REQUEST, Draws.seeded(1)), meant)


def test_wrong_takes_are_named(base, checkpoints, tmp_path):
    model = sample_model(base, motion_adapter=str(base / "motion_adapter"))
    plain = model.sample(REQUEST, Draws.seeded(1))
    other = tmp_path / "other"
    other.mkdir()
    (other / "meta.json").write_text('{"family": "mochi", "method": "lora"}')
    with pytest.raises(ModelError, match="family mochi"):
        model.load([(other, 1.0)])
    adapter, _ = read_motion(base / "motion_adapter")
    del adapter["down_blocks.0.motion_modules.0.norm.bias"]
    save_file(to_original(adapter), tmp_path / "short.safetensors")
    with pytest.raises(ModelError, match=r"short.safetensors .*lacks down_blocks\.0\.motion_modules\.0\.norm\.bias"):
        model.load([(tmp_path / "short.safetensors", 1.0)])
    adapter_file = load_file(checkpoints["lora"] / lora.FILE_NAME)
    renamed = {key.replace("down_blocks.0", "down_blocks.7"): value for key, value in adapter_file.items()}
    save_file(renamed, tmp_path / "far.safetensors")
    with pytest.raises(ModelError, match=r"down_blocks\.7"):
        model.load([(tmp_path / "far.safetensors", 1.0)])
    with pytest.raises(ModelError, match="is a LoRA, not a motion module"):
        sample_model(base, motion_adapter=str(checkpoints["lora"]))
    with pytest.raises(ModelError, match="cannot be trained on with method motion_module"):
        train_model(base).load([(checkpoints["lora"], 1.0)])
    with pytest.raises(ModelError, match="strength 1"):
        train_model(base, "lora").load([(checkpoints["lora"], 0.5)])
    model.load([])
    assert np.array_equal(model.sample(REQUEST, Draws.seeded(1)), plain), "a refused take leaves the base as it was"


def test_code_in_a_pickle_is_not_run(base, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "mm.ckpt").write_bytes(pickle.dumps({"state_dict": Trap()}, protocol=2))
    with pytest.raises(ModelError, match=r"mm\.ckpt"):
        train_model(base, motion_adapter=str(tmp_path / "mm.ckpt"))
    torch.save({"x": Trap()}, tmp_path / "zip.ckpt")
    with pytest.raises(ModelError, match="more than plain tensors"):
        train_model(base, motion_adapter=str(tmp_path / "zip.ckpt"))
    assert not (tmp_path / "ran").exists()


def single_file_names(unet, vae, text_encoder) -> dict[str, torch.Tensor]:
    """The parts of a tiny pipeline (two UNet levels, one layer each) under a single file's names."""
    state = {}
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
              "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
    places = {
        "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0", "conv_out": "out.2", "down_blocks.0.resnets.0": "input_blocks.1.0",
        "down_blocks.0.attentions.0": "input_blocks.1.1", "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "down_blocks.1.resnets.0": "input_blocks.3.0", "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
        "up_blocks.0.resnets.0": "output_blocks.0.0", "up_blocks.0.resnets.1": "output_blocks.1.0",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv", "up_blocks.1.resnets.0": "output_blocks.2.0",
        "up_blocks.1.attentions.0": "output_blocks.2.1", "up_blocks.1.resnets.1": "output_blocks.3.0",
        "up_blocks.1.attentions.1": "output_blocks.3.1",
    }  # fmt: skip
    for key, value in unet.items():
        place = next(place for place in places if key.startswith(place + "."))
        rest = key.removeprefix(place + ".")
        if "resnets." in place:
            part, _, kind = rest.rpartition(".")
            rest = f"{resnet[part]}.{kind}"
        state[f"model.diffusion_model.{places[place]}.{rest}"] = value
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for key, value in vae.items():
        key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        key = key.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("downsamplers.0", "downsample")
        key = key.replace("upsamplers.0", "upsample").replace("resnets.", "block.").replace("down_blocks.", "down.")
        if "up_blocks." in key:
            head, number, tail = (
                key.replace("up_blocks.", "up.").split(".", 3)[:2],
                key.split(".")[2],
                key.split(".", 3)[3],
            )
            key = f"{'.'.join(head)}.{3 - int(number)}.{tail}"
        if ".attn_1." in key:
            head, _, rest = key.partition(".attn_1.")
            part, _, kind = rest.rpartition(".")
            key = f"{head}.attn_1.{attention[part]}.{kind}"
            value = value[:, :, None, None] if kind == "weight" and part != "group_norm" else value
        state[f"first_stage_model.{key}"] = value
    for key, value in text_encoder.items():
        state[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return {key: value.float().contiguous() for key, value in state.items()}


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_single_file_is_the_same_base_without_network(base, tmp_path, monkeypatch, ending):
    for name, part in (("SD15_UNET", "unet"), ("SD15_VAE", "vae"), ("SD15_TEXT", "text_encoder")):
        monkeypatch.setattr(base_models, name, json.loads((base / part / "config.json").read_text()))
    weights_name = "diffusion_pytorch_model.safetensors"
    state = single_file_names(
        load_file(base / "unet" / weights_name),
        load_file(base / "vae" / weights_name),
        load_file(base / "text_encoder" / "model.safetensors"),
    )
    file = tmp_path / f"base.{ending}"
    if ending == "ckpt":
        torch.save({"state_dict": state}, file)
    else:
        save_file(state, file)
    ours = base_models.BaseModel(str(file))
    monkeypatch.setattr(ours, "tokenizer", base_models.BaseModel(str(base)).tokenizer)
    single = train_model(base, base_model=str(file))
    folder = train_model(base)
    assert single.unet.state_dict().keys() == folder.unet.state_dict().keys()
    assert all(torch.equal(value, folder.unet.state_dict()[key]) for key, value in single.unet.state_dict().items())
    pixels = torch.randint(0, 256, (1, 2, 3, 64, 64), dtype=torch.uint8, generator=seeded(0))
    encoded = [model.encode_video(pixels, Draws())["latents_mean"] for model in (single, folder)]
    torch.testing.assert_close(*encoded)
    single._base = ours
    embeds = [model.encode_prompt(["a red circle"])["prompt_embeds"] for model in (single, folder)]
    torch.testing.assert_close(*embeds)
    with pytest.raises(ModelError, match="holds no tokenizer"):
        base_models.BaseModel(str(file)).tokenizer()


def test_a_hub_model_without_network_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="Hub cannot be reached"):
        base_models.BaseModel("nobody/nothing")
    with pytest.raises(ModelError, match="Hub cannot be reached"):
        base_models.BaseModel("nobody/Nothing_V5.1_noVAE")
