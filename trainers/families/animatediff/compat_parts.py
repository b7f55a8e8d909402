"""What AnimateDiff's trainers have in common, for they grew out of each other: keys with their defaults, their meaning
in our words, and the names of the motion modules' parts as our `trainable_modules`. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.config import DatasetConfig
from trainers.data.clips import DatasetError
from trainers.data.formats import webvid
from trainers.foreign import Key
from trainers.settings import ConfigError

# --- how it is trained -----------------------------------------------------------------------------------------------

#: The optimizer's keys in guoyww's trainer and in its fork.
OPTIMIZER = {
    "learning_rate": Key(float, 3e-5),
    "scale_lr": Key(bool, False),
    "lr_scheduler": Key(str, "constant"),
    "lr_warmup_steps": Key(int, 0),
    "adam_beta1": Key(float, 0.9),
    "adam_beta2": Key(float, 0.999),
    "adam_weight_decay": Key(float, 1e-2),
    "adam_epsilon": Key(float, 1e-8),
    "max_grad_norm": Key(float, 1.0),
    "gradient_accumulation_steps": Key(int, 1),
}
#: The noise schedule's keys, in configs and in command lines.
SCHEDULE = {
    "num_train_timesteps": Key(int, 1000),
    "beta_start": Key(float, 0.00085),
    "beta_end": Key(float, 0.012),
    "beta_schedule": Key(str, "linear"),
    "steps_offset": Key(int, 1),
    "clip_sample": Key(bool, False),
}


def optimizer(top: Mapping[str, Any], max_train_steps: int, notes: list[str]) -> dict[str, Any]:
    """Our section for what was read with `OPTIMIZER`, but for what scale_lr and gradient_accumulation_steps ask."""
    warmup = top["lr_warmup_steps"]
    if warmup > max_train_steps:
        notes.append(f"lr_warmup_steps {warmup} is more than the whole run: it is {max_train_steps} here.")
    return {
        "name": "adamw",
        "learning_rate": top["learning_rate"],
        "lr_scheduler": top["lr_scheduler"],
        "lr_warmup_steps": min(warmup, max_train_steps),
        "beta1": top["adam_beta1"],
        "beta2": top["adam_beta2"],
        "weight_decay": top["adam_weight_decay"],
        "epsilon": top["adam_epsilon"],
        "gradient_accumulation_steps": 1,
        "max_grad_norm": top["max_grad_norm"],
    }


def memory(values: Mapping[str, Any]) -> dict[str, Any]:
    """Our section for the two switches that every one of them has."""
    return {
        "gradient_checkpointing": "full" if values["gradient_checkpointing"] else "none",
        "attention": "xformers" if values["enable_xformers_memory_efficient_attention"] else "sdpa",
    }


def schedule_notes(values: Mapping[str, Any]) -> list[str]:
    """What is said of the noise schedule's numbers that are the same in everything that AnimateDiff made."""
    other = [key for key in SCHEDULE if key != "beta_schedule" and values[key] != SCHEDULE[key].default]
    return [f"{', '.join(other)}: AnimateDiff's own numbers are used, for every motion module has them."] * bool(other)


# --- what is seen ----------------------------------------------------------------------------------------------------

#: How guoyww's dataset, which swift has as well, makes samples of WebVid's clips.
WEBVID = {
    "frame_selection": "random",
    "fit": "crop",
    "repeat_frames": True,
    "flip": True,
    "cache": False,
}


def encoded_anew(upstream: str) -> str:
    """What is said of a dataset whose samples begin elsewhere at every visit."""
    return (
        f"Clips are encoded anew at every visit, each with a new random start, as {upstream} does; dataset.cache with "
        "some dataset.variants is faster."
    )


def count_clips(csv_file: str, folder: str | None, most: int | None) -> int | None:
    """How many rows of a WebVid CSV file have their video, `most` at most; None when it cannot be read here."""
    config = DatasetConfig(path=csv_file, format="webvid", video_folder=folder, max_clips=most)
    try:
        return sum(not entry.problem for entry in webvid.read(config, Path()))
    except DatasetError:
        return None


# --- which parts are trained -----------------------------------------------------------------------------------------

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
