"""A tiny DynamiCrafter in one file of weights, with its config and tokenizer beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from examples.tiny.animatediff import spread_latents, write_clip_tokenizer
from examples.tiny.texts import write_json
from trainers.families.dynamicrafter import encoders, names
from trainers.families.dynamicrafter.facts import CLIP_CONFIG, CONFIG, PUBLISHED, Facts
from trainers.families.dynamicrafter.resampler import Resampler
from trainers.families.dynamicrafter.schedule import buffers
from trainers.families.dynamicrafter.unet import VideoUNet

#: The tiny models by the name of the published one whose rules they follow.
KINDS = {"dynamicrafter": "512", "dynamicrafter-256": "256", "dynamicrafter-interp": "512-interp"}


def write_dynamicrafter(out: Path, size: str, variant: str = "512", frames: int = 16) -> dict[str, str]:
    """model.safetensors in the reference's names, config.yaml in its form, open_clip's description of the towers, and
    a tokenizer. frames: those of a clip."""
    vocabulary = write_clip_tokenizer(out / "tokenizer")
    facts = tiny_facts(PUBLISHED[variant], size, len(vocabulary), frames)
    parts: dict[names.Part, torch.nn.Module] = {
        "unet": VideoUNet(facts.unet),
        "resampler": Resampler(facts.resampler),
        "text": encoders.text_tower(facts.text),
        "vision": encoders.image_tower(facts.vision),
        "vae": encoders.vae(facts.vae, facts.scale_factor),
    }
    for module in parts.values():
        _perturb(module)
    spread_latents(parts["vae"])
    state: dict[str, torch.Tensor] = {}
    for part, module in parts.items():
        written = names.in_reference(module.state_dict(), part, facts)
        state |= {key: value.to(torch.float16, copy=True).contiguous() for key, value in written.items()}
    state |= buffers(facts)
    out.mkdir(parents=True, exist_ok=True)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / CONFIG).write_text(yaml.safe_dump({"model": {"params": params_of(facts)}}), encoding="utf-8")
    write_json(out / CLIP_CONFIG, {"model_cfg": clip_config(facts)})
    return {"base_model": str(out)}


def tiny_facts(real: Facts, size: str, vocabulary: int, frames: int) -> Facts:
    """Small shapes with a published model's rules. full: the real network with tiny encoders."""
    text = replace(real.text, width=32, layers=3, heads=4, vocab_size=vocabulary)
    vision = replace(real.vision, width=32, layers=2, head_width=8, patch_size=56)
    vae = replace(real.vae, ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
    if size == "full":
        text, vision = replace(text, width=real.text.width), replace(vision, width=real.vision.width)
        return replace(real, text=text, vision=vision, vae=vae)
    channels, multipliers = (32, (1, 2)) if size == "tiny" else (128, (1, 2, 2))
    unet = replace(
        real.unet,
        model_channels=channels,
        channel_mult=multipliers,
        num_res_blocks=1,
        attention_resolutions=(1, 2),
        num_head_channels=channels // 4,
        context_dim=text.width,
        temporal_length=frames,
    )
    resampler = replace(
        real.resampler,
        dim=32, depth=2, dim_head=8, heads=3, embedding_dim=vision.width, output_dim=text.width, ff_mult=2,
        video_length=frames,
    )  # fmt: skip
    return replace(real, unet=unet, resampler=resampler, text=text, vision=vision, vae=vae, native=(64, 64))


def params_of(facts: Facts) -> dict[str, Any]:
    """The model's section in the reference's config."""

    def section(part: Any, *own: str) -> dict[str, Any]:
        return {name: list(v) if isinstance(v := getattr(part, name), tuple) else v for name in own}

    unet = section(facts.unet, *vars(facts.unet))
    return {
        "rescale_betas_zero_snr": facts.zero_terminal_snr,
        "parameterization": facts.parameterization,
        "image_size": [side // 8 for side in facts.native],
        "scale_factor": facts.scale_factor,
        "use_dynamic_rescale": facts.base_scale is not None,
        **({} if facts.base_scale is None else {"base_scale": facts.base_scale}),
        **({"fps_condition_type": "fps"} if facts.fs_kind == "fps" else {}),
        "perframe_ae": facts.perframe_ae,
        **({"interp_mode": True} if facts.interp else {}),
        "unet_config": {"params": unet},
        "first_stage_config": {"params": {"ddconfig": section(facts.vae, *vars(facts.vae))}},
        "image_proj_stage_config": {"params": section(facts.resampler, *vars(facts.resampler))},
    }


def clip_config(facts: Facts) -> dict[str, Any]:
    """The towers as open_clip describes them."""
    return {"text_cfg": dict(vars(facts.text)), "vision_cfg": dict(vars(facts.vision))}


def _perturb(module: torch.nn.Module) -> None:
    """Biases, norms and learned strengths that are not 0 and 1, as in a trained model, so that none of them can be
    forgotten unseen."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
