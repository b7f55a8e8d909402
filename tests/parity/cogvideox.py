"""CogVideoX against vectors of its trainers. What is compared is always the product's own answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from examples import tiny
from tests.parity import cogvideox_data
from tests.parity.vectors import Case, Report, Tensors, Vectors
from trainers import lora
from trainers.data.loader import placed
from trainers.families.base import Example
from trainers.families.cogvideox.config import CogVideoXTrainConfig
from trainers.families.cogvideox.facts import Facts
from trainers.families.cogvideox.model import IMAGE_NOISE, CogVideoX
from trainers.families.cogvideox.positions import crop_region, rotary
from trainers.loop import loss_of
from trainers.noise import Draws
from trainers.optim import make_optimizer

RELATIVE = 1e-5  # of a loss, a gradient's norm, and gradients in relation to the largest
ABSOLUTE = 1e-5
TRAJECTORY = 1e-4
TABLES, ENTRIES = "tables.safetensors", "tables.json"


def check(vectors: Vectors, report: Report) -> None:
    for name in vectors.names:
        case = name.removesuffix(".json")
        others = name in (ENTRIES, cogvideox_data.PICTURES)
        if name.endswith(".json") and f"{case}.safetensors" in vectors and not others:
            with report.case(case, vectors.json(name)) as facts:
                check_loss(facts, vectors.tensors(f"{case}.safetensors"), vectors.made(case), report)
    if TABLES in vectors:
        with report.check(TABLES):
            check_tables(vectors, report)
    cogvideox_data.check(vectors, report)


# --- the objective ---------------------------------------------------------------------------------------------------


@dataclass
class Encoder:
    """Stands for the video encoder: it gives what is stored, and keeps what it was shown."""

    latents: torch.Tensor  # (b, c, 1, h, w)
    shown: torch.Tensor | None = None

    def encode(self, pixels: torch.Tensor) -> Any:
        self.shown = pixels
        certain = torch.full_like(self.latents, -30.0)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=self.latents, logvar=certain))


def check_loss(case: Case, tensors: Tensors, folder: Path, report: Report) -> None:
    """A single step of training, and a few of them where the case has a trajectory."""
    case["note"], case["scaling"], case["loss_dtype"], case["loss_as_plain_v_mse_fp64"], case["name"]
    current = case["reference"].startswith("today")
    model = build(case, tensors, folder, current=current)
    inputs = Inputs(case, tensors, model, current=current)
    loss, example, prediction = step(model, inputs, "in.")
    loss.backward()

    report.measured(f"{case.name} loss", abs(loss.item() / case["loss"] - 1), RELATIVE)
    report.close(f"{case.name} input", example.model_input, tensors.take("out.transformer_input"), ABSOLUTE)
    report.close(f"{case.name} output", prediction, tensors.take("out.model_output"), ABSOLUTE)
    report.equal(f"{case.name} timesteps", example.timesteps.tolist(), case["timesteps"])
    if "out.x0_pred" in tensors:
        noisy = example.model_input[:, :, : model.facts.out_channels]
        clean = model._schedule.get_velocity(prediction, noisy, example.timesteps)
        report.close(f"{case.name} clean latents", clean, tensors.take("out.x0_pred"), ABSOLUTE)
    if "out.noisy_image" in tensors:
        assert inputs.encoder is not None and inputs.encoder.shown is not None
        report.close(f"{case.name} noisy image", inputs.encoder.shown, tensors.take("out.noisy_image"), ABSOLUTE)
    if "out.rope_cos" in tensors:
        found = model.rotary(*(example.model_input.shape[dimension] for dimension in (1, 3, 4)))
        for name, table in zip(("cos", "sin"), found, strict=True):
            report.close(f"{case.name} rotary {name}", table, tensors.take(f"out.rope_{name}"), ABSOLUTE)

    gradients = {key: parameter.grad for key, parameter in lora.parameters(model.transformer)}
    check_all(f"{case.name} gradient", gradients, tensors, "grad.", RELATIVE, report)
    norm = torch.stack([gradient.norm() for gradient in gradients.values() if gradient is not None]).norm().item()
    report.measured(f"{case.name} gradient norm", abs(norm / case["lora_grad_norm"] - 1), RELATIVE)
    if "trajectory" in case:
        check_trajectory(case["trajectory"], case.name, model, inputs, tensors, folder, report)


def build(case: Case, tensors: Tensors, folder: Path, *, current: bool) -> CogVideoX:
    """The case's transformer and adapter in a pipeline folder, loaded by the product to train on."""
    config = case["transformer_config"]
    tiny.write("cogvideox", folder / "base")
    transformer = CogVideoXTransformer3DModel(**config)
    transformer.load_state_dict(part(tensors, "base."), strict=True)
    transformer.save_pretrained(folder / "base" / "transformer")
    shift = float(re.fullmatch(r"snr_shift_scale ([\d.]+)", case["scheduler"])[1])  # type: ignore[index]
    scheduler = CogVideoXDDIMScheduler.from_pretrained(folder / "base" / "scheduler", snr_shift_scale=shift)
    scheduler.save_pretrained(folder / "base" / "scheduler")
    file = folder / "base" / "vae" / "config.json"
    inverted = config.get("patch_size_t") is not None and config["in_channels"] > config["out_channels"]
    vae = json.loads(file.read_text()) | {"scaling_factor": case["scaling_factor"] or 1.0}
    file.write_text(json.dumps(vae | {"invert_scale_latents": inverted}))

    height, width = (8 * size for size in tensors.take("in.latents").shape[3:])
    settings: dict[str, Any] = {
        "method": "lora",
        "base_model": str(folder / "base"),
        "mixed_precision": "no",
        "adapter": {"rank": case["rank"], "alpha": case["lora_alpha"], "target_modules": case["target_modules"]},
        "dataset": {"path": "-", "height": height, "width": width},
        "memory": {"gradient_checkpointing": "none"},
        "image_noise": current,
        "image_noise_dropout": 0.0,
        "rotary": "integers" if current else "pipeline",
        "image_latent_scale": "video" if current else "pipeline",
    }
    model = CogVideoX(CogVideoXTrainConfig(**settings), "train")
    header = {"transformer.r": case["rank"], "transformer.lora_alpha": case["lora_alpha"]}
    save_file(part(tensors, "lora."), folder / "lora.safetensors", metadata={lora.HEADER: json.dumps(header)})
    model.load([(folder / "lora.safetensors", 1.0)])
    return model


