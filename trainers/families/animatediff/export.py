"""Checkpoints in the formats of the field. Every file is read again, matched key by key, and compared by what it
computes, before it gets its name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from safetensors import SafetensorError
from safetensors.torch import save_file

from trainers import lora
from trainers.families.animatediff import motion_lora
from trainers.families.animatediff.checkpoint import (
    HEADER,
    WEIGHTS,
    MotionFacts,
    State,
    Take,
    build_adapter,
    check_fit,
    find_adapter,
    motion_part,
    parse_original,
    read_folder,
    read_motion,
    read_take,
    to_original,
    told_version,
)
from trainers.families.animatediff.config import FAMILY
from trainers.families.animatediff.denoiser import stretched
from trainers.families.animatediff.files import PICKLES, read_tensors
from trainers.families.base import ExportRequest, ModelError
from trainers.lora import Lora, some

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
MODULE_FORMATS = ("original", "diffusers")
PREFIX = "unet"  # diffusers' name of the layers' model in a LoRA file
CONVENTIONS = ("norm_semantics", "beta_schedule", "prediction_type")
STRETCH = "motion_module_pe_multiplier"  # what a LoRA's motion module needs before it fits; a module has had it
#: How far an output of what was written may lie from that of its source, relative to what the weights add to it.
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3}


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
        _match(found, target, path)
        if told and facts_again.version != facts.version:  # a pickle has no header to tell
            raise ModelError(f"{path} was written, but came back as a {facts_again.version}, not a {facts.version}")
        return _difference(module_outputs(base, facts, adapter), module_outputs(again, facts, {}), request)

    difference = _write_whole(request.out, write, check)
    merged = f"the LoRA merged at strength {request.strength:g}, " if adapter else ""
    return (
        f"wrote {request.out}: {len(target)} keys matched, {facts.positions} positions, "
        f"{'with' if facts.mid_block else 'without'} mid block, {request.dtype}, {merged}"
        f"{_in_words(difference)}{_remarks(request, take, facts)}"
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
    if unknown:
        raise ModelError(f"{source} has adapters for layers that the motion adapter lacks: {some(unknown)}")
    merged = dict(state)
    for path, layer in adapter.items():
        weight, change = state[f"{path}.weight"], layer.delta()
        if weight.shape != change.shape:
            raise ModelError(
                f"{source} does not fit the motion adapter: {path} is {tuple(weight.shape)}, but its adapter is for "
                f"{tuple(change.shape)}"
            )
        merged[f"{path}.weight"] = weight + change
    return merged


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
    for (name, module), generator in zip(_modules(motion), _generators(), strict=False):
        given = torch.randn(frames, module.norm.num_channels, 2, 2, generator=generator)  # (f, c, h, w)
        outputs[name] = module(given, num_frames=frames) - given
    return outputs


def _modules(motion: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in motion.named_modules():
        if isinstance(module, AnimateDiffTransformer3D):
            yield name, module


def _generators() -> Iterator[torch.Generator]:
    seed = 0
    while True:
        yield torch.Generator().manual_seed(seed)
        seed += 1


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
    dtype = DTYPES[request.dtype]
    for path, layer in adapter.items():
        if not all(half.to(dtype).isfinite().all() for half in (layer.down, layer.up)):
            raise ModelError(f"{take.path} has numbers at {path} that {request.dtype} cannot hold; use --dtype fp32")
    header = {HEADER: json.dumps({**_conventions(take), STRETCH: int(take.meta.get(STRETCH, 1))})}
    target = motion_lora.to_original(adapter, dtype) if request.format == "motion-lora" else None

    def write(path: Path) -> None:
        if target is not None:
            _save(target, path, header)
        else:
            if path.suffix != ".safetensors":
                path.mkdir()
            lora.write_folded(_lora_file(path), adapter, PREFIX, dtype, header)

    def check(path: Path) -> float:
        found, _ = read_tensors(_lora_file(path))
        wanted = lora.folded_state(adapter, PREFIX, dtype) if target is None else target
        _match(found, wanted, path)
        again = read_take(path)
        return _difference(lora_outputs(adapter), lora_outputs(again.lora), request)

    difference = _write_whole(request.out, write, check)
    ranks = sorted({layer.rank for layer in adapter.values()})
    remark = ""
    if request.format == "diffusers-lora" and any(path.endswith((".proj_in", ".proj_out")) for path in adapter):
        # It calls those of a motion module by keyword (proj_in(input=...)), which PEFT's layers do not take.
        remark = "; diffusers runs its proj_in and proj_out after pipe.fuse_lora() and pipe.unload_lora_weights() only"
    return (
        f"wrote {request.out}: {2 * len(adapter)} keys matched on {len(adapter)} layers, "
        f"rank {' and '.join(map(str, ranks))}, {request.dtype}, strength {request.strength:g} of the checkpoint's, "
        f"{_in_words(difference)}{remark}"
    )


def _lora_file(path: Path) -> Path:
    return path / lora.FILE_NAME if path.is_dir() else path


def lora_outputs(adapter: Mapping[str, Lora]) -> dict[str, torch.Tensor]:
    """What each layer of a LoRA adds for a fixed random input."""
    outputs = {}
    for (path, layer), generator in zip(sorted(adapter.items()), _generators(), strict=False):
        given = torch.randn(4, layer.down.shape[1], generator=generator)  # (n, in)
        outputs[path] = given @ layer.down.float().T @ layer.up.float().T * (layer.alpha / layer.rank)
    return outputs


# --- writing and checking --------------------------------------------------------------------------------------------


def _in_full(state: Mapping[str, torch.Tensor]) -> State:
    return {key: value.detach().float().contiguous() for key, value in state.items()}


def _cast(value: torch.Tensor, key: str, request: ExportRequest) -> torch.Tensor:
    """A weight in the asked precision. Positional encodings stay float32, as the original's buffers are."""
    cast = value if key.endswith(".pe") else value.to(DTYPES[request.dtype])
    if not cast.isfinite().all():
        raise ModelError(
            f"{request.checkpoint} has numbers at {key} that {request.dtype} cannot hold"
            + ("; use --dtype fp32" if request.dtype == "fp16" else "")
        )
    return cast


