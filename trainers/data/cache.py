"""Encoded samples on disk, under a key that names everything they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

#: Encoded samples kept in memory as well, so that a warm epoch does not read the disk again.
MEMORY_LIMIT_BYTES = 2 * 1024**3


def cache_key(**parts: object) -> str:
    """A name for what `parts` describe: the same parts give the same key, any change another one."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


class TensorCache:
    """Dicts of tensors by key, one safetensors file each. Files appear whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._memory: dict[str, dict[str, torch.Tensor]] = {}
        self._bytes = 0

    def file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors, or None when they are absent or their file is damaged."""
        if key in self._memory:
            return self._memory[key]
        try:
            tensors: dict[str, torch.Tensor] = load_file(self.file(key))
        except (FileNotFoundError, SafetensorError):
            return None
        self._remember(key, tensors)
        return tensors

    def put(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        writing = self.folder / f".{key}.{os.getpid()}"
        try:
            save_file(tensors, writing)
            writing.replace(self.file(key))
        finally:
            writing.unlink(missing_ok=True)
        self._remember(key, tensors)

    def _remember(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self._bytes + size <= MEMORY_LIMIT_BYTES and key not in self._memory:
            self._memory[key] = tensors
            self._bytes += size


def path_fingerprint(path: str) -> str:
    """Identity of a model file or folder by content: names, sizes and 64 evenly spread pieces of each file.

    What is no path on this machine (a Hub id) stands for itself. Reads at most 4 MiB a file, so that a 10 GB model
    costs milliseconds.
    """
    root = Path(path).expanduser()
    if not path or not root.exists():
        return path
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    digest = hashlib.sha256()
    for file in files:
        if file.name == "state.pt" or file.name.startswith("."):
            continue
        size = file.stat().st_size
        digest.update(f"{file.relative_to(root).as_posix()}:{size};".encode())
        with file.open("rb") as handle:
            for piece in range(64):
                handle.seek(size * piece // 64)
                digest.update(handle.read(65536))
    return digest.hexdigest()
