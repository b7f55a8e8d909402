"""The training YAML of guoyww/AnimateDiff: the image stage and the motion stage on WebVid. No torch.

Every key is mapped to our words or spoken of in a note; a key that is left out has upstream's default, not ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trainers.families.animatediff.compat_parts import (
    OPTIMIZER,
    SCHEDULE,
    WEBVID,
    count_clips,
    encoded_anew,
    memory,
    optimizer,
    our_names,
    schedule_notes,
)
from trainers.families.animatediff.positions import told_version
from trainers.foreign import Foreign, Key, read_keys, slashes
from trainers.settings import ConfigError

TOOL = "guoyww/AnimateDiff"

TOP = {
    "image_finetune": Key(bool, False),
    "name": Key(str),
    "launcher": Key(str),
    "use_wandb": Key(bool, False),
    "output_dir": Key(str, ...),
    "pretrained_model_path": Key(str, ...),
    "train_data": Key(dict, ...),
    "validation_data": Key(dict, ...),
    "cfg_random_null_text": Key(bool, True),
    "cfg_random_null_text_ratio": Key(float, 0.1),
    "unet_checkpoint_path": Key(str, ""),
    "unet_additional_kwargs": Key(dict, {}),
    "ema_decay": Key(float),
    "noise_scheduler_kwargs": Key(dict, {}),
    "max_train_epoch": Key(int, -1),
    "max_train_steps": Key(int, 100),
    "validation_steps": Key(int, 100),
    "validation_steps_tuple": Key(object),
    **OPTIMIZER,
    "trainable_modules": Key(list, ...),
    "num_workers": Key(int, 32),
    "train_batch_size": Key(int, 1),
    "gradient_checkpointing": Key(bool, False),
    "checkpointing_epochs": Key(int, 5),
    "checkpointing_steps": Key(int, -1),
    "mixed_precision_training": Key(bool, True),
    "enable_xformers_memory_efficient_attention": Key(bool, True),
    "global_seed": Key(int, 42),
    "is_debug": Key(bool, False),
}
TRAIN_DATA = {
    "csv_path": Key(str, ...),
    "video_folder": Key(str, ...),
    "sample_size": Key(object, 256),
    "sample_stride": Key(int, 4),
    "sample_n_frames": Key(int, 16),
}
VALIDATION = {
    "prompts": Key(list, []),
    "num_inference_steps": Key(int, 25),
    "guidance_scale": Key(float, 8.0),
}


def knows(data: Mapping[str, Any]) -> bool:
    """Whether settings are those of its trainer: it reads a CSV file, or they have a key that only it has."""
    given = data.get("train_data")
    if isinstance(given, Mapping) and {"csv_path", "video_folder"} & given.keys():
        return len(TOP.keys() & data.keys()) >= min(3, len(data))
    own = {"image_finetune", "cfg_random_null_text", "unet_additional_kwargs", "global_seed"}
    return bool(own & data.keys()) and bool({"pretrained_model_path", "train_data"} & data.keys())


def translate(data: Mapping[str, Any]) -> Foreign:
    """Its settings in our words. ConfigError for unknown keys and for what could not be trained."""
    top = read_keys(data, TOP, TOOL)
    clips = read_keys(top["train_data"], TRAIN_DATA, TOOL, "train_data.")
    drawn = read_keys(
        {key: value for key, value in top["validation_data"].items() if key in VALIDATION},
        VALIDATION,
        TOOL,
        "validation_data.",
    )
    schedule = read_keys(top["noise_scheduler_kwargs"], SCHEDULE, TOOL, "noise_scheduler_kwargs.")
    if top["unet_checkpoint_path"]:
        raise ConfigError(
            [
                (
                    "unet_checkpoint_path",
                    "names a whole UNet, from which no run here can begin; put its image weights into the unet folder "
                    "of pretrained_model_path, and leave the key empty",
                )
            ]
        )
    notes: list[str] = []
    image = top["image_finetune"]
    method, trainable_modules = ("full", []) if image else _trained(top["trainable_modules"])
    height, width = _size(clips["sample_size"], notes)
    steps = _steps(top, clips, notes)
    positions, mid_block = (32, True) if image else _motion_form(top["unet_additional_kwargs"], notes)
    if not image:
        notes.append("New motion modules begin without effect, as upstream's do.")
    notes.append(encoded_anew("upstream"))
    _idle_notes(top, data, schedule, notes)
    settings = {
        "family": "animatediff",
        "method": method,
        "base_model": slashes(top["pretrained_model_path"]),
        "motion_adapter": None,
        "trainable_modules": trainable_modules,
        "motion_max_seq_length": positions,
        "motion_mid_block": mid_block,
        "norm_semantics": "original",
        "beta_schedule": schedule["beta_schedule"],
        "prediction_type": "epsilon",
        "seed": top["global_seed"],
        "max_train_steps": steps["max_train_steps"],
        "mixed_precision": "fp16" if top["mixed_precision_training"] else "no",
        "dataset": {
            "path": slashes(clips["csv_path"]),
            "format": "webvid",
            "video_folder": slashes(clips["video_folder"]),
            "num_frames": 1 if image else clips["sample_n_frames"],
            "height": height,
            "width": width,
            "frame_stride": 1 if image else clips["sample_stride"],
            **WEBVID,
            "caption_dropout": top["cfg_random_null_text_ratio"] if top["cfg_random_null_text"] else 0.0,
            "batch_size": top["train_batch_size"],
        },
        "optimizer": optimizer(top, steps["max_train_steps"], notes),
        "memory": memory(top),
        "validation": {
            "every_steps": top["validation_steps"],
            "prompts": list(dict.fromkeys(drawn["prompts"])),
            "seed": top["global_seed"],
            "num_inference_steps": drawn["num_inference_steps"],
            "guidance_scale": max(1.0, drawn["guidance_scale"]),
            "fps": 8,
        },
        "checkpoint": {"every_steps": steps["checkpointing_steps"], "keep_last": None},
    }
    return Foreign("train", settings, notes, slashes(top["output_dir"]), numbered=True)


def _trained(wanted: Sequence[str]) -> tuple[str, list[str]]:
    """(method, our trainable_modules) of texts that stand anywhere in the names of parameters."""
    if any(text in (".", "") for text in wanted):
        return "full", []
    if any(text in "motion_modules." for text in wanted):
        return "motion_module", []
    return "motion_module", [rf".*{re.escape(our_names(text))}.*" for text in wanted]


def _size(given: Any, notes: list[str]) -> tuple[int, int]:
    """(height, width) of sample_size, a number or [height, width]."""
    sides = list(given) if isinstance(given, (list, tuple)) else [given, given]
    try:
        height, width = (int(side) for side in sides)
    except (TypeError, ValueError):
        raise ConfigError([("train_data.sample_size", "must be a number, or [height, width]")]) from None
    if height != width:
        notes.append("sample_size: clips fill height x width; upstream leaves black edges where the width is more.")
    return height, width


def _steps(top: Mapping[str, Any], clips: Mapping[str, Any], notes: list[str]) -> dict[str, int]:
    """What may be given in epochs, in steps."""
    steps, every = top["max_train_steps"], top["checkpointing_steps"]
    if steps != -1 and every != -1:
        if top["max_train_epoch"] != -1:
            notes.append("max_train_epoch has no effect beside max_train_steps, upstream as well.")
        return {"max_train_steps": steps, "checkpointing_steps": every}
    rows = count_clips(slashes(clips["csv_path"]), slashes(clips["video_folder"]), None)
    per_epoch = None if rows is None else max(1, rows // max(1, top["train_batch_size"]))
    if steps == -1:
        if top["max_train_epoch"] < 1:
            raise ConfigError([("max_train_steps", "is -1, so max_train_epoch must be at least 1")])
        steps = 1000 if per_epoch is None else top["max_train_epoch"] * per_epoch
        notes.append(
            f"max_train_steps is 1000: the CSV file is not here to count {top['max_train_epoch']} epochs; set it to "
            "clips x epochs / train_batch_size."
            if per_epoch is None
            else f"max_train_steps is {steps}: {top['max_train_epoch']} x {rows} clips, for one process."
        )
    if every == -1:
        epochs = max(1, top["checkpointing_epochs"])
        every = 500 if per_epoch is None else epochs * per_epoch
        notes.append(
            f"A checkpoint is kept every {every} steps"
            + (f", for {epochs} epochs cannot be counted." if per_epoch is None else f": {epochs} epochs.")
        )
    return {"max_train_steps": steps, "checkpointing_steps": every}


def _motion_form(given: Mapping[str, Any], notes: list[str]) -> tuple[int, bool]:
    """(positions, mid block) of the new motion modules; what else `unet_additional_kwargs` asks for is spoken of."""
    inner = given.get("motion_module_kwargs")
    inner = inner if isinstance(inner, Mapping) else {}
    usual = {
        "use_motion_module": True,
        "motion_module_resolutions": [1, 2, 4, 8],
        "unet_use_cross_frame_attention": False,
        "unet_use_temporal_attention": False,
        "motion_module_decoder_only": False,
        "motion_module_type": "Vanilla",
    }
    usual_inner = {
        "num_attention_heads": 8,
        "num_transformer_block": 1,
        "attention_block_types": ["Temporal_Self", "Temporal_Self"],
        "temporal_position_encoding": True,
        "temporal_attention_dim_div": 1,
        "zero_initialize": True,
    }
    form = {"motion_module_mid_block": Key(bool, False), "use_inflated_groupnorm": Key(bool, False)}
    spoken = ("motion_module_kwargs", *form)
    other = [key for key, value in given.items() if key not in spoken and usual.get(key, ...) != value]
    other += [
        key
        for key, value in inner.items()
        if key != "temporal_position_encoding_max_len" and usual_inner.get(key, ...) != value
    ]
    if other:
        notes.append(f"unet_additional_kwargs: {', '.join(other)} is as in AnimateDiff's own motion modules here.")
    length = {key: value for key, value in inner.items() if key == "temporal_position_encoding_max_len"}
    known = {"temporal_position_encoding_max_len": Key(int, 24)}
    read = read_keys(length, known, TOOL, "unet_additional_kwargs.motion_module_kwargs.")
    positions = int(read["temporal_position_encoding_max_len"])
    asked = read_keys({key: given[key] for key in form if key in given}, form, TOOL, "unet_additional_kwargs.")
    mid_block = asked["motion_module_mid_block"]
    version = told_version(positions, mid_block)
    if asked["use_inflated_groupnorm"] == (version == "v1"):
        norms = "over whole clips" if version == "v1" else "of each frame by itself"
        notes.append(
            f"use_inflated_groupnorm: motion modules {'with' if mid_block else 'without'} one in the middle block and "
            f"with {positions} positions are {version}, which has norms {norms}; ComfyUI takes them so."
        )
    return positions, mid_block


def _idle_notes(top: Mapping[str, Any], data: Mapping[str, Any], schedule: Mapping[str, Any], notes: list[str]) -> None:
    """What upstream ignores, what has nothing to do here, and what is the same for every motion module."""
    if top["gradient_accumulation_steps"] != 1:
        notes.append(
            "gradient_accumulation_steps is 1: upstream has the key, but changes the weights at every batch. For real "
            "accumulation set optimizer.gradient_accumulation_steps."
        )
    notes += schedule_notes(schedule)
    swallowed = [f"validation_data.{key}" for key in top["validation_data"] if key not in VALIDATION]
    ignored = [key for key in ("ema_decay", "scale_lr") if data.get(key) is not None]
    useless = ["validation_steps_tuple", "num_workers", "name", "launcher", "use_wandb", "is_debug"]
    if not top["cfg_random_null_text"] and "cfg_random_null_text_ratio" in data:
        useless.append("cfg_random_null_text_ratio")
    if data.get("image_finetune"):
        useless.append("unet_additional_kwargs")
    if "checkpointing_epochs" in data and top["checkpointing_steps"] != -1:
        useless.append("checkpointing_epochs")
    idle = [f"{key} (upstream ignores it)" for key in ignored]
    idle += [key for key in (*useless, *swallowed) if key in data or key in swallowed]
    if idle:
        notes.append(f"No effect: {', '.join(idle)}.")
