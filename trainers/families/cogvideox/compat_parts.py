"""What CogVideoX's trainers have in common, for all of them grew out of one script: its flags with their defaults, what
they mean in our words, and how a command is launched. No torch.

A flag is called here as that script calls it; `Dialect.names` has the name that another trainer gave it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainers.config import DatasetConfig
from trainers.data.clips import DatasetError
from trainers.data.formats import hub, paired
from trainers.families.cogvideox.facts import Facts, base_facts
from trainers.foreign import Foreign, Key, read_keys, slashes, without_effect
from trainers.settings import ConfigError, parse_yaml
from trainers.shell import Command, options

# --- flags -----------------------------------------------------------------------------------------------------------

#: The flags that every script of the line has, with the defaults of the first.
COMMON = {
    "pretrained_model_name_or_path": Key(str, ...),
    "revision": Key(str),
    "variant": Key(str),
    "cache_dir": Key(str),
    "video_column": Key(str, "video"),
    "caption_column": Key(str, "text"),
    "id_token": Key(str),
    "dataloader_num_workers": Key(int, 0),
    "validation_prompt": Key(str),
    "validation_prompt_separator": Key(str, ":::"),
    "num_validation_videos": Key(int, 1),
    "validation_epochs": Key(int, 50),
    "guidance_scale": Key(float, 6.0),
    "use_dynamic_cfg": Key(bool, False),
    "seed": Key(int),
    "rank": Key(int, 128),
    "lora_alpha": Key(float, 128.0),
    "mixed_precision": Key(str),
    "output_dir": Key(str, "cogvideox-lora"),
    "height": Key(int, 480),
    "width": Key(int, 720),
    "fps": Key(int, 8),
    "max_num_frames": Key(int, 49),
    "skip_frames_start": Key(int, 0),
    "skip_frames_end": Key(int, 0),
    "random_flip": Key(bool, False),
    "train_batch_size": Key(int, 4),
    "num_train_epochs": Key(int, 1),
    "max_train_steps": Key(int),
    "checkpointing_steps": Key(int, 500),
    "checkpoints_total_limit": Key(int),
    "resume_from_checkpoint": Key(str),
    "gradient_accumulation_steps": Key(int, 1),
    "gradient_checkpointing": Key(bool, False),
    "learning_rate": Key(float, 1e-4),
    "scale_lr": Key(bool, False),
    "lr_scheduler": Key(str, "constant"),
    "lr_warmup_steps": Key(int, 500),
    "lr_num_cycles": Key(int, 1),
    "lr_power": Key(float, 1.0),
    "enable_slicing": Key(bool, False),
    "enable_tiling": Key(bool, False),
    "optimizer": Key(str, "adam"),
    "use_8bit_adam": Key(bool, False),
    "adam_beta1": Key(float, 0.9),
    "adam_beta2": Key(float, 0.95),
    "adam_weight_decay": Key(float, 1e-4),
    "adam_epsilon": Key(float, 1e-8),
    "max_grad_norm": Key(float, 1.0),
    "prodigy_beta3": Key(float),
    "prodigy_decouple": Key(bool, False),
    "prodigy_use_bias_correction": Key(bool, False),
    "prodigy_safeguard_warmup": Key(bool, False),
    "tracker_name": Key(str),
    "push_to_hub": Key(bool, False),
    "hub_token": Key(str),
    "hub_model_id": Key(str),
    "logging_dir": Key(str, "logs"),
    "allow_tf32": Key(bool, False),
    "report_to": Key(str),
}

_UPLOAD = "nothing is uploaded"
_WORKERS = "clips are encoded once, before the training"
#: Flags that have nothing to do here, and why.
IDLE = {
    "revision": "the newest revision is taken",
    "variant": "the files without a variant are taken",
    "cache_dir": "models lie in the Hub's own cache, which HF_HOME moves",
    "dataloader_num_workers": _WORKERS,
    "pin_memory": _WORKERS,
    "tracker_name": "a run has the name of its folder",
    "logging_dir": "tensorboard's files lie in the run folder",
    "push_to_hub": _UPLOAD,
    "hub_token": _UPLOAD,
    "hub_model_id": _UPLOAD,
    "allow_tf32": "PyTorch's own setting is left as it is",
    "nccl_timeout": "accelerate's own time is left as it is",
}


def named(own: Mapping[str, str]) -> dict[str, Key]:
    """The common flags that a trainer has under other names: {the common name: its own} -> {its own: key}."""
    return {theirs: COMMON[name] for name, theirs in own.items()}


@dataclass(frozen=True)
class Dialect:
    """One upstream script. tool: as messages call it. names: the common name of a flag -> its own. idle: why flags do
    nothing here, by the script's own names; `IDLE` besides."""

    tool: str
    flags: Mapping[str, Key]
    takes_image: bool = False
    method: Literal["lora", "full"] = "lora"
    names: Mapping[str, str] = field(default_factory=dict)
    idle: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """A command of a dialect: the values of all flags by their common names, and what is said on the way: of the run
    (notes), of the machine that it was launched on (around), of flags without effect (idle: flag -> why)."""

    dialect: Dialect
    command: Command
    values: dict[str, Any]
    given: frozenset[str]
    processes: int = 1
    notes: list[str] = field(default_factory=list)
    around: list[str] = field(default_factory=list)
    idle: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    def flag(self, name: str) -> str:
        """A flag as the person wrote it."""
        return f"--{self.dialect.names.get(name, name)}"

    def ignore(self, name: str, why: str) -> None:
        """Name a flag among those without effect, if it was given."""
        if name in self.given:
            self.idle[self.flag(name)] = why

    def refuse(self, name: str, what: str) -> ConfigError:
        return ConfigError([(self.flag(name), what)])


