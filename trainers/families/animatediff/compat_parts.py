"""Which parts of the motion modules another trainer's names mean, as our `trainable_modules`. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainers.settings import ConfigError

_RENAMED = (
    ("temporal_transformer", ""),
    ("attention_blocks.0", "attn1"),
    ("attention_blocks.1", "attn2"),
    ("norms.0", "norm1"),
    ("norms.1", "norm2"),
    ("ff_norm", "norm3"),
)


def our_names(path: str) -> str:
    """Upstream's names of a motion module's parts, in a path or a piece of one, as ours."""
    for theirs, ours in _RENAMED:
        path = path.replace(theirs, ours)
    return path.replace("..", ".")


_BLOCK = "transformer_blocks.0."
_ATTENTION = [f"attention_blocks.{n}.{part}" for n in (0, 1) for part in ("to_q", "to_k", "to_v", "to_out.0")]
_IN_BLOCK = [*_ATTENTION, "norms.0", "norms.1", "ff.net.0.proj", "ff.net.2", "ff_norm"]
#: The layers of a motion module: upstream's name (below temporal_transformer) -> ours.
LAYERS = {name: our_names(name) for name in ("norm", "proj_in", *(_BLOCK + part for part in _IN_BLOCK), "proj_out")}
#: Our lines that say most at once; single layers follow.
_LINES = ("transformer_blocks.0", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff")


def our_modules(endings: Sequence[str], notes: list[str]) -> list[str]:
    """Our trainable_modules for upstream's; [] for all of the motion modules. ConfigError when nothing would train.

    Upstream takes every parameter under a module whose dotted name ends with one of the texts, letter by letter.
    """
    parents = {layer.rsplit(".", count)[0] for layer in LAYERS for count in range(1, layer.count(".") + 1)}
    inside = {"temporal_transformer": ""} | {f"temporal_transformer.{name}": name for name in (*parents, *LAYERS)}
    lines, idle = [], []
    chosen: set[str] = set()
    for ending in dict.fromkeys(endings):
        found = {
            ours
            for name, below in inside.items()
            if name.endswith(ending)
            for theirs, ours in LAYERS.items()
            if not below or theirs == below or theirs.startswith(f"{below}.")
        }
        if "motion_modules" in ending:
            lines += [_of_blocks(ending)]
        elif not found:
            idle.append(ending)
        chosen |= found
    if "motion_modules" in endings or chosen == set(LAYERS.values()):
        lines, chosen = [], set()
    elif not lines and not chosen:
        raise ConfigError(
            [
                (
                    "trainable_modules",
                    f"{', '.join(idle)}: no part of the motion modules ends so, and nothing would be trained; use "
                    "to_q, to_k, to_v, to_out, ff, attention_blocks.0, temporal_transformer, or set train_whole_module",
                )
            ]
        )
    if idle:
        notes.append(f"trainable_modules: no part of the motion modules ends in {', '.join(idle)}.")
    left = set(chosen)
    for line in (*_LINES, *(layer.removeprefix(_BLOCK) for layer in LAYERS.values())):
        meant = {layer for layer in LAYERS.values() if f".{line}." in f".{layer}."}
        if meant <= chosen and meant & left:
            lines.append(line)
            left -= meant
    return lines


def _of_blocks(ending: str) -> str:
    """Our line for an ending that names motion modules of certain blocks: down_blocks.0.motion_modules.1.proj_in."""
    ending = our_names(ending).rstrip(".")
    return rf".*{re.escape(ending)}\..*" if ending.endswith("motion_modules") else ending
