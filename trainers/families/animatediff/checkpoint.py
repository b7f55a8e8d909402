"""Motion modules and takes on disk: original and diffusers names, both ways, and the exports.

Original names (guoyww/AnimateDiff): ``down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.
attention_blocks.0.to_q.weight``; diffusers: ``down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q.weight``.
The positional encoding stands twice in a block of the original, once in diffusers. It is a buffer that no optimizer
changes, but its length is the most frames that a module takes, and stretched ones exist, so it is carried over.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import MotionAdapter
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trainers import lora
from trainers.families.animatediff.config import is_hub_id
from trainers.families.base import ModelError

State = dict[str, torch.Tensor]
Version = Literal["v1", "v2", "v3"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
HEADER = "dailies"  # our facts in the header of an exported file
PICKLES = (".ckpt", ".pth", ".pt", ".bin")
FORMATS = ("original", "diffusers")

_BLOCK = r"(?P<block>(?:down_blocks|up_blocks)\.\d+|mid_block)\.motion_modules\.(?P<module>\d+)\."
_ORIGINAL = re.compile(_BLOCK + r"temporal_transformer\.(?P<rest>.+)")
_DIFFUSERS = re.compile(_BLOCK + r"(?P<rest>(?:norm|proj_in|proj_out|transformer_blocks)\..+)")
_PE = re.compile(r"transformer_blocks\.(\d+)\.attention_blocks\.(\d+)\.pos_encoder\.pe")
_RENAMED = (
    ("attention_blocks.0.", "attn1."),
    ("attention_blocks.1.", "attn2."),
    ("norms.0.", "norm1."),
    ("norms.1.", "norm2."),
    ("ff_norm.", "norm3."),
)


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
        match = _ORIGINAL.fullmatch(key)
        if match is None:
            unknown.append(key)
            continue
        prefix, rest = f"{match['block']}.motion_modules.{match['module']}.", match["rest"]
        if encoding := _PE.fullmatch(rest):
            own = f"{prefix}transformer_blocks.{encoding[1]}.pos_embed.pe"
            if own in found and not torch.equal(found[own], value):
                raise ModelError(f"{source}: {key} differs from the block's other encoding, which no loader can keep")
            found[own] = value
        else:
            for theirs, ours in _RENAMED:
                rest = re.sub(rf"(transformer_blocks\.\d+\.){re.escape(theirs)}", rf"\g<1>{ours}", rest)
            found[prefix + rest] = value
    if unknown:
        raise ModelError(f"{source} is not a motion module: it holds {_some(unknown)}")
    return found


def to_original(state: Mapping[str, torch.Tensor]) -> State:
    """A motion module in diffusers' names under original names, each positional encoding twice."""
    found: State = {}
    for key, value in state.items():
        match = _DIFFUSERS.fullmatch(key)
        if match is None:
            raise ModelError(f"{key} is not the name of a motion module's weight")
        prefix, rest = f"{match['block']}.motion_modules.{match['module']}.temporal_transformer.", match["rest"]
        if rest.endswith("pos_embed.pe"):
            block = rest.removesuffix("pos_embed.pe")
            for attention in (0, 1):
                found[f"{prefix}{block}attention_blocks.{attention}.pos_encoder.pe"] = value.clone()
        else:
            for theirs, ours in _RENAMED:
                rest = re.sub(rf"(transformer_blocks\.\d+\.){re.escape(ours)}", rf"\g<1>{theirs}", rest)
            found[prefix + rest] = value
    return found


def motion_part(state: Mapping[str, torch.Tensor]) -> State:
    """The motion modules of a whole denoiser."""
    return {key: value for key, value in state.items() if "motion_modules." in key}


# --- reading ---------------------------------------------------------------------------------------------------------