def read_call(command: Command, dialect: Dialect) -> Call:
    """The flags of a command. ConfigError for unknown ones, and for values of another kind."""
    common = {theirs: name for name, theirs in dialect.names.items()}
    given = options(command.arguments)
    values = read_keys(given, dialect.flags, dialect.tool, "--")
    call = Call(
        dialect,
        command,
        {common.get(name, name): value for name, value in values.items()},
        frozenset(common.get(name, name) for name in given),
    )
    for name, why in {**IDLE, **dialect.idle}.items():
        if values.get(name) is not False:
            call.ignore(name, why)
    return call


# --- the launch ------------------------------------------------------------------------------------------------------


def launch(call: Call) -> str | None:
    """Count the processes that the command starts; gives the precision that accelerate is told, where it is."""
    command = call.command
    file = command.launched_with("config_file")
    told = None if file is None else _accelerate_config(slashes(file))
    number = command.launched_with("num_processes", "nproc_per_node")
    if number is None and told is not None:
        number = str(told.get("num_processes", 1))
    call.processes = max(1, int(number)) if number is not None and number.isdigit() else 1
    plain = "--multi_gpu" in command.launcher
    if file is not None and told is None and number is None:
        call.around.append(
            f"{file} is not here to say how many processes the command starts: one is counted on. For more of them see "
            f"examples/accelerate{' (beside --multi_gpu accelerate takes no DeepSpeed from such a file)' * plain}."
        )
    if call.processes > 1:
        call.around.append(
            f"The command starts {call.processes} processes. Start as many here (accelerate launch --num_processes "
            f"{call.processes} -m trainers.train ..., see examples/accelerate), or multiply "
            f"optimizer.gradient_accumulation_steps by {call.processes} for the same batch."
        )
    deep = "--use_deepspeed" in command.launcher or str((told or {}).get("distributed_type")) == "DEEPSPEED"
    if deep and not plain:
        call.around.append(
            "DeepSpeed is set up for accelerate, not in a config: see examples/accelerate. An optimizer or schedule in "
            "its own file is not read; those of the command are taken."
        )
    elif deep:
        call.around.append(f"Upstream runs without DeepSpeed: beside --multi_gpu accelerate takes none from {file}.")
    kept = ("CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF")
    known = {name: command.environment[name] for name in kept if command.environment.get(name, "\0").isprintable()}
    if known:
        listed = ", ".join(f"{name}={value}" for name, value in known.items())
        call.around.append(f"{listed} is not part of a config; set it for the run.")
    precision = command.launched_with("mixed_precision") or (told or {}).get("mixed_precision")
    return "no" if precision is False else None if precision is None else str(precision)