class Inputs:
    """What a step is given: the batch, and every random number under the product's name."""

    def __init__(self, case: Case, tensors: Tensors, model: CogVideoX, *, current: bool) -> None:
        self._tensors = tensors
        self.encoder: Encoder | None = None
        scale = case["scaling_factor"] or 1.0
        latents = tensors.take("in.latents") / scale
        self.batch = {
            "latents_mean": latents,
            "latents_logvar": torch.full_like(latents, -30.0),
            "prompt_embeds": tensors.take("in.prompt_embeds"),
        }
        self.shape = latents.shape
        if model.facts.takes_image:
            if current:
                sample = tensors.take("in.image_latent_sample")
                self.batch["first_frame"] = tensors.take("in.images")
            else:  # scaled and with zeros behind it already: of a scale of 1 the encoder's own
                sample = tensors.take("in.image_latents")[:, :1].transpose(1, 2)
                self.batch["first_frame"] = torch.zeros(len(latents), 3, 8 * self.shape[3], 8 * self.shape[4])
            self.encoder = Encoder(sample)
            model._encoder = self.encoder  # type: ignore[assignment]

    def draws(self, prefix: str) -> Draws:
        """The random numbers of a step; those of an image that it lacks are those of the first."""
        given = {name: self._tensors.take(f"{prefix}{name}") for name in ("noise", "timesteps")}
        given["posterior"] = torch.zeros(self.shape)
        if self.encoder is not None:
            given["image_posterior"] = torch.zeros(self.encoder.latents.transpose(1, 2).shape)
        own = f"{prefix}image_noise" in self._tensors
        if "in.image_noise" in self._tensors:
            middle, deviation = IMAGE_NOISE
            image = prefix if own else "in."
            given["image_noise"] = self._tensors.take(f"{image}image_noise").squeeze(2)
            drawn = (self._tensors.take(f"{image}image_noise_log_sigma") - middle) / deviation
            given["image_sigma"] = drawn.expand(len(given["image_noise"]))  # one for all of them
        return Draws(given=given)


