"""LoRAs on motion modules: every naming in which they are found, and the original's.

The original's (guoyww v2, ``v2_lora_*.ckpt``) names a layer of an attention processor: ``....attention_blocks.0.
processor.to_q_lora.down.weight``, and the output layer ``to_out_lora``. MotionDirector (ExponentialML) does the same
for every layer, ``<parent>.processor.<last part>_lora``: ``to_out.processor.0_lora``, ``ff.net.processor.2_lora``. Both
know no alpha: full strength is up @ down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from trainers import lora
from trainers.families.animatediff.names import diffusers_name, original_names
from trainers.families.base import ModelError


def parse(state: Mapping[str, Any], settings: Mapping[str, Any], source: str) -> dict[str, lora.Lora]:
    """A LoRA in any naming, by diffusers' module paths. settings: PEFT's, or {}. ModelError names what is unknown.

    Layers of the image model keep their names, which are the same everywhere: a domain adapter is such a LoRA.
    """
    try:
        found = lora.parse(state, settings, "unet", source)
    except lora.LoraError as error:
        raise ModelError(str(error)) from error
    except (re.error, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{source} has adapter settings that cannot be read: {error}") from error
    named: dict[str, lora.Lora] = {}
    unknown = []
    for path, layer in found.items():
        own = diffusers_name(path) if "temporal_transformer" in path else path
        if own is None or own in named:
            unknown.append(path)
        else:
            named[own] = layer
    if unknown:
        raise ModelError(f"{source} is a LoRA on layers that no motion module has: {lora.some(unknown)}")
    return named


def image_layers(adapter: Mapping[str, lora.Lora]) -> list[str]:
    """The layers that are not in motion modules."""
    return [path for path in adapter if not original_names(path)]


def covered(adapter: Mapping[str, lora.Lora]) -> str:
    """What a LoRA is on, in words."""
    still = len(image_layers(adapter))
    if still == len(adapter):
        return "the image model, as a domain adapter is"
    return "motion modules and the image model" if still else "motion modules"


def to_original(adapter: Mapping[str, lora.Lora], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A motion LoRA in original naming, every alpha folded into `up`: its readers know none.

    Attention layers as guoyww's files have them, the others in MotionDirector's form. ComfyUI-AnimateDiff-Evolved and
    guoyww's loader find the layer of a key by taking out ``processor.`` and ``_lora`` and writing ``to_out.0`` for
    ``to_out``; both forms come out right. Every layer must be a motion module's.
    """
    state = {}
    for path, layer in adapter.items():
        (name,) = original_names(path)
        parent, _, last = name.rpartition(".")
        if name.endswith(".to_out.0"):
            parent, last = name.removesuffix(".to_out.0"), "to_out"
        own = layer.folded()
        state[f"{parent}.processor.{last}_lora.down.weight"] = own.down.to(dtype).contiguous()
        state[f"{parent}.processor.{last}_lora.up.weight"] = own.up.to(dtype).contiguous()
    return state
