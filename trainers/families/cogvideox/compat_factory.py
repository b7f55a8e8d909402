"""cogvideox-factory's four scripts, LoRA and SFT, text and image to video. No torch."""

from __future__ import annotations

from typing import Any, Literal

from trainers.families.cogvideox.compat_diffusers import lists, reshaped, validation
from trainers.families.cogvideox.compat_parts import (
    COMMON,
    FRAMES,
    Call,
    Dialect,
    base_model,
    foreign,
    frames_note,
    id_token,
    launch,
    named,
    read_call,
    steps,
)
from trainers.families.cogvideox.facts import Facts
from trainers.foreign import Foreign, Key, slashes
from trainers.shell import Command

SIDES = [256, 320, 384, 480, 512, 576, 720, 768, 960, 1024, 1280, 1536]

#: The common name of a flag -> its own.
NAMES = {
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "prodigy_beta3": "beta3",
    "adam_weight_decay": "weight_decay",
    "adam_epsilon": "epsilon",
    "use_8bit_adam": "use_8bit",
    "instance_data_root": "data_root",
}
FLAGS = (
    {name: key for name, key in COMMON.items() if name not in NAMES}
    | named({name: own for name, own in NAMES.items() if name in COMMON})
    | {
        "data_root": Key(str, ...),
        "dataset_file": Key(str),
        "height_buckets": Key(list, SIDES),
        "width_buckets": Key(list, SIDES),
        "frame_buckets": Key(list, [49]),
        "load_tensors": Key(bool, False),
        "random_flip": Key(float),
        "pin_memory": Key(bool, False),
        "video_reshape_mode": Key(str),
        "rank": Key(int, 64),
        "lora_alpha": Key(float, 64.0),
        "output_dir": Key(str, "cogvideox-sft"),
        "noised_image_dropout": Key(float, 0.05),
        "ignore_learned_positional_embeddings": Key(bool, False),
        "validation_images": Key(str),
        "validation_epochs": Key(int),
        "validation_steps": Key(int),
        "enable_model_cpu_offload": Key(bool, False),
        "use_4bit": Key(bool, False),
        "use_torchao": Key(bool, False),
        "use_cpu_offload_optimizer": Key(bool, False),
        "offload_gradients": Key(bool, False),
        "nccl_timeout": Key(int, 600),
    }
)
IDLE = {
    "load_tensors": "clips are encoded once and kept; prepared .pt files are not read",
    "enable_model_cpu_offload": "encoders and decoder are in memory only while they are needed",
    "use_torchao": "8-bit states are of bitsandbytes here",
    "use_4bit": "states of 8 bits are the smallest here",
    "offload_gradients": "memory.offload_optimizer moves no gradients",
    "skip_frames_start": "upstream ignores it; dataset.skip_frames_start skips",
    "skip_frames_end": "upstream ignores it; dataset.skip_frames_end skips",
}
_OF_IMAGES = ("noised_image_dropout", "ignore_learned_positional_embeddings", "validation_images")


def _dialect(task: Literal["text", "image"], method: Literal["lora", "full"]) -> Dialect:
    tool = f"cogvideox_{task}_to_video_{'lora' if method == 'lora' else 'sft'}.py"
    idle = IDLE if task == "image" else IDLE | dict.fromkeys(_OF_IMAGES, "it is for image to video")
    return Dialect(tool, FLAGS, task == "image", method, NAMES, idle)


DIALECTS = {
    dialect.tool: dialect
    for dialect in (
        _dialect("text", "lora"),
        _dialect("text", "full"),
        _dialect("image", "lora"),
        _dialect("image", "full"),
    )
}


def translate(command: Command) -> Foreign:
    """One of the commands in our words. ConfigError for unknown flags and for what could not run."""
    dialect = DIALECTS[command.script]
    call = read_call(command, dialect)
    launched = launch(call)
    _, facts = base_model(call)
    dataset = _dataset(call)
    total, per_epoch = steps(call, dataset)
    frames_note(call, dataset["num_frames"], dataset["fit"])
    own: dict[str, Any] = {"use_dynamic_cfg": call["use_dynamic_cfg"], "scheduler": "dpm"}
    if dialect.takes_image:
        own |= {
            "image_noise_dropout": call["noised_image_dropout"],
            "image_noise": True,
            "learned_positions": not call["ignore_learned_positional_embeddings"],
        }
        own |= image_scale(call, facts)
    own["memory"] = {"offload_optimizer": _offload(call)}
    return foreign(call, dataset, _validation(call, dataset, per_epoch, total), total, launched=launched, **own)


