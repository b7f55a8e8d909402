"""The denoiser's parts: an image UNet with motion modules put into it, and which of its weights are meant."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

from trainers.errors import why
from trainers.families import weights
from trainers.families.animatediff.checkpoint import MotionFacts, fitting_heads, load_strictly
from trainers.families.animatediff.positions import Version, told_version
from trainers.families.base import ModelError
from trainers.families.weights import State, is_pattern, matching

log = logging.getLogger(__name__)

FRESH_SEED = 0  # new motion modules are the same in every run


@dataclass(frozen=True)
class Motion:
    """Which motion modules the denoiser is built with: those of `source`, or new ones of this form.

    stretch: each position is repeated so often in place.
    """

    source: str | None
    positions: int = 32
    mid_block: bool = True
    heads: int | None = None
    version: Version | None = None
    stretch: int = 1


def new_motion_modules(unet2d: UNet2DConditionModel, motion: Motion) -> tuple[MotionAdapter, MotionFacts]:
    """Motion modules that begin without effect: their last layer is zero, as the original's is (diffusers' is not)."""
    channels = unet2d.config.block_out_channels
    heads = motion.heads or fitting_heads(channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FRESH_SEED)
        adapter = MotionAdapter(
            block_out_channels=channels,
            motion_layers_per_block=unet2d.config.layers_per_block,
            motion_num_attention_heads=heads,
            motion_norm_num_groups=unet2d.config.norm_num_groups,
            motion_max_seq_length=motion.positions,
            use_motion_mid_block=motion.mid_block,
        )
    for module in adapter.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            torch.nn.init.zeros_(module.proj_out.weight)
            torch.nn.init.zeros_(module.proj_out.bias)
    version = motion.version or told_version(motion.positions, motion.mid_block)
    return adapter, MotionFacts(motion.positions, motion.mid_block, version, heads, unet2d.config.norm_num_groups)


def joined(unet2d: UNet2DConditionModel, adapter: MotionAdapter, base: str, source: str | None) -> UNetMotionModel:
    """One denoiser of both; it takes over their tensors, so nothing is copied or rounded."""
    name = source or "the new motion modules"
    try:
        with torch.device("meta"):
            unet = UNetMotionModel.from_unet2d(unet2d, adapter, load_weights=False)
    except ValueError as error:
        raise ModelError(f"{name} does not fit the base model {base}: {error}") from error
    load_strictly(unet, {**unet2d.state_dict(), **adapter.state_dict()}, f"{base} with {name}")
    return unet


def stretched(state: Mapping[str, torch.Tensor], times: int) -> State:
    """A motion module that takes `times` as many frames: new position i has the encoding of the old i // times.

    That is how the fork of AnimateDiff that introduced it does it: neighbouring frames share an encoding.
    """
    return {
        key: value.repeat_interleave(times, dim=1) if key.endswith("pos_embed.pe") else value
        for key, value in state.items()
    }


def skip_motion(unet: torch.nn.Module) -> None:
    """Leave out motion modules that are without effect: the image model alone is computed, at half the cost."""
    for module in unet.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            module.forward = _as_it_comes  # type: ignore[method-assign]


def _as_it_comes(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return hidden_states


def motion_layers(unet: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every module inside the motion modules, by path."""
    return {name: module for name, module in unet.named_modules() if ".motion_modules." in name}


def lora_targets(unet: torch.nn.Module, wanted: Sequence[str]) -> list[str]:
    """Paths of the linear layers that get a LoRA: an ending means layers of the motion modules, a regular expression
    any linear layer, so that image layers can be meant as well."""
    return weights.lora_targets(unet, wanted, ".motion_modules.", "the motion modules", _kinds)


def chosen_parameters(unet: torch.nn.Module, wanted: Sequence[str]) -> list[torch.nn.Parameter]:
    """All motion parameters, or those that are meant. ModelError lists what is there.

    An ending means everything under a part of the motion modules; a regular expression must match the whole name of
    such a part or of a parameter.
    """
    layers = motion_layers(unet)
    if not wanted:
        wanted = [r".*\.motion_modules\..*"]
    chosen: dict[int, torch.nn.Parameter] = {}
    for line in wanted:
        parts = matching(line, "trainable_modules", list(layers), list(layers))
        found = {id(p): p for name in parts for p in layers[name].parameters()}
        if is_pattern(line):
            own = {name: p for name, p in unet.named_parameters() if ".motion_modules." in name}
            found |= {id(own[name]): own[name] for name in matching(line, "trainable_modules", list(own), [])}
        if not found:
            raise ModelError(
                f"trainable_modules: {line!r} is no part of the motion modules; there are {', '.join(_kinds(layers))}"
            )
        chosen |= found
    return [p for p in unet.parameters() if id(p) in chosen]


def _kinds(paths: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """The names of parts within a motion module, each once: attn1.to_q, ff.net.0.proj, proj_in, ..."""
    found: dict[str, None] = {}
    for path in paths:
        own = path.split(".motion_modules.", 1)[1].partition(".")[2]
        own = own.split("transformer_blocks.", 1)[-1].partition(".")[2] if "transformer_blocks." in own else own
        if own and own != "transformer_blocks":
            found[own] = None
    return list(found)


def blocks(unet: UNetMotionModel) -> list[torch.nn.Module]:
    """What is worth computing again in the backward pass: resnets, spatial transformers and motion modules. diffusers'
    own switch reaches the resnets only, at more than twice the memory."""
    parts = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    kinds = (ResnetBlock2D, Transformer2DModel, AnimateDiffTransformer3D)
    return [module for part in parts for module in part.modules() if isinstance(module, kinds)]


def use_xformers(unet: torch.nn.Module, where: torch.device, dtype: torch.dtype) -> None:
    """xformers' attention in the spatial transformers, if a tiny call works on the device; SDPA otherwise.

    Motion modules keep SDPA: their batch is every pixel of a clip, beyond what xformers' kernels can be launched with.
    """
    try:
        from xformers.ops import memory_efficient_attention

        tiny = torch.zeros(1, 16, 2, 32, device=where, dtype=dtype, requires_grad=True)
        memory_efficient_attention(tiny, tiny, tiny).sum().backward()
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError, NotImplementedError, TypeError) as error:
        log.warning("xformers does not work on %s (%s); PyTorch's own attention is used", where, why(error))
        return
    for module in unet.modules():
        if isinstance(module, Transformer2DModel):
            module.set_use_memory_efficient_attention_xformers(True)
