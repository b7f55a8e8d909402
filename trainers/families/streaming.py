"""Files of weights read and written tensor by tensor, so that a model of any size passes through little memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from trainers.families.files import PICKLES, read_tensors

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip

#: Of each tensor, by name: its type and shape.
Layout = Mapping[str, tuple[torch.dtype, Sequence[int]]]


#: After so many tensors a file is opened anew: what was mapped of it is let go. Opening a pickle takes longer.
_AT_ONCE, _AT_ONCE_OF_PICKLES = 32, 256


def read_in_turn(file: Path, keys: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """(key, tensor) of a file that can be read, in this order. What is kept of a pickle must be copied, for it lies on
    the disk."""
    count = _AT_ONCE_OF_PICKLES if file.suffix in PICKLES else _AT_ONCE
    for start in range(0, len(keys), count):
        some = keys[start : start + count]
        if file.suffix in PICKLES:
            found, _ = read_tensors(file, only=some, mapped=True)
            for key in some:
                yield key, found.pop(key)
        else:
            with safe_open(file, "pt") as opened:
                for key in some:
                    yield key, opened.get_tensor(key)


def write_tensors(
    file: Path, layout: Layout, tensors: Iterable[tuple[str, torch.Tensor]], metadata: Mapping[str, str]
) -> None:
    """Write a file of these tensors, which come in any order, one at a time. ValueError where they are not as laid out.

    Tensors of wider types come first: readers want each at a multiple of its type's size.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    places: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -item[1][0].itemsize):
        size = dtype.itemsize
        for side in shape:
            size *= side
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
        places[name], end = end, end + size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with file.open("wb") as handle:
        handle.write(len(head).to_bytes(8, "little") + head)
        for name, value in tensors:
            if (value.dtype, tuple(value.shape)) != (layout[name][0], tuple(layout[name][1])):
                raise ValueError(f"{name} is {value.dtype} {tuple(value.shape)}, not as laid out")
            handle.seek(8 + len(head) + places.pop(name))
            if value.numel():
                handle.write(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if places:
        raise ValueError(f"{', '.join(places)} were not given")