def _conventions(take: Take) -> dict[str, Any]:
    """How the weights are meant to be computed with, for the file's header; the original's norms where none says."""
    return {"norm_semantics": "original", **{name: take.meta[name] for name in CONVENTIONS if name in take.meta}}


def _save(state: Mapping[str, torch.Tensor], path: Path, header: Mapping[str, str]) -> None:
    """A safetensors file with a header, or a pickle of tensors, which has none."""
    if path.suffix == ".safetensors":
        save_file(dict(state), path, metadata={**header, "format": "pt"})
    else:
        torch.save(dict(state), path)


def _match(found: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], path: Path) -> None:
    """ModelError unless a file came back with exactly these keys and numbers."""
    check_fit({key: value.shape for key, value in target.items()}, found, str(path))
    changed = [key for key, value in target.items() if not torch.equal(found[key], value)]
    if changed:
        raise ModelError(f"{path} was written, but {some(changed)} came back changed; it has been removed")


def _difference(source: Mapping[str, torch.Tensor], again: Mapping[str, torch.Tensor], request: ExportRequest) -> float:
    """The largest difference between outputs, relative to the outputs; ModelError where it is beyond the tolerance."""
    largest = 0.0
    hint = ", use --dtype fp32" if request.dtype == "fp16" else ""
    for name, output in source.items():
        apart = float((again[name] - output).abs().max())
        relative = apart / max(float(output.abs().max()), 1e-3)
        if not relative <= TOLERANCE[request.dtype]:
            raise ModelError(
                f"{request.out} was written, but {name} computes something else when it is read again (by "
                f"{relative:.1e} of its output); it has been removed{hint}"
            )
        largest = max(largest, relative)
    return largest


def _in_words(difference: float) -> str:
    return "read again, outputs equal" if difference == 0 else f"read again, outputs within {difference:.0e} of theirs"


def _write_whole(out: Path, write: Callable[[Path], None], check: Callable[[Path], float]) -> float:
    """Write beside, check, and only then give it its name; what `check` gave."""
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{os.getpid()}-{out.name}")
    try:
        with _writing(out):
            write(beside)
        with torch.no_grad():
            difference = check(beside)
        beside.rename(out)
        return difference
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """ModelError where nothing can be written: a folder that is closed to us, a full disk."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{out} cannot be written: {str(error).splitlines()[0]}") from error