def _accelerate_config(file: str) -> dict[str, Any] | None:
    try:
        return parse_yaml(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ConfigError):
        return None


def precision(call: Call, launched: str | None) -> str:
    """mixed_precision: the command's own, else what accelerate is told, else none."""
    given = call["mixed_precision"] or launched
    if given is None:
        call.notes.append(
            "mixed_precision is no: the command leaves it to accelerate's own settings, which are not here. bf16 needs "
            "half the memory."
        )
    return given or "no"


def base_model(call: Call) -> tuple[str, Facts | None]:
    """The base model and what is known of it. ConfigError when it is not one for this script."""
    base = slashes(call["pretrained_model_name_or_path"])
    facts = base_facts(base)
    if facts is not None and facts.takes_image != call.dialect.takes_image:
        does = "turns an image into a video" if facts.takes_image else "makes videos from text alone"
        wants = "image to video" if call.dialect.takes_image else "text to video"
        raise call.refuse("pretrained_model_name_or_path", f"{base} {does}, but {call.dialect.tool} trains {wants}")
    return base, facts


# --- counting --------------------------------------------------------------------------------------------------------


def count_clips(dataset: Mapping[str, Any]) -> int | None:
    """How many clips a section dataset of format paired or hub names; None when that cannot be told here and now."""
    try:
        config = DatasetConfig.model_validate(dataset)
        if config.format == "paired":
            return len(paired.read(config, Path()))
        return len(hub.read(config, Path(), None, fetch=False))
    except (DatasetError, ValueError, OSError):
        return None


def steps(call: Call, dataset: Mapping[str, Any]) -> tuple[int, int | None]:
    """(optimizer steps of the run, those of an epoch or None), as upstream counts them."""
    batch, accumulation = max(1, call["train_batch_size"]), max(1, call["gradient_accumulation_steps"])
    clips, epochs, total = count_clips(dataset), call["num_train_epochs"], call["max_train_steps"]
    per_epoch = None
    if clips is not None:
        batches = math.ceil(math.ceil(clips / batch) / call.processes)
        per_epoch = max(1, math.ceil(batches / accumulation))
    if total is not None:
        call.ignore("num_train_epochs", f"{call.flag('max_train_steps')} decides, upstream as well")
        return total, per_epoch
    counted = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    if per_epoch is None:
        call.notes.append(
            f"max_train_steps is 1000, for the clips of {dataset['path']} cannot be counted here; {counted} are clips "
            f"x {epochs} / {batch * accumulation * call.processes} steps (batch {batch}, accumulation {accumulation}, "
            f"processes {call.processes})."
        )
        return 1000, None
    total = max(1, epochs * per_epoch)
    call.notes.append(
        f"max_train_steps is {total}: {counted} of {clips} clips (batch {batch}, accumulation {accumulation}, "
        f"processes {call.processes})."
    )
    return total, per_epoch


# --- sections --------------------------------------------------------------------------------------------------------

#: How frames are chosen in all of these trainers.
FRAMES = {"frame_selection": "strided", "skip_frames_start": 0, "skip_frames_end": 0}


