"""The commands around DynamiCrafter: its trainer, inference.py, and the fork's tools for LoRA files. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainers.families.base import ModelError
from trainers.families.dynamicrafter import compat_config
from trainers.families.dynamicrafter.compat_config import Launch
from trainers.families.dynamicrafter.compat_parts import TOOL, from_main
from trainers.families.dynamicrafter.facts import PUBLISHED, Variant, facts_of, variant_in_name
from trainers.foreign import Foreign, Key, lines_of, read_keys, slashes, without_effect
from trainers.settings import ConfigError, parse_yaml, read_text
from trainers.shell import Command, options

TRAIN, INFER = "trainer.py", "inference.py"
EXTRACT, APPLY, MERGE = "extract_lora.py", "apply_lora.py", "merge_models.py"
TOOLS = (EXTRACT, APPLY, MERGE)

# --- training --------------------------------------------------------------------------------------------------------

_SHORT = {"-s": "seed", "-n": "name", "-b": "base", "-t": "train", "-v": "val", "-l": "logdir", "-d": "debug"}
_FLAGS = ("train", "val", "test", "auto_resume", "auto_resume_weight_only", "debug")
_VALUES = ("seed", "name", "logdir", "devices", "num_nodes", "accelerator")


def read_trainer(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """(options of the trainer by their long names, base among them as a list; dotted overrides) of its arguments."""
    given: dict[str, Any] = {"base": []}
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if not option.startswith("-"):
            if not equals:
                raise ConfigError([("", f"{word!r} stands where {TOOL} expects an option or key=value")])
            overrides.append(word)
            continue
        name = _SHORT.get(option, option.lstrip("-").replace("-", "_"))
        if name in _FLAGS:
            given[name] = True
        elif name == "base":
            given["base"] += [value] if equals else []
            while rest and not rest[0].startswith("-") and "=" not in rest[0]:
                given["base"].append(rest.pop(0))
        elif name in _VALUES:
            if not equals and not rest:
                raise ConfigError([(option, "is the last word of the command; a value must follow it")])
            given[name] = value if equals else rest.pop(0)
        else:
            raise ConfigError([(option, f"is unknown to {TOOL}")])
    return given, overrides


def train(command: Command, data: Mapping[str, Any] | None) -> Foreign:
    """The trainer's command. data: its YAML, where that stands in the text itself."""
    given, overrides = read_trainer(command.arguments)
    notes: list[str] = []
    idle: dict[str, str] = {}
    whole = _configs(given["base"], data)
    for override in overrides:
        _set(whole, override)
    if given.keys() & {"auto_resume", "auto_resume_weight_only"}:
        notes.append(
            "--auto_resume: a checkpoint of upstream cannot be gone on with, but model.lora_path can name its LoRA. A "
            "run of Dailies goes on with python -m trainers.train --config FILE --run-dir RUN --resume."
        )
    if not given.get("train"):
        notes.append("--train is not given, so upstream would only set up; here it trains.")
    for name in ("val", "test", "debug"):
        if given.get(name):
            idle[f"--{name}"] = "nothing is done with it upstream either"
    if "devices" in given:
        idle["--devices"] = "the launcher says how many processes there are"
    try:
        seed = None if given.get("seed") is None else int(given["seed"])
    except ValueError:
        raise ConfigError([("--seed", f"is {given['seed']!r}, but must be a whole number")]) from None
    if command.processes > 1:
        count = command.processes
        notes.append(
            f"The command starts {count} processes. Start as many here (accelerate launch --num_processes {count} -m "
            f"trainers.train ..., see examples/accelerate), or multiply optimizer.gradient_accumulation_steps by "
            f"{count} for the same batch."
        )
    launch = Launch(_run_dir(given), seed, command.processes, tuple(notes), idle)
    return compat_config.translate(whole, launch)


def _run_dir(given: Mapping[str, Any]) -> str | None:
    """Where upstream writes to: it makes this folder where it starts, and goes to main/ before it fills it."""
    folder, name = given.get("logdir", "logs"), given.get("name", "")
    if re.fullmatch(r"<.*>", folder):
        return None
    return "/".join(part.rstrip("/") for part in (from_main(folder), slashes(name)) if part)


