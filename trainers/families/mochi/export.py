"""Checkpoints in the formats of the field. Every file is read again, matched key by key, and compared by what it
computes, before it gets its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import MochiTransformer3DModel
from safetensors.torch import save_file

from trainers.families.adapters import HEADER
from trainers.families.base import ExportRequest, ModelError
from trainers.families.files import read_tensors
from trainers.families.mochi import names
from trainers.families.mochi.base_model import EXACT, BaseModel
from trainers.families.mochi.checkpoint import KWARGS, PREFIX, Take, read_take
from trainers.families.mochi.config import FAMILY, MochiSampleConfig
from trainers.families.mochi.facts import GENMO_FILES
from trainers.families.weights import State
from trainers.families.writing import (
    DTYPES,
    cast,
    check_range,
    difference,
    in_words,
    linear_outputs,
    lora_outputs,
    match,
    merged,
    write_lora,
    write_whole,
)
from trainers.lora import Lora


def export(request: ExportRequest) -> str:
    """Write a checkpoint or any file that is read here as `request.format`; a sentence on what was written.

    diffusers-lora, genmo-lora: the LoRA alone, alpha folded in, so that scale 1 is right. diffusers, genmo: a whole
    transformer; a LoRA is merged into the transformer of the base that it was trained on.
    """
    if request.format not in FAMILY.export_formats:
        raise ModelError(f"format {request.format!r} is not known; known: {', '.join(FAMILY.export_formats)}")
    if request.out.exists() or request.out.is_symlink():
        raise ModelError(f"{request.out} exists already; choose another name or remove it first")
    take = read_take(request.checkpoint)
    if take.kind != "lora" and (request.strength != 1 or request.onto is not None):
        raise ModelError(f"{take.path} is no LoRA: only a LoRA is merged into something or has a strength")
    return _export_lora(request, take) if request.format.endswith("-lora") else _export_transformer(request, take)


# --- LoRAs -----------------------------------------------------------------------------------------------------------


def _export_lora(request: ExportRequest, take: Take) -> str:
    if take.kind != "lora":
        whole = request.format.removesuffix("-lora")
        raise ModelError(f"{take.path} is no LoRA, and format {request.format} holds nothing else; {whole} fits")
    if request.onto is not None:
        raise ModelError("--onto is for a LoRA that is merged: format diffusers or genmo")
    adapter = {path: layer.folded(request.strength) for path, layer in take.lora.items()}
    check_range(adapter, request)
    facts = {key: value for key, value in take.meta.items() if isinstance(value, (str, int, float, bool, list))}
    notes = {HEADER: json.dumps(facts)}
    if request.format == "genmo-lora":
        return _export_genmo_lora(request, take, adapter, notes)
    told = write_lora(request, adapter, PREFIX, notes, lambda path: read_take(path).lora)
    ranks = sorted({layer.rank for layer in adapter.values()})
    return (
        f"wrote {request.out}: {2 * len(adapter)} keys matched on {len(adapter)} layers, rank "
        f"{' and '.join(map(str, ranks))}, {request.dtype}, strength {request.strength:g} of the checkpoint's at scale "
        f"1, {told}"
    )


def _export_genmo_lora(request: ExportRequest, take: Take, adapter: dict[str, Lora], notes: dict[str, str]) -> str:
    if request.out.suffix != ".safetensors":
        raise ModelError(f"{request.out} must end in .safetensors: Genmo's LoRA is a single file")
    state, kwargs = names.lora_to_genmo(adapter, str(take.path))
    target = {key: value.to(DTYPES[request.dtype]).contiguous() for key, value in state.items()}

    def check(path: Path) -> float:
        match(read_tensors(path)[0], target, path)
        return difference(_as_asked(adapter, {}), _as_asked(read_take(path).lora, adapter), request)

    found = _write_file(request.out, target, {**notes, KWARGS: json.dumps(kwargs)}, check)
    return (
        f"wrote {request.out}: {len(target)} keys matched, rank {kwargs['qkv_proj_lora_rank']} of query, key and value "
        f"and {kwargs['out_proj_lora_rank']} of outputs, {request.dtype}, strength {request.strength:g} of the "
        f"checkpoint's at scale 1, {in_words(found)}"
    )


def _as_asked(adapter: Mapping[str, Lora], only: Mapping[str, Lora]) -> dict[str, torch.Tensor]:
    """What each layer adds for a fixed input, of the layers of `only` where there are such: a part of Genmo's fused
    layer without a LoRA comes back as one that adds nothing."""
    return lora_outputs({path: layer for path, layer in adapter.items() if not only or path in only})


# --- whole transformers ----------------------------------------------------------------------------------------------


def _export_transformer(request: ExportRequest, take: Take) -> str:
    state, config, adapter = _source(request, take)
    whole = merged(state, adapter, str(take.path), "the base's transformer") if adapter else state
    target = {key: _cast(value, key, request) for key, value in whole.items()}
    if request.format == "genmo":
        if request.out.suffix != ".safetensors":
            raise ModelError(f"{request.out} must end in .safetensors: Genmo's transformer is a single file")
        theirs = names.to_genmo(target, names.transformer_rules(target), str(take.path))
        written = {key: value.contiguous() for key, value in theirs.items()}
    else:
        written = target

    def write_folder(path: Path) -> None:
        with torch.device("meta"):
            model = MochiTransformer3DModel.from_config(config)
        model.load_state_dict(target, strict=True, assign=True)
        model.save_pretrained(path)

    def check(path: Path) -> float:
        again = read_take(path).state
        match(again, target, path)
        return difference(linear_outputs(state, adapter), linear_outputs(again, {}), request)

    if request.format == "genmo":
        found = _write_file(request.out, written, {}, check)
    else:
        found = write_whole(request.out, write_folder, check)
    with_lora = f"the LoRA merged at strength {request.strength:g}, " if adapter else ""
    return f"wrote {request.out}: {len(written)} keys matched, {request.dtype}, {with_lora}{in_words(found)}"


def _source(request: ExportRequest, take: Take) -> tuple[State, dict[str, Any], dict[str, Lora]]:
    """(transformer, its settings, LoRA to merge at strength 1 or {})."""
    if take.kind == "full":
        return take.state, take.config, {}
    source = take.meta.get("base_model") if request.onto is None else request.onto
    if source is None:
        raise ModelError(
            f"{take.path} is a LoRA that does not say which base model it was trained on, so it cannot be merged into "
            "one; say --onto, or export a checkpoint folder with its meta.json"
        )
    base = BaseModel(str(source), MochiSampleConfig.model_fields["text_encoder"].default)
    below = read_take(base.path / (GENMO_FILES[0] if base.genmo else PREFIX))
    return below.state, below.config, {path: layer.folded(request.strength) for path, layer in take.lora.items()}


def _cast(value: torch.Tensor, key: str, request: ExportRequest) -> torch.Tensor:
    """Positions stay in 32 bits."""
    return value.float() if key == EXACT else cast(value, key, request).contiguous()


def _write_file(
    out: Path, state: Mapping[str, torch.Tensor], header: Mapping[str, str], check: Callable[[Path], float]
) -> float:
    def write(path: Path) -> None:
        save_file(dict(state), path, metadata={"format": "pt", **header})

    return write_whole(out, write, check)
