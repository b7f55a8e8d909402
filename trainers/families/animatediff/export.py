"""Checkpoints in the formats of the field. Every file is read again, matched key by key, and compared by what it
computes, before it gets its name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from safetensors.torch import save_file

from trainers import lora
from trainers.families.animatediff import motion_lora
from trainers.families.animatediff.checkpoint import (
    HEADER,
    MotionFacts,
    Take,
    build_adapter,
    check_mid_block,
    find_adapter,
    motion_part,
    parse_original,
    read_folder,
    read_motion,
    read_take,
    to_original,
)
from trainers.families.animatediff.config import FAMILY
from trainers.families.animatediff.denoiser import stretched
from trainers.families.animatediff.positions import told_version
from trainers.families.base import ExportRequest, ModelError
from trainers.families.files import PICKLES, WEIGHTS, read_tensors
from trainers.families.weights import State
from trainers.families.writing import (
    DTYPES,
    cast,
    check_range,
    difference,
    generators,
    in_words,
    lora_outputs,
    match,
    merged,
    write_lora,
    write_whole,
)
from trainers.lora import Lora, some

MODULE_FORMATS = ("original", "diffusers")
PREFIX = "unet"  # diffusers' name of the layers' model in a LoRA file
CONVENTIONS = ("norm_semantics", "beta_schedule", "prediction_type")
STRETCH = "motion_module_pe_multiplier"  # what a LoRA's motion module needs before it fits; a module has had it


def export(request: ExportRequest) -> str:
    """Write a checkpoint or any file that is read here as `request.format`; a sentence on what was written.

    original: a motion module file, encodings included. diffusers: a MotionAdapter folder. Both are whole motion
    modules: a LoRA is merged into the one that it was trained on. motion-lora, diffusers-lora: the LoRA alone.
    """
    if request.format not in FAMILY.export_formats:
        raise ModelError(f"format {request.format!r} is not known; known: {', '.join(FAMILY.export_formats)}")
    if request.out.exists() or request.out.is_symlink():
        raise ModelError(f"{request.out} exists already; choose another name or remove it first")
    _check_ending(request)
    take = read_take(request.checkpoint)
    if take.kind != "lora" and (request.strength != 1 or request.onto is not None):
        raise ModelError(f"{take.path} is no LoRA: only a LoRA is merged into something or has a strength")
    if request.format in MODULE_FORMATS:
        return _export_module(request, take)
    return _export_lora(request, take)


def merge_lora(adapter: Path, strength: float, onto: Path, out: Path) -> str:
    """Write the motion module `onto` with a LoRA merged into it, in original naming; a sentence on what was written."""
    return export(ExportRequest(adapter, "original", out, strength=strength, onto=str(onto)))


def _check_ending(request: ExportRequest) -> None:
    if request.format in ("original", "motion-lora") and request.out.suffix not in (".safetensors", *PICKLES):
        raise ModelError(f"{request.out} needs an ending that says what it is: .safetensors, .ckpt or .pth")


# --- motion modules --------------------------------------------------------------------------------------------------


def _export_module(request: ExportRequest, take: Take) -> str:
    base, facts, adapter = _source(request, take)
    state = {key: _cast(value, key, request) for key, value in merge(base, adapter, str(take.path)).items()}
    target = to_original(state) if request.format == "original" else state
    header = {HEADER: json.dumps({**facts.as_meta(), **_conventions(take)})}

    def write(path: Path) -> None:
        if request.format == "original":
            _save(target, path, header)
        else:
            path.mkdir()
            build_adapter(state, facts, groups_of(facts, state), str(path)).save_config(path)
            _save(target, path / WEIGHTS, header)

    def check(path: Path) -> float:
        if request.format == "original":
            found, told = read_tensors(path)
            again, facts_again = parse_original(found, told, path)
        else:
            again, facts_again, told = read_folder(path, {})
            found = again
        match(found, target, path)
        if told and facts_again.version != facts.version:  # a pickle has no header to tell
            raise ModelError(f"{path} was written, but came back as a {facts_again.version}, not a {facts.version}")
        return difference(module_outputs(base, facts, adapter), module_outputs(again, facts, {}), request)

    found = write_whole(request.out, write, check)
    with_lora = f"the LoRA merged at strength {request.strength:g}, " if adapter else ""
    return (
        f"wrote {request.out}: {len(target)} keys matched, {facts.positions} positions, "
        f"{'with' if facts.mid_block else 'without'} mid block, {request.dtype}, {with_lora}"
        f"{in_words(found)}{_remarks(request, take, facts)}"
    )


def _source(request: ExportRequest, take: Take) -> tuple[State, MotionFacts, dict[str, Lora]]:
    """(motion module, facts, LoRA to merge at strength 1 or {}), in float32."""
    if take.facts is not None:
        return _in_full(motion_part(take.state)), take.facts, {}
    source = take.meta.get("motion_adapter") if request.onto is None else request.onto
    if source is None:
        raise ModelError(
            f"{take.path} is a LoRA that does not say which motion adapter it was trained on, so it cannot be merged "
            "into one; say --onto, or export a checkpoint folder with its meta.json"
        )
    image = motion_lora.image_layers(take.lora)
    if image:
        raise ModelError(
            f"{take.path} is a LoRA of {motion_lora.covered(take.lora)}: {some(image)} are no layers of a motion "
            "module; format diffusers-lora holds them"
        )
    state, facts = read_motion(find_adapter(str(source)))
    times = int(take.meta.get(STRETCH, 1))
    if dict(take.meta.get("motion") or {}).get("positions") != facts.positions:  # else it is stretched already
        state, facts = stretched(state, times), replace(facts, positions=facts.positions * times)
    return _in_full(state), facts, {path: layer.folded(request.strength) for path, layer in take.lora.items()}


def merge(state: Mapping[str, torch.Tensor], adapter: Mapping[str, Lora], source: str) -> State:
    """A copy of `state` with a LoRA added; ModelError when it is for other layers or shapes."""
    unknown = [path for path in adapter if f"{path}.weight" not in state]
    check_mid_block(unknown, source)
    return merged(state, adapter, source, "the motion adapter")


def module_outputs(state: State, facts: MotionFacts, adapter: Mapping[str, Lora]) -> dict[str, torch.Tensor]:
    """What each motion module adds to a fixed random input, with a LoRA beside it rather than merged into it."""
    motion = build_adapter(_in_full(state), facts, groups_of(facts, state), "the motion module")
    motion.requires_grad_(False)
    if adapter:
        with torch.random.fork_rng(devices=[]):
            ranks = {path: layer.rank for path, layer in adapter.items()}
            lora.inject(motion, ranks, {path: layer.alpha for path, layer in adapter.items()})
        lora.fill(motion, adapter)
    motion.eval()
    frames = min(facts.positions, 16)
    outputs = {}
    for (name, module), generator in zip(_modules(motion), generators(), strict=False):
        given = torch.randn(frames, module.norm.num_channels, 2, 2, generator=generator)  # (f, c, h, w)
        outputs[name] = module(given, num_frames=frames) - given
    return outputs


def _modules(motion: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in motion.named_modules():
        if isinstance(module, AnimateDiffTransformer3D):
            yield name, module


def groups_of(facts: MotionFacts, state: Mapping[str, torch.Tensor]) -> int:
    """Groups of the modules' norms: as the facts say, or the 32 of every published module, or the most that fit."""
    if facts.groups:
        return facts.groups
    sizes = [value.shape[0] for key, value in state.items() if key.endswith(".motion_modules.0.norm.weight")]
    return next(groups for groups in range(32, 0, -1) if all(size % groups == 0 for size in sizes))


