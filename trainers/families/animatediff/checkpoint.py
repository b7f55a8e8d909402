"""Motion modules and takes on disk: every form in which they are found, read under diffusers' names, without network.

A positional encoding is a buffer that no optimizer changes, but its length is the most frames that a module takes, and
stretched ones exist, so it is carried over. Pickles are read as plain tensors only, so that no code in them runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import MotionAdapter
from diffusers.models.embeddings import SinusoidalPositionalEmbedding

from trainers import lora
from trainers.families.animatediff import motion_lora
from trainers.families.animatediff.names import diffusers_name, original_names
from trainers.families.animatediff.positions import Version, told_version
from trainers.families.base import ModelError, is_hub_id
from trainers.families.files import WEIGHTS, fetch, model_files, read_json, read_meta, read_tensors
from trainers.families.weights import State, shapes_of
from trainers.families.weights import check_fit as check_any_fit
from trainers.lora import some

HEADER = "dailies"  # our facts in the header of an exported file
ADAPTER_CONFIG = "adapter_config.json"  # of PEFT and of swift
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
#: What the header may say: numbers, and words.
COUNTS = ("positions", "heads", "groups", "motion_module_pe_multiplier")
CHOICES: dict[str, tuple[str, ...]] = {
    "version": ("v1", "v2", "v3"),
    "norm_semantics": ("original", "diffusers"),
    "beta_schedule": ("linear", "scaled_linear", "base"),
    "prediction_type": ("epsilon", "v_prediction"),
}
#: What upstream trainers write beside the weights.
EXTRAS = ("animatediff_config", "epoch", "global_step")


@dataclass(frozen=True)
class MotionFacts:
    """What a motion module is, beyond its weights. heads and groups: None where a file does not tell."""

    positions: int
    mid_block: bool
    version: Version
    heads: int | None = None
    groups: int | None = None

    def as_meta(self) -> dict[str, Any]:
        return {"positions": self.positions, "mid_block": self.mid_block, "version": self.version,
                "heads": self.heads, "groups": self.groups}  # fmt: skip


@dataclass
class Take:
    """What a checkpoint or adapter file holds. state: diffusers' names; empty for kind lora, which has `lora`."""

    path: Path
    kind: Literal["lora", "motion_module", "full"]
    state: State = field(default_factory=dict)
    lora: dict[str, lora.Lora] = field(default_factory=dict)
    facts: MotionFacts | None = None
    meta: dict[str, Any] = field(default_factory=dict)


# --- names, both ways ------------------------------------------------------------------------------------------------


def from_original(state: Mapping[str, torch.Tensor], source: str) -> State:
    """A motion module in original names under diffusers' names. ModelError names what is none."""
    found: State = {}
    unknown = []
    for key, value in state.items():
        own = diffusers_name(key)
        if own is None:
            unknown.append(key)
        elif own in found and not torch.equal(found[own], value):
            raise ModelError(f"{source}: {key} differs from the block's other encoding, which no loader can keep")
        else:
            found[own] = value
    if unknown:
        told = "is not a motion module: it holds" if not found else "holds what no motion module has:"
        raise ModelError(f"{source} {told} {some(unknown)}")
    return found


def to_original(state: Mapping[str, torch.Tensor]) -> State:
    """A motion module in diffusers' names under original names, each positional encoding twice."""
    found: State = {}
    for key, value in state.items():
        names = original_names(key)
        if not names:
            raise ModelError(f"{key} is not the name of a motion module's weight")
        found[names[0]] = value
        for name in names[1:]:
            found[name] = value.clone()  # a file holds no tensor twice
    return found


def motion_part(state: Mapping[str, torch.Tensor]) -> State:
    """The motion modules of a whole denoiser."""
    return {key: value for key, value in state.items() if "motion_modules." in key}


# --- reading ---------------------------------------------------------------------------------------------------------


