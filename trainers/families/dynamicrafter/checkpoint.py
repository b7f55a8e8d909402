"""Takes on disk: LoRAs and whole networks in the reference's names, as runs here and the fork write them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from trainers import lora
from trainers.families.adapters import HEADER, header_facts
from trainers.families.base import ModelError
from trainers.families.dynamicrafter.denoiser import in_denoiser
from trainers.families.dynamicrafter.names import PREFIXES, plain
from trainers.families.files import read_meta, read_tensors
from trainers.families.weights import State
from trainers.lora import Lora, some

log = logging.getLogger(__name__)

FAMILY_NAME = "dynamicrafter"
WHOLE = "model.safetensors"  # of a checkpoint folder of method full
#: The strength that the fork's own config trains with; its files do not say theirs.
FORK_STRENGTH = 0.5
_HALF = re.compile(r"(?P<path>.+)\.lora_(?P<half>[ab])\.weight")
#: Towers on which the fork's wrapping puts adapters as well, which nothing there trains.
_TOWERS = ("cond_stage_model.", "embedder.")
_UNET = PREFIXES["unet"]


@dataclass
class Take:
    """What a checkpoint or adapter file holds: `lora` by path in the network, or for kind full the state of network
    and resampler. described: whether a LoRA says its own alpha."""

    path: Path
    kind: Literal["lora", "full"]
    state: State = field(default_factory=dict)
    lora: dict[str, Lora] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    described: bool = True


# --- reading ---------------------------------------------------------------------------------------------------------


def read_take(path: Path) -> Take:
    """A checkpoint folder, a LoRA (of a run here; of the fork: flat .ckpt, in a Lightning checkpoint, extracted), or a
    network (a whole model, or a checkpoint of the fork). ModelError says what else it is."""
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise ModelError(f"{path} does not exist; give a checkpoint folder or a file")
    if path.name in (lora.FILE_NAME, WHOLE) and (path.parent / "meta.json").is_file():
        return _read_folder(path.parent)
    return _read_file(path)


def _read_folder(folder: Path) -> Take:
    meta = read_meta(folder, FAMILY_NAME)
    for name in (lora.FILE_NAME, WHOLE):
        if (folder / name).is_file():
            take = _read_file(folder / name)
            return replace(take, path=folder, meta={**take.meta, **meta})
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".ckpt")]
    if len(files) == 1:
        take = _read_file(files[0])
        return replace(take, path=folder, meta={**take.meta, **meta})
    raise ModelError(f"{folder} holds nothing that can be loaded: no {lora.FILE_NAME}, no {WHOLE} and no single file")


def _read_file(file: Path) -> Take:
    state, header = read_tensors(file, mapped=True)  # a checkpoint of the fork may hold a whole model as well
    facts = header_facts(header)
    halves = {plain(str(key)): value.clone() for key, value in state.items() if _HALF.fullmatch(str(key))}
    if halves:
        found, described = parse_lora(halves, facts, str(file)), "alpha" in facts
        if not described:
            log.warning("%s does not say its strength; it is taken as %g, as the fork trains", file, FORK_STRENGTH)
        return Take(file, "lora", lora=found, meta=facts, described=described)
    network = {}
    for key, value in state.items():
        ours = in_denoiser(plain(str(key)))
        if ours is not None:
            network[ours] = value
    if not network:
        held = some(state) if state else "nothing"
        raise ModelError(f"{file} is neither a LoRA nor a network of DynamiCrafter: it holds {held}")
    return Take(file, "full", state=network, meta=facts)


def parse_lora(
    state: Mapping[str, torch.Tensor], facts: Mapping[str, Any], source: str, strength: float = FORK_STRENGTH
) -> dict[str, Lora]:
    """The LoRA in halves `PATH.lora_a.weight` and `PATH.lora_b.weight`, by path in the network.

    facts: those of the file's header. strength: alpha / rank where they do not say it. Adapters of the CLIP towers are
    left out. ModelError where a half is missing, or does not fit the other.
    """
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        match = _HALF.fullmatch(key)
        assert match is not None
        sides.setdefault(match["path"], {})[match["half"]] = value
    towers = [path for path in sides if path.startswith(_TOWERS)]
    acting = [path for path in towers if "b" in sides[path] and bool(sides[path]["b"].float().any())]
    if acting:
        log.warning("%s has trained adapters of CLIP (%s), which are left out", source, some(acting))
    found: dict[str, Lora] = {}
    unknown = []
    for path, pair in sides.items():
        if path in towers:
            continue
        if not path.startswith(_UNET) or len(pair) != 2 or any(half.ndim != 2 for half in pair.values()):
            unknown.append(path)
            continue
        if pair["a"].shape[0] != pair["b"].shape[1]:
            ranks = f"rank {pair['a'].shape[0]} below and {pair['b'].shape[1]} above"
            raise ModelError(f"{source} is damaged: {path} has {ranks}")
        alpha = facts.get("alpha")
        scale = strength if not isinstance(alpha, (int, float)) else float(alpha) / _rank_told(facts, pair["a"])
        rank = pair["a"].shape[0]
        found[path.removeprefix(_UNET)] = Lora(pair["a"], pair["b"], scale * rank)
    if unknown:
        raise ModelError(f"{source} is not a LoRA of DynamiCrafter: {some(unknown)} cannot be read")
    if not found:
        raise ModelError(f"{source} has adapters of CLIP only, which do nothing; nothing of the network is in it")
    return found


def _rank_told(facts: Mapping[str, Any], down: torch.Tensor) -> float:
    rank = facts.get("rank")
    return float(rank) if isinstance(rank, (int, float)) and rank > 0 else float(down.shape[0])


# --- writing ---------------------------------------------------------------------------------------------------------


def lora_state(adapter: Mapping[str, Lora], dtype: torch.dtype = torch.float32) -> State:
    """A LoRA in the reference's names, its halves as they are."""
    state = {}
    for path, layer in adapter.items():
        state[f"{_UNET}{path}.lora_a.weight"] = layer.down.to(dtype, copy=True).contiguous()
        state[f"{_UNET}{path}.lora_b.weight"] = layer.up.to(dtype, copy=True).contiguous()
    return state


def write_state(file: Path, state: State, facts: Mapping[str, Any]) -> None:
    """Tensors with our facts in the header."""
    save_file(state, file, metadata={"format": "pt", HEADER: json.dumps(dict(facts))})
