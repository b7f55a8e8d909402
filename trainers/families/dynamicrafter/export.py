"""Checkpoints in the reference's files: whole models and LoRAs, read again before they get their names.

A whole model is passed on tensor by tensor, so that 10 GB merge in little memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from trainers.families.adapters import HEADER
from trainers.families.base import ExportRequest, ModelError
from trainers.families.dynamicrafter.base_model import BaseModel
from trainers.families.dynamicrafter.checkpoint import Take, lora_state, read_take
from trainers.families.dynamicrafter.config import FAMILY
from trainers.families.dynamicrafter.denoiser import in_reference
from trainers.families.dynamicrafter.names import PREFIXES, schedule_names
from trainers.families.files import PICKLES, read_tensors
from trainers.families.streaming import read_in_turn, write_tensors
from trainers.families.writing import DTYPES, check_range, match, write_whole
from trainers.lora import Lora, some

_UNET = PREFIXES["unet"]


def export(request: ExportRequest) -> str:
    """Write a checkpoint, or any file that is read here, as `request.format`; a sentence on what was written."""
    if request.format not in FAMILY.export_formats:
        raise ModelError(f"format {request.format!r} is not known; known: {', '.join(FAMILY.export_formats)}")
    if request.out.exists() or request.out.is_symlink():
        raise ModelError(f"{request.out} exists already; choose another name or remove it first")
    take = read_take(request.checkpoint)
    if take.kind != "lora" and request.strength != 1:
        raise ModelError(f"{take.path} is no LoRA: only a LoRA has a strength")
    if request.format == "lora":
        if take.kind != "lora":
            raise ModelError(f"{take.path} is no LoRA, and format lora holds nothing else; merged fits")
        if request.onto is not None:
            raise ModelError("--onto is for a LoRA that is merged: format merged")
        check_range(take.lora, request)
        return write_lora(request.out, take, DTYPES[request.dtype], request.strength)
    source = request.onto or take.meta.get("base_model")
    if source is None:
        raise ModelError(f"{take.path} does not say which base model it was trained on; say --onto")
    base = BaseModel(str(source), take.meta.get("variant") if request.onto is None else None)
    strengthened = {path: layer.folded(request.strength) for path, layer in take.lora.items()}
    return write_model(request.out, base, take, strengthened, DTYPES[request.dtype])


# --- a LoRA ----------------------------------------------------------------------------------------------------------


def write_lora(out: Path, take: Take, dtype: torch.dtype = torch.float32, strength: float = 1.0) -> str:
    """Write a LoRA in the fork's names, .safetensors with its rank and alpha in the header, or .ckpt as its trainer
    does; a sentence on it."""
    state = lora_state(take.lora, dtype)
    ranks = sorted({layer.rank for layer in take.lora.values()})
    facts: dict[str, Any] = {k: v for k, v in take.meta.items() if isinstance(v, (str, int, float, bool))}
    scale = scale_of(take.lora) * strength
    if take.described and len(ranks) == 1:
        facts |= {"rank": ranks[0], "alpha": scale * ranks[0]}

    def write(path: Path) -> None:
        if out.suffix in PICKLES:
            torch.save(state, path)
        else:
            save_file(state, path, metadata={"format": "pt", HEADER: json.dumps(facts)})

    def check(path: Path) -> float:
        match(read_tensors(path)[0], state, path)
        return 0.0

    write_whole(out, write, check)
    told = f"apply_lora.py needs --alpha {scale:g}" if take.described else "the file does not say its strength"
    return (
        f"wrote {out}: {len(state)} keys on {len(take.lora)} layers, rank {' and '.join(map(str, ranks))}, read again, "
        f"equal; {told}"
    )


def scale_of(adapter: Mapping[str, Lora]) -> float:
    """What `lora_b @ lora_a` is multiplied by; ModelError where layers differ, which the fork's files cannot say."""
    scales = {round(layer.alpha / layer.rank, 6) for layer in adapter.values()}
    if len(scales) > 1:
        raise ModelError(
            f"the LoRA has layers of several strengths ({some(map(str, scales))}), which such a file cannot hold"
        )
    first = next(iter(adapter.values()))
    return first.alpha / first.rank


# --- a whole model ---------------------------------------------------------------------------------------------------