def _configs(files: Sequence[str], data: Mapping[str, Any] | None) -> dict[str, Any]:
    """The YAML files that a command names, each over the one before it; one that is not here is that in the text."""
    whole: dict[str, Any] = {}
    for file in files:
        path = Path(slashes(file)).expanduser()
        if path.is_file():
            _lay(whole, parse_yaml(read_text(path), str(file)))
        elif data is None:
            raise ConfigError(
                [
                    (
                        "--base",
                        f"names {file}, which is not in {Path.cwd()} and holds everything that matters: give that file "
                        "itself, or go to the folder from which its path counts",
                    )
                ]
            )
    if data is not None:
        _lay(whole, data)
    if not whole:
        raise ConfigError([("--base", "must name the YAML file with everything that matters")])
    return whole


def _lay(under: dict[str, Any], over: Mapping[str, Any]) -> None:
    for name, value in over.items():
        if isinstance(value, Mapping):
            inner = under.get(name)
            under[name] = inner if isinstance(inner, dict) else {}
            _lay(under[name], value)
        else:
            under[name] = value


def _set(whole: dict[str, Any], override: str) -> None:
    """One dotted override, such as lightning.lora.rank=32."""
    path, _, text = override.partition("=")
    value = parse_yaml(f"value: {text}", override)["value"]
    nested: Any = value
    for part in reversed(path.split(".")):
        nested = {part: nested}
    _lay(whole, nested)


# --- drawing ---------------------------------------------------------------------------------------------------------

INFERENCE = {
    "savedir": Key(str),
    "ckpt_path": Key(str, ...),
    "config": Key(str),
    "prompt_dir": Key(str, ...),
    "n_samples": Key(int, 1),
    "ddim_steps": Key(int, 50),
    "ddim_eta": Key(float, 1.0),
    "bs": Key(int, 1),
    "height": Key(int, 512),
    "width": Key(int, 512),
    "frame_stride": Key(int, 3),
    "unconditional_guidance_scale": Key(float, 1.0),
    "seed": Key(int, 123),
    "video_length": Key(int, 16),
    "negative_prompt": Key(bool, False),
    "text_input": Key(bool, False),
    "multiple_cond_cfg": Key(bool, False),
    "cfg_img": Key(float),
    "timestep_spacing": Key(str, "uniform"),
    "guidance_rescale": Key(float, 0.0),
    "perframe_ae": Key(bool, False),
    "loop": Key(bool, False),
    "interp": Key(bool, False),
    "gfi": Key(bool, False),
    "fps": Key(float, 8.0),
}
_PICTURES = (".jpg", ".png", ".jpeg", ".JPEG", ".PNG")


def draw(command: Command) -> Foreign:
    """inference.py as a comparison of one take."""
    values = read_keys(options(command.arguments), INFERENCE, f"DynamiCrafter's {INFER}", "--")
    notes: list[str] = []
    idle = {"--bs": "clips are drawn one by one"} if values["bs"] != 1 else {}
    if values["negative_prompt"]:
        idle["--negative_prompt"] = "upstream does nothing with it either"
    if values["perframe_ae"]:
        idle["--perframe_ae"] = "pictures are encoded and decoded a few at a time"
    base = slashes(values["ckpt_path"])
    between = values["interp"] or values["gfi"]
    variant = _variant(base, values["config"], between)
    found = _pairs(slashes(values["prompt_dir"]), between)
    missing = {}
    if found is None:
        where = f"must be given, for {slashes(values['prompt_dir'])} is not here with a .txt file and pictures"
        missing = {"prompts": where, "images": where} | ({"end_images": where} if between else {})
        found = [], [], []
    prompts, images, ends = found
    if not values["text_input"]:
        prompts = [""] * len(prompts)
        notes.append("--text_input is not given, so clips follow their images alone, without a prompt.")
    _check_spacing(base, variant, values["timestep_spacing"], notes)
    seed = values["seed"]
    if seed < 0:
        seed = 42
        notes.append("--seed is below 0, which upstream takes for any: seeds is 42 here.")
    elif values["n_samples"] > 1:
        notes.append(f"--n_samples {values['n_samples']}: each has a seed of its own, from {seed} on.")
    settings = {
        "family": "dynamicrafter",
        "base_model": base,
        "variant": variant,
        "checkpoints": [],
        "include_base": True,
        "prompts": prompts,
        "images": images,
        "end_images": ends,
        "interp_mode": between,
        "loop": values["loop"],
        "seeds": [seed + number for number in range(max(1, values["n_samples"]))],
        "num_frames": values["video_length"],
        "height": values["height"],
        "width": values["width"],
        "num_inference_steps": values["ddim_steps"],
        "guidance_scale": max(1.0, values["unconditional_guidance_scale"]),
        "image_guidance_scale": values["cfg_img"] if values["multiple_cond_cfg"] else None,
        "guidance_rescale": values["guidance_rescale"],
        "eta": values["ddim_eta"],
        "fs": values["frame_stride"],
        "fps": values["fps"],
        "mixed_precision": "fp16",
    }
    notes += [without_effect(idle)] if idle else []
    run_dir = None if values["savedir"] is None else slashes(values["savedir"])
    return Foreign("sample", settings, notes, run_dir, missing=missing)