def _remarks(request: ExportRequest, take: Take, facts: MotionFacts) -> str:
    """What a person should know of how the file will be taken elsewhere."""
    told = ""
    if take.kind == "full":
        told += "; the weights of its image model are no part of this format"
    if request.format == "original" and facts.positions not in (24, 32):
        told += "; sd-webui reads 24 or 32 positions only"
    if request.format == "original" and facts.version != told_version(facts.positions, facts.mid_block):
        told += f"; ComfyUI will take it for a {told_version(facts.positions, facts.mid_block)} and compute norms so"
    return told


# --- LoRAs -----------------------------------------------------------------------------------------------------------


def _export_lora(request: ExportRequest, take: Take) -> str:
    if take.kind != "lora":
        raise ModelError(
            f"{take.path} is no LoRA, and format {request.format} holds nothing else; formats that fit: "
            f"{', '.join(MODULE_FORMATS)}"
        )
    if request.onto is not None:
        raise ModelError(f"--onto is for a LoRA that is merged: formats {', '.join(MODULE_FORMATS)}")
    image = motion_lora.image_layers(take.lora)
    if request.format == "motion-lora" and image:
        raise ModelError(
            f"{take.path} is a LoRA of {motion_lora.covered(take.lora)}: format motion-lora has no place for "
            f"{some(image)}; format diffusers-lora has"
        )
    adapter = {path: layer.folded(request.strength) for path, layer in take.lora.items()}
    check_range(adapter, request)
    header = {HEADER: json.dumps({**_conventions(take), STRETCH: int(take.meta.get(STRETCH, 1))})}
    if request.format == "motion-lora":
        target = motion_lora.to_original(adapter, DTYPES[request.dtype])

        def check(path: Path) -> float:
            match(read_tensors(path)[0], target, path)
            return difference(lora_outputs(adapter), lora_outputs(read_take(path).lora), request)

        told = in_words(write_whole(request.out, lambda path: _save(target, path, header), check))
    else:
        told = write_lora(request, adapter, PREFIX, header, lambda path: read_take(path).lora)
    ranks = sorted({layer.rank for layer in adapter.values()})
    remark = ""
    if request.format == "diffusers-lora" and any(path.endswith((".proj_in", ".proj_out")) for path in adapter):
        # It calls those of a motion module by keyword (proj_in(input=...)), which PEFT's layers do not take.
        remark = "; diffusers runs its proj_in and proj_out after pipe.fuse_lora() and pipe.unload_lora_weights() only"
    return (
        f"wrote {request.out}: {2 * len(adapter)} keys matched on {len(adapter)} layers, "
        f"rank {' and '.join(map(str, ranks))}, {request.dtype}, strength {request.strength:g} of the checkpoint's, "
        f"{told}{remark}"
    )


# --- writing and checking --------------------------------------------------------------------------------------------


def _in_full(state: Mapping[str, torch.Tensor]) -> State:
    return {key: value.detach().float().contiguous() for key, value in state.items()}


def _cast(value: torch.Tensor, key: str, request: ExportRequest) -> torch.Tensor:
    """A weight in the asked precision. Positional encodings stay float32, as the original's buffers are."""
    return value if key.endswith(".pe") else cast(value, key, request)


def _conventions(take: Take) -> dict[str, Any]:
    """How the weights are meant to be computed with, for the file's header; the original's norms where none says."""
    return {"norm_semantics": "original", **{name: take.meta[name] for name in CONVENTIONS if name in take.meta}}


def _save(state: Mapping[str, torch.Tensor], path: Path, header: Mapping[str, str]) -> None:
    """A safetensors file with a header, or a pickle of tensors, which has none."""
    if path.suffix == ".safetensors":
        save_file(dict(state), path, metadata={**header, "format": "pt"})
    else:
        torch.save(dict(state), path)