def write_model(
    out: Path, base: BaseModel, take: Take, adapter: Mapping[str, Lora], dtype: torch.dtype | None = None
) -> str:
    """Write the base with a take: an adapter added to its layers, or a network in place of its own. dtype: of the
    weights; None: each as the base has it, a file of lower precision included. A sentence on it."""
    network = {in_reference(key): value for key, value in take.state.items()}
    _check(base, take, adapter, network)
    untouched = schedule_names(base.facts)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in base.tensors():
            found = network.get(name, value)
            layer = adapter.get(name.removeprefix(_UNET).removesuffix(".weight")) if name.endswith(".weight") else None
            if layer is not None and name.startswith(_UNET):
                found = value.float() + layer.delta()
            kept = name in untouched or not value.is_floating_point()
            yield name, found.to(value.dtype if kept or dtype is None else dtype)

    def write(path: Path) -> None:
        layout = {
            name: (value.dtype if dtype is None or name in untouched or not value.is_floating_point() else dtype,
                   tuple(value.shape))
            for name, value in base.tensors()
        }  # fmt: skip
        write_tensors(path, layout, _finite(tensors(), out), {"format": "pt"})
        if out.suffix in PICKLES:
            streamed = path.with_name(path.name + ".safetensors")
            path.rename(streamed)
            try:
                torch.save(load_file(streamed), path)  # which maps the file instead of reading it
            finally:
                streamed.unlink()

    def check(path: Path) -> float:
        for (name, found), (_, value) in zip(read_in_turn(path, base.keys()), tensors(), strict=True):
            if not torch.equal(found, value):
                raise ModelError(f"{out} was written, but {name} came back changed; it has been removed")
        return 0.0

    write_whole(out, write, check)
    what = f"a LoRA on {len(adapter)} layers merged" if adapter else f"{len(network)} trained tensors put in"
    count = len(base.keys())
    return f"wrote {out}: {count} keys, {what}, read again, equal{_name_told(out, base.facts.variant)}"


def _check(base: BaseModel, take: Take, adapter: Mapping[str, Lora], network: Mapping[str, torch.Tensor]) -> None:
    """ModelError unless a take fits the base."""
    known = set(base.keys())
    wanted: dict[str, tuple[int, ...]] = {
        f"{_UNET}{path}.weight": (layer.up.shape[0], layer.down.shape[1]) for path, layer in adapter.items()
    }
    wanted |= {name: tuple(value.shape) for name, value in network.items()}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ModelError(f"{take.path} does not fit {base.source}, which has no {some(unknown)}")
    for name, value in base.tensors(wanted):
        if tuple(value.shape) != tuple(wanted[name]):
            raise ModelError(
                f"{take.path} does not fit {base.source}: {name} is {tuple(value.shape)} there, and "
                f"{tuple(wanted[name])} here"
            )


def _finite(tensors: Iterator[tuple[str, torch.Tensor]], out: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in tensors:
        if value.is_floating_point() and value.itemsize < 4 and not value.isfinite().all():
            raise ModelError(f"{out} cannot be written: {name} has numbers that {value.dtype} cannot hold; use fp32")
        yield name, value


# --- names of files --------------------------------------------------------------------------------------------------


def told_by_name(name: str) -> str | None:
    """The model that ComfyUI's DynamiCrafterWrapper takes a file for, by its name, in the order that it looks."""
    lowered = name.lower()
    if "toon" in lowered and "512" in lowered:
        return "toon"
    if "interp" in lowered and "512" in lowered:
        return "512-interp"
    return next((variant for variant in ("1024", "512", "256") if variant in lowered), None)


def name_for(variant: str, what: str, suffix: str) -> str:
    """A file name by which a model of that variant is recognised."""
    beginning = f"dynamicrafter_{variant.replace('-', '_')}"
    name = f"{beginning}_{what}{suffix}"
    return name if told_by_name(name) == variant else f"{beginning}_merged{suffix}"


def _name_told(out: Path, variant: str) -> str:
    taken = told_by_name(out.name)
    if taken == variant:
        return ""
    mistaken = "does not recognise this name" if taken is None else f"takes a file of this name for {taken}"
    return f"; ComfyUI's DynamiCrafterWrapper {mistaken}: call it {name_for(variant, 'NAME', out.suffix)} there"
