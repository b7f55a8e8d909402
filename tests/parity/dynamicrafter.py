"""DynamiCrafter against vectors of the reference's classes. What is compared is always the product's own answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from tests.parity import dynamicrafter_data
from tests.parity.vectors import Case, Report, Tensors, Vectors
from trainers import lora
from trainers.families.adapters import HEADER
from trainers.families.base import Example
from trainers.families.dynamicrafter import commands, encoders
from trainers.families.dynamicrafter.base_model import BaseModel
from trainers.families.dynamicrafter.checkpoint import FORK_STRENGTH, read_take
from trainers.families.dynamicrafter.config import DynamiCrafterSampleConfig, DynamiCrafterTrainConfig
from trainers.families.dynamicrafter.facts import CLIP_CONFIG, CONFIG, Facts
from trainers.families.dynamicrafter.model import DynamiCrafter
from trainers.families.dynamicrafter.names import PREFIXES
from trainers.families.dynamicrafter.sampler import ddim, guided
from trainers.families.dynamicrafter.schedule import betas, buffers, scales, steps, timesteps
from trainers.families.dynamicrafter.tokenizer import tokenize
from trainers.loop import loss_of
from trainers.noise import Draws

ABSOLUTE = 1e-4  # of outputs and losses; of gradients in relation to the largest
TRAJECTORY = {"v": 1e-4, "eps": 1e-3}  # of DDIM; eps in relation to the largest number
EXACT = 1e-7
MERGED = 1e-5
META, STATE, ALPHAS = "meta.json", "tiny512_state.safetensors", "tiny256_alpha.safetensors"
PICTURES = "image_preprocess.safetensors"


def check(vectors: Vectors, report: Report) -> None:
    if "schedules.json" in vectors:
        with report.case("schedules", vectors.json("schedules.json")) as schedules:
            check_schedules(schedules, report)
    if "tokenizer_cases.json" in vectors:
        with report.check("tokens"):
            for text, ids in vectors.json("tokenizer_cases.json").items():
                report.equal(f"tokens of {text[:40]!r}", tokenize([text])[0].tolist(), ids)
    if PICTURES in vectors:
        with report.check(PICTURES):
            check_pictures(vectors.tensors(PICTURES), report)
    if META in vectors:
        with report.case(META, vectors.json(META)) as meta:
            check_model(vectors, meta, report)
    dynamicrafter_data.check(vectors, report)


def check_model(vectors: Vectors, meta: Case, report: Report) -> None:
    for name in ("split", "seed", "torch", "threads", "extract_metadata", "apply_metadata"):
        meta[name]
    models = Models(vectors, meta)
    report.equal("keys of the whole model", len(models.state), meta["tiny512_keys"])
    for name in ("unet_512", "unet_256"):
        if f"{name}.safetensors" in vectors:
            with report.case(name, meta[name]) as case:
                check_unet(case, vectors.tensors(f"{name}.safetensors"), models.base(name.endswith("256")), report)
    if "encoders.safetensors" in vectors:
        with report.check("encoders"):
            check_encoders(vectors.tensors("encoders.safetensors"), models.base(), report)
    for name in (n.removesuffix(".safetensors") for n in vectors.names if n.startswith("train_loss_")):
        with report.case(name, meta[name]) as case:
            check_loss(case, vectors.tensors(f"{name}.safetensors"), models, meta["tokens"], report)
    for name in (n.removesuffix(".safetensors") for n in vectors.names if n.startswith("ddim_")):
        with report.case(name, meta[name]) as case:
            check_ddim(case, vectors.tensors(f"{name}.safetensors"), models, report)
    if "lora_merge.safetensors" in vectors:
        with report.case("lora", meta["lora"]) as case:
            check_lora(case, vectors, models, meta, report)


class Models:
    """The vectors' weights in folders, as the product reads a base model."""

    def __init__(self, vectors: Vectors, meta: Case) -> None:
        self.state = {key: value.float() for key, value in vectors.tensors(STATE).take_all().items()}
        self._alphas = vectors.tensors(ALPHAS).take_all() if ALPHAS in vectors else {}
        self._params, self._eps = meta["tiny512_config"], meta["tiny256_config"]
        self._clip, self._folder = meta["clip_cfg"], vectors.made("bases")
        self._known: dict[str, Path] = {}

    def folder(self, eps: bool = False, **changes: Any) -> Path:
        """A base model: of the 256 kind, or with changes of the other's settings."""
        name = "256" if eps else "512" + "".join(changes)
        if name not in self._known:
            folder = self._known[name] = self._folder / name
            folder.mkdir()
            params = self._eps if eps else {**self._params, **changes}
            (folder / CONFIG).write_text(yaml.safe_dump({"model": {"params": params}}))
            (folder / CLIP_CONFIG).write_text(json.dumps({"model_cfg": self._clip}))
            state = self.state
            if eps:
                weights = {key: value for key, value in state.items() if "." in key}
                state = weights | self._alphas | buffers(replace(BaseModel(str(self.folder())).facts, **_EPS))
            save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
        return self._known[name]

    def base(self, eps: bool = False) -> BaseModel:
        return BaseModel(str(self.folder(eps)))

    def to_sample(self, eps: bool = False) -> DynamiCrafter:
        settings = {"base_model": str(self.folder(eps)), "prompts": ["-"], "mixed_precision": "no"}
        return DynamiCrafter(DynamiCrafterSampleConfig(**settings), "sample")

    def to_train(self, size: tuple[int, int], base: Path | None = None, **settings: Any) -> DynamiCrafter:
        """In evaluation, that is without dropout."""
        folder = base or self.folder()
        frames = BaseModel(str(folder)).facts.num_frames
        dataset = {"path": "-", "num_frames": frames, "height": size[0], "width": size[1]}
        given = {
            "base_model": str(folder), "mixed_precision": "no", "memory": {"gradient_checkpointing": "none"}, **settings
        }  # fmt: skip
        given["dataset"] = {**dataset, **settings.get("dataset", {})}
        model = DynamiCrafter(DynamiCrafterTrainConfig(**given), "train")
        model.network.eval()
        return model