def read_tensors(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(state dict, header) of a safetensors or pickle file. Of a pickle only plain tensors are read, never code."""
    if not file.is_file():
        raise ModelError(f"{file} does not exist")
    try:
        if file.suffix in PICKLES:
            state = torch.load(file, map_location="cpu", weights_only=True)
            return _unwrapped(state, file), {}
        with safe_open(file, "pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except pickle.UnpicklingError as error:
        raise ModelError(f"{file} holds more than plain tensors and is not read: code in it would run") from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read as weights: {_first_line(error)}") from error


def _unwrapped(state: Any, file: Path) -> dict[str, Any]:
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ModelError(f"{file} holds no weights by name")
    return state


def read_original(file: Path) -> tuple[State, MotionFacts]:
    """A motion module from an original file, in diffusers' names: bare, in ``state_dict``, behind ``module.``, alone
    or inside a whole denoiser. Encodings that the file lacks are the sinusoids that it was trained with."""
    state, header = read_tensors(file)
    return parse_original(state, header, file)


def parse_original(state: Mapping[str, Any], header: Mapping[str, str], file: Path) -> tuple[State, MotionFacts]:
    """The same, from a state dict that has been read."""
    state = {str(key).removeprefix("module."): value for key, value in state.items() if key != "animatediff_config"}
    if "conv_in.weight" in state:
        state = motion_part(state)
    others = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if others or not state:
        raise ModelError(f"{file} is not a motion module: {f'it holds {_some(others)}' if others else 'it is empty'}")
    if any(key.endswith("pos_embed.pe") for key in state):  # diffusers' names in a single file
        found = {key: value for key, value in state.items() if _DIFFUSERS.fullmatch(key)}
        if len(found) != len(state):
            raise ModelError(f"{file} is not a motion module: it holds {_some([k for k in state if k not in found])}")
    else:
        found = _with_encodings(from_original(state, str(file)))
    return found, facts_of(found, _header_facts(header), str(file))


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
    # As ComfyUI-AnimateDiff-Evolved tells them apart; a stretched v3 says what it is in its meta.json or header.
    inferred: Version = "v2" if mid_block else "v3" if positions == 32 else "v1"
    version = known.get("version")
    return MotionFacts(
        positions,
        mid_block,
        version if version in ("v1", "v2", "v3") else inferred,
        known.get("heads"),
        known.get("groups"),
    )


def _header_facts(header: Mapping[str, str]) -> dict[str, Any]:
    try:
        facts = json.loads(header.get(HEADER, "{}"))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def read_folder(folder: Path, meta: Mapping[str, Any]) -> tuple[State, MotionFacts, dict[str, Any]]:
    """(state, facts, config.json) of a MotionAdapter or UNetMotionModel folder; the state is whole."""
    config = read_json(folder / "config.json")
    files = [folder / WEIGHTS, folder / "diffusion_pytorch_model.bin"]
    file = next((file for file in files if file.is_file()), files[0])
    state, _ = read_tensors(file)
    known = {
        "heads": config.get("motion_num_attention_heads"),
        "groups": config.get("motion_norm_num_groups", config.get("norm_num_groups")),
        **dict(meta.get("motion") or {}),
    }
    return state, facts_of(motion_part(state), known, str(folder)), config


def read_motion(path: Path) -> tuple[State, MotionFacts]:
    """A motion module from a MotionAdapter folder, a whole denoiser's folder, a checkpoint or an original file."""
    take = read_take(path)
    if take.facts is None:
        raise ModelError(f"{path} is a LoRA, not a motion module; give it as a checkpoint instead")
    return motion_part(take.state), take.facts


def read_take(path: Path) -> Take:
    """A checkpoint folder, a MotionAdapter or UNetMotionModel folder, a motion module file or a LoRA file."""
    if path.is_dir():
        return _read_take_folder(path)
    if not path.exists():
        raise ModelError(f"{path} does not exist; give a checkpoint folder or an adapter file")
    if path.name in (lora.FILE_NAME, WEIGHTS) and (path.parent / "meta.json").is_file():
        return _read_take_folder(path.parent)  # a checkpoint's own file stands for the checkpoint
    state, header = read_tensors(path)
    if lora.is_lora([str(key) for key in state]):
        if any("temporal_transformer" in str(key) for key in state):
            raise ModelError(f"{path} is a LoRA in AnimateDiff's own naming; convert it to diffusers' naming first")
        return Take(path, "lora", lora=_adapter(state, header, path), meta=_header_facts(header))
    motion, facts = parse_original(state, header, path)
    return Take(path, "motion_module", motion, facts=facts, meta=_header_facts(header))


def _read_take_folder(path: Path) -> Take:
    meta = read_meta(path)
    if (path / lora.FILE_NAME).is_file():
        state, header = read_tensors(path / lora.FILE_NAME)
        return Take(path, "lora", lora=_adapter(state, header, path / lora.FILE_NAME), meta=meta)
    if (path / "config.json").is_file():
        kind = read_json(path / "config.json").get("_class_name")
        if kind in ("MotionAdapter", "UNetMotionModel"):
            state, facts, _ = read_folder(path, meta)
            return Take(path, "motion_module" if kind == "MotionAdapter" else "full", state, facts=facts, meta=meta)
        raise ModelError(f"{path} holds a {kind or 'model of another kind'}, not a MotionAdapter or UNetMotionModel")
    if (path / "model_index.json").is_file() and (path / "motion_adapter").is_dir():
        return _read_take_folder(path / "motion_adapter")
    raise ModelError(
        f"{path} is not a checkpoint: it has neither {lora.FILE_NAME} nor the config.json of a motion adapter"
    )


def _adapter(state: Mapping[str, torch.Tensor], header: Mapping[str, str], file: Path) -> dict[str, lora.Lora]:
    try:
        return lora.parse(state, json.loads(header.get(lora.HEADER, "{}")), "unet", str(file))
    except (lora.LoraError, ValueError) as error:
        raise ModelError(str(error)) from error


def read_meta(path: Path) -> dict[str, Any]:
    """The meta.json of a checkpoint folder, {} if there is none; ModelError when another family wrote it."""
    if not (path / "meta.json").is_file():
        return {}
    meta = read_json(path / "meta.json")
    if meta.get("family", "animatediff") != "animatediff":
        raise ModelError(f"{path} is a checkpoint of family {meta['family']}, not of animatediff")
    return meta


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; ModelError when it is none."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {_first_line(error)}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{file} does not hold settings")
    return data


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
    check_fit({key: value.shape for key, value in module.state_dict().items()}, state, source)
    module.load_state_dict(dict(state), strict=True, assign=True)


