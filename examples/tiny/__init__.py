"""Tiny random models with the real classes, for tests and for trying things out: python -m examples.tiny FAMILY OUT.

They are laid out as the real ones are, load with the same code, and know nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from examples.tiny.animatediff import (
    END,
    START,
    save_text_encoder,
    write_animatediff,
    write_clip_tokenizer,
    write_index,
)
from examples.tiny.cogvideox import KINDS, write_cogvideox, write_t5_tokenizer
from examples.tiny.dynamicrafter import KINDS as DYNAMICRAFTERS
from examples.tiny.dynamicrafter import write_dynamicrafter
from examples.tiny.mochi import write_mochi
from examples.tiny.texts import WORDS

__all__ = ["END", "FAMILIES", "SIZES", "START", "VARIANTS", "WORDS", "main", "save_text_encoder", "write",
           "write_clip_tokenizer", "write_index", "write_t5_tokenizer"]  # fmt: skip

Writer = Callable[[Path, str], dict[str, str]]

SIZES = ("tiny", "mid", "full")
FAMILIES: dict[str, Writer] = {
    "animatediff": write_animatediff,
    "cogvideox": write_cogvideox,
    "mochi": write_mochi,
    "dynamicrafter": write_dynamicrafter,
}
#: Other models of a family than the one that stands for it.
VARIANTS: dict[str, Writer] = {
    **{kind: partial(write_cogvideox, kind=kind) for kind in KINDS if kind not in FAMILIES},
    "mochi-genmo": partial(write_mochi, genmo=True),
    **{kind: partial(write_dynamicrafter, variant=v) for kind, v in DYNAMICRAFTERS.items() if kind not in FAMILIES},
}


def write(family: str, out: Path, seed: int = 0, size: str = "tiny") -> dict[str, str]:
    """Write the random model of a family, or a variant, into the folder `out`; give the settings with which a config
    names it.

    size: one of `SIZES`. ValueError lists the known families.
    """
    known = {**FAMILIES, **VARIANTS}
    if family not in known:
        raise ValueError(f"{family!r} has no tiny model; known: {', '.join(known)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return known[family](out, size)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 when written, 2 when the family is not known."""
    parser = argparse.ArgumentParser(prog="python -m examples.tiny", description=__doc__)
    parser.add_argument("family", metavar="FAMILY", help=", ".join({**FAMILIES, **VARIANTS}))
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    given = parser.parse_args(arguments)
    try:
        write(given.family, given.out, given.seed, given.size)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"wrote {given.out}")
    return 0