_EPS: dict[str, Any] = {"parameterization": "eps", "zero_terminal_snr": False, "base_scale": None}


# --- the network -----------------------------------------------------------------------------------------------------


def check_unet(case: Case, tensors: Tensors, base: BaseModel, report: Report) -> None:
    unet = base.unet(torch.float32)
    x, times, context, fs = (tensors.take(name) for name in ("x", "timesteps", "context", "fs"))
    with torch.no_grad(), shown(unet, [key.removeprefix("act.") for key in tensors if key.startswith("act.")]) as seen:
        out = unet.eval()(x, times, context, fs)
    report.close(f"{case.name} out", out, tensors.take("out"), ABSOLUTE)
    report.measured(f"{case.name} deviation", abs(float(out.std()) - case["out_std"]), ABSOLUTE)
    report.equal(f"{case.name} fs where none is given", base.facts.unet.default_fs, case["default_fs"])
    dropouts = {module.p for module in unet.modules() if isinstance(module, torch.nn.Dropout)}
    report.equal(f"{case.name} dropouts", dropouts, {p for p in case["dropout_p_values_in_model"] if p})
    for name, value in seen.items():
        report.close(f"{case.name} {name}", value, tensors.take(f"act.{name}"), ABSOLUTE)
    with torch.no_grad():
        report.close(f"{case.name} without fs", unet(x, times, context), tensors.take("out_fs_none"), ABSOLUTE)
        short = unet(x, times, tensors.take("context_short"), fs)
        report.close(f"{case.name} short context", short, tensors.take("out_context_short"), ABSOLUTE)
    unet.train()
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    unet.requires_grad_(True)
    evaluated, out = out, unet(x, times, context, fs)
    apart = float((out - evaluated).detach().abs().max())
    report.measured(f"{case.name} training apart", abs(apart - case["max_abs_eval_vs_train_nodrop"]), ABSOLUTE)
    report.close(f"{case.name} in training", out, tensors.take("out_train_nodrop"), ABSOLUTE)
    loss = torch.nn.functional.mse_loss(out, tensors.take("grad_target"))
    loss.backward()
    report.measured(f"{case.name} loss", abs(loss.item() - case["loss_mse_vs_grad_target"]), ABSOLUTE)
    gradients = {name: parameter.grad for name, parameter in unet.named_parameters()}
    check_norms(f"{case.name} norms", gradients, case["grad_norms"], report)
    for name in (key for key in tensors if key.startswith("grad.")):
        expected = tensors.take(name)
        largest = max(1e-3, float(expected.abs().max()))
        report.close(
            f"{case.name} {name}", gradients[name.removeprefix("grad.")] / largest, expected / largest, ABSOLUTE
        )