def check_fit(shapes: Mapping[str, Sequence[int]], state: Mapping[str, torch.Tensor], source: str) -> None:
    """ModelError unless `state` has exactly these keys and shapes."""
    missing = [key for key in shapes if key not in state]
    unknown = [key for key in state if key not in shapes]
    if missing or unknown:
        told = [f"lacks {_some(missing)}"] if missing else []
        told += [f"has {_some(unknown)} too many"] if unknown else []
        raise ModelError(f"{source} does not fit this model: it {' and '.join(told)}")
    for key, value in state.items():
        if tuple(value.shape) != tuple(shapes[key]):
            if key.endswith("pos_embed.pe"):
                raise ModelError(
                    f"{source} has {value.shape[1]} positions, but the motion module of this model has "
                    f"{shapes[key][1]}; name a motion_adapter of {value.shape[1]} positions"
                )
            raise ModelError(
                f"{source} does not fit this model: {key} is {tuple(value.shape)}, but {tuple(shapes[key])} is needed"
            )


# --- exporting -------------------------------------------------------------------------------------------------------


def export(checkpoint: Path, format: str, out: Path) -> str:
    """Write a checkpoint's motion module as `format`, read it again, compare; a sentence on what was written.

    original: a file in the original's names, encodings included (.safetensors, .ckpt or .pth). diffusers: a
    MotionAdapter folder. A LoRA is added to the motion adapter that it was trained on, on a copy.
    """
    if format not in FORMATS:
        raise ModelError(f"format {format!r} is not known; known: {', '.join(FORMATS)}")
    if out.exists() or out.is_symlink():
        raise ModelError(f"{out} exists already; choose another name or remove it first")
    if format == "original" and out.suffix not in (".safetensors", *PICKLES):
        raise ModelError(f"{out} needs an ending that says what it is: .safetensors, .ckpt or .pth")
    take = read_take(checkpoint)
    state, facts = _whole_motion(take)
    state = {key: value.detach().float().contiguous() for key, value in state.items()}
    write: Callable[[Path], None]
    if format == "original":
        matched = len(to_original(state))
        write = lambda path: _write_original(path, state, facts, take.meta)  # noqa: E731
    else:
        matched = len(state)
        write = lambda path: _write_adapter(path, state, facts)  # noqa: E731
    _write_whole(out, write, lambda path: _compare(path, state, facts))
    return (
        f"wrote {out}: {matched} keys matched, {facts.positions} positions, "
        f"{'with' if facts.mid_block else 'without'} mid block, read again and equal"
    )


