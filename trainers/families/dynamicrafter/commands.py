"""The fork's two scripts, without its windows: `extract` (extract_lora.py) and `apply` (apply_lora.py)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainers.families.base import ModelError
from trainers.families.dynamicrafter.base_model import BaseModel
from trainers.families.dynamicrafter.checkpoint import FORK_STRENGTH, Take, read_take
from trainers.families.dynamicrafter.export import name_for, scale_of, write_lora, write_model
from trainers.families.dynamicrafter.facts import PUBLISHED, facts_of
from trainers.families.writing import DTYPES
from trainers.lora import Lora

_FORMATS = ("safetensors", "ckpt")


def extract(arguments: Sequence[str]) -> str:
    """Write the LoRA that is within a checkpoint of the fork, or in a run's; a sentence on it."""
    parser = argparse.ArgumentParser(
        prog="python -m trainers.export extract", description="Write the LoRA in a checkpoint as a file of its own."
    )
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint with a LoRA in it")
    parser.add_argument("--format", choices=_FORMATS, default=_FORMATS[0], help="default: safetensors")
    parser.add_argument("--out", type=Path, help="the file to write; default: MODEL_lora.FORMAT in this folder")
    args = parser.parse_args(arguments)
    take = _lora_in(args.model)
    return write_lora(_free(args.out or Path(f"{_stem(args.model)}_lora.{args.format}")), take)


def apply(arguments: Sequence[str]) -> str:
    """Merge a LoRA into a whole model; a sentence on it."""
    parser = argparse.ArgumentParser(
        prog="python -m trainers.export apply", description="Merge a LoRA into a whole model, tensor by tensor."
    )
    parser.add_argument("--base_model", required=True, help="the whole model: a file, a folder or a Hub id")
    parser.add_argument("--lora", type=Path, required=True, help="a LoRA file, or a checkpoint with one")
    parser.add_argument(
        "--alpha",
        type=float,
        help=f"strength; default: as it was trained, which files of the fork do not say ({FORK_STRENGTH:g} then)",
    )
    parser.add_argument("--format", choices=_FORMATS, default=_FORMATS[0], help="default: safetensors")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; default: as the base model has them")
    parser.add_argument("--variant", choices=PUBLISHED, help="which model the base is, where its name does not tell")
    parser.add_argument(
        "--out", type=Path, help="the file to write; default: dynamicrafter_VARIANT_LORA_applied.FORMAT in this folder"
    )
    args = parser.parse_args(arguments)
    take = _lora_in(args.lora)
    told = args.variant or facts_of(args.base_model)  # else it is taken for what the LoRA was trained on
    base = BaseModel(args.base_model, args.variant if told else take.meta.get("variant"))
    suffix = f".{args.format}"
    out = _free(args.out or Path(name_for(base.facts.variant, f"{_stem(args.lora)}_applied", suffix)))
    strength = scale_of(take.lora) if args.alpha is None else args.alpha
    adapter = {path: Lora(layer.down, layer.up, strength * layer.rank) for path, layer in take.lora.items()}
    told = write_model(out, base, take, adapter, DTYPES[args.dtype] if args.dtype else None)
    if args.alpha is not None:
        return f"{told}; at strength {strength:g}"
    trained = "as it was trained" if take.described else "the fork's own setting, for the file does not say its own"
    return f"{told}; at strength {strength:g}, {trained}"


def _lora_in(path: Path) -> Take:
    take = read_take(path)
    if take.kind != "lora":
        raise ModelError(f"{path} holds no LoRA; give a checkpoint that was trained with one")
    return replace(take, meta={key: value for key, value in take.meta.items() if key not in ("step", "time")})


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _free(out: Path) -> Path:
    if out.exists() or out.is_symlink():
        raise ModelError(f"{out} exists already; name another --out or remove it")
    return out
