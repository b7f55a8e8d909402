"""Files of weights and settings as they lie on the disk or on the Hub, whatever they mean."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from trainers.errors import why
from trainers.families.base import ModelError

PICKLES = (".ckpt", ".pth", ".pt", ".bin")
WEIGHT_FILES = (".safetensors", *PICKLES)
WEIGHTS = "diffusion_pytorch_model.safetensors"  # of a folder in diffusers' format


def read_tensors(
    file: Path, only: Collection[str] | None = None, mapped: bool = False
) -> tuple[dict[str, Any], dict[str, str]]:
    """(state dict, header) of a safetensors or pickle file. Of a pickle only plain tensors are read, never code.

    only: names of the tensors that are wanted; those that lack are left out. mapped: a pickle's tensors stay on the
    disk until they are used, and the file must stay as it is for as long."""
    if not file.is_file():
        raise ModelError(f"{file} does not exist")
    try:
        with file.open("rb") as handle:  # of a file that is closed to us safetensors says that it is not there
            if not handle.read(1):
                raise ModelError(f"{file} is empty")
        if file.suffix in PICKLES:
            on_disk = mapped and zipfile.is_zipfile(file)  # PyTorch's older format cannot be mapped
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=on_disk)
            whole = _unwrapped(state, file)
            return {key: value for key, value in whole.items() if only is None or key in only}, {}
        with safe_open(file, "pt") as opened:
            keys = [key for key in opened.keys() if only is None or key in only]  # noqa: SIM118
            return {key: opened.get_tensor(key) for key in keys}, opened.metadata() or {}
    except pickle.UnpicklingError as error:
        raise ModelError(_refusal(file, str(error))) from error
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        SafetensorError,
    ) as error:
        raise ModelError(f"{file} cannot be read as weights: {why(error)}") from error


def _refusal(file: Path, reason: str) -> str:
    """Why torch did not read a pickle: code in it, or no pickle of weights at all."""
    called = re.search(r"GLOBAL (\S+)", reason)
    with file.open("rb") as handle:
        pickled = handle.read(2).startswith((b"PK", b"\x80"))  # a zip of torch.save, or a bare pickle
    if called is None and not (pickled and "Unsupported" in reason):
        return f"{file} cannot be read as weights: it is damaged, or no file of PyTorch"
    named = f" ({called[1]})" if called else ""
    return f"{file} holds more than plain tensors{named} and is not read: code in it would run"


def _unwrapped(state: Any, file: Path) -> dict[str, Any]:
    """The weights themselves, which trainers put into others of their things: Lightning, DeepSpeed."""
    for name in ("state_dict", "module"):
        while isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict):
        raise ModelError(f"{file} holds no weights by name")
    return state


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; ModelError when it is none."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {why(error)}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{file} does not hold settings")
    return data


def read_meta(folder: Path, family: str) -> dict[str, Any]:
    """The meta.json of a checkpoint folder, {} if there is none; ModelError when another family wrote it."""
    if not (folder / "meta.json").is_file():
        return {}
    meta = read_json(folder / "meta.json")
    if meta.get("family", family) != family:
        raise ModelError(f"{folder} is a checkpoint of family {meta['family']}, not of {family}")
    return meta


def fetch(repository: str, patterns: Sequence[str], where: str) -> Path:
    """The folder of a Hub repository's files that match; ModelError when there is no such one or no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{where} {repository} is not on this machine and the Hugging Face Hub cannot be reached; give a folder, "
            "or fetch it while there is a network"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise ModelError(f"{where} {repository} cannot be fetched from the Hub: {why(error)}") from error


def part_files(folder: Path) -> list[Path]:
    """The settings and weights of a model's part, in order; pickles only where there are no safetensors."""
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file())
    except OSError as error:
        raise ModelError(f"{folder} of the base model cannot be read: {why(error)}") from error
    settings = [file for file in files if file.suffix in (".json", ".txt", ".model")]
    return settings + (
        [file for file in files if file.suffix == ".safetensors"]
        or [file for file in files if file.suffix in WEIGHT_FILES]
    )


def model_files(folder: Path) -> list[Path]:
    """The weights of a diffusers folder: one file, or the shards that an index lists."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ModelError(f"{index} lists no files of weights")
        return [folder / Path(str(name)).name for name in sorted(set(listed.values()))]
    files = [folder / WEIGHTS, folder / WEIGHTS.replace(".safe", ".fp16.safe"), folder / "diffusion_pytorch_model.bin"]
    return [next((file for file in files if file.is_file()), files[0])]


def identity(files: Iterable[Path]) -> str:
    """A hash over the names and bytes of files. Loads nothing into memory."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name}:{_sha256(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _sha256(file: Path, size: int, mtime_ns: int) -> str:
    """The hash of a file's bytes; size and time only tell the cache that it is still the same file."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