def frames_note(call: Call, num_frames: int, fit: str, otherwise: str = "") -> None:
    """What is said of the frames that a clip gives. otherwise: who does not stretch them."""
    stretched = fit == "stretch"
    text = (
        f"Frames are taken as upstream takes them: from the beginning of a clip, at the largest whole stride at which "
        f"it has {num_frames}, whatever its rate{', and stretched to height x width' * stretched}{otherwise}. New "
        f"configs do better: dataset.frame_selection random with dataset.fps 8{' and dataset.fit crop' * stretched}."
    )
    if "fps" in call.given:
        text += " --fps has no part in that, upstream as well; here it is the rate of the sample files."
    call.notes.append(text)


def id_token(call: Call, *, glued: bool) -> str | None:
    """dataset.id_token. glued: upstream puts the token before the caption as it is."""
    token = call["id_token"]
    if not token or not token.strip():
        return None
    if glued and not token[-1].isspace():
        call.notes.append(
            f"{call.flag('id_token')}: a space stands between {token} and the caption; upstream has none, for which "
            "set dataset.id_token_glued."
        )
    return str(token).strip()


def optimizer(call: Call, total: int) -> dict[str, Any]:
    """The section optimizer; `total` steps make the run."""
    name, rate = str(call["optimizer"]).lower(), call["learning_rate"]
    if name not in ("adam", "adamw", "prodigy"):
        known = "came is not part of Dailies; " if name == "came" else ""
        raise call.refuse("optimizer", f"is {call['optimizer']!r}; {known}set adamw, adam or prodigy")
    if name != "prodigy":
        for flag in ("decouple", "use_bias_correction", "safeguard_warmup", "beta3"):
            call.ignore(f"prodigy_{flag}", "it is for prodigy alone")
    elif rate <= 0.1:
        call.notes.append(
            f"{call.flag('learning_rate')} {rate:g} is low for prodigy, whose own steps it multiplies: 0.5 to 1 is "
            "usual."
        )
    if call["use_8bit_adam"] and name == "prodigy":
        call.ignore("use_8bit_adam", "prodigy has no 8-bit states, upstream as well")
    elif call["use_8bit_adam"]:
        name += "8bit"
    if call["scale_lr"]:
        accumulation, batch = call["gradient_accumulation_steps"], call["train_batch_size"]
        factor = accumulation * batch * call.processes
        call.notes.append(
            f"{call.flag('scale_lr')}: the learning rate is {rate:g} x {factor} (accumulation {accumulation} x batch "
            f"{batch} x processes {call.processes})."
        )
        rate *= factor
    scheduler, warmup = call["lr_scheduler"], call["lr_warmup_steps"]
    if scheduler == "constant":
        call.ignore("lr_warmup_steps", "constant has no warm-up, upstream as well")
        warmup = 0
    elif warmup > total:
        call.notes.append(f"{call.flag('lr_warmup_steps')} {warmup} is more than the whole run: it is {total} here.")
    return {
        "name": name,
        "learning_rate": rate,
        "lr_scheduler": scheduler,
        "lr_warmup_steps": min(warmup, total),
        "lr_num_cycles": call["lr_num_cycles"],
        "lr_power": call["lr_power"],
        "beta1": call["adam_beta1"],
        "beta2": call["adam_beta2"],
        "weight_decay": call["adam_weight_decay"],
        "epsilon": call["adam_epsilon"],
        "prodigy_beta3": call["prodigy_beta3"] if name == "prodigy" else None,
        "prodigy_decouple": bool(call["prodigy_decouple"]),
        "prodigy_use_bias_correction": bool(call["prodigy_use_bias_correction"]),
        "prodigy_safeguard_warmup": bool(call["prodigy_safeguard_warmup"]),
        "gradient_accumulation_steps": call["gradient_accumulation_steps"],
        "max_grad_norm": call["max_grad_norm"],
    }


def seed(call: Call) -> int:
    """The seed of the run and of its samples."""
    if call["seed"] is None:
        call.notes.append("seed is 42, so that the run can be repeated; upstream takes another one every time.")
    return 42 if call["seed"] is None else int(call["seed"])


