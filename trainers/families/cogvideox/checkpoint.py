"""Takes on disk: LoRAs in every naming in which they are found, and whole transformers; read without network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from trainers import lora
from trainers.families.adapters import AS_TRAINED, header_facts, parse_lora
from trainers.families.base import ModelError
from trainers.families.files import WEIGHTS, model_files, read_json, read_meta, read_tensors
from trainers.families.weights import State
from trainers.lora import Lora, some

FAMILY_NAME = "cogvideox"
PREFIX = "transformer"  # diffusers' name of the layers' model in a LoRA file
POSITIONS = "patch_embed.pos_embedding"  # the learned positions of 5B-I2V, which a run can leave out
_LAYER = re.compile(r"transformer_blocks\.\d+\..+|(patch_embed|time_embedding|ofs_embedding|norm_out|proj_out)\b.*")

#: SAT's naming: query, key and value are one layer with three adapters. Its scale is alpha / rank with an alpha of 1.
_SAT = re.compile(r".*\blayers\.(\d+)\.attention\.(query_key_value|dense)\.matrix_([AB])\.([0-2])")
_SAT_ALPHA = 1.0


@dataclass
class Take:
    """What a checkpoint or adapter file holds: `lora` or, for kind full, the state of a whole transformer."""

    path: Path
    kind: Literal["lora", "full"]
    state: State = field(default_factory=dict)
    lora: dict[str, Lora] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_take(path: Path) -> Take:
    """A checkpoint folder, a transformer or pipeline folder of diffusers, or a LoRA: a folder with one, a file of
    diffusers, PEFT or kohya's kind, or a checkpoint of SAT. ModelError says what else it is."""
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise ModelError(f"{path} does not exist; give a checkpoint folder or a LoRA file")
    if path.name in (lora.FILE_NAME, AS_TRAINED) and (path.parent / "meta.json").is_file():
        return _read_folder(path.parent)
    if (path.parent / "config.json").is_file() and path.name.startswith(WEIGHTS.partition(".")[0]):
        return _read_folder(path.parent)
    return _read_lora(path)


def described(path: Path) -> Take:
    """What a take says of itself, without its weights."""
    return replace(read_take(path), state={}, lora={})


def _read_folder(folder: Path) -> Take:
    meta = read_meta(folder, FAMILY_NAME)
    if (folder / lora.FILE_NAME).is_file():
        take = _read_lora(folder / lora.FILE_NAME)
        return replace(take, path=folder, meta={**take.meta, **meta})
    inner = transformer_folder(folder)
    if (inner / "config.json").is_file():
        return Take(folder, "full", _read_transformer(inner), meta={**_positions_told(inner), **meta})
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        take = _read_lora(files[0])
        return replace(take, path=folder, meta={**take.meta, **meta})
    raise ModelError(
        f"{folder} holds nothing that can be loaded: no {lora.FILE_NAME}, no {PREFIX}/ and no single .safetensors file"
    )


def transformer_folder(folder: Path) -> Path:
    """Where the transformer of a checkpoint or pipeline folder lies; the folder itself where it is one."""
    return folder if (folder / "config.json").is_file() else folder / PREFIX


def _read_transformer(folder: Path) -> State:
    kind = read_json(folder / "config.json").get("_class_name")
    if kind != "CogVideoXTransformer3DModel":
        raise ModelError(f"{folder} holds a {kind or 'model of another kind'}, not a CogVideoXTransformer3DModel")
    state: State = {}
    for file in model_files(folder):
        state.update(read_tensors(file)[0])
    return state


def _positions_told(folder: Path) -> dict[str, Any]:
    """Whether a transformer from elsewhere uses learned positions, as its config says."""
    return {"learned_positions": bool(read_json(folder / "config.json").get("use_learned_positional_embeddings"))}


def _read_lora(file: Path) -> Take:
    state, header = read_tensors(file)
    state = _bare(state)
    if any(_SAT.fullmatch(key) for key in state):
        return Take(file, "lora", lora=_from_sat(state, file))
    found = parse_lora(state, header, PREFIX, str(file))
    foreign = [path for path in found if not _LAYER.fullmatch(path)]
    if foreign:
        raise ModelError(f"{file} is a LoRA of another family: no CogVideoX transformer has {some(foreign)}")
    return Take(file, "lora", lora=found, meta=header_facts(header))


def _bare(state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a file by name, out of what SAT and DeepSpeed put around them."""
    for wrapper in ("model", "module"):
        inner = state.get(wrapper)
        if isinstance(inner, dict):
            state = inner
    return {str(key): value for key, value in state.items()}


def _from_sat(state: Mapping[str, Any], file: Path) -> dict[str, Lora]:
    """The LoRA in a checkpoint of SAT, which may hold the base's weights as well."""
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        match = _SAT.fullmatch(key)
        if match is None:
            continue
        block, layer, half, part = match.groups()
        name = "to_out.0" if layer == "dense" else ("to_q", "to_k", "to_v")[int(part)]
        halves.setdefault(f"transformer_blocks.{block}.attn1.{name}", {})[half] = value
    broken = [path for path, pair in halves.items() if len(pair) != 2 or pair["A"].shape[0] != pair["B"].shape[1]]
    if broken:
        raise ModelError(f"{file} is damaged: the two halves of {some(broken)} do not fit")
    return {path: Lora(pair["A"], pair["B"], _SAT_ALPHA) for path, pair in halves.items()}
