"""Clips that another trainer has encoded, Genmo's or one built on diffusers: what lies beside a video, without torch.

``a.latent.pt`` holds the posterior in raw VAE space: Genmo's ``mean`` and ``logvar``, each (1, 12, t, h, w), or the
other's ``ldist``, both behind one another as (1, 24, t, h, w). ``a.embed.pt`` holds ``y_feat`` [(1, 256, 4096)] and
``y_mask`` [(1, 256)], each a list of one, or ``prompt_embeds`` and ``prompt_attention_mask`` of these shapes.

A .pt file is a zip whose ``data.pkl`` is a pickle: the unpickler here knows the shapes of tensors and nothing else, so
a file that would run something is refused before anything is loaded.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.data.clips import DatasetError
from trainers.data.facts import sha256_of
from trainers.data.formats.prepared import beside
from trainers.errors import why
from trainers.families.base import Prepared

LATENT_CHANNELS, MAX_TOKENS = 12, 256
FRAMES_PER_LATENT, PIXELS_PER_LATENT = 6, 8
_LONGEST_PICKLE = 1_000_000  # bytes; that of such a file has some hundreds
#: How a pickle or a zip that is damaged, or made to be, fails.
_DAMAGED = (
    zipfile.BadZipFile, pickle.UnpicklingError, struct.error, zlib.error, ArithmeticError, AssertionError,
    AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A tensor as its file describes it. dtype: such as Float or BFloat16."""

    size: tuple[int, ...]
    dtype: str


def prepared(video: Path) -> Prepared:
    """What lies encoded beside a video. DatasetError, one sentence, where it cannot be trained from."""
    latent, embed = beside(video)
    latents, length = _shapes_of(latent), _shapes_of(embed)
    frames, height, width = _posterior(latents, latent.name)
    _text(length, embed.name)
    return Prepared(
        num_frames=(frames - 1) * FRAMES_PER_LATENT + 1,
        height=height * PIXELS_PER_LATENT,
        width=width * PIXELS_PER_LATENT,
        sha256=hashlib.sha256((_digest(latent) + _digest(embed)).encode()).hexdigest(),
    )


def _posterior(found: Mapping[str, Any], name: str) -> tuple[int, int, int]:
    """(t, h, w) of latents. DatasetError where they are not a posterior as one of the two trainers stores it."""
    if {"mean", "logvar"} <= found.keys():
        parts, channels = [found["mean"], found["logvar"]], LATENT_CHANNELS
    elif "ldist" in found:
        parts, channels = [found["ldist"]], 2 * LATENT_CHANNELS
    else:
        raise _wrong(name, f"it has {_names(found)} instead of mean and logvar, or ldist")
    sizes = {part.size if isinstance(part, Shape) else () for part in parts}
    size = sizes.pop()
    if sizes or len(size) != 5 or size[:2] != (1, channels) or 0 in size:
        raise _wrong(name, f"{_names(found)} should be (1, {channels}, t, h, w), but {_sizes(parts)}")
    if size[3] % 2 or size[4] % 2:
        raise _wrong(
            name,
            f"it is of {PIXELS_PER_LATENT * size[4]} x {PIXELS_PER_LATENT * size[3]} pixels, which are no multiples of "
            f"{2 * PIXELS_PER_LATENT}",
        )
    return size[2], size[3], size[4]


def _text(found: Mapping[str, Any], name: str) -> None:
    """DatasetError where embeddings are not of one prompt as one of the two trainers stores it."""
    if {"y_feat", "y_mask"} <= found.keys():
        parts = [_only(found["y_feat"]), _only(found["y_mask"])]
    elif {"prompt_embeds", "prompt_attention_mask"} <= found.keys():
        parts = [found["prompt_embeds"], found["prompt_attention_mask"]]
    else:
        raise _wrong(
            name, f"it has {_names(found)} instead of y_feat and y_mask, or prompt_embeds and prompt_attention_mask"
        )
    embeds, mask = (part.size if isinstance(part, Shape) else () for part in parts)
    if len(embeds) != 3 or embeds[:2] != (1, MAX_TOKENS) or mask != (1, MAX_TOKENS):
        raise _wrong(
            name,
            f"{_names(found)} should be (1, {MAX_TOKENS}, width) and (1, {MAX_TOKENS}), but {_sizes(parts)}",
        )


def _only(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _names(found: Mapping[str, Any]) -> str:
    return " and ".join(str(name) for name in list(found)[:4]) or "nothing"


def _sizes(parts: list[Any]) -> str:
    told = [str(part.size) if isinstance(part, Shape) else "no tensor" for part in parts]
    return f"{' and '.join(told)} {'is' if len(told) == 1 else 'are'} there"


def _wrong(name: str, what: str) -> DatasetError:
    return DatasetError(f"{name} cannot be used: {what}; prepare the clip again, or remove it")


# --- reading shapes ---------------------------------------------------------------------------------------------------


class _NotTensors(Exception):
    """A pickle that holds something else."""


class _Shapes(pickle._Unpickler):
    """Rebuilds the shapes of tensors. Whatever else a pickle asks for is refused by its name.

    In Python: the one in C takes as much memory as a number in the pickle says.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _shape
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name.endswith("Storage"):
            return _Storage(name.removesuffix("Storage"))
        raise _NotTensors(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """("storage", kind, key, device, elements), as torch.save writes it."""
        if isinstance(pid, tuple) and len(pid) == 5 and isinstance(pid[1], _Storage):
            return pid[1]
        raise _NotTensors("a reference of another kind")


@dataclass(frozen=True)
class _Storage:
    dtype: str


def _shape(storage: _Storage, _offset: int, size: tuple[int, ...], *_: Any) -> Shape:
    if not isinstance(storage, _Storage) or not all(isinstance(side, int) for side in size):
        raise _NotTensors("a tensor of another kind")
    return Shape(tuple(size), storage.dtype)


def _shapes_of(file: Path) -> dict[str, Any]:
    """The values of a .pt file's dict, each tensor as its `Shape`. DatasetError, one sentence, for anything else."""
    try:
        stat = file.stat()
    except OSError as error:
        raise DatasetError(f"{file.name} cannot be read: {why(error)}") from error
    found = _read_shapes(file, stat.st_size, stat.st_mtime_ns)
    if isinstance(found, str):
        raise DatasetError(f"{file.name} {found}")
    return found


@functools.lru_cache(maxsize=4096)
def _read_shapes(file: Path, size: int, mtime_ns: int) -> dict[str, Any] | str:
    """Remembered until the file's size or time is another; a sentence, without the file's name, where it is refused."""
    try:
        with zipfile.ZipFile(file) as archive:
            (entry,) = [info for info in archive.infolist() if info.filename.count("/") == 1
                        and info.filename.endswith("/data.pkl")]  # fmt: skip
            if entry.file_size > _LONGEST_PICKLE:
                return "holds more than tensors: its pickle is too long; prepare the clip again, or remove it"
            with archive.open(entry) as handle:
                found = _Shapes(handle).load()
    except _NotTensors as error:
        return (
            f"holds more than tensors ({error}), and reading that could run a program; prepare the clip again, or "
            "remove it"
        )
    except OSError as error:
        return f"cannot be read: {why(error)}"
    except _DAMAGED:
        return "is no file of torch.save, or damaged; prepare the clip again, or remove it"
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        return "holds no tensors by name; prepare the clip again, or remove it"
    return found


def _digest(file: Path) -> str:
    stat = file.stat()
    return _read_digest(file, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _read_digest(file: Path, size: int, mtime_ns: int) -> str:
    return sha256_of(file)
