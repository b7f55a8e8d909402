"""cogvideox-factory's trainer of Mochi, ``training/mochi-1/text_to_video_lora.py``. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.families.mochi.compat_genmo import FPS
from trainers.foreign import Foreign, Key, read_keys, slashes, without_effect
from trainers.settings import ConfigError
from trainers.shell import Command, options

SCRIPT = "text_to_video_lora.py"
TOOL = f"cogvideox-factory's {SCRIPT}"

FLAGS = {
    "pretrained_model_name_or_path": Key(str, ...),
    "revision": Key(str),
    "variant": Key(str),
    "cache_dir": Key(str),
    "cast_dit": Key(bool, False),
    "compile_dit": Key(bool, False),
    "data_root": Key(str, ...),
    "caption_dropout": Key(float),
    "dataloader_num_workers": Key(int, 0),
    "pin_memory": Key(bool, False),
    "validation_prompt": Key(str),
    "validation_images": Key(str),
    "validation_prompt_separator": Key(str, ":::"),
    "num_validation_videos": Key(int, 1),
    "validation_epochs": Key(int, 50),
    "enable_slicing": Key(bool, False),
    "enable_tiling": Key(bool, False),
    "enable_model_cpu_offload": Key(bool, False),
    "fps": Key(int, 30),
    "height": Key(int, 480),
    "width": Key(int, 848),
    "seed": Key(int),
    "rank": Key(int, 16),
    "lora_alpha": Key(float, 16.0),
    "target_modules": Key(list, ["to_k", "to_q", "to_v", "to_out.0"]),
    "output_dir": Key(str, "mochi-lora"),
    "train_batch_size": Key(int, 4),
    "num_train_epochs": Key(int, 1),
    "max_train_steps": Key(int),
    "gradient_checkpointing": Key(bool, False),
    "learning_rate": Key(float, 2e-4),
    "scale_lr": Key(bool, False),
    "lr_warmup_steps": Key(int, 200),
    "checkpointing_steps": Key(int),
    "resume_from_checkpoint": Key(str),
    "optimizer": Key(str, "adam"),
    "weight_decay": Key(float, 0.01),
    "tracker_name": Key(str),
    "push_to_hub": Key(bool, False),
    "hub_token": Key(str),
    "hub_model_id": Key(str),
    "allow_tf32": Key(bool, False),
    "report_to": Key(str),
}
_UPLOAD = "nothing is uploaded"
_WORKERS = "what is prepared is read as it is needed"
IDLE = {
    "revision": "the newest revision is taken",
    "variant": "the files without a variant are taken",
    "cache_dir": "models lie in the Hub's own cache, which HF_HOME moves",
    "cast_dit": "weights that are not trained are in 16 bits with mixed_precision bf16",
    "dataloader_num_workers": _WORKERS,
    "pin_memory": _WORKERS,
    "validation_images": "upstream uses none either",
    "enable_model_cpu_offload": "encoders and decoder are in memory only while they are needed",
    "fps": "upstream writes its samples at 30 whatever it says",
    "tracker_name": "a run has the name of its folder",
    "push_to_hub": _UPLOAD,
    "hub_token": _UPLOAD,
    "hub_model_id": _UPLOAD,
    "allow_tf32": "PyTorch's own setting is left as it is",
}
#: What MochiPipeline draws when it is not told.
DRAWN_FRAMES = 19


def translate(command: Command, prepared: Mapping[str, Any] | None = None) -> Foreign:
    """The command in our words. prepared: what a text says of the clips that its other commands prepare for it.

    ConfigError for unknown flags and for what could not run."""
    given = options(command.arguments)
    values = read_keys(given, FLAGS, TOOL, "--")
    notes = [
        "latent_normalisation is consistent: the model learns in the normalised space in which samples are drawn. "
        "Upstream normalises nothing; for its losses set latent_normalisation to none."
    ]
    idle = {f"--{name}": why for name, why in IDLE.items() if name in given and values[name] is not False}
    if values["optimizer"].lower() not in ("adam", "adamw"):
        raise ConfigError([("--optimizer", f"is {values['optimizer']!r}; choose adam or adamw")])
    if values["optimizer"].lower() == "adam":
        idle["--optimizer"] = "upstream takes adamw for adam as well"
        if "optimizer" not in given:
            del idle["--optimizer"]
    dataset = _dataset(values, prepared, notes)
    total, per_epoch = _steps(values, given, dataset, notes, idle)
    validation = _validation(values, given, per_epoch, notes, idle)
    rate = values["learning_rate"] * (values["train_batch_size"] if values["scale_lr"] else 1)
    if values["scale_lr"]:
        notes.append(f"--scale_lr: the learning rate is {rate:g}, as often as there are clips in a batch.")
    warmup = min(values["lr_warmup_steps"], total)
    if warmup < values["lr_warmup_steps"]:
        notes.append(f"--lr_warmup_steps {values['lr_warmup_steps']} is more than the whole run: it is {total} here.")
    if values["resume_from_checkpoint"] is not None:
        notes.append(
            "--resume_from_checkpoint: a checkpoint of upstream cannot be gone on with. A run of Dailies goes on with "
            f"python -m trainers.train --config FILE --run-dir {slashes(values['output_dir'])} --resume."
        )
    if not values["gradient_checkpointing"]:
        notes.append(
            "memory.gradient_checkpointing is none, as in the command: so 37 frames of 480 x 848 need over 100 GB, as "
            "calculated (25 with full)."
        )
    if values["seed"] is None:
        notes.append("seed is 42, so that the run can be repeated; upstream takes another one every time.")
    seed = 42 if values["seed"] is None else values["seed"]
    settings: dict[str, Any] = {
        "family": "mochi",
        "method": "lora",
        "base_model": slashes(values["pretrained_model_name_or_path"]),
        "latent_normalisation": "consistent",
        "seed": seed,
        "max_train_steps": total,
        "mixed_precision": "bf16",
        "dataset": dataset,
        "adapter": {
            "rank": values["rank"],
            "alpha": values["lora_alpha"],
            "dropout": 0.0,
            "tie_qkv": False,
            "target_modules": _targets(values["target_modules"], notes),
        },
        "optimizer": {
            "name": "adamw",
            "learning_rate": rate,
            "lr_scheduler": "cosine",
            "lr_warmup_steps": warmup,
            "weight_decay": values["weight_decay"],
            "max_grad_norm": None,
        },
        "memory": {
            "gradient_checkpointing": "full" if values["gradient_checkpointing"] else "none",
            "compile_blocks": values["compile_dit"],
            "vae_tiling": values["enable_tiling"],
            "vae_slicing": values["enable_slicing"],
        },
        "validation": {**validation, "seed": seed},
        "checkpoint": {"every_steps": values["checkpointing_steps"], "keep_last": None},
        "tracking": {"tracker": _tracker(values, idle)},
    }
    notes += [*(prepared or {"notes": []})["notes"], *([without_effect(idle)] if idle else [])]
    return Foreign("train", settings, notes, slashes(values["output_dir"]))


def _dataset(values: Mapping[str, Any], prepared: Mapping[str, Any] | None, notes: list[str]) -> dict[str, Any]:
    folder, dropout = slashes(values["data_root"]), values["caption_dropout"] or 0.0
    if prepared is None:
        section = {"path": folder, "format": "prepared"}
    elif prepared["out"] is not None and Path(prepared["out"]) != Path(folder):
        raise ConfigError(
            [
                (
                    "--data_root",
                    f"is {folder}, but the clips are prepared in {prepared['out']}; give both the same folder",
                )
            ]
        )
    else:
        section = dict(prepared["dataset"])
    if dropout and values["train_batch_size"] > 1:
        notes.append("--caption_dropout leaves out captions one by one; upstream drops those of a whole batch.")
    return {**section, "caption_dropout": dropout, "batch_size": values["train_batch_size"]}


def _steps(
    values: Mapping[str, Any],
    given: Mapping[str, Any],
    dataset: Mapping[str, Any],
    notes: list[str],
    idle: dict[str, str],
) -> tuple[int, int | None]:
    """(optimizer steps of the run, those of an epoch or None), as upstream counts them."""
    folder, batch, epochs = (
        Path(str(dataset["path"])).expanduser(),
        values["train_batch_size"],
        values["num_train_epochs"],
    )
    clips = sum(_is_prepared(file) for file in folder.glob("*.mp4"))
    per_epoch = math.ceil(clips / max(1, batch)) or None
    if values["max_train_steps"] is not None:
        if "num_train_epochs" in given:
            idle["--num_train_epochs"] = "--max_train_steps decides, upstream as well"
        return values["max_train_steps"], per_epoch
    counted = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    if per_epoch is None:
        notes.append(
            f"max_train_steps is 1000, for the clips of {dataset['path']} cannot be counted here; {counted} are clips "
            f"x {epochs} / {batch} steps (batch {batch})."
        )
        return 1000, None
    notes.append(f"max_train_steps is {epochs * per_epoch}: {counted} of {clips} clips (batch {batch}).")
    return epochs * per_epoch, per_epoch


def _is_prepared(video: Path) -> bool:
    return all(video.with_suffix(f".{kind}.pt").is_file() for kind in ("latent", "embed"))


def _validation(
    values: Mapping[str, Any],
    given: Mapping[str, Any],
    per_epoch: int | None,
    notes: list[str],
    idle: dict[str, str],
) -> dict[str, Any]:
    separator = values["validation_prompt_separator"]
    if not separator:
        raise ConfigError([("--validation_prompt_separator", "is empty; write what stands between the prompts")])
    prompts = [part.strip() for part in (values["validation_prompt"] or "").split(separator) if part.strip()]
    if values["num_validation_videos"] < 1:
        prompts = []
    every = None
    if prompts:
        epochs = max(1, values["validation_epochs"])
        every = 200 if per_epoch is None else epochs * per_epoch
        said = "every epoch" if epochs == 1 else f"every {epochs} epochs"
        if per_epoch is None:
            said += ", whose steps cannot be counted here: set validation.every_steps"
        notes.append(
            f"Samples are drawn every {every} steps, for upstream draws them {said}; they have {DRAWN_FRAMES} frames, "
            "which its pipeline takes when it is not told."
        )
    else:
        for name in ("validation_epochs", "num_validation_videos", "validation_prompt_separator"):
            if name in given:
                idle[f"--{name}"] = "there is no prompt to draw"
    return {
        "every_steps": every,
        "prompts": list(dict.fromkeys(prompts)),
        "samples_per_prompt": max(1, values["num_validation_videos"]),
        "num_frames": DRAWN_FRAMES,
        "height": values["height"],
        "width": values["width"],
        "num_inference_steps": 64,
        "guidance_scale": 6.0,
        "fps": FPS,
    }


def _targets(names: list[str], notes: list[str]) -> list[str]:
    """adapter.target_modules; upstream's to_q is also found in the pooling of the text, which it hardly means."""
    if "to_q" in names:
        notes.append("time_embed.pooler.to_q gets no LoRA; upstream gives it one, for its name ends like the others'.")
    return names


def _tracker(values: Mapping[str, Any], idle: dict[str, str]) -> str:
    if values["report_to"] not in (None, "none"):
        idle["--report_to"] = f"nothing is sent to {values['report_to']}; the run folder holds curves and samples"
    return "none"