def image_scale(call: Call, facts: Facts | None) -> dict[str, Any]:
    """What is said of the scale of image latents, in which upstream and the pipeline differ for CogVideoX 1.5."""
    if facts is not None and facts.patch_size_t is not None:
        call.notes.append(
            "image_latent_scale is pipeline: the image's latents are scaled as they are when a video is made. Upstream "
            "scales them like the video's, which makes dark or glaring videos; for that set it to video."
        )
    return {"image_latent_scale": "pipeline"}


def _offload(call: Call) -> bool:
    """memory.offload_optimizer, and the smaller states that go with the one or the other."""
    if call["use_4bit"] and not call["use_8bit_adam"]:
        call.values["use_8bit_adam"] = True
    offload = bool(call["use_cpu_offload_optimizer"])
    if offload and call["use_8bit_adam"]:
        call.values["use_8bit_adam"] = False
        call.ignore("use_8bit_adam", "states in main memory are kept in 32 bits")
        call.ignore("use_4bit", "states in main memory are kept in 32 bits")
    return offload


def _dataset(call: Call) -> dict[str, Any]:
    root, table = slashes(call["instance_data_root"]), call["dataset_file"]
    section: dict[str, Any] = {"path": root, "format": "paired"}
    if table is None:
        section |= lists(call)
    else:
        columns = {"video_column": call["video_column"], "caption_column": call["caption_column"]}
        section = {"path": slashes(table), "format": "hub", **columns, "video_folder": root}
    frames, heights, widths = (_numbers(call, f"{side}_buckets") for side in ("frame", "height", "width"))
    num_frames = min(frames, key=lambda bucket: abs(bucket - call["max_num_frames"]))
    if len(frames) == 1:
        call.ignore("max_num_frames", f"{call.flag('frame_buckets')} has one length, which decides")
    else:
        call.notes.append(
            f"{call.flag('frame_buckets')}: a clip that is shorter than {num_frames} frames trains with the most that "
            "it has, not with the next of the lengths."
        )
    return {
        **section,
        "num_frames": num_frames,
        **FRAMES,
        "frame_buckets": len(frames) > 1,
        **_sizes(call, heights, widths),
        "flip": _flip(call),
        "id_token": id_token(call, glued=False),
    }


def _numbers(call: Call, name: str) -> list[int]:
    try:
        return [int(value) for value in call[name]]
    except ValueError:
        raise call.refuse(name, f"is {' '.join(map(str, call[name]))!r}; write whole numbers") from None


def _sizes(call: Call, heights: list[int], widths: list[int]) -> dict[str, Any]:
    """height, width and fit of the sizes that upstream may give to a clip."""
    mode = call["video_reshape_mode"]
    fit = "stretch" if mode is None else reshaped(call, mode)
    height = min(heights, key=lambda side: abs(side - call["height"]))
    width = min(widths, key=lambda side: abs(side - call["width"]))
    if len(heights) * len(widths) > 1:
        fit = "buckets"
        call.notes.append(
            f"{call.flag('height_buckets')}, {call.flag('width_buckets')}: every clip keeps its shape, at about as "
            f"many pixels as {width} x {height}; upstream takes the size of the lists that is nearest to the clip's "
            "own, and bends it to that. For a single size name one height and one width."
        )
    return {"height": height, "width": width, "fit": fit}


def _flip(call: Call) -> bool:
    share = call["random_flip"] or 0.0
    if share:
        call.notes.append(
            f"{call.flag('random_flip')} {share:g}: half of the samples are mirrored, whole ones; upstream mirrors "
            "single frames, which tears a clip apart."
        )
    return share > 0


def _validation(call: Call, dataset: dict[str, Any], per_epoch: int | None, total: int) -> dict[str, Any]:
    """Its samples have a size of their own; without a word on how often, upstream draws them at the end."""
    if call["validation_epochs"] is None and call["validation_steps"] is None:
        call.values["validation_steps"] = total
    section = validation(call, per_epoch)
    for side in ("height", "width"):
        if section["prompts"] and call[side] != dataset[side]:
            section[side] = call[side]
    return section