def step(model: CogVideoX, inputs: Inputs, prefix: str) -> tuple[torch.Tensor, Example, torch.Tensor]:
    """(loss, example, prediction), as the loop makes them."""
    example = model.example(inputs.batch, inputs.draws(prefix))
    prediction = model.predict(example)
    return loss_of(prediction, example), example, prediction


def check_trajectory(
    facts: Mapping[str, Any],
    name: str,
    model: CogVideoX,
    inputs: Inputs,
    tensors: Tensors,
    folder: Path,
    report: Report,
) -> None:
    """A few steps of the product's optimizer from the same adapter."""
    if facts["optimizer"] != "AdamW" or facts["lr_schedule"] != "constant":
        return report.failed(f"{name} trajectory", f"{facts['optimizer']}, {facts['lr_schedule']} is not known here")
    assert isinstance(model.config, CogVideoXTrainConfig)
    settings = {
        "learning_rate": facts["lr"], "beta1": facts["betas"][0], "beta2": facts["betas"][1], "epsilon": facts["eps"],
        "weight_decay": facts["weight_decay"], "lr_scheduler": "constant",
    }  # fmt: skip
    model.load([(folder / "lora.safetensors", 1.0)])
    parameters = model.trained_parameters()
    for parameter in parameters:
        parameter.grad = None
    optimizer = make_optimizer(model.config.optimizer.model_copy(update=settings), parameters)
    for number, expected in enumerate(facts["steps"]):
        loss, example, _ = step(model, inputs, f"step{number}.")
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, facts["max_grad_norm"]).item()
        optimizer.step()
        optimizer.zero_grad()
        report.equal(f"{name} step {number} timesteps", example.timesteps.tolist(), expected["timesteps"])
        report.measured(f"{name} step {number} loss", abs(loss.item() / expected["loss"] - 1), TRAJECTORY)
        apart = abs(norm / expected["grad_norm_before_clip"] - 1)
        report.measured(f"{name} step {number} gradient norm", apart, TRAJECTORY)
    check_all(f"{name} end", dict(lora.parameters(model.transformer)), tensors, "final_lora.", TRAJECTORY, report)
    return None


def check_all(
    name: str,
    found: Mapping[str, torch.Tensor | None],
    tensors: Tensors,
    prefix: str,
    tolerance: float,
    report: Report,
) -> None:
    """The largest difference of tensors by name, in relation to the largest number among them."""
    expected = {key.removeprefix("transformer."): value for key, value in part(tensors, prefix).items()}
    report.equal(f"{name} names", sorted(found), sorted(expected))
    largest = max(float(value.abs().max()) for value in expected.values()) or 1.0
    apart = 0.0
    for key, value in expected.items():
        own = found[key]
        apart = max(apart, float("inf") if own is None else float((own.detach() - value).abs().max()))
        if own is not None and not value.any():
            report.equal(f"{name} {key} is zero", bool(own.any()), False)
    report.measured(name, apart / largest, tolerance)


