"""The command lines of ModelScope swift: ``animatediff_sft.py`` (training) and ``animatediff_infer.py``. No torch.

Every argument is mapped to our words or spoken of in a note; one that is left out has upstream's default, not ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.families.animatediff.compat_parts import (
    SCHEDULE,
    WEBVID,
    count_clips,
    encoded_anew,
    memory,
    schedule_notes,
)
from trainers.foreign import Foreign, Key, lines_of, read_keys, slashes
from trainers.settings import ConfigError
from trainers.shell import Command, options, read_command

TRAIN, INFER = "animatediff_sft.py", "animatediff_infer.py"

_MODEL = {
    "motion_adapter_id_or_path": Key(str),
    "motion_adapter_revision": Key(str),
    "model_id_or_path": Key(str, ...),
    "model_revision": Key(str),
    "sft_type": Key(str, "lora"),
    "seed": Key(int, 42),
    "ignore_args_error": Key(bool, False),
    "validation_prompts_path": Key(str),
    "enable_xformers_memory_efficient_attention": Key(bool, True),
    "num_inference_steps": Key(int, 25),
    "sample_size": Key(int, 256),
    "sample_stride": Key(int, 4),
    "sample_n_frames": Key(int, 16),
    "motion_num_attention_heads": Key(int, 8),
    "motion_max_seq_length": Key(int, 32),
    **SCHEDULE,
}
TRAINING = _MODEL | {
    "guidance_scale": Key(float, 8.0),
    "dataset_sample_size": Key(int),
    "output_dir": Key(str, "output"),
    "ddp_backend": Key(str, "nccl"),
    "lora_rank": Key(int, 8),
    "lora_alpha": Key(int, 32),
    "lora_dropout": Key(float, 0.05),
    "lora_dropout_p": Key(float),
    "lora_dtype": Key(str, "fp32"),
    "gradient_checkpointing": Key(bool, False),
    "batch_size": Key(int, 1),
    "num_train_epochs": Key(int, 1),
    "max_steps": Key(int, -1),
    "learning_rate": Key(float, 1e-4),
    "weight_decay": Key(float, 0.01),
    "gradient_accumulation_steps": Key(int, 16),
    "max_grad_norm": Key(float, 1.0),
    "lr_scheduler_type": Key(str, "cosine"),
    "warmup_ratio": Key(float, 0.05),
    "eval_steps": Key(int, 50),
    "save_steps": Key(int),
    "dataloader_num_workers": Key(int, 1),
    "push_to_hub": Key(bool, False),
    "hub_model_id": Key(str),
    "hub_private_repo": Key(bool, False),
    "push_hub_strategy": Key(str, "push_best"),
    "hub_token": Key(str),
    "text_dropout_rate": Key(float, 0.1),
    "trainable_modules": Key(str, ".*motion_modules.*"),
    "mixed_precision": Key(bool, True),
    "csv_path": Key(str, ...),
    "video_folder": Key(str),
    "use_wandb": Key(bool, False),
}
INFERENCE = _MODEL | {
    "guidance_scale": Key(float, 7.5),
    "ckpt_dir": Key(str),
    "eval_human": Key(bool, False),
    "merge_lora": Key(bool, False),
    "merge_lora_and_save": Key(bool),
    "replace_if_exists": Key(bool, False),
    "output_path": Key(str, "./generated"),
}

#: Arguments that change nothing in swift, although it takes them.
IDLE_IN_TRAINING = ("max_steps", "motion_num_attention_heads", "motion_max_seq_length", "hub_private_repo")
IDLE_IN_INFERENCE = (
    "sample_stride",
    "motion_num_attention_heads",
    "motion_max_seq_length",
    "enable_xformers_memory_efficient_attention",
)
#: Arguments that have nothing to do here.
WITHOUT_USE = ("ddp_backend", "dataloader_num_workers")
HUB = ("push_to_hub", "hub_model_id", "push_hub_strategy", "hub_token")

NEGATIVE_PROMPT = "bad quality, worse quality"  # in its code
FPS = 10.0  # of the GIFs that it writes

#: What models of swift's own examples are called on the Hugging Face Hub.
ON_THE_HUB = {
    "wyj123456/Realistic_Vision_V5.1_noVAE": "SG161222/Realistic_Vision_V5.1_noVAE",
    "Shanghai_AI_Laboratory/animatediff-motion-adapter-v1-5-2": "guoyww/animatediff-motion-adapter-v1-5-2",
}

#: Some names of the denoiser outside of its motion modules, to tell what a regular expression is after.
IMAGE_PARAMETERS = (
    "conv_in.weight",
    "time_embedding.linear_1.bias",
    "down_blocks.0.resnets.0.conv1.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "mid_block.attentions.0.proj_in.weight",
    "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.2.bias",
    "conv_out.bias",
)


def read(text: str) -> Foreign | None:
    """A text with one of its commands, or with nothing but arguments, in our words; None when it has neither."""
    if re.match(r"\s*--[A-Za-z]", text) and re.search(r"--(model_id_or_path|sft_type|csv_path|ckpt_dir)\b", text):
        text = f"swift {text.lstrip()}"
    command = read_command(text, (TRAIN, INFER, "swift"))
    return None if command is None else translate(command)


def from_arguments(arguments: Sequence[str]) -> Foreign:
    """Its arguments, for training or for inference, in our words."""
    return translate(Command("swift", tuple(arguments)))


def translate(command: Command) -> Foreign:
    """One of its commands in our words. ConfigError for unknown arguments and for what could not run."""
    given = options(command.arguments)
    for name in [name for name in given if name.startswith("no_") and name not in TRAINING]:
        given[name.removeprefix("no_")] = not given.pop(name)  # argparse of its kind has --no_flag for what is on
    infers = command.script == INFER
    if command.script == "swift":
        only_train, only_infer = TRAINING.keys() - INFERENCE.keys(), INFERENCE.keys() - TRAINING.keys()
        infers = bool(only_infer & given.keys())
        mixed = sorted(only_infer & given.keys()) + sorted(only_train & given.keys())
        if infers and only_train & given.keys():
            raise ConfigError([("", f"{', '.join(mixed)}: some of these are for training, some for inference")])
    keys = INFERENCE if infers else TRAINING
    notes: list[str] = []
    if str(given.get("ignore_args_error")).lower() in ("true", "1", "yes"):
        unknown = [name for name in given if name not in keys]
        if unknown:
            notes.append(f"Unknown and left out, as ignore_args_error asks: {', '.join(unknown)}.")
        given = {name: value for name, value in given.items() if name in keys}
    values = read_keys(given, keys, f"swift's {INFER if infers else TRAIN}", "--")
    if values["sft_type"] not in ("lora", "full"):
        raise ConfigError([("--sft_type", f"is {values['sft_type']!r}; choose lora or full")])
    return _inference(values, given, notes) if infers else _training(values, given, command, notes)


# --- training --------------------------------------------------------------------------------------------------------


def _training(values: Mapping[str, Any], given: Mapping[str, Any], command: Command, notes: list[str]) -> Foreign:
    method, trainable_modules = _trained(values, notes)
    base, adapter = slashes(values["model_id_or_path"]), _path(values["motion_adapter_id_or_path"])
    if method == "lora" and adapter is None:
        raise ConfigError(
            [("--motion_adapter_id_or_path", "must be set for --sft_type lora: a LoRA lies on a motion adapter")]
        )
    if method == "motion_module" and adapter is None:
        notes.append("New motion modules begin without effect here; swift's begin at random and first unlearn that.")
    steps = _steps(values, command.processes, notes)
    prompts = _validation_prompts(values["validation_prompts_path"], notes)
    notes += _hub_note(base, adapter)
    notes += _machine_notes(command)
    notes.append(encoded_anew("swift"))
    idle = _idle(given, IDLE_IN_TRAINING, WITHOUT_USE)
    if method != "lora":
        idle += [name for name in given if name.startswith("lora_")]
    elif values["lora_dtype"] not in ("fp32", "AUTO"):
        idle.append(f"lora_dtype {values['lora_dtype']} (a LoRA is always trained in 32 bits)")
    hub = [name for name in HUB if name in given]
    if hub:
        notes.append(f"Nothing is uploaded: {', '.join(hub)} are left out.")
    if values["use_wandb"]:
        notes.append("use_wandb is left out; tracking.tracker can be tensorboard, and the run folder holds the curves.")
    notes += schedule_notes(values) + _revision_notes(values)
    notes.append(
        "norm_semantics is original, as ComfyUI and sd-webui compute; swift trained with diffusers' norms: set "
        "norm_semantics to diffusers to generate with diffusers or swift."
    )
    if values["gradient_accumulation_steps"] > 1:
        notes.append(
            f"Gradients of {values['gradient_accumulation_steps']} batches are averaged; swift adds them up, so that "
            "its max_grad_norm cuts that much sooner."
        )
    if idle:
        notes.append(f"No effect: {', '.join(idle)}.")
    settings: dict[str, Any] = {
        "family": "animatediff",
        "method": method,
        "base_model": base,
        "motion_adapter": adapter,
        "trainable_modules": trainable_modules,
        "motion_max_seq_length": 32,
        "motion_mid_block": True,
        "norm_semantics": "original",
        "beta_schedule": values["beta_schedule"],
        "prediction_type": "epsilon",
        "seed": values["seed"],
        "max_train_steps": steps["max_train_steps"],
        "mixed_precision": "fp16" if values["mixed_precision"] else "no",
        "dataset": {
            "path": slashes(values["csv_path"]),
            "format": "webvid",
            "video_folder": _path(values["video_folder"]),
            "max_clips": values["dataset_sample_size"],
            "num_frames": values["sample_n_frames"],
            "height": values["sample_size"],
            "width": values["sample_size"],
            "frame_stride": values["sample_stride"],
            **WEBVID,
            "caption_dropout": values["text_dropout_rate"],
            "batch_size": values["batch_size"],
        },
        "adapter": {
            "rank": values["lora_rank"],
            "alpha": float(values["lora_alpha"]),
            "dropout": values["lora_dropout"] if values["lora_dropout_p"] is None else values["lora_dropout_p"],
            "target_modules": [values["trainable_modules"]],
        },
        "optimizer": {
            "name": "adamw",
            "learning_rate": values["learning_rate"],
            "lr_scheduler": values["lr_scheduler_type"],
            "lr_warmup_steps": steps["lr_warmup_steps"],
            "weight_decay": values["weight_decay"],
            "gradient_accumulation_steps": values["gradient_accumulation_steps"],
            "max_grad_norm": values["max_grad_norm"],
        },
        "memory": memory(values),
        "validation": {
            "every_steps": steps["eval_steps"],
            "prompts": prompts,
            "negative_prompt": NEGATIVE_PROMPT,
            "seed": values["seed"],
            "num_inference_steps": values["num_inference_steps"],
            "guidance_scale": max(1.0, values["guidance_scale"]),
            "fps": FPS,
        },
        "checkpoint": {"every_steps": steps["save_steps"], "keep_last": None},
    }
    if method != "lora":
        del settings["adapter"]
    return Foreign("train", settings, notes, slashes(values["output_dir"]), numbered=True)


def _trained(values: Mapping[str, Any], notes: list[str]) -> tuple[str, list[str]]:
    """(method, our trainable_modules) of sft_type and the regular expression trainable_modules."""
    pattern = values["trainable_modules"]
    try:
        matches = re.compile(pattern).fullmatch
    except re.error as error:
        raise ConfigError([("--trainable_modules", f"{pattern!r} is no regular expression: {error}")]) from error
    if values["sft_type"] == "lora":
        return "lora", []
    of_images = [name for name in IMAGE_PARAMETERS if matches(name)]
    if len(of_images) == len(IMAGE_PARAMETERS):
        return "full", []
    if of_images:
        notes.append(
            f"trainable_modules {pattern} reaches into the image model; here a part is trained of the motion modules "
            "alone (or all of everything, with .*)."
        )
    whole = pattern == ".*motion_modules.*"
    return "motion_module", [] if whole else [pattern]


def _steps(values: Mapping[str, Any], processes: int, notes: list[str]) -> dict[str, int]:
    """Everything that swift counts in batches of one process, in optimizer steps."""
    accumulation = max(1, values["gradient_accumulation_steps"])
    batch, epochs = max(1, values["batch_size"]), max(1, values["num_train_epochs"])
    wanted, folder = values["dataset_sample_size"], _path(values["video_folder"])
    rows = count_clips(slashes(values["csv_path"]), folder, wanted)
    counted = rows is not None
    if rows is None:
        rows = wanted
    each = f"{batch} x {processes} x {accumulation}" if processes > 1 else f"{batch} x {accumulation}"
    if rows is None:
        total = 1000
        notes.append(
            f"max_train_steps is 1000, for {slashes(values['csv_path'])} cannot be read here to count the clips of "
            f"{epochs} {'epoch' if epochs == 1 else 'epochs'}; set it to clips x epochs / "
            f"{batch * processes * accumulation} ({each})."
        )
    else:
        per_epoch = max(1, -(-rows // processes) // batch)
        total = max(1, epochs * per_epoch // accumulation)
        rest = "" if counted else " (if all are there: the CSV file cannot be read here to count them)"
        notes.append(
            f"max_train_steps is {total}: {epochs} x {rows} clips{rest}, of which one optimizer step takes {each}. "
            "What swift counts in batches is counted in optimizer steps here."
        )
    batches = total * accumulation if rows is None else epochs * per_epoch
    warmup = int(values["warmup_ratio"] * batches) // accumulation
    save = values["eval_steps"] if values["save_steps"] is None else values["save_steps"]
    if values["eval_steps"] < 1 or save < 1:
        raise ConfigError([("--eval_steps", "and --save_steps must be at least 1")])
    return {
        "max_train_steps": total,
        "lr_warmup_steps": 0 if values["lr_scheduler_type"] == "constant" else min(warmup, total),
        "eval_steps": max(1, round(values["eval_steps"] / accumulation)),
        "save_steps": max(1, round(save / accumulation)),
    }


def _validation_prompts(path: str | None, notes: list[str]) -> list[str]:
    prompts = None if path is None else lines_of(slashes(path))
    if path is None:
        notes.append(
            "No samples are drawn: swift draws four prompts of its own, which are not part of Dailies; set "
            "validation.prompts."
        )
    elif not prompts:
        notes.append(f"No samples are drawn: validation_prompts_path {path} is not here; set validation.prompts.")
    return prompts or []


def _machine_notes(command: Command) -> list[str]:
    devices = command.environment.get("CUDA_VISIBLE_DEVICES", "0")
    if command.processes > 1:
        count = command.processes
        return [
            f"The command starts {count} processes. Start as many here (accelerate launch --num_processes {count} -m "
            f"trainers.train ...), or multiply optimizer.gradient_accumulation_steps by {count} for the same batch."
        ]
    return [f"CUDA_VISIBLE_DEVICES={devices} is not part of a config; set it for the run."] if devices != "0" else []


# --- inference -------------------------------------------------------------------------------------------------------


def _inference(values: Mapping[str, Any], given: Mapping[str, Any], notes: list[str]) -> Foreign:
    base, adapter = slashes(values["model_id_or_path"]), _path(values["motion_adapter_id_or_path"])
    checkpoint = _path(values["ckpt_dir"])
    full = values["sft_type"] == "full"
    if checkpoint is None and not full:
        raise ConfigError([("--ckpt_dir", "must be set for --sft_type lora")])
    inside = f"{base}/motion_adapter"
    if full:
        if adapter is not None:
            notes.append("motion_adapter_id_or_path is left out: with sft_type full, ckpt_dir takes its place.")
        adapter = None if checkpoint else inside
    elif adapter is None and Path(inside).expanduser().is_dir():
        adapter = inside
    prompts, missing = _prompts(values, notes)
    merged = values["merge_lora_and_save"] if values["merge_lora_and_save"] is not None else values["merge_lora"]
    if merged:
        notes.append(
            "merge_lora is left out: nothing is merged to sample. To write a merged motion module: python -m "
            f"trainers.export {checkpoint or 'CHECKPOINT'} --format original (or diffusers) --out PATH."
        )
    if "replace_if_exists" in given:
        notes.append("replace_if_exists is left out: nothing is ever overwritten here.")
    side = _native_size(base)
    notes.append(
        f"Clips are {side} x {side}, the base model's own size: swift ignores sample_size when it generates. For the "
        f"trained size set height and width to {values['sample_size']}."
    )
    notes += _hub_note(base, adapter)
    notes.append("Every prompt begins from the seed; in swift it depends on the prompts before it.")
    notes += schedule_notes(values) + _revision_notes(values)
    idle = _idle(given, IDLE_IN_INFERENCE, ())
    if idle:
        notes.append(f"No effect: {', '.join(idle)}.")
    settings = {
        "family": "animatediff",
        "base_model": base,
        "motion_adapter": adapter,
        "beta_schedule": values["beta_schedule"],
        "checkpoints": [] if checkpoint is None else [checkpoint],
        "strengths": [1.0],
        "include_base": checkpoint is None,
        "prompts": prompts,
        "negative_prompt": NEGATIVE_PROMPT,
        "seeds": [values["seed"]],
        "num_frames": values["sample_n_frames"],
        "height": side,
        "width": side,
        "num_inference_steps": values["num_inference_steps"],
        "guidance_scale": max(1.0, values["guidance_scale"]),
        "fps": FPS,
        "mixed_precision": "no",
    }
    return Foreign("sample", settings, notes, slashes(values["output_path"]), numbered=True, missing=missing)


def _prompts(values: Mapping[str, Any], notes: list[str]) -> tuple[list[str], dict[str, str]]:
    """(prompts, what to say when there are none); eval_human asks for them while it runs, which nobody does here."""
    path = values["validation_prompts_path"]
    prompts = (lines_of(slashes(path)) if path else None) or []
    if values["eval_human"]:
        why = "eval_human asks for them at the keyboard"
    elif path is None:
        why = "there is neither eval_human nor validation_prompts_path"
    else:
        why = f"validation_prompts_path {path} is not here, or has none"
    if prompts:
        if values["eval_human"]:
            notes.append("eval_human is left out: the prompts of validation_prompts_path are drawn.")
        return prompts, {}
    return [], {"prompts": f"must be given, for {why}: write them into the config, or add --set 'prompts=[...]'"}


def _native_size(base: str) -> int:
    """The side in pixels that the base model draws when nothing is asked for: 512, unless its folder says otherwise."""
    try:
        text = (Path(base).expanduser() / "unet" / "config.json").read_text(encoding="utf-8")
        return int(json.loads(text)["sample_size"]) * 8
    except (OSError, ValueError, KeyError, TypeError):
        return 512


# --- both ------------------------------------------------------------------------------------------------------------


def _path(given: str | None) -> str | None:
    return None if given is None else slashes(given)


def _hub_note(base: str, adapter: str | None) -> list[str]:
    given = [name for name in (base, adapter) if name and re.fullmatch(r"\w[\w.-]*/[\w.-]+", name)]
    ids = [name for name in given if not Path(name).exists()]
    if not ids:
        return []
    known = [ON_THE_HUB[name] for name in ids if name in ON_THE_HUB]
    there = f", where the same is called {' and '.join(known)}" if known else ""
    return [
        f"{' and '.join(ids)}: swift asks ModelScope for it, Dailies the Hugging Face Hub{there}. A folder of this "
        "machine works as well."
    ]


def _revision_notes(values: Mapping[str, Any]) -> list[str]:
    revisions = [name for name in ("model_revision", "motion_adapter_revision") if values[name] is not None]
    return [f"{', '.join(revisions)} is left out: the newest revision is taken."] if revisions else []


def _idle(given: Mapping[str, Any], ignored: Sequence[str], useless: Sequence[str]) -> list[str]:
    there = [f"{name} (swift ignores it)" for name in ignored if name in given]
    return there + [name for name in useless if name in given]
