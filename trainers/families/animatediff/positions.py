"""What a motion module is by its form: how many frames it takes, read from its file's table of contents, and which
version that makes it. No torch, no weights, no code.

A safetensors file begins with the shapes of its tensors. A ``torch.save`` file is a zip whose ``data.pkl`` holds them
too; that pickle is read with everything but the shape of a tensor replaced by nothing.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

FOLDER_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_ENCODINGS = (".pos_encoder.pe", ".pos_embed.pe")
_LARGEST_HEADER = 100 * 1024 * 1024  # safetensors' own limit

Version = Literal["v1", "v2", "v3"]


def told_version(positions: int, mid_block: bool) -> Version:
    """The version as ComfyUI-AnimateDiff-Evolved tells it from the weights alone: a stretched v3 looks like a v1."""
    return "v2" if mid_block else "v3" if positions == 32 else "v1"


def motion_positions(adapter: str | None) -> int | None:
    """Positions of a motion adapter (a folder or file on this machine), or None where that cannot be told."""
    shapes = _shapes(adapter)
    lengths = {int(shape[1]) for key, shape in shapes.items() if key.endswith(_ENCODINGS) and len(shape) == 3}
    return lengths.pop() if len(lengths) == 1 else None


def is_lora_file(adapter: str | None) -> bool:
    """Whether a file on this machine holds the weights of a LoRA, and so is no motion module."""
    return any("lora_A." in key or "_lora." in key or ".lora." in key for key in _shapes(adapter))


def _shapes(adapter: str | None) -> dict[str, tuple[int, ...]]:
    """Shapes by key of a folder's or file's weights; {} where they cannot be told."""
    if adapter is None:
        return {}
    path = Path(adapter).expanduser()
    if path.is_dir():
        path = next((path / name for name in FOLDER_WEIGHTS if (path / name).is_file()), path)
    try:
        if not path.is_file():
            return {}
        return _safetensors_shapes(path) if path.suffix == ".safetensors" else _pickled_shapes(path)
    except (OSError, ValueError, KeyError, TypeError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile):
        return {}  # whoever reads the weights says what is wrong with them


def _safetensors_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with file.open("rb") as handle:
        (size,) = struct.unpack("<Q", handle.read(8))
        if size > _LARGEST_HEADER:
            raise ValueError("no safetensors file")
        header = json.loads(handle.read(size))
    return {key: tuple(entry["shape"]) for key, entry in header.items() if key != "__metadata__"}


class _Shape(tuple[int, ...]):
    """Stands for a tensor."""


class _Nothing:
    """Stands for whatever else a pickle speaks of; takes and does nothing."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class _Shapes(pickle.Unpickler):
    """Builds plain containers and shapes; no name in the file leads to code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, *rest: _Shape(size)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *rest: data
        return _Nothing

    def persistent_load(self, pid: Any) -> None:
        return None


def _pickled_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with zipfile.ZipFile(file) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(name) as handle:
            state = _Shapes(handle).load()
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    return {str(key): tuple(value) for key, value in dict(state).items() if isinstance(value, _Shape)}