def tracker(call: Call) -> str:
    """tracking.tracker."""
    if call["report_to"] in ("tensorboard", "all"):
        return "tensorboard"
    if call["report_to"] not in (None, "none"):
        call.ignore("report_to", f"nothing is sent to {call['report_to']}; the run folder holds curves and samples")
    return "none"


def every_epochs(call: Call, per_epoch: int | None) -> int:
    """validation.every_steps for --validation_epochs."""
    epochs: int = max(1, call["validation_epochs"])
    counted = "every epoch" if epochs == 1 else f"every {epochs} epochs"
    if per_epoch is not None:
        call.notes.append(f"Samples are drawn every {epochs * per_epoch} steps, which is {counted}.")
        return epochs * per_epoch
    every = int(call["checkpointing_steps"])
    call.notes.append(
        f"Samples are drawn every {every} steps, with the checkpoints, for the steps of {counted} cannot be counted "
        "here; set validation.every_steps."
    )
    return every


def pairs(prompts: Sequence[str], images: Sequence[str]) -> tuple[list[str], list[str]]:
    """Prompts, each with its image where there is one for each; of equal pairs one."""
    if len(images) != len(prompts):
        return list(dict.fromkeys(prompts)) if len(images) <= 1 else list(prompts), list(images)
    kept = list(dict.fromkeys(zip(prompts, images, strict=True)))
    return [prompt for prompt, _ in kept], [image for _, image in kept]


def foreign(call: Call, dataset: Mapping[str, Any], validation: Mapping[str, Any], total: int, **own: Any) -> Foreign:
    """The whole of it. own: the family's settings, and whole sections that this one makes otherwise."""
    launched, chosen, lora = own.pop("launched"), seed(call), call.dialect.method == "lora"
    if not call["gradient_checkpointing"]:
        measured = (
            "2B was measured at 44 GB (13 with full) and 5B at more than 80 (21)" if lora else "2B needs over 80 GB"
        )
        call.notes.append(f"memory.gradient_checkpointing is none, as in the command: so {measured}.")
    if not lora:
        for name in ("rank", "lora_alpha", "target_modules"):
            call.ignore(name, "every weight is trained")
    if call["resume_from_checkpoint"] is not None:
        call.notes.append(
            f"{call.flag('resume_from_checkpoint')}: a checkpoint of upstream cannot be gone on with. A run of Dailies "
            f"goes on with python -m trainers.train --config FILE --run-dir {slashes(call['output_dir'])} --resume."
        )
    sections = {
        "base_model": slashes(call["pretrained_model_name_or_path"]),
        "seed": chosen,
        "max_train_steps": total,
        "mixed_precision": precision(call, launched),
        **{name: value for name, value in own.items() if not isinstance(value, Mapping)},
        "dataset": {**dataset, "caption_dropout": 0.0, "batch_size": call["train_batch_size"]},
        "adapter": {
            "rank": call["rank"],
            "alpha": call["lora_alpha"],
            "dropout": 0.0,
            "target_modules": call["target_modules"] or ["to_q", "to_k", "to_v", "to_out.0"],
        },
        "optimizer": optimizer(call, total),
        "memory": {
            "gradient_checkpointing": "full" if call["gradient_checkpointing"] else "none",
            "vae_tiling": call["enable_tiling"],
            "vae_slicing": call["enable_slicing"],
            **own.get("memory", {}),
        },
        "validation": {"num_inference_steps": 50, "guidance_scale": 6.0, "seed": chosen, **validation},
        "checkpoint": {"every_steps": call["checkpointing_steps"], "keep_last": call["checkpoints_total_limit"]},
        "tracking": {"tracker": tracker(call)},
    }
    if not lora:
        del sections["adapter"]
    if call.idle:
        call.around.append(without_effect(call.idle))
    settings = {"family": "cogvideox", "method": call.dialect.method, **sections}
    return Foreign("train", settings, call.notes + call.around, slashes(call["output_dir"]))