def part(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose name begins so, without that."""
    return {name.removeprefix(prefix): tensors.take(name) for name in tensors if name.startswith(prefix)}


# --- tables ----------------------------------------------------------------------------------------------------------


def check_tables(vectors: Vectors, report: Report) -> None:
    tensors = vectors.tensors(TABLES)
    for number, facts in enumerate(vectors.json(ENTRIES)):
        with report.case(f"table {number}", facts) as case:
            (check_rotary if "index" in facts else check_crop)(case, tensors, report)
    for kind in ("2b", "5b"):
        if f"alphas_cumprod.{kind}" in tensors:
            folder = vectors.made(f"table-{kind}")
            tiny.write("cogvideox" if kind == "2b" else "cogvideox-5b", folder)
            signals = trained(folder)._signals
            report.close(f"alphas_cumprod {kind}", signals, tensors.take(f"alphas_cumprod.{kind}"), 1e-12)
    if "t2v_collate.videos_BCFHW" in tensors:
        with report.check("t2v_collate"):
            check_collate(tensors, vectors, report)


def trained(folder: Path, **changes: Any) -> CogVideoX:
    """A model to train, of a pipeline folder; image noise and dropout as given."""
    settings = {"base_model": str(folder), "dataset": {"path": "-", "num_frames": 9, "height": 64, "width": 64}}
    return CogVideoX(CogVideoXTrainConfig(**settings, mixed_precision="no", **changes), "train")


def check_rotary(case: Case, tensors: Tensors, report: Report) -> None:
    """Cosines and sines of a size in pixels, and the region of the base's frame that they lie in."""
    patch = case["patch_size"]
    facts = Facts(
        patch_size=patch,
        patch_size_t=case["patch_size_t"],
        sample_height=case["base_height"] // 8,
        sample_width=case["base_width"] // 8,
        rotary=True,
    )
    grid = case["height"] // (8 * patch), case["width"] // (8 * patch)
    if case["crop_region"] is not None:
        found = crop_region(grid, (facts.sample_height // patch, facts.sample_width // patch))
        report.equal(f"{case.name} crop region", [list(corner) for corner in found], case["crop_region"])
    frames = case["latent_frames"]
    for name, table in zip(("cos", "sin"), rotary(facts, case["head_dim"], frames, grid, "pipeline"), strict=True):
        report.close(f"{case.name} {name}", table, tensors.take(f"rope{case['index']}.{name}"), ABSOLUTE)


def check_crop(case: Case, tensors: Tensors, report: Report) -> None:
    """The size that a picture gets before it is cut in the middle, which the original does with the odd pixel to the
    right. It resizes floats by cubic curves; the product resizes 8 bits by lines."""
    given, expected = tensors.take(f"crop{case['crop']}.in"), tensors.take(f"crop{case['crop']}.out")
    case["mode"], case["interpolation"]
    height, width = case["dst"]
    size, corner = placed(*case["src"], height, width)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    found = given
    if list(size) != case["src"]:
        found = interpolate(given, size, mode="bicubic", antialias=True, align_corners=False)
    report.close(f"{case.name} size", found[..., top : top + height, left : left + width], expected, ABSOLUTE)
    report.measured(f"{case.name} corner", max(abs(corner[0] - top), abs(corner[1] - left)), 1, "pixels")


def check_collate(tensors: Tensors, vectors: Vectors, report: Report) -> None:
    """The latents of a batch and of its images, as an example has them."""
    video = torch.cat([tensors.take(f"i2v_collate.video_sample{n}") for n in range(2)]).transpose(1, 2)
    image = torch.cat([tensors.take(f"i2v_collate.image_sample{n}") for n in range(2)])
    names = {"t2v_collate.videos_BCFHW": "cogvideox", "i2v_collate.video_latents": "cogvideox-5b-i2v"}
    for name, kind in names.items():
        folder = vectors.made(name)
        tiny.write(kind, folder)
        for dropout in (0.0, 1.0):
            model = trained(folder, image_noise=False, image_noise_dropout=dropout)
            model._encoder = Encoder(image)  # type: ignore[assignment]
            clips = len(video)
            batch = {
                "latents_mean": video,
                "latents_logvar": torch.full_like(video, -30.0),
                "first_frame": torch.zeros(clips, 3, 8 * video.shape[3], 8 * video.shape[4]),
                "prompt_embeds": torch.zeros(clips, 1, 1),
            }
            given = {
                "posterior": torch.zeros_like(video),
                "noise": torch.zeros_like(video),
                "timesteps": torch.full((clips,), 999),  # where the target is what is left of the clip, and no noise
                "image_posterior": torch.zeros_like(image.transpose(1, 2)),
                "image_dropout": torch.full((clips,), 0.5),
            }
            example = model.example(batch, Draws(given=given))
            assert example.target is not None
            latents, channels = -example.target, model.facts.out_channels
            expected = tensors.take(name)
            report.close(name, latents.transpose(1, 2) if name.endswith("BCFHW") else latents, expected, ABSOLUTE)
            if model.facts.takes_image:
                condition = "i2v_collate.image_latents" + ("_dropped" if dropout else "")
                report.close(condition, example.model_input[:, :, channels:], tensors.take(condition), ABSOLUTE)
