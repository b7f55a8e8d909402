"""CogVideo's current trainer, ``finetune/train.py``: LoRA and SFT, text and image to video. No torch."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from trainers.families.cogvideox.compat_factory import image_scale
from trainers.families.cogvideox.compat_parts import (
    FRAMES,
    Call,
    Dialect,
    base_model,
    foreign,
    frames_note,
    launch,
    pairs,
    read_call,
    steps,
)
from trainers.families.cogvideox.facts import Facts
from trainers.foreign import Foreign, Key, lines_of, slashes
from trainers.shell import Command

SCRIPT = "train.py"
#: What tells its command from one of the many other scripts of this name.
OWN_FLAGS = ("train_resolution", "training_type", "model_type", "model_path")

#: The common name of a flag -> its own.
NAMES = {
    "pretrained_model_name_or_path": "model_path",
    "instance_data_root": "data_root",
    "train_batch_size": "batch_size",
    "num_train_epochs": "train_epochs",
    "max_train_steps": "train_steps",
    "checkpoints_total_limit": "checkpointing_limit",
    "dataloader_num_workers": "num_workers",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "prodigy_beta3": "beta3",
    "adam_weight_decay": "weight_decay",
    "adam_epsilon": "epsilon",
    "fps": "gen_fps",
}
FLAGS = {
    "model_path": Key(str, ...),
    "model_name": Key(str, ...),
    "model_type": Key(str, ...),
    "training_type": Key(str, ...),
    "output_dir": Key(str, ...),
    "data_root": Key(str, ...),
    "caption_column": Key(str, ...),
    "video_column": Key(str, ...),
    "train_resolution": Key(str, ...),
    "report_to": Key(str, ...),
    "seed": Key(int, 42),
    "train_epochs": Key(int, 10),
    "train_steps": Key(int),
    "gradient_accumulation_steps": Key(int, 1),
    "batch_size": Key(int, 1),
    "learning_rate": Key(float, 2e-5),
    "optimizer": Key(str, "adamw"),
    "beta1": Key(float, 0.9),
    "beta2": Key(float, 0.95),
    "beta3": Key(float, 0.98),
    "epsilon": Key(float, 1e-8),
    "weight_decay": Key(float, 1e-4),
    "max_grad_norm": Key(float, 1.0),
    "lr_scheduler": Key(str, "constant_with_warmup"),
    "lr_warmup_steps": Key(int, 100),
    "lr_num_cycles": Key(int, 1),
    "lr_power": Key(float, 1.0),
    "num_workers": Key(int, 8),
    "pin_memory": Key(bool, True),
    "image_column": Key(str),
    "mixed_precision": Key(str, "no"),
    "gradient_checkpointing": Key(bool, True),
    "enable_slicing": Key(bool, True),
    "enable_tiling": Key(bool, True),
    "nccl_timeout": Key(int, 1800),
    "rank": Key(int, 128),
    "lora_alpha": Key(float, 64.0),
    "target_modules": Key(list, ["to_q", "to_k", "to_v", "to_out.0"]),
    "checkpointing_steps": Key(int, 200),
    "checkpointing_limit": Key(int, 10),
    "resume_from_checkpoint": Key(str),
    "do_validation": Key(bool, False),
    "validation_steps": Key(int),
    "validation_dir": Key(str),
    "validation_prompts": Key(str),
    "validation_images": Key(str),
    "validation_videos": Key(str),
    "gen_fps": Key(int, 15),
}
IDLE = {
    "model_name": "the base model's own settings say which it is",
    "num_workers": "clips are encoded once, before the training",
    "image_column": "the image of a clip is its first frame",
    "validation_videos": "no model here begins from a video",
}
#: Its parser takes any text for true in these.
ANY_TEXT_IS_TRUE = ("gradient_checkpointing", "enable_slicing", "enable_tiling", "pin_memory")


def translate(command: Command) -> Foreign:
    """The command in our words. ConfigError for unknown flags and for what could not run."""
    call = read_call(command, Dialect(f"CogVideo's {SCRIPT}", FLAGS, names=NAMES, idle=IDLE))
    task = _one_of(call, "model_type", ("t2v", "i2v"))
    method = _one_of(call, "training_type", ("lora", "sft"))
    call.dialect = replace(call.dialect, takes_image=task == "i2v", method="lora" if method == "lora" else "full")
    launched = launch(call)
    _, facts = base_model(call)
    dataset = _dataset(call)
    total, _ = steps(call, dataset)
    frames_note(call, dataset["num_frames"], "stretch")
    _written_false(call)
    if str(call["optimizer"]).lower() not in ("adam", "adamw", "prodigy", "came"):
        call.notes.append(f"--optimizer {call['optimizer']} is none that upstream knows: it takes adamw, and so it is.")
        call.values["optimizer"] = "adamw"
    if str(call["optimizer"]).lower() != "prodigy":
        call.ignore("prodigy_beta3", "it is for prodigy alone")
    own: dict[str, Any] = {"scheduler": "dpm", "rotary": "pipeline"}
    _rotary_note(call, facts, dataset)
    if call.dialect.takes_image:
        own |= {"image_noise_dropout": 0.0, "image_noise": True, **image_scale(call, facts)}
    return foreign(call, dataset, _validation(call), total, launched=launched, **own)


def _one_of(call: Call, name: str, known: tuple[str, ...]) -> str:
    if call[name] not in known:
        raise call.refuse(name, f"is {call[name]!r}; choose {' or '.join(known)}")
    return str(call[name])


def _dataset(call: Call) -> dict[str, Any]:
    size = re.fullmatch(r"\s*(\d+)\s*x\s*(\d+)\s*x\s*(\d+)\s*", call["train_resolution"])
    if size is None:
        given = repr(call["train_resolution"])
        raise call.refuse("train_resolution", f"is {given}; write frames x height x width, such as 49x480x720")
    frames, height, width = (int(number) for number in size.groups())
    return {
        "path": slashes(call["instance_data_root"]),
        "format": "paired",
        "video_list": slashes(call["video_column"]),
        "caption_list": slashes(call["caption_column"]),
        "num_frames": frames,
        "height": height,
        "width": width,
        **FRAMES,
        "repeat_frames": True,
        "fit": "stretch",
    }


def _written_false(call: Call) -> None:
    false = [name for name in ANY_TEXT_IS_TRUE if name in call.given and not call[name]]
    if false:
        listed = ", ".join(call.flag(name) for name in false)
        call.notes.append(f"{listed}: false, as it is written; upstream's parser takes any text for true.")


def _rotary_note(call: Call, facts: Facts | None, dataset: dict[str, Any]) -> None:
    """Upstream counts positions where the pipeline fits them into the base's size: only there the two differ."""
    size = (dataset["height"], dataset["width"])
    if facts is not None and facts.rotary and facts.patch_size_t is None and size != facts.native[1:]:
        call.notes.append(
            f"rotary is pipeline: at {size[1]} x {size[0]} positions are as diffusers' pipelines have them, in which "
            "the result will be used. Upstream counts them instead; for that set rotary to integers."
        )