def _whole_motion(take: Take) -> tuple[State, MotionFacts]:
    if take.facts is not None:
        return motion_part(take.state), take.facts
    source = take.meta.get("motion_adapter")
    if source is None:
        raise ModelError(
            f"{take.path} is a LoRA that does not say which motion adapter it was trained on, so it cannot be added to "
            "one; export a checkpoint folder with its meta.json"
        )
    state, facts = read_motion(find_adapter(str(source)))
    return merge(state, take.lora, str(take.path)), facts


def merge(state: Mapping[str, torch.Tensor], adapter: Mapping[str, lora.Lora], source: str) -> State:
    """A copy of `state` with a LoRA added at strength 1; ModelError when it is for other layers."""
    unknown = [path for path in adapter if f"{path}.weight" not in state]
    if unknown:
        raise ModelError(f"{source} has adapters for layers that the motion adapter lacks: {_some(unknown)}")
    merged = dict(state)
    for path, layer in adapter.items():
        merged[f"{path}.weight"] = state[f"{path}.weight"].float() + layer.delta()
    return merged


def find_adapter(source: str) -> Path:
    """The folder or file of a motion adapter: a path, or a Hub id (fetched, or from the Hub's cache)."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    if is_hub_id(source):
        return fetch(source, ["config.json", WEIGHTS], "motion_adapter")
    raise ModelError(f"motion_adapter {source} does not exist; give a folder, a file or a Hub id")


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
        raise ModelError(f"{where} {repository} cannot be fetched from the Hub: {_first_line(error)}") from error


def _write_original(path: Path, state: State, facts: MotionFacts, meta: Mapping[str, Any]) -> None:
    renamed = {key: value.clone() for key, value in to_original(state).items()}
    if path.suffix == ".safetensors":
        facts_told = {**facts.as_meta(), "norm_semantics": meta.get("norm_semantics", "original")}
        save_file(renamed, path, metadata={"format": "pt", HEADER: json.dumps(facts_told)})
    else:
        torch.save(renamed, path)


def _write_adapter(path: Path, state: State, facts: MotionFacts) -> None:
    build_adapter(state, facts, 32, str(path)).save_pretrained(path)


def _compare(path: Path, state: State, facts: MotionFacts) -> None:
    if path.is_dir():
        adapter, report = MotionAdapter.from_pretrained(path, output_loading_info=True)
        again = adapter.state_dict()
        lost = [*report["missing_keys"], *report["unexpected_keys"]]
    else:
        again, _ = read_original(path)
        lost = []
    check_fit({key: value.shape for key, value in state.items()}, again, str(path))
    lost += [key for key, value in state.items() if not torch.equal(again[key], value)]
    if lost:
        raise ModelError(f"{path} was written, but {_some(lost)} came back changed; it has been removed")


def _write_whole(out: Path, write: Callable[[Path], None], check: Callable[[Path], None]) -> None:
    """Write beside, check, and only then give it its name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{os.getpid()}-{out.name}")
    try:
        write(beside)
        check(beside)
        beside.rename(out)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)


def _some(keys: Sequence[str]) -> str:
    """A few of the keys, and how many more."""
    named = ", ".join(sorted(map(str, keys))[:3])
    return named if len(keys) <= 3 else f"{named} and {len(keys) - 3} more"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
