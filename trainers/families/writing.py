"""Writing what others read: beside its place, read again, compared by what it computes, and then given its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from trainers import lora
from trainers.errors import why
from trainers.families.base import ExportRequest, ModelError
from trainers.families.files import read_tensors
from trainers.families.weights import State, check_fit, shapes_of
from trainers.lora import Lora, some

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#: How far an output of what was written may lie from that of its source, relative to what the weights add to it.
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2}


def cast(value: torch.Tensor, key: str, request: ExportRequest) -> torch.Tensor:
    """A weight in the asked precision; ModelError where that cannot hold it."""
    found = value.to(DTYPES[request.dtype])
    if not found.isfinite().all():
        raise ModelError(
            f"{request.checkpoint} has numbers at {key} that {request.dtype} cannot hold"
            + ("; use --dtype fp32" if request.dtype != "fp32" else "")
        )
    return found


def merged(state: Mapping[str, torch.Tensor], adapter: Mapping[str, Lora], source: str, onto: str) -> State:
    """A copy of `state` with a LoRA added; ModelError when it is for other layers or shapes. onto: in words."""
    unknown = [path for path in adapter if f"{path}.weight" not in state]
    if unknown:
        raise ModelError(f"{source} has adapters for layers that {onto} lacks: {some(unknown)}")
    made = dict(state)
    for path, layer in adapter.items():
        weight, change = state[f"{path}.weight"], layer.delta()
        if weight.shape != change.shape:
            raise ModelError(
                f"{source} does not fit {onto}: {path} is {tuple(weight.shape)}, but its adapter is for "
                f"{tuple(change.shape)}"
            )
        made[f"{path}.weight"] = weight + change
    return made


def match(found: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], path: Path) -> None:
    """ModelError unless a file came back with exactly these keys and numbers."""
    check_fit(shapes_of(target), found, str(path))
    changed = [key for key, value in target.items() if not torch.equal(found[key], value)]
    if changed:
        raise ModelError(f"{path} was written, but {some(changed)} came back changed; it has been removed")


def difference(source: Mapping[str, torch.Tensor], again: Mapping[str, torch.Tensor], request: ExportRequest) -> float:
    """The largest difference between outputs, relative to the outputs; ModelError where it is beyond the tolerance."""
    largest = 0.0
    hint = ", use --dtype fp32" if request.dtype != "fp32" else ""
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


def in_words(difference: float) -> str:
    return "read again, outputs equal" if difference == 0 else f"read again, outputs within {difference:.0e} of theirs"


def lora_file(path: Path) -> Path:
    return path / lora.FILE_NAME if path.is_dir() else path


def lora_outputs(adapter: Mapping[str, Lora]) -> dict[str, torch.Tensor]:
    """What each layer of a LoRA adds for a fixed random input."""
    outputs = {}
    for (path, layer), generator in zip(sorted(adapter.items()), generators(), strict=False):
        given = torch.randn(4, layer.down.shape[1], generator=generator)  # (n, in)
        outputs[path] = given @ layer.down.float().T @ layer.up.float().T * (layer.alpha / layer.rank)
    return outputs


def linear_outputs(state: Mapping[str, torch.Tensor], adapter: Mapping[str, Lora]) -> dict[str, torch.Tensor]:
    """What each linear layer gives for a fixed random input, with a LoRA beside it rather than merged into it."""
    outputs = {}
    matrices = sorted(key for key, value in state.items() if key.endswith(".weight") and value.ndim == 2)
    for key, generator in zip(matrices, generators(), strict=False):
        given = torch.randn(4, state[key].shape[1], generator=generator)  # (n, in)
        outputs[key] = given @ state[key].float().T
        layer = adapter.get(key.removesuffix(".weight"))
        if layer is not None:
            outputs[key] += given @ layer.down.float().T @ layer.up.float().T * (layer.alpha / layer.rank)
    return outputs


def generators() -> Iterator[torch.Generator]:
    seed = 0
    while True:
        yield torch.Generator().manual_seed(seed)
        seed += 1


def write_lora(
    request: ExportRequest,
    adapter: Mapping[str, Lora],
    prefix: str,
    notes: Mapping[str, str],
    again: Callable[[Path], Mapping[str, Lora]],
) -> str:
    """Write a LoRA (as it is, at its full strength) in diffusers' naming, as the .safetensors file or the folder that
    the request names; in words, how it was checked. again: reads it."""

    def write(path: Path) -> None:
        if path.suffix != ".safetensors":
            path.mkdir()
        lora.write_folded(lora_file(path), adapter, prefix, DTYPES[request.dtype], notes)

    def check(path: Path) -> float:
        match(read_tensors(lora_file(path))[0], lora.folded_state(adapter, prefix, DTYPES[request.dtype]), path)
        return difference(lora_outputs(adapter), lora_outputs(again(path)), request)

    return in_words(write_whole(request.out, write, check))


def check_range(adapter: Mapping[str, Lora], request: ExportRequest) -> None:
    """ModelError where a LoRA has numbers that the asked precision cannot hold."""
    for path, layer in adapter.items():
        for half in (layer.down, layer.up):
            cast(half, path, request)


def write_whole(out: Path, write: Callable[[Path], None], check: Callable[[Path], float]) -> float:
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
        raise ModelError(f"{out} cannot be written: {why(error)}") from error
