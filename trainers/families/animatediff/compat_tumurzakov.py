"""The YAML of tumurzakov/AnimateDiff: its ``train.py`` (motion modules) and ``train_with_lora.py``. No torch.

Every key is mapped to our words or spoken of in a note; a key that is left out has upstream's default, not ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.data.video import VideoError, probe
from trainers.families.animatediff.compat_parts import OPTIMIZER, encoded_anew, memory, optimizer, our_modules
from trainers.foreign import Foreign, Key, read_keys, slashes, texts
from trainers.settings import ConfigError

TOOL = "tumurzakov/AnimateDiff"

#: What both programs take.
BOTH = {
    "pretrained_model_path": Key(str, ...),
    "output_dir": Key(str, ...),
    "train_data": Key(dict, ...),
    "validation_data": Key(dict, ...),
    "validation_steps": Key(int, 100),
    "train_whole_module": Key(bool, False),
    "trainable_modules": Key(list, ["to_q"]),
    "train_batch_size": Key(int, 1),
    "max_train_steps": Key(int, 500),
    **OPTIMIZER,
    "gradient_checkpointing": Key(bool, True),
    "checkpointing_steps": Key(int, 500),
    "start_global_step": Key(int, 0),
    "resume_from_checkpoint": Key(str),
    "mixed_precision": Key(object, "fp16"),
    "use_8bit_adam": Key(bool, False),
    "enable_xformers_memory_efficient_attention": Key(bool, True),
    "seed": Key(int),
    "motion_module": Key(str, "models/Motion_Module/mm_sd_v15.ckpt"),
    "inference_config_path": Key(str, "configs/inference/inference.yaml"),
    "motion_module_pe_multiplier": Key(int, 1),
    "dataset_class": Key(str, "MultiTuneAVideoDataset"),
}
#: What ``train_with_lora.py`` takes besides, over its versions.
WITH_LORA = {
    "dreambooth_path": Key(str),
    "use_optimizer": Key(str, "AdamW"),
    "train_dreambooth": Key(bool, False),
    "train_lora": Key(bool, False),
    "train_text_encoder": Key(bool, False),
    "lora_rank": Key(int, 4),
    "lora_path": Key(str),
    "lora_resume_from_checkpoint": Key(str),
    "report_to": Key(str),
    "report_facenet_distance": Key(bool, False),
    "report_facenet_reference_path": Key(str),
    "report_aesthetic_score": Key(bool, False),
}
TOP = BOTH | WITH_LORA

#: ``train_data`` of each dataset class.
MULTI_TUNE = {
    "video_path": Key(list, ...),
    "prompt": Key(object, ...),
    "width": Key(int, 512),
    "height": Key(int, 512),
    "n_sample_frames": Key(int, 8),
    "sample_start_idx": Key(int, 0),
    "sample_frame_rate": Key(int, 1),
}
FRAMES = {
    "samples_dir": Key(str, ...),
    "prompt_map_path": Key(str),
    "width": Key(int, 512),
    "height": Key(int, 512),
    "video_length": Key(int, 16),
    "sample_start_index": Key(int, 0),
    "sample_count": Key(int, 1),
    "sample_frame_rate": Key(int, 8),
    "variance_threshold": Key(int, 50),
}
ANIMATE_DIFF = {
    "samples_dir": Key(str, ...),
    "video_length": Key(int, ...),
    "width": Key(int, -1),
    "height": Key(int, -1),
    "randomize": Key(bool, True),
}
#: What ``FramesDataset`` uses only to cut clips before any training.
PREPARED = ("prompt_map_path", "sample_start_index", "sample_count", "sample_frame_rate", "variance_threshold")

#: ``validation_data``; whatever else stands there upstream swallows.
VALIDATION = {
    "prompts": Key(list, []),
    "negative_prompt": Key(str, ""),
    "video_length": Key(int),
    "temporal_context": Key(int),
    "strides": Key(int, 3),
    "overlap": Key(int, 4),
    "width": Key(int, 512),
    "height": Key(int, 512),
    "num_inference_steps": Key(int, 50),
    "guidance_scale": Key(float, 7.5),
    "use_inv_latent": Key(bool, False),
    "num_inv_steps": Key(int),
}

#: The linear layers that its LoRA lies on, of images and of motion alike, as a regular expression of whole paths.
LORA_TARGETS = [r".*\.(to_q|to_k|to_v|to_out\.0)"]


def knows(data: Mapping[str, Any]) -> bool:
    """Whether settings are those of one of its programs."""
    shared = {"pretrained_model_path", "train_data", "validation_data", "motion_module", "inference_config_path"}
    return bool(shared & data.keys()) and len(TOP.keys() & data.keys()) >= min(3, len(data))


def translate(data: Mapping[str, Any]) -> Foreign:
    """Its settings in our words. ConfigError for unknown keys and for what could not be trained."""
    top = read_keys(data, TOP, TOOL)
    notes: list[str] = []
    trained = _trained(top, data, notes)
    dataset = _dataset(top, data, notes)
    base, prediction_type = _base(top, notes)
    optimizing = _optimizer(top, data, notes)
    validation, windows = _validation(top, notes)
    seed = 42 if top["seed"] is None else top["seed"]
    if top["seed"] is None:
        notes.append("seed is empty: it is 42 here, so that the run can be repeated; upstream stops at a validation.")
    if top["start_global_step"]:
        notes.append(
            f"start_global_step {top['start_global_step']}: the learning rate goes on from there; upstream began its "
            "schedule anew. Name the weights of that step as motion_module."
        )
    if top["resume_from_checkpoint"] is not None:
        notes.append(
            "resume_from_checkpoint is left out: what it names is state of upstream's own (and train.py never wrote "
            "any). Continue from a file with motion_module and start_global_step, or a run of Dailies with --resume."
        )
    if "inference_config_path" in data:
        notes.append(
            "inference_config_path is not read: positions and layout are those of the motion_module file itself."
        )
    if trained["method"] == "motion_module" and top["train_whole_module"] and data.get("trainable_modules"):
        notes.append("trainable_modules has no effect beside train_whole_module, upstream as well.")
    settings = {
        "family": "animatediff",
        "method": trained["method"],
        "base_model": base,
        "motion_adapter": slashes(top["motion_module"]) or None,
        "motion_module_pe_multiplier": top["motion_module_pe_multiplier"],
        "trainable_modules": trained["trainable_modules"],
        "norm_semantics": "original",
        "beta_schedule": "linear",
        "prediction_type": prediction_type,
        **windows,
        "seed": seed,
        "max_train_steps": top["max_train_steps"],
        "start_step": top["start_global_step"],
        "mixed_precision": _precision(top["mixed_precision"]),
        "dataset": dataset,
        **({"adapter": trained["adapter"]} if trained["adapter"] else {}),
        "optimizer": optimizing,
        "memory": memory(top),
        "validation": {**validation, "seed": seed, "fps": 8},
        "checkpoint": {"every_steps": top["checkpointing_steps"], "keep_last": None},
        "tracking": {"tracker": _tracker(top, notes)},
    }
    return Foreign("train", settings, notes, slashes(top["output_dir"]))


# --- what is seen ----------------------------------------------------------------------------------------------------


def _dataset(top: Mapping[str, Any], data: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    given = top["train_data"]
    name = top["dataset_class"]
    if "samples_dir" not in given and name == "MultiTuneAVideoDataset":
        found = _multi_tune(given, notes)
    elif "dataset_class" in data and name != "MultiTuneAVideoDataset" and "randomize" not in given:
        found = _frames(given, name, notes)
    else:
        found = _animate_diff(given, notes)
    return {
        **found,
        "frame_buckets": True,
        "flip": False,
        "caption_dropout": 0.0,
        "batch_size": top["train_batch_size"],
    }


def _multi_tune(given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    values = read_keys(given, MULTI_TUNE, TOOL, "train_data.")
    videos = [slashes(path) for path in values["video_path"]]
    try:
        prompts = texts(values["prompt"])
    except ValueError as error:
        raise ConfigError([("train_data.prompt", f"must be {error}")]) from error
    listed = isinstance(values["prompt"], list)
    if listed and len(prompts) < len(videos):
        raise ConfigError(
            [("train_data.prompt", f"has {len(prompts)} for {len(videos)} videos; give one for each, or a single text")]
        )
    if listed and len(prompts) > len(videos):
        notes.append(f"train_data.prompt has {len(prompts)} for {len(videos)} videos: those beyond are left out.")
    return {
        "path": ".",
        "format": "list",
        "videos": videos,
        "prompts": prompts[: len(videos)] if listed else prompts,
        "num_frames": values["n_sample_frames"],
        "height": values["height"],
        "width": values["width"],
        "frame_stride": values["sample_frame_rate"],
        "frame_selection": "first",
        "start_frame": values["sample_start_idx"],
        "fit": "stretch",
    }


def _frames(given: Mapping[str, Any], name: str, notes: list[str]) -> dict[str, Any]:
    values = read_keys(given, FRAMES, TOOL, "train_data.")
    if name != "FramesDataset":
        notes.append(f"dataset_class {name} is no class of upstream: whatever it does not know is a FramesDataset.")
    idle = [key for key in PREPARED if key in given]
    if idle:
        listed = ", ".join(f"train_data.{key}" for key in idle)
        notes.append(f"No effect on training, upstream as well: {listed}; they serve to cut clips beforehand.")
    notes.append(
        f"Clips of samples_dir train at {values['width']} x {values['height']} pixels (width and height); upstream "
        "takes them at the size that they were cut to."
    )
    return {
        "path": slashes(values["samples_dir"]),
        "format": "sidecar",
        "num_frames": values["video_length"],
        "height": values["height"],
        "width": values["width"],
        "frame_stride": 1,
        "frame_selection": "first",
        "start_frame": 0,
        "fit": "stretch",
    }


def _animate_diff(given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    values = read_keys(given, ANIMATE_DIFF, TOOL, "train_data.")
    folder = slashes(values["samples_dir"])
    width, height = values["width"], values["height"]
    own = _video_size(folder)
    fit = "stretch"
    if width <= 0 or height <= 0:
        fit = "buckets"
        known = f"{own[0]} x {own[1]}, after the first of them" if own else "512 x 512, for there is none to look at"
        notes.append(f"Videos keep their own shape, for width or height is -1; their size is about {known}.")
        width, height = own or (512, 512)
    random_start = values["randomize"]
    if random_start:
        notes.append(encoded_anew("upstream"))
    return {
        "path": folder,
        "format": "sidecar",
        "num_frames": values["video_length"],
        "height": height,
        "width": width,
        "frame_stride": 1,
        "frame_selection": "random" if random_start else "first",
        "start_frame": 0,
        "fit": fit,
        "cache": not random_start,
    }


def _video_size(folder: str) -> tuple[int, int] | None:
    """(width, height) of the first video of a folder, in multiples of 8, or None."""
    path = Path(folder).expanduser()
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else []
    for file in files:
        if "json" not in file.name and not file.name.startswith("."):
            try:
                found = probe(file)
            except (VideoError, OSError):
                continue
            return max(8, found.width // 8 * 8), max(8, found.height // 8 * 8)
    return None


# --- what is trained -------------------------------------------------------------------------------------------------


def _trained(top: Mapping[str, Any], data: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """method, trainable_modules, adapter: what one run of ours trains of all that upstream can train at once."""
    found: dict[str, Any] = {"method": "motion_module", "trainable_modules": [], "adapter": None}
    whole, wanted = top["train_whole_module"], top["trainable_modules"]
    if top["train_text_encoder"]:
        notes.append("train_text_encoder: the text encoder is not trained here; everything else is.")
    if top["train_dreambooth"]:
        if top["train_lora"]:
            notes.append("train_lora is left out: train_dreambooth trains every weight of the denoiser already.")
        return {**found, "method": "full"}
    if top["train_lora"]:
        if whole:
            notes.append(
                "train_whole_module is left out: one run trains a LoRA or the motion modules. For the motion modules "
                "set train_lora to false."
            )
        elif wanted:
            notes.append(
                f"trainable_modules ({', '.join(wanted)}) is left out: upstream trains these in full beside the LoRA"
                + ("" if "trainable_modules" in data else ", by its default")
                + "; here the LoRA is all that is trained."
            )
        path = top["lora_path"] or top["lora_resume_from_checkpoint"]
        if path:
            notes.append(f"lora_path {slashes(path)} is not continued: the LoRA begins anew.")
        adapter = {"rank": top["lora_rank"], "alpha": None, "dropout": 0.0, "target_modules": LORA_TARGETS}
        return {**found, "method": "lora", "adapter": adapter}
    idle = [key for key in ("lora_rank", "lora_path", "lora_resume_from_checkpoint") if data.get(key) is not None]
    if idle:
        notes.append(f"No effect without train_lora: {', '.join(idle)}.")
    if whole:
        return found
    if not wanted:
        raise ConfigError(
            [("trainable_modules", "is empty and train_whole_module is false, so nothing would be trained; set one")]
        )
    return {**found, "trainable_modules": our_modules(wanted, notes)}


# --- how it is trained -----------------------------------------------------------------------------------------------


def _base(top: Mapping[str, Any], notes: list[str]) -> tuple[str, str]:
    """(base model, prediction type)."""
    base = slashes(top["pretrained_model_path"])
    try:
        text = (Path(base).expanduser() / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")
        scheduler = json.loads(text)
    except (OSError, ValueError):
        scheduler = {}
    own = scheduler.get("beta_schedule", "scaled_linear") if isinstance(scheduler, dict) else "scaled_linear"
    if own != "linear":
        notes.append(
            f"Upstream trains on the base model's own noise schedule ({own}), but draws with a linear one; here both "
            "are linear, as motion modules were made with. For upstream's way set beta_schedule to base."
        )
    predicts = scheduler.get("prediction_type") if isinstance(scheduler, dict) else None
    if top["dreambooth_path"]:
        dreambooth = slashes(top["dreambooth_path"])
        notes.append(
            f"The whole base model is read from dreambooth_path {dreambooth}; upstream takes only the UNet from it and "
            f"VAE and text encoder from {base}."
        )
        base = dreambooth
    return base, "v_prediction" if predicts == "v_prediction" else "epsilon"


def _optimizer(top: Mapping[str, Any], data: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    name = "adamw8bit" if top["use_8bit_adam"] else "adamw"
    if top["use_optimizer"] in ("DAdaptation", "Prodigy"):
        raise ConfigError(
            [
                (
                    "use_optimizer",
                    f"{top['use_optimizer']} finds its own learning rate, which Dailies has not; set AdamW or "
                    "AdamW8bit and a learning_rate such as 1e-4",
                )
            ]
        )
    if top["use_optimizer"] not in ("AdamW", "AdamW8bit"):
        notes.append(f"use_optimizer {top['use_optimizer']} is none that upstream knows: it takes AdamW, and so it is.")
    if top["use_optimizer"] == "AdamW8bit":
        name = "adamw8bit"
    rate, accumulation = top["learning_rate"], top["gradient_accumulation_steps"]
    if top["scale_lr"]:
        factor = accumulation * top["train_batch_size"]
        notes.append(
            f"scale_lr: the learning rate {rate:g} x {factor} (accumulation x batch) is written out for one process; "
            "multiply it by their number for more."
        )
        rate *= factor
    if accumulation > 1:
        notes.append(
            f"Warmup and schedule are counted in optimizer steps; upstream stretches them {accumulation} times and "
            "ends before they do."
        )
    if WITH_LORA.keys() & data.keys():
        notes.append("max_grad_norm takes effect here; upstream's train_with_lora.py clips nothing by mistake.")
    found = optimizer(top, top["max_train_steps"], notes)
    return {**found, "name": name, "learning_rate": rate, "gradient_accumulation_steps": accumulation}


def _precision(given: Any) -> str:
    """YAML reads a bare `no` as false."""
    return "no" if given in (False, "false", "False", "") else str(given)


def _tracker(top: Mapping[str, Any], notes: list[str]) -> str:
    if top["report_to"] in ("tensorboard", "all"):
        return "tensorboard"
    idle = ["report_to"] if top["report_to"] not in (None, "none") else []
    idle += [key for key in TOP if key.startswith("report_") and key != "report_to" and top[key]]
    if idle:
        notes.append(f"Not sent anywhere: {', '.join(idle)}; the run folder holds curves and samples.")
    return "none"


# --- what is drawn ---------------------------------------------------------------------------------------------------


def _validation(top: Mapping[str, Any], notes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(section validation, our fields of windows and of the inversion)."""
    known = {key: value for key, value in top["validation_data"].items() if key in VALIDATION}
    values = read_keys(known, VALIDATION, TOOL, "validation_data.")
    prompts = list(dict.fromkeys(values["prompts"]))
    inversion = None
    if values["use_inv_latent"]:
        if values["num_inv_steps"] is None:
            raise ConfigError([("validation_data.num_inv_steps", "must be set, for use_inv_latent is true")])
        inversion = values["num_inv_steps"]
        notes.append(
            "use_inv_latent: samples begin from the first training clip turned into noise (upstream: from the last "
            "batch), so they show what is kept of it, not what is new."
        )
    elif "num_inv_steps" in known:
        notes.append("No effect without use_inv_latent: validation_data.num_inv_steps.")
    if len(prompts) < len(values["prompts"]):
        notes.append("validation_data.prompts: of equal ones one is drawn.")
    swallowed = [f"validation_data.{key}" for key in top["validation_data"] if key not in VALIDATION]
    if swallowed:
        notes.append(f"No effect here: {', '.join(swallowed)}.")
    if top["validation_steps"] > top["max_train_steps"]:
        notes.append(
            f"validation_steps {top['validation_steps']} is more than the whole run: samples are drawn at its "
            "beginning and end."
        )
    length, context, overlap = values["video_length"], values["temporal_context"], values["overlap"]
    if context is not None and length is not None and length <= context:
        overlap = max(0, min(overlap, context - 1))  # all in one window: there is nothing to overlap
    section = {
        "every_steps": top["validation_steps"],
        "prompts": prompts,
        "negative_prompt": values["negative_prompt"],
        "num_frames": length,
        "height": values["height"],
        "width": values["width"],
        "num_inference_steps": values["num_inference_steps"],
        "guidance_scale": max(1.0, values["guidance_scale"]),
    }
    windows = {
        "context_length": context,
        "context_stride": values["strides"],
        "context_overlap": overlap,
        "num_inversion_steps": inversion,
    }
    return section, windows
