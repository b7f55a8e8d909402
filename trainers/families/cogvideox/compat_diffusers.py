"""The scripts that CogVideo shipped first and diffusers has as examples: ``train_cogvideox_lora.py`` and
``train_cogvideox_image_to_video_lora.py``. No torch.

The two repositories' scripts of one name differ in a few flags, and both may be read: CogVideo's has those of a text
encoder (which could not be trained), diffusers' has --video_reshape_mode.
"""

from __future__ import annotations

from typing import Any

from trainers.families.cogvideox.compat_parts import (
    COMMON,
    FRAMES,
    Call,
    Dialect,
    base_model,
    every_epochs,
    foreign,
    frames_note,
    id_token,
    launch,
    pairs,
    read_call,
    steps,
)
from trainers.foreign import Foreign, Key, slashes
from trainers.shell import Command

TEXT, IMAGE = "train_cogvideox_lora.py", "train_cogvideox_image_to_video_lora.py"

_DATA = {
    "dataset_name": Key(str),
    "dataset_config_name": Key(str),
    "instance_data_root": Key(str),
    "video_reshape_mode": Key(str),
}
_OF_TEXT_ENCODER = {
    "train_text_encoder": Key(bool, False),
    "text_encoder_lr": Key(float, 5e-6),
    "adam_weight_decay_text_encoder": Key(float, 1e-3),
}
_BROKEN = "the text encoder is not trained; upstream's script could not either"
_DEAD = {"random_flip": "upstream never flips; dataset.flip does"}
DIALECTS = {
    TEXT: Dialect(
        TEXT,
        COMMON | _DATA | _OF_TEXT_ENCODER,
        idle=_DEAD | dict.fromkeys(_OF_TEXT_ENCODER, _BROKEN),
    ),
    IMAGE: Dialect(
        IMAGE,
        COMMON
        | _DATA
        | {
            "output_dir": Key(str, "cogvideox-i2v-lora"),
            "validation_images": Key(str),
            "noised_image_dropout": Key(float, 0.05),
            "nccl_timeout": Key(int, 600),
        },
        takes_image=True,
        idle=_DEAD,
    ),
}


def translate(command: Command, *, diffusers: bool = False) -> Foreign:
    """One of the commands in our words. diffusers: the text around it says that it is diffusers' script. ConfigError
    for unknown flags and for what could not run."""
    dialect = DIALECTS[command.script]
    call = read_call(command, dialect)
    launched = launch(call)
    base_model(call)
    dataset = _dataset(call, diffusers or "video_reshape_mode" in call.given)
    total, per_epoch = steps(call, dataset)
    other = dataset["fit"] == "stretch" and not dialect.takes_image
    frames_note(call, dataset["num_frames"], dataset["fit"], " (diffusers' script of this name crops them)" * other)
    own: dict[str, Any] = {"use_dynamic_cfg": call["use_dynamic_cfg"], "scheduler": "dpm"}
    if dialect.takes_image:
        own |= {"image_noise_dropout": call["noised_image_dropout"], "image_noise": True}
    return foreign(call, dataset, validation(call, per_epoch), total, launched=launched, **own)


def _dataset(call: Call, diffusers: bool) -> dict[str, Any]:
    section = _files(call)
    fit = "stretch"
    mode = call["video_reshape_mode"] or ("center" if diffusers and not call.dialect.takes_image else None)
    if mode is not None:
        fit = reshaped(call, mode)
    return {
        **section,
        "num_frames": call["max_num_frames"],
        "height": call["height"],
        "width": call["width"],
        **FRAMES,
        "skip_frames_start": call["skip_frames_start"],
        "skip_frames_end": call["skip_frames_end"],
        "frame_buckets": True,
        "fit": fit,
        "id_token": id_token(call, glued=True),
    }


def _files(call: Call) -> dict[str, Any]:
    """Where clips and captions lie."""
    root, name = call["instance_data_root"], call["dataset_name"]
    if name is not None:
        return {
            "path": slashes(name),
            "format": "hub",
            "hub_config": call["dataset_config_name"],
            "video_column": call["video_column"],
            "caption_column": call["caption_column"],
            "video_folder": None if root is None else slashes(root),
        }
    if root is None:
        raise call.refuse("instance_data_root", "must be set, or --dataset_name: where the clips are")
    call.ignore("dataset_config_name", "there is no --dataset_name")
    return {"path": slashes(root), "format": "paired", **lists(call)}


def lists(call: Call) -> dict[str, Any]:
    """The two text files of a folder. Their flags' defaults are names of columns, under which no such file lies."""
    found = {}
    for flag, where, usual in (
        ("video_column", "video_list", "videos.txt"),
        ("caption_column", "caption_list", "prompts.txt"),
    ):
        found[where] = slashes(call[flag])
        if flag not in call.given:
            call.notes.append(
                f"{call.flag(flag)} is left out: {usual} is read, for upstream's {call[flag]} is a column."
            )
            found[where] = usual
    return found


def reshaped(call: Call, mode: str) -> str:
    """dataset.fit for --video_reshape_mode."""
    if mode not in ("center", "random", "none"):
        raise call.refuse("video_reshape_mode", f"is {mode!r}; choose center, random or none")
    if mode != "center":
        call.notes.append(
            f"{call.flag('video_reshape_mode')} {mode}: clips are cut in the middle; upstream cuts anywhere."
        )
    return "crop"


def validation(call: Call, per_epoch: int | None) -> dict[str, Any]:
    """The section validation, with its prompts and images."""
    prompts = divided(call, "validation_prompt")
    images = divided(call, "validation_images") if call.dialect.takes_image else []
    wanted = call["num_validation_videos"]
    without = f"{call.flag('validation_prompt')} is not given"
    if prompts and wanted < 1:
        call.notes.append(f"No samples are drawn, for {call.flag('num_validation_videos')} is {wanted}.")
        prompts, images, without = [], [], "no samples are drawn"
    if not prompts:
        for name in ("validation_epochs", "validation_steps", "validation_images", "num_validation_videos"):
            call.ignore(name, without)
        images = []
    prompts, images = pairs(prompts, images)
    return {
        "every_steps": (every_steps(call, per_epoch) if prompts else None),
        "prompts": prompts,
        "images": images,
        "samples_per_prompt": max(1, wanted),
        "guidance_scale": max(1.0, call["guidance_scale"]),
        "fps": call["fps"],
    }


def divided(call: Call, name: str) -> list[str]:
    """What a text holds between the separators, without what is blank around it."""
    separator = call["validation_prompt_separator"]
    if not separator:
        raise call.refuse("validation_prompt_separator", "is empty; write what stands between the prompts, such as :::")
    return [part.strip() for part in (call[name] or "").split(separator) if part.strip()]


def every_steps(call: Call, per_epoch: int | None) -> int:
    """Every how many steps samples are drawn, for a script that counts epochs, or steps where it knows them."""
    if call["validation_steps"] is not None:
        call.ignore("validation_epochs", f"{call.flag('validation_steps')} is given as well")
        return int(call["validation_steps"])
    return every_epochs(call, per_epoch)