def check_norms(
    name: str, gradients: Mapping[str, torch.Tensor | None], norms: Mapping[str, float], report: Report
) -> None:
    """The norm of every gradient, in relation to the largest."""
    report.equal(f"{name}: parameters", sorted(gradients), sorted(norms))
    largest = max(norms.values())
    worst = 0.0
    for key, expected in norms.items():
        gradient = gradients[key]
        worst = max(worst, abs((0.0 if gradient is None else float(gradient.norm())) - expected) / largest)
    report.measured(name, worst, ABSOLUTE)


@contextmanager
def shown(model: torch.nn.Module, names: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """What modules of the model give, by name."""
    seen: dict[str, torch.Tensor] = {}
    hooks = []
    for name in names:

        def keep(module: torch.nn.Module, inputs: Any, output: torch.Tensor, name: str = name) -> None:
            seen[name] = output

        hooks.append(model.get_submodule(name).register_forward_hook(keep))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# --- encoders --------------------------------------------------------------------------------------------------------


def signed(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels.float() / 255 - 0.5) * 2


@torch.no_grad()
def check_encoders(tensors: Tensors, base: BaseModel, report: Report) -> None:
    text = encoders.text_states(base.text_tower(torch.float32), tensors.take("text_tokens"))
    report.close("text states", text, tensors.take("text_penultimate_ln"), ABSOLUTE)
    picture = signed(tensors.take("image_u8"))
    fitted = encoders.clip_pixels(picture, base.facts.vision.image_size)
    report.close("picture for CLIP", fitted[..., ::8, ::8], tensors.take("clip_preprocessed_sub8"), ABSOLUTE)
    seen = encoders.image_states(base.image_tower(torch.float32), picture)
    report.close("image states", seen, tensors.take("vision_tokens"), ABSOLUTE)
    resampler = base.resampler()
    report.close("image tokens", resampler(seen), tensors.take("image_tokens"), ABSOLUTE)
    given = tensors.take("resampler_in")
    report.close("resampler", resampler(given), tensors.take("resampler_out"), ABSOLUTE)
    vae = base.vae(torch.float32)
    posterior = vae.encode(tensors.take("vae_pixels")).latent_dist
    report.close("VAE's moments", posterior.parameters, tensors.take("vae_moments"), ABSOLUTE)
    latents = base.facts.scale_factor * (posterior.mean + posterior.std * tensors.take("vae_noise"))
    report.close("VAE's latents", latents, tensors.take("vae_latent_scaled"), ABSOLUTE)
    decoded = vae.decode(latents / base.facts.scale_factor).sample
    report.close("VAE's pictures", decoded, tensors.take("vae_decoded"), ABSOLUTE)


def check_pictures(tensors: Tensors, report: Report) -> None:
    for name in (name for name in tensors if name.endswith("_sub4") and "_clip" in name):
        picture, size = name.removesuffix("_sub4").split("_clip")
        found = encoders.clip_pixels(signed(tensors.take(f"{picture}_u8")), int(size))[..., ::4, ::4]
        report.close(name, found[0] if tensors.take(name).ndim == 3 else found, tensors.take(name), ABSOLUTE)


# --- the objective ---------------------------------------------------------------------------------------------------


def check_loss(case: Case, tensors: Tensors, models: Models, tokens: Mapping[str, Any], report: Report) -> None:
    """A whole step of training: of a clip's pixels to the loss and its gradients."""
    given = case["cond_frame_index"]
    base = models.folder(interp_mode=True) if case["interp_mode"] else models.folder()
    video = tensors.take("video_u8").transpose(1, 2)  # (b, f, 3, H, W)
    model = models.to_train(
        (video.shape[3], video.shape[4]),
        base,
        method="full",
        rand_cond_frame=given is not None,
        image_dropout=2 * case["uncond_prob"],
        dataset={"caption_dropout": 2 * case["uncond_prob"]},
    )
    report.equal(f"{case.name} parameterization", model.facts.parameterization, case["parameterization"])

    def states(texts: list[str]) -> torch.Tensor:
        with torch.no_grad():
            return encoders.text_states(model._tower("text"), torch.tensor([tokens[text] for text in texts]))

    clips, frames = video.shape[:2]
    fps = tensors.take("fps")
    batch = {
        **model.encode_video(video, Draws()),
        "prompt_embeds": states(case["captions"]),
        "null_prompt_embeds": states([""] * clips),
        "clip_fps": fps,
        "frame_stride": torch.ones_like(fps),
    }
    draws = {
        "posterior": tensors.take("posterior_noise").unflatten(0, (clips, frames)),
        "noise": tensors.take("noise"),
        "timesteps": tensors.take("t"),
        "dropout": tensors.take("random_num"),
        "cond_frame": torch.tensor([given or 0]),
    }
    example = model.example(batch, Draws(given=draws))
    channels = model.facts.unet.out_channels
    noisy, condition = example.model_input.split(channels, dim=1)
    report.close(f"{case.name} noisy latents", noisy, tensors.take("x_noisy"), ABSOLUTE)
    report.close(f"{case.name} image's latents", condition, tensors.take("c_concat"), ABSOLUTE)
    assert example.target is not None
    report.close(f"{case.name} target", example.target, tensors.take("target"), ABSOLUTE)
    schedule = model._schedule
    if model.facts.parameterization == "v":
        signal = schedule.signal[example.timesteps].view(-1, 1, 1, 1, 1)
        scaled = signal.sqrt() * noisy - (1 - signal).sqrt() * example.target
        scale = torch.ones(clips) if schedule.scale is None else schedule.scale[example.timesteps]
        report.close(f"{case.name} latents", scaled / scale.view(-1, 1, 1, 1, 1), tensors.take("z"), ABSOLUTE)
    image = model.network.resampler(example.conditions["image"])
    context = torch.cat([example.conditions["text"], image], dim=1)
    report.close(f"{case.name} context", context, tensors.take("c_crossattn"), ABSOLUTE)
    report.equal(f"{case.name} fs", example.conditions["fs"].tolist(), tensors.take("fs").tolist())

    prediction = model.predict(example)
    report.close(f"{case.name} output", prediction, tensors.take("model_out"), ABSOLUTE)
    each = ((prediction - example.target) ** 2).mean(dim=(1, 2, 3, 4))
    report.close(f"{case.name} losses", each, tensors.take("loss_per_sample"), ABSOLUTE)
    loss = loss_of(prediction, example)
    report.measured(f"{case.name} loss", abs(loss.item() - case["loss"]), ABSOLUTE)
    for name, value in case["loss_dict"].items():
        report.measured(f"{case.name} {name}", abs(loss.item() - value), ABSOLUTE)
    loss.backward()
    for part, name in ((model.network.unet, "grad_norm_unet"), (model.network.resampler, "grad_norm_image_proj")):
        norm = torch.stack([p.grad.norm() for p in part.parameters() if p.grad is not None]).norm().item()
        report.measured(f"{case.name} {name}", abs(norm - case[name]), ABSOLUTE)


# --- sampling --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_ddim(case: Case, tensors: Tensors, models: Models, report: Report) -> None:
    case["dir_xt_sqrt_argument_clamped_at_0"], case["multi"]
    model = models.to_sample(eps=case["parameterization"] == "eps")
    facts, unet = model.facts, model.network.unet
    report.equal(f"{case.name} spacing", facts.spacing, case["spacing"])
    planned = steps(facts, case["S"], case["eta"])
    check_steps(case, facts, planned, report)

    concat, fs = tensors.take("concat"), tensors.take("fs")
    full, without = tensors.take("cond_crossattn"), tensors.take("uncond_crossattn")
    image = tensors.take("uncond_img_crossattn") if "uncond_img_crossattn" in tensors else None

    def predict(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        def answer(context: torch.Tensor) -> torch.Tensor:
            times = torch.full((len(latents),), timestep)
            return unet(torch.cat([latents, concat], dim=1), times, context, fs)

        image_only = None if image is None else answer(image)
        return guided(answer(full), answer(without), case["cfg"], case["guidance_rescale"], image_only, case["cfg_img"])

    noise = tensors.take("step_noise")
    x_steps, clean_steps = tensors.take("x_steps"), tensors.take("pred_x0_steps")
    tolerance = TRAJECTORY[facts.parameterization]

    def relative(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
        largest = max(1.0, float(expected.abs().max())) if facts.parameterization == "eps" else 1.0
        report.close(f"{case.name} {name}", found / largest, expected / largest, tolerance)

    found = list(ddim(planned, facts.parameterization, tensors.take("x_T"), predict, lambda number: noise[number]))
    for number, (latents, clean) in enumerate(found):
        relative(f"step {number}", latents, x_steps[number])
        relative(f"step {number} clean", clean, clean_steps[number])
    relative("out", found[-1][0], tensors.take("out"))


def check_steps(case: Case, facts: Facts, planned: Any, report: Report) -> None:
    report.equal(f"{case.name} visited", [step.timestep for step in planned], case["timesteps_visited"])
    upward = planned[::-1]
    report.equal(f"{case.name} timesteps", [step.timestep for step in upward], case["ddim_timesteps"])
    for name, found in (
        ("ddim_alphas", [step.signal for step in upward]),
        ("ddim_alphas_prev", [step.next_signal for step in upward]),
        ("ddim_sigmas", [step.sigma for step in upward]),
    ):
        report.close(f"{case.name} {name}", torch.tensor(found), torch.tensor(case[name]), EXACT)
    now, before = case["ddim_scale_arr"], case["ddim_scale_arr_prev"]
    if now is None or before is None:
        report.equal(f"{case.name} scale", [facts.base_scale, before], [None, now])
        return
    found = torch.tensor([step.rescale for step in upward], dtype=torch.float64)
    report.close(f"{case.name} scale", found * torch.tensor(now), torch.tensor(before), EXACT)


def check_schedules(case: Case, report: Report) -> None:
    report.equal("timesteps of training", case["num_timesteps"], 1000)
    first, last = float(betas(False)[0]), float(betas(False)[-1])
    report.measured("first and last beta", abs(first - case["linear_start"]) + abs(last - case["linear_end"]), EXACT)
    places = case["indices"]
    for name, zero in (("plain_256", False), ("zero_terminal_snr_512_1024", True)):
        own, expected = betas(zero), case[name]
        signal = torch.cumprod(1 - own, 0)
        for key, found in (
            ("betas", own), ("alphas_cumprod_float64", signal), ("alphas_cumprod_float32", signal.float()),
        ):  # fmt: skip
            report.close(f"{name} {key}", found[places], torch.tensor(expected[key], dtype=torch.float64), EXACT)
    for scale, expected in case["scale_arr"].items():
        if scale == "length":
            report.equal("length of scale_arr", len(scales(0.7)), expected)
        else:
            report.close(f"scale_arr {scale}", scales(float(scale))[places], torch.tensor(expected), EXACT)
    for name, expected in case["ddim_timesteps"].items():
        spacing, _, count = name.rpartition("_")
        found = timesteps(spacing, int(count))
        if isinstance(expected, list) and -1 not in expected:
            report.equal(f"timesteps {name}", found, expected)
        else:  # where the reference fails
            sound = all(0 <= number < 1000 for number in found) and len(found) >= int(count)
            report.equal(f"timesteps {name} of ours are sound", sound, True)


# --- LoRAs -----------------------------------------------------------------------------------------------------------


def check_lora(case: Case, vectors: Vectors, models: Models, meta: Case, report: Report) -> None:
    tensors = vectors.tensors("lora_merge.safetensors")
    name = next(name for name in vectors.names if name.endswith("_lora.safetensors"))
    extracted = vectors.tensors(name).take_all()
    rank, strength = case["rank"], case["config_alpha"]
    report.equal(
        "lora keys", {key: list(value.shape) for key, value in extracted.items()}, shapes_told(case["lora_keys"])
    )
    report.equal("lora tensors", len(extracted), case["n_lora_tensors"])
    report.measured("lora scale", abs(case["torchtune_alpha"] / rank - strength), EXACT)
    report.measured("lora scale in training", abs(case["scale_in_training"] - strength), EXACT)
    folder = vectors.made("lora")
    file = folder / name
    save_file(extracted, file)
    take = read_take(file)
    own = {key for key in extracted if key.startswith(PREFIXES["unet"])}
    report.equal("layers of the network", len(take.lora), len(own) // 2)
    check_beginning(case, models, report)
    check_extraction(vectors, extracted, models, folder, own, report)

    # drawn live, at the strength that it was trained with; of foreign files that is taken to be the fork's own
    inputs = vectors.tensors("unet_512.safetensors")
    given = [inputs.take(key) for key in ("x", "timesteps", "context", "fs")]
    model = models.to_sample()
    with torch.no_grad():
        base = model.network.unet(*given)
        model.load([(file, strength / FORK_STRENGTH)])
        live = model.network.unet(*given)
    report.close("network with the LoRA", live, tensors.take("unet_out_live_lora"), ABSOLUTE)
    apart = float((live - base).abs().max())
    report.measured("what the LoRA changes", abs(apart - case["max_abs_live_vs_base"]), ABSOLUTE)

    outputs = {}
    for told, alpha in (("A", case["apply_alpha_A"]), ("config", strength)):
        out = folder / told / "model.safetensors"
        commands.apply(
            ["--base_model", str(models.folder()), "--lora", str(file), "--alpha", str(alpha), "--out", str(out)]
        )
        for beside in (CONFIG, CLIP_CONFIG):
            (out.parent / beside).write_bytes((models.folder() / beside).read_bytes())
        merged = BaseModel(str(out.parent))
        with torch.no_grad():
            outputs[told] = merged.unet(torch.float32).eval()(*given)
        if told == "A":
            check_merged(case, tensors, models, merged, report)
    report.close("network with the LoRA merged", outputs["A"], tensors.take("unet_out_merged_A"), ABSOLUTE)
    for told, key in (("config", "max_abs_live_vs_merge_at_config_alpha"), ("A", "max_abs_live_vs_merge_at_A")):
        found = float((live - outputs[told]).abs().max())
        report.measured(f"merge at {told} against live", abs(found - case[key]), ABSOLUTE)
    check_lora_gradients(case, vectors, models, meta, extracted, folder, report)


def check_beginning(case: Case, models: Models, report: Report) -> None:
    """A LoRA of ours before its first step: the lower halves uniform within the same bounds, the upper ones zero."""
    model = models.to_train((64, 64), method="lora", adapter={"rank": case["rank"]})
    begun = lora.taken(model.network.unet)
    report.equal(
        "upper halves begin at zero", not any(layer.up.any() for layer in begun.values()), case["init_lora_b_all_zero"]
    )
    for key, (largest, bound) in case["init_lora_a_bound_check"].items():
        down = begun[key.removeprefix(PREFIXES["unet"]).removesuffix(".lora_a.weight")].down
        report.equal(f"{key} begins within its bound", float(down.abs().max()) <= bound and largest <= bound, True)
        report.measured(f"{key} bound", abs(down.shape[1] ** -0.5 - bound), 1e-6)


def shapes_told(keys: Any) -> Any:
    return {key: list(shape) for key, shape in (keys.items() if isinstance(keys, dict) else keys)}


def check_extraction(
    vectors: Vectors,
    extracted: Mapping[str, torch.Tensor],
    models: Models,
    folder: Path,
    own: set[str],
    report: Report,
) -> None:
    """Out of a flat checkpoint, and out of one of Lightning, exactly the network's part."""
    torch.save({"state_dict": {**models.state, **extracted}, "epoch": 0, "global_step": 20}, folder / "whole.ckpt")
    sources = [folder / "whole.ckpt", *(vectors.file(name) for name in vectors.names if name.endswith(".ckpt"))]
    for number, source in enumerate(sources):
        out = folder / f"extracted_{number}.safetensors"
        commands.extract(["--model", str(source), "--out", str(out)])
        found = Tensors.read(out)
        report.equal(f"keys extracted from {source.name}", set(found), own)
        same = all(torch.equal(found[key], extracted[key]) for key in own)
        report.equal(f"numbers extracted from {source.name}", same, True)


def check_merged(case: Case, tensors: Tensors, models: Models, merged: BaseModel, report: Report) -> None:
    found = {key: value.clone() for key, value in merged.tensors()}
    changed = [key for key, value in found.items() if not torch.equal(value, models.state[key])]
    report.equal("tensors that merging changes", len(changed), case["n_changed_by_merge"])
    for name in (name for name in tensors if name.startswith("merged.")):
        report.close(name, found[name.removeprefix("merged.")], tensors.take(name), MERGED)
    worst = 0.0
    for key, (total, norm) in case["merged_at_A_sum_and_norm"].items():
        value = found[key].double()
        worst = max(worst, abs(float(value.sum()) - total) / value.numel() ** 0.5, abs(float(value.norm()) - norm))
    report.measured("sums and norms of what merging changes", worst, ABSOLUTE)


def check_lora_gradients(
    case: Case,
    vectors: Vectors,
    models: Models,
    meta: Case,
    extracted: Mapping[str, torch.Tensor],
    folder: Path,
    report: Report,
) -> None:
    """Every adapter's gradient for the inputs of a training step."""
    rank, strength = case["rank"], case["config_alpha"]
    tensors = vectors.tensors("train_loss_v.safetensors")
    adapter = {"rank": rank, "alpha": rank * strength, "dropout": case["dropout"]}
    model = models.to_train((64, 64), method="lora", adapter=adapter)
    facts = {HEADER: json.dumps({"rank": rank, "alpha": rank * strength})}
    save_file(dict(extracted), folder / "told.safetensors", metadata=facts)
    model.load([(folder / "told.safetensors", 1.0)])
    noisy, condition = tensors.take("x_noisy"), tensors.take("c_concat")
    given = torch.cat([noisy, condition], dim=1), tensors.take("t"), tensors.take("c_crossattn"), tensors.take("fs")
    example = Example(given[0], given[1], tensors.take("target"))
    loss = loss_of(model.network.unet(*given), example)
    report.measured("lora loss", abs(loss.item() - meta["lora_loss_on_train_loss_v_inputs"]), ABSOLUTE)
    loss.backward()
    gradients = {}
    for key, parameter in lora.parameters(model.network.unet):
        theirs = key.replace(".lora_A.", ".lora_a.").replace(".lora_B.", ".lora_b.")
        gradients[PREFIXES["unet"] + theirs] = parameter.grad
    norms = {key: value for key, value in meta["lora_grad_norms"].items() if key.startswith(PREFIXES["unet"])}
    others = {key: value for key, value in meta["lora_grad_norms"].items() if key not in norms}
    report.equal("gradients of CLIP's adapters", [key for key, value in others.items() if value], [])
    check_norms("lora gradients", gradients, norms, report)