def _validation(call: Call) -> dict[str, Any]:
    """The section validation; its prompts and images stand in files."""
    names = ("validation_steps", "validation_dir", "validation_prompts", "validation_images")
    if not call["do_validation"]:
        for name in (*names, "validation_videos"):
            call.ignore(name, "--do_validation is not true")
        return {"every_steps": None, "prompts": [], "fps": call["fps"]}
    for name in names[:3]:
        if call[name] is None:
            raise call.refuse(name, "must be set, for --do_validation is true")
    folder = slashes(call["validation_dir"]).rstrip("/")
    file = f"{folder}/{slashes(call['validation_prompts'])}"
    prompts, images = lines_of(file) or [], []
    if not prompts:
        call.notes.append(f"No samples are drawn: {file} is not here, or empty; set validation.prompts.")
    if call["validation_images"] is not None and call.dialect.takes_image:
        listed = f"{folder}/{slashes(call['validation_images'])}"
        images = [_beside(listed, line) for line in lines_of(listed) or []]
        if prompts and not images:
            call.notes.append(f"{listed} is not here, or empty; set validation.images.")
    elif call["validation_images"] is not None:
        call.ignore("validation_images", "it is for image to video")
    prompts, images = pairs(prompts, images if prompts else [])
    return {"every_steps": call["validation_steps"], "prompts": prompts, "images": images, "fps": call["fps"]}


def _beside(file: str, line: str) -> str:
    """A path in a list of files, as it counts from the folder of the list."""
    line = slashes(line)
    return line if line.startswith(("/", "~")) or line[1:2] == ":" else f"{file.rpartition('/')[0]}/{line}"
