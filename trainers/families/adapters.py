"""LoRAs as runs write them and as they are read again, whatever the family.

A LoRA file that a run writes has its alpha folded into the upper halves, so that full strength is scale 1 for every
reader, whether it looks for an alpha or not. Where folding rounds, what was trained stands beside it to go on from.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trainers import lora
from trainers.families.base import ModelError
from trainers.families.files import read_tensors
from trainers.lora import Lora, some

HEADER = "dailies"  # our facts in the header of a LoRA file
AS_TRAINED = "lora_B_as_trained.safetensors"  # beside a LoRA whose folding rounds
_ALPHAS = "alphas"  # in its header: those of its layers


# --- writing ---------------------------------------------------------------------------------------------------------


def write_lora(folder: Path, adapter: Mapping[str, Lora], prefix: str, facts: Mapping[str, Any]) -> None:
    """The LoRA as `pytorch_lora_weights.safetensors`, alpha folded in; and the upper halves as they were trained,
    where a factor that is no power of two has rounded them. facts: for the header, besides rank and alpha."""
    lora.write_folded(folder / lora.FILE_NAME, adapter, prefix, torch.float32, {HEADER: json.dumps(dict(facts))})
    rounded = {path: layer for path, layer in adapter.items() if not _power_of_two(layer.alpha / layer.rank)}
    if rounded:
        state = {f"{path}.lora_B.weight": layer.up.contiguous() for path, layer in rounded.items()}
        alphas = json.dumps({path: layer.alpha for path, layer in rounded.items()})
        save_file(state, folder / AS_TRAINED, metadata={"format": "pt", _ALPHAS: alphas})


def _power_of_two(factor: float) -> bool:
    return math.frexp(factor)[0] == 0.5


# --- reading ---------------------------------------------------------------------------------------------------------


def as_trained(folder: Path, adapter: Mapping[str, Lora], meta: Mapping[str, Any]) -> Mapping[str, Lora]:
    """The LoRA of a checkpoint folder with its own alphas, bit for bit as it was trained, where the folder tells; else
    as it is."""
    file = folder / AS_TRAINED
    if not file.is_file():
        return adapter
    ups, header = read_tensors(file)
    alphas, common = json.loads(header.get(_ALPHAS, "{}")), meta.get("alpha")
    found = {}
    for path, layer in adapter.items():
        up, alpha = ups.get(f"{path}.lora_B.weight"), alphas.get(path, common)
        if up is not None and isinstance(alpha, (int, float)):
            layer = Lora(layer.down, up, float(alpha))
        found[path] = layer
    return found


def parse_lora(state: Mapping[str, Any], header: Mapping[str, str], prefix: str, source: str) -> dict[str, Lora]:
    """The LoRA in the weights and header of a file of diffusers', PEFT's or kohya's kind, by module path."""
    if not lora.is_lora(state):
        raise ModelError(f"{source} is not a LoRA: it holds {some(state) if state else 'nothing'}")
    try:
        return lora.parse(state, lora.settings_of(header, prefix), prefix, source)
    except lora.LoraError as error:
        raise ModelError(str(error)) from error
    except (re.error, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{source} has adapter settings that cannot be read: {error}") from error


def header_facts(header: Mapping[str, str]) -> dict[str, Any]:
    """What a file of ours says of itself; {} when it says nothing."""
    try:
        facts = json.loads(header.get(HEADER, "{}"))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}
