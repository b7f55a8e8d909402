"""What a Mochi base model is, told from its files without reading weights. No torch, no network."""

from __future__ import annotations

import json
from pathlib import Path

TRANSFORMER_CONFIG = "transformer/config.json"
TRANSFORMER = "MochiTransformer3DModel"
#: Genmo's own files of weights, all three in one folder.
GENMO_FILES = ("dit.safetensors", "encoder.safetensors", "decoder.safetensors")
#: A layer that no other transformer has: query, key and value of the video stream in one.
_SIGN = "blocks.0.attn.qkv_x.weight"
_LONGEST_HEADER = 100_000_000  # bytes; the limit of safetensors itself


def is_base(folder: Path) -> bool:
    """Whether a folder is a Mochi pipeline of diffusers, or holds Genmo's three files."""
    return is_pipeline(folder) or is_genmo(folder)


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is a pipeline of diffusers with Mochi's transformer."""
    try:
        config = json.loads((folder / TRANSFORMER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("_class_name") == TRANSFORMER


def is_genmo(folder: Path) -> bool:
    """Whether a folder holds Genmo's three files."""
    return all((folder / name).is_file() for name in GENMO_FILES) and _SIGN in keys_of(folder / GENMO_FILES[0])


def keys_of(file: Path) -> set[str]:
    """Names of the tensors of a safetensors file; none where it is no such file."""
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length)) if length <= _LONGEST_HEADER else {}
    except (OSError, ValueError):
        return set()
    return set(header) - {"__metadata__"} if isinstance(header, dict) else set()
