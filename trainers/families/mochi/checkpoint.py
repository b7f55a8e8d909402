"""Takes on disk: LoRAs in diffusers', PEFT's and Genmo's naming, and whole transformers; read without network."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from trainers import lora
from trainers.families.adapters import AS_TRAINED, header_facts, parse_lora
from trainers.families.base import ModelError
from trainers.families.files import WEIGHTS, model_files, read_json, read_meta, read_tensors
from trainers.families.mochi import names
from trainers.families.mochi.base_model import read_transformer_file
from trainers.families.mochi.facts import GENMO_FILES, TRANSFORMER
from trainers.families.weights import State
from trainers.lora import Lora, some

log = logging.getLogger(__name__)

FAMILY_NAME = "mochi"
PREFIX = "transformer"  # diffusers' name of the layers' model in a LoRA file
KWARGS = "kwargs"  # where the header of a Genmo LoRA says rank and alpha
_LAYER = re.compile(r"transformer_blocks\.\d+\.(attn1|ff|ff_context|norm1|norm1_context)\..+"
                    r"|(patch_embed|time_embed|norm_out|proj_out)\b.*")  # fmt: skip


@dataclass
class Take:
    """What a checkpoint or adapter file holds: `lora` or, for kind full, the state and settings of a transformer."""

    path: Path
    kind: Literal["lora", "full"]
    state: State = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Lora] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


def read_take(path: Path) -> Take:
    """A checkpoint folder, a transformer or pipeline folder of diffusers, Genmo's dit.safetensors, or a LoRA: a folder
    with one, or a file of diffusers', PEFT's or Genmo's kind. ModelError says what else it is."""
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise ModelError(f"{path} does not exist; give a checkpoint folder or a LoRA file")
    if path.name in (lora.FILE_NAME, AS_TRAINED) and (path.parent / "meta.json").is_file():
        return _read_folder(path.parent)
    if (path.parent / "config.json").is_file() and path.name.startswith(WEIGHTS.partition(".")[0]):
        return _read_folder(path.parent)
    return _read_file(path)


def _read_folder(folder: Path) -> Take:
    meta = read_meta(folder, FAMILY_NAME)
    if (folder / lora.FILE_NAME).is_file():
        take = _read_file(folder / lora.FILE_NAME)
        return replace(take, path=folder, meta={**take.meta, **meta})
    inner = transformer_folder(folder)
    if (inner / "config.json").is_file():
        state, config = _read_transformer(inner)
        return Take(folder, "full", state, config, meta=meta)
    if (folder / GENMO_FILES[0]).is_file():
        state, config = read_transformer_file(folder / GENMO_FILES[0])
        return Take(folder, "full", state, config, meta=meta)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        take = _read_file(files[0])
        return replace(take, path=folder, meta={**take.meta, **meta})
    raise ModelError(
        f"{folder} holds nothing that can be loaded: no {lora.FILE_NAME}, no {PREFIX}/, no {GENMO_FILES[0]} and no "
        "single .safetensors file"
    )


def transformer_folder(folder: Path) -> Path:
    """Where the transformer of a checkpoint or pipeline folder lies; the folder itself where it is one."""
    return folder if (folder / "config.json").is_file() else folder / PREFIX


def _read_transformer(folder: Path) -> tuple[State, dict[str, Any]]:
    config = read_json(folder / "config.json")
    kind = config.get("_class_name")
    if kind != TRANSFORMER:
        raise ModelError(f"{folder} holds a {kind or 'model of another kind'}, not a {TRANSFORMER}")
    state: State = {}
    for file in model_files(folder):
        state.update(read_tensors(file)[0])
    return state, config


def _read_file(file: Path) -> Take:
    state, header = read_tensors(file)
    if names.is_transformer(state):
        whole, config = read_transformer_file(file)
        return Take(file, "full", whole, config)
    if names.is_lora(state):
        kwargs = _kwargs(header, file)
        return Take(file, "lora", lora=names.lora_from_genmo(state, kwargs, str(file)), meta=header_facts(header))
    found = parse_lora(state, header, PREFIX, str(file))
    foreign = [path for path in found if not _LAYER.fullmatch(path)]
    if foreign:
        raise ModelError(f"{file} is a LoRA of another family: no Mochi transformer has {some(foreign)}")
    return Take(file, "lora", lora=found, meta=header_facts(header))


def _kwargs(header: Mapping[str, str], file: Path) -> dict[str, Any]:
    """What a Genmo LoRA says of its ranks and alphas. A pickle of its trainer says nothing."""
    if KWARGS not in header:
        log.warning("%s does not say its alpha; it is taken as alpha = rank", file)
        return {}
    try:
        found = json.loads(header[KWARGS])
    except ValueError as error:
        raise ModelError(f"{file} has settings in its header that cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} has settings in its header that are no names and values")
    return found