def _variant(base: str, config: str | None, between: bool) -> Variant | None:
    """Which model it is, where the base's own name or what lies beside it does not say."""
    try:
        if facts_of(base) is not None:
            return None
    except ModelError as error:
        raise ConfigError([("--ckpt_path", str(error))]) from error
    told = None if config is None else variant_in_name(slashes(config))
    return "512-interp" if told == "512" and between else told


def _check_spacing(base: str, variant: str | None, given: str, notes: list[str]) -> None:
    facts = facts_of(base, variant) or PUBLISHED["512"]
    if given != facts.spacing:
        notes.append(f"--timestep_spacing is {given}, but steps are spaced as the model was made for: {facts.spacing}.")


def _pairs(folder: str, between: bool) -> tuple[list[str], list[str], list[str]] | None:
    """(prompts, images, end images) of a folder: the lines of its first .txt file, and its pictures in their order."""
    here = Path(folder).expanduser()
    files = sorted(file.name for file in here.iterdir()) if here.is_dir() else []
    listed = next((name for name in files if name.endswith(".txt")), None)
    prompts = lines_of(f"{folder}/{listed}") if listed is not None else None
    if not prompts:
        return None
    pictures = [f"{folder.rstrip('/')}/{name}" for name in files if name.endswith(_PICTURES)]
    needed = len(prompts) * (2 if between else 1)
    if len(pictures) < needed:
        text = f"{folder} has {len(pictures)} pictures for {len(prompts)} prompts in {listed}; {needed} are needed"
        raise ConfigError([("--prompt_dir", text)])
    pictures = pictures[:needed]
    return (prompts, pictures[::2], pictures[1::2]) if between else (prompts, pictures, [])


# --- LoRA files ------------------------------------------------------------------------------------------------------

_TOOL_KEYS = {
    EXTRACT: {"model": Key(str, "FILE"), "format": Key(str, "safetensors")},
    APPLY: {
        "base_model": Key(str, "FILE"),
        "lora": Key(str, "FILE"),
        "alpha": Key(object),
        "format": Key(str, "safetensors"),
    },
    MERGE: {"left": Key(str), "right": Key(str), "alpha": Key(object), "format": Key(str, "safetensors")},
}


def told(command: Command) -> str:
    """What does the work of one of the fork's tools here, as a sentence."""
    values = read_keys(options(command.arguments), _TOOL_KEYS[command.script], f"the fork's {command.script}", "--")
    if command.script == MERGE:
        return (
            f"{MERGE} has no counterpart: a comparison draws a whole model between the base and itself where its file "
            "stands in checkpoints, and the share in strengths."
        )
    form = "" if values["format"] == "safetensors" else f" --format {values['format']}"
    if command.script == EXTRACT:
        return f"{EXTRACT}: python -m trainers.export extract --model {_file(values['model'])}{form}."
    alpha = values["alpha"] if isinstance(values["alpha"], (str, int, float)) else None
    given = "" if alpha in (None, "dialog") else f" --alpha {alpha}"
    how = (
        "leave --alpha out to have the strength of the training, which a checkpoint of Dailies knows; upstream's own "
        "default, 1, is twice that of its config, 0.5"
    )
    line = f"--base_model {_file(values['base_model'])} --lora {_file(values['lora'])}{given}{form}"
    return f"{APPLY}: python -m trainers.export apply {line}; {how}."


def _file(given: str) -> str:
    path = "FILE" if given == "dialog" else slashes(given)
    return f"'{path}'" if re.search(r"[^\w./=~:+-]", path) else path


def explained(commands: Sequence[Command]) -> ConfigError:
    """Why these commands alone are no config, and what does their work here."""
    return ConfigError([("", f"this is no run to train or to draw. {' '.join(told(command) for command in commands)}")])


def with_tools(found: Foreign, commands: Sequence[Command]) -> Foreign:
    """The same, with what is said of the tools that a text names as well."""
    notes = list(dict.fromkeys(told(command) for command in commands))
    return replace(found, notes=[*found.notes, *notes])