def _bare(state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a file without what trainers put beside them and before their names."""
    return {str(key).removeprefix("module."): value for key, value in state.items() if key not in EXTRAS}


def read_original(file: Path) -> tuple[State, MotionFacts]:
    """A motion module from an original file, in diffusers' names: bare, in ``state_dict``, behind ``module.``, alone
    or inside a whole denoiser. Encodings that the file lacks are the sinusoids that it was trained with."""
    state, header = read_tensors(file)
    return parse_original(state, header, file)


def parse_original(state: Mapping[str, Any], header: Mapping[str, str], file: Path) -> tuple[State, MotionFacts]:
    """The same, from a state dict that has been read."""
    state = _bare(state)
    if "conv_in.weight" in state:
        state = motion_part(state)
        if not state:
            raise ModelError(f"{file} is not a motion module: it is an image model alone")
    others = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if others or not state:
        raise ModelError(f"{file} is not a motion module: {f'it holds {some(others)}' if others else 'it is empty'}")
    if any(key.endswith("pos_embed.pe") for key in state):  # diffusers' names in a single file
        unknown = [key for key in state if not original_names(key)]
        if unknown:
            raise ModelError(f"{file} holds what no motion module has: {some(unknown)}")
        found = dict(state)
    else:
        found = _with_encodings(from_original(state, str(file)))
    return found, facts_of(found, header_facts(header), str(file))


def _with_encodings(state: State) -> State:
    """`state` with the sinusoid of 32 positions for each block that has no positional encoding."""
    for key, value in list(state.items()):
        if key.endswith(".attn1.to_q.weight"):
            own = key.removesuffix("attn1.to_q.weight") + "pos_embed.pe"
            if own not in state:
                state[own] = SinusoidalPositionalEmbedding(value.shape[1], 32).pe
    return state


def facts_of(state: Mapping[str, torch.Tensor], known: Mapping[str, Any], source: str) -> MotionFacts:
    """Facts of a motion module in diffusers' names; `known` ones (from a meta.json, a header) are believed."""
    lengths = {int(value.shape[1]) for key, value in state.items() if key.endswith("pos_embed.pe")}
    if len(lengths) != 1:
        told = f"of {sorted(lengths)} positions" if lengths else "none"
        raise ModelError(f"{source} is not a motion module: its positional encodings are {told}")
    positions, mid_block = lengths.pop(), any(key.startswith("mid_block.") for key in state)
    version = known.get("version")
    return MotionFacts(
        positions,
        mid_block,
        version if version in ("v1", "v2", "v3") else told_version(positions, mid_block),
        known.get("heads"),
        known.get("groups"),
    )


def header_facts(header: Mapping[str, str]) -> dict[str, Any]:
    """What an exported file says of itself; {} when it says nothing. What it cannot mean is left out."""
    try:
        facts = json.loads(header.get(HEADER, "{}"))
    except ValueError:
        return {}
    told = facts.items() if isinstance(facts, dict) else ()
    return {
        key: value
        for key, value in told
        if (key in COUNTS and isinstance(value, int) and value > 0) or value in CHOICES.get(key, ())
    }


def read_folder(folder: Path, meta: Mapping[str, Any]) -> tuple[State, MotionFacts, dict[str, Any]]:
    """(whole state, facts, what the weights say of themselves) of a MotionAdapter or UNetMotionModel folder."""
    config = read_json(folder / "config.json")
    state: State = {}
    told: dict[str, Any] = {}
    for file in model_files(folder):
        part, header = read_tensors(file)
        state.update(part)
        told.update(header_facts(header))
    known = {
        "heads": config.get("motion_num_attention_heads"),
        "groups": config.get("motion_norm_num_groups", config.get("norm_num_groups")),
        **told,
        **dict(meta.get("motion") or {}),
    }
    return state, facts_of(motion_part(state), known, str(folder)), told


def read_motion(path: Path) -> tuple[State, MotionFacts]:
    """A motion module from a MotionAdapter folder, a whole denoiser's folder, a checkpoint or an original file."""
    take = read_take(path)
    if take.facts is None:
        raise ModelError(
            f"{path} is a LoRA, not a motion module (it lies on {motion_lora.covered(take.lora)}: {some(take.lora)}); "
            "give it as a checkpoint, and as motion_adapter the motion module that it was trained on"
        )
    return motion_part(take.state), take.facts


def read_take(path: Path) -> Take:
    """A checkpoint folder, a MotionAdapter or UNetMotionModel folder, a pipeline folder of such, a LoRA folder of PEFT
    or swift, a motion module file or a LoRA file."""
    if path.is_dir():
        return _read_take_folder(path)
    if not path.exists():
        raise ModelError(f"{path} does not exist; give a checkpoint folder or an adapter file")
    if _stands_for_its_folder(path):
        return _read_take_folder(path.parent)
    state, header = read_tensors(path)
    if lora.is_lora(map(str, state)):
        return _lora_take(path, state, lora.settings_of(header, "unet"), header_facts(header))
    motion, facts = parse_original(state, header, path)
    return Take(path, "motion_module", motion, facts=facts, meta=header_facts(header))


def _stands_for_its_folder(file: Path) -> bool:
    """Whether a file is one of a folder's whose other files say what it means (alpha, say, or the number of heads)."""
    folder = file.parent
    if file.name in ADAPTER_FILES:
        if not (folder / ADAPTER_CONFIG).is_file():
            raise ModelError(f"{file} needs its {ADAPTER_CONFIG} beside it: that says its alpha")
        return True
    if file.name == WEIGHTS and (folder / "config.json").is_file():
        return read_json(folder / "config.json").get("_class_name") in ("MotionAdapter", "UNetMotionModel")
    return file.name in (lora.FILE_NAME, WEIGHTS) and (folder / "meta.json").is_file()


def _read_take_folder(path: Path) -> Take:
    meta = read_meta(path, "animatediff")
    if (path / lora.FILE_NAME).is_file():
        state, header = read_tensors(path / lora.FILE_NAME)
        meta = {**header_facts(header), **meta}
        return _lora_take(path / lora.FILE_NAME, state, lora.settings_of(header, "unet"), meta, path)
    if (path / ADAPTER_CONFIG).is_file():
        return _read_peft(path, meta)
    if (path / "config.json").is_file():
        kind = read_json(path / "config.json").get("_class_name")
        if kind not in ("MotionAdapter", "UNetMotionModel"):
            raise ModelError(
                f"{path} holds a {kind or 'model of another kind'}, not a MotionAdapter or UNetMotionModel"
            )
        state, facts, told = read_folder(path, meta)
        if kind == "MotionAdapter":
            return Take(path, "motion_module", state, facts=facts, meta={**told, **meta})
        # Who saves a UNetMotionModel has trained or used diffusers' own, and with it diffusers' norms (swift does).
        return Take(path, "full", state, facts=facts, meta=meta or {"norm_semantics": "diffusers", **told})
    if (path / "model_index.json").is_file():
        return _read_take_folder(_moving_part(path))
    return _read_take_folder(_adapter_below(path))


def _moving_part(pipeline: Path) -> Path:
    """Where the motion of a pipeline lies. swift's ``-merged`` pipelines have it merged in their unet alone, and the
    adapter beside it as it was before."""
    config = pipeline / "unet" / "config.json"
    if config.is_file() and read_json(config).get("_class_name") == "UNetMotionModel":
        return pipeline / "unet"
    if (pipeline / "motion_adapter" / "config.json").is_file():
        return pipeline / "motion_adapter"
    raise ModelError(f"{pipeline} is a pipeline without motion: it has neither a UNetMotionModel nor a motion_adapter/")


def _adapter_below(path: Path) -> Path:
    """The one adapter folder below a swift checkpoint (``iter-100/default``)."""
    found = sorted(file.parent.name for file in path.glob(f"*/{ADAPTER_CONFIG}"))
    if not found:
        raise ModelError(
            f"{path} is not a checkpoint: it has no {lora.FILE_NAME}, no {ADAPTER_CONFIG}, and no config.json of a "
            "motion adapter"
        )
    if len(found) > 1:
        raise ModelError(f"{path} holds several adapters: give one of its folders {some(found)}")
    return path / found[0]


def _read_peft(path: Path, meta: dict[str, Any]) -> Take:
    """A LoRA folder of PEFT or of swift, which trains diffusers' own model with its norms."""
    settings = read_json(path / ADAPTER_CONFIG)
    if "extra_state_keys" in settings:
        raise ModelError(f"{path} holds more than a LoRA ({settings['extra_state_keys']}); give its adapter's folder")
    files = [path / name for name in ADAPTER_FILES]
    file = next((file for file in files if file.is_file()), files[0])
    state, _ = read_tensors(file)
    if settings.get("swift_type"):
        meta = {"norm_semantics": "diffusers", **meta}
    return _lora_take(file, state, settings, meta, path)


def _lora_take(
    file: Path, state: Mapping[str, Any], settings: Mapping[str, Any], meta: dict[str, Any], path: Path | None = None
) -> Take:
    return Take(path or file, "lora", lora=motion_lora.parse(_bare(state), settings, str(file)), meta=meta)


# --- building --------------------------------------------------------------------------------------------------------


def build_adapter(state: Mapping[str, torch.Tensor], facts: MotionFacts, groups: int, source: str) -> MotionAdapter:
    """A MotionAdapter that holds `state` itself (no copy). groups: of the base's norms, where the facts tell none."""
    channels = _sizes(state)
    layers = [len({_part(k, 3) for k in state if k.startswith(f"down_blocks.{i}.")}) for i in range(len(channels))]
    if not channels or not all(layers):
        raise ModelError(f"{source} is not a motion module: it lacks down blocks")
    with torch.device("meta"):
        adapter = MotionAdapter(
            block_out_channels=tuple(channels),
            motion_layers_per_block=layers[0] if len(set(layers)) == 1 else tuple(layers),
            motion_num_attention_heads=facts.heads or fitting_heads(channels),
            motion_norm_num_groups=facts.groups or groups,
            motion_max_seq_length=facts.positions,
            use_motion_mid_block=facts.mid_block,
        )
    load_strictly(adapter, state, source)
    return adapter


def _sizes(state: Mapping[str, torch.Tensor]) -> list[int]:
    """Channels of the down blocks, outermost first."""
    found = {
        int(_part(key, 1)): int(value.shape[0])
        for key, value in state.items()
        if key.startswith("down_blocks.") and key.endswith(".motion_modules.0.norm.weight")
    }
    return [found[block] for block in sorted(found)]


def _part(key: str, place: int) -> str:
    return key.split(".")[place]


def fitting_heads(channels: Sequence[int]) -> int:
    """8 attention heads as every published motion module has, or the most that divide smaller models' channels."""
    return next(heads for heads in range(8, 0, -1) if all(size % heads == 0 for size in channels))


def load_strictly(module: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Make `state` the module's own tensors; ModelError names what does not fit."""
    check_fit(shapes_of(module.state_dict()), state, source)
    module.load_state_dict(dict(state), strict=True, assign=True)


def check_fit(shapes: Mapping[str, Sequence[int]], state: Mapping[str, torch.Tensor], source: str) -> None:
    """ModelError unless `state` has exactly these keys and shapes."""
    missing = [key for key in shapes if key not in state]
    unknown = [key for key in state if key not in shapes]
    if not missing:
        check_mid_block(unknown, source)
    elif not unknown and _of_mid_block(missing):
        raise ModelError(
            f"{source} has no mid block ({some(missing)}), but the motion modules of this model have one; name a "
            "motion_adapter without one, such as AnimateDiff's v1 or v3, or set motion_mid_block to false for new ones"
        )
    for key, value in state.items():
        if key.endswith("pos_embed.pe") and tuple(value.shape) != tuple(shapes.get(key, value.shape)):
            raise ModelError(
                f"{source} has {value.shape[1]} positions, but the motion module of this model has "
                f"{shapes[key][1]}; name a motion_adapter of {value.shape[1]} positions"
            )
    check_any_fit(shapes, state, source)


def check_mid_block(unknown: Sequence[str], source: str) -> None:
    """ModelError when all that is for nothing in the model, weights or layers of a LoRA, is a mid block's."""
    if unknown and _of_mid_block(unknown):
        raise ModelError(
            f"{source} has a mid block ({some(unknown)}), but the motion modules of this model have none; name a "
            "motion_adapter with one, such as AnimateDiff's v2, or set motion_mid_block to true for new ones"
        )


def _of_mid_block(names: Sequence[str]) -> bool:
    return all(name.startswith("mid_block.motion_modules.") for name in names)


# --- finding ---------------------------------------------------------------------------------------------------------


def find_adapter(source: str) -> Path:
    """The folder or file of a motion adapter: a path, or a Hub id (fetched, or from the Hub's cache)."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    if is_hub_id(source):
        return fetch(source, ["config.json", WEIGHTS], "motion_adapter")
    raise ModelError(f"motion_adapter {source} does not exist; give a folder, a file or a Hub id")
