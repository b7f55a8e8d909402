"""Checkpoints in the formats of the field. Every file is read again, matched key by key, and compared by what it
computes, before it gets its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel

from trainers.families.adapters import HEADER
from trainers.families.base import ExportRequest, ModelError
from trainers.families.cogvideox.base_model import BaseModel
from trainers.families.cogvideox.checkpoint import POSITIONS, PREFIX, Take, read_take, transformer_folder
from trainers.families.cogvideox.config import FAMILY
from trainers.families.files import read_json
from trainers.families.weights import State
from trainers.families.writing import (
    cast,
    check_range,
    difference,
    in_words,
    linear_outputs,
    match,
    merged,
    write_lora,
    write_whole,
)
from trainers.lora import Lora


def export(request: ExportRequest) -> str:
    """Write a checkpoint or any file that is read here as `request.format`; a sentence on what was written.

    diffusers-lora: the LoRA alone, alpha folded in, so that scale 1 is right. diffusers: a whole transformer folder; a
    LoRA is merged into the transformer of the base that it was trained on.
    """
    if request.format not in FAMILY.export_formats:
        raise ModelError(f"format {request.format!r} is not known; known: {', '.join(FAMILY.export_formats)}")
    if request.out.exists() or request.out.is_symlink():
        raise ModelError(f"{request.out} exists already; choose another name or remove it first")
    take = read_take(request.checkpoint)
    if take.kind != "lora" and (request.strength != 1 or request.onto is not None):
        raise ModelError(f"{take.path} is no LoRA: only a LoRA is merged into something or has a strength")
    return _export_lora(request, take) if request.format == "diffusers-lora" else _export_transformer(request, take)


def _export_lora(request: ExportRequest, take: Take) -> str:
    if take.kind != "lora":
        raise ModelError(f"{take.path} is no LoRA, and format {request.format} holds nothing else; diffusers fits")
    if request.onto is not None:
        raise ModelError("--onto is for a LoRA that is merged: format diffusers")
    adapter = {path: layer.folded(request.strength) for path, layer in take.lora.items()}
    check_range(adapter, request)
    facts = {key: value for key, value in take.meta.items() if isinstance(value, (str, int, float, bool, list))}
    told = write_lora(request, adapter, PREFIX, {HEADER: json.dumps(facts)}, lambda path: read_take(path).lora)
    ranks = sorted({layer.rank for layer in adapter.values()})
    return (
        f"wrote {request.out}: {2 * len(adapter)} keys matched on {len(adapter)} layers, rank "
        f"{' and '.join(map(str, ranks))}, {request.dtype}, strength {request.strength:g} of the checkpoint's at scale "
        f"1, {told}"
    )


def _export_transformer(request: ExportRequest, take: Take) -> str:
    state, config, adapter = _source(request, take)
    whole = merged(state, adapter, str(take.path), "the base's transformer") if adapter else state
    target = {key: cast(value, key, request).contiguous() for key, value in whole.items()}

    def write(path: Path) -> None:
        with torch.device("meta"):
            model = CogVideoXTransformer3DModel.from_config(config)
        model.load_state_dict(target, strict=True, assign=True)
        model.save_pretrained(path)

    def check(path: Path) -> float:
        again = read_take(path).state
        match(again, target, path)
        return difference(linear_outputs(state, adapter), linear_outputs(again, {}), request)

    found = write_whole(request.out, write, check)
    with_lora = f"the LoRA merged at strength {request.strength:g}, " if adapter else ""
    return f"wrote {request.out}: {len(target)} keys matched, {request.dtype}, {with_lora}{in_words(found)}"


def _source(request: ExportRequest, take: Take) -> tuple[State, dict[str, Any], dict[str, Lora]]:
    """(transformer, its config, LoRA to merge at strength 1 or {}), the weights in float32."""
    if take.kind == "full":
        config = read_json(transformer_folder(take.path) / "config.json")
        return _in_full(take.state), config, {}
    source = take.meta.get("base_model") if request.onto is None else request.onto
    if source is None:
        raise ModelError(
            f"{take.path} is a LoRA that does not say which base model it was trained on, so it cannot be merged into "
            "one; say --onto, or export a checkpoint folder with its meta.json"
        )
    base = BaseModel(str(source))
    below = read_take(base.path / PREFIX)
    config, state = read_json(base.path / PREFIX / "config.json"), _in_full(below.state)
    if take.meta.get("learned_positions") is False and POSITIONS in state:  # it was trained without them
        del state[POSITIONS]
        config["use_learned_positional_embeddings"] = False
    return state, config, {path: layer.folded(request.strength) for path, layer in take.lora.items()}


def _in_full(state: Mapping[str, torch.Tensor]) -> State:
    return {key: value.detach().float() for key, value in state.items()}
