"""The commands around Genmo's fine-tuner: those that prepare clips, run.bash, and the demo's cli.py. No torch.

Preparing clips is no work of its own here, so the commands for it say what a run sees; together with the one that
trains they are one config.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainers.families.mochi import compat_genmo
from trainers.families.mochi.compat_code import LinearQuadratic
from trainers.families.mochi.compat_genmo import FPS, constant_guidance
from trainers.families.mochi.compat_parts import (
    HEIGHT,
    PREPARATION,
    WIDTH,
    Arguments,
    Script,
    check_frames,
    read_arguments,
    size,
)
from trainers.foreign import Foreign, Key, slashes, without_effect
from trainers.settings import ConfigError, parse_yaml, read_text
from trainers.shell import Command

PREPROCESS, TRIM, ENCODE, EMBED = (
    "preprocess.bash",
    "trim_and_crop_videos.py",
    "encode_videos.py",
    "embed_captions.py",
)
RUN, TRAIN, CLI = "run.bash", "train.py", "cli.py"

SCRIPTS = {
    PREPROCESS: Script(
        PREPROCESS,
        {
            "videos_dir": Key(str, ...),
            "output_dir": Key(str, ...),
            "weights_dir": Key(str, ...),
            "num_frames": Key(int, ...),
        },
        {"v": "videos_dir", "o": "output_dir", "w": "weights_dir", "n": "num_frames"},
    ),
    TRIM: Script(
        TRIM,
        {
            "duration": Key(float),
            "resolution": Key(str),
            "num_frames": Key(float),
            "force_upsample": Key(bool, False),
        },
        {"d": "duration", "r": "resolution", "f": "num_frames"},
        ("FOLDER", "OUTPUT_FOLDER"),
    ),
    ENCODE: Script(
        ENCODE,
        {
            "model_dir": Key(str, "weights/"),
            "num_gpus": Key(int, 1),
            "recon_interval": Key(int, 10),
            "shape": Key(str, "163x480x848"),
            "overwrite": Key(bool, False),
        },
        {"ow": "overwrite"},
        ("VIDEOS_DIR",),
    ),
    EMBED: Script(
        EMBED, {"device_id": Key(int, 0), "overwrite": Key(bool, False)}, {"ow": "overwrite"}, ("CAPTIONS_DIR",)
    ),
    RUN: Script(
        RUN,
        {"config": Key(str, "demos/fine_tuner/configs/finetune.yaml"), "num_gpus": Key(int, 8)},
        {"c": "config", "n": "num_gpus"},
    ),
    TRAIN: Script("Genmo's train.py", {"config_path": Key(str, ...)}),
    CLI: Script(
        CLI,
        {
            "prompt": Key(str),
            "sweep_file": Key(str),
            "negative_prompt": Key(str, ""),
            "width": Key(int, WIDTH),
            "height": Key(int, HEIGHT),
            "num_frames": Key(int, 163),
            "seed": Key(int, 1710977262),
            "cfg_scale": Key(float, 6.0),
            "num_steps": Key(int, 64),
            "model_dir": Key(str, ...),
            "lora_path": Key(str),
            "cpu_offload": Key(bool, False),
            "out_dir": Key(str, "outputs"),
            "threshold_noise": Key(float, 0.025),
            "linear_steps": Key(int),
        },
    ),
}
PREPARING = (PREPROCESS, TRIM, ENCODE, EMBED)
TRAINING = (RUN, TRAIN)


# --- preparing -------------------------------------------------------------------------------------------------------


def preparation(commands: Sequence[Command]) -> dict[str, Any] | None:
    """What the commands that prepare clips say of a run, None where there is none of them.

    "dataset": the section. "out": where upstream writes to. "base": the folder of weights, if it is named. "notes".
    ConfigError where two of them say the same.
    """
    named = [command.script for command in commands]
    twice = sorted(
        {script for script in named if named.count(script) > 1 or (script != PREPROCESS and PREPROCESS in named)}
    )
    if twice:
        raise ConfigError([("", f"the text prepares clips more than once ({', '.join(named)}); leave one way")])
    given = {command.script: read_arguments(command.arguments, SCRIPTS[command.script]) for command in commands}
    if not given:
        return None
    section: dict[str, Any] = {"num_frames": 37, "height": HEIGHT, "width": WIDTH}
    found: dict[str, Any] = {"out": None, "base": None, "notes": []}
    idle: dict[str, str] = {}
    videos = ""
    if PREPROCESS in given:
        own = given[PREPROCESS]
        videos, found["out"], found["base"] = (slashes(own[f"{name}_dir"]) for name in ("videos", "output", "weights"))
        check_frames("--num_frames", own["num_frames"])
        section["num_frames"] = own["num_frames"]
    if EMBED in given:
        videos = found["out"] = slashes(given[EMBED]["CAPTIONS_DIR"])
        _name_idle(given[EMBED], ("device_id", "overwrite"), idle)
    if ENCODE in given:
        own = given[ENCODE]
        videos = found["out"] = slashes(own["VIDEOS_DIR"])
        found["base"] = slashes(own["model_dir"])
        sizes = size(ENCODE, "--shape", own["shape"], "frames x height x width")
        check_frames("--shape", sizes[0])
        section |= dict(zip(("num_frames", "height", "width"), sizes, strict=True))
        _name_idle(own, ("num_gpus", "recon_interval", "overwrite"), idle)
    upscale = False
    if TRIM in given:
        own = given[TRIM]
        videos, out = slashes(own["FOLDER"]), slashes(own["OUTPUT_FOLDER"])
        if found["out"] is not None and Path(found["out"]) != Path(out):
            raise ConfigError(
                [("", f"{TRIM} writes to {out}, but {found['out']} is prepared; give both the same folder")]
            )
        found["out"], upscale = out, own["force_upsample"]
        _trimmed(own, section, ENCODE in given, idle)
    found["dataset"] = {"path": videos, "format": "sidecar", "subfolders": True, **section, **PREPARATION}
    found["dataset"]["upscale"] = upscale
    found["notes"].append(
        f"The clips of {videos} are prepared when the run begins, by the same rules: the first {section['num_frames']} "
        f"frames at 30 a second, cut to {section['width']} x {section['height']}; {found['out']} stays as it is."
    )
    if idle:
        found["notes"].append(without_effect(idle))
    return found


def _trimmed(own: Arguments, section: dict[str, Any], encoded: bool, idle: dict[str, str]) -> None:
    """What trimming says of the clips. cogvideox-factory's script of this name counts frames instead of seconds, and
    writes the height first."""
    factorys = bool({"num_frames", "force_upsample"} & own.given)
    if factorys and "duration" in own.given:
        raise ConfigError([("--duration", f"is Genmo's, but --num_frames is cogvideox-factory's {TRIM}; leave one")])
    if own["resolution"] is not None:
        sides = ("height", "width") if factorys else ("width", "height")
        sizes = dict(zip(sides, size(TRIM, "--resolution", own["resolution"], " x ".join(sides)), strict=True))
        if encoded and any(section[side] != length for side, length in sizes.items()):
            raise ConfigError(
                [("--resolution", f"of {TRIM} is {own['resolution']}, but --shape has other sides; make them equal")]
            )
        section |= sizes
    if own["num_frames"] is not None and not encoded:
        section["num_frames"] = int(own["num_frames"])
        check_frames("--num_frames", section["num_frames"])
    elif "num_frames" in own.given:
        idle["--num_frames"] = "--shape says how many frames are encoded"
    if "duration" in own.given:
        idle["--duration"] = "the frames that are encoded are all that is used"


def _name_idle(own: Arguments, names: Sequence[str], idle: dict[str, str]) -> None:
    why = {"num_gpus": "upstream uses one as well", "recon_interval": "the form shows clips as they will be trained"}
    for name in names:
        if name in own.given:
            idle[f"--{name}"] = why.get(name, "what is encoded is kept as long as it fits")


def prepare_alone(prepared: Mapping[str, Any]) -> Foreign:
    """A run on clips that a text prepares, without a word on the training: it has this family's defaults."""
    settings: dict[str, Any] = {"family": "mochi", "method": "lora", "dataset": dict(prepared["dataset"])}
    missing = {}
    if prepared["base"] is None:
        missing["base_model"] = "must be set, for the command names no folder of weights"
    else:
        settings["base_model"] = prepared["base"]
    notes = ["All but the clips is as Dailies has it, much like Genmo's lora.yaml: give that, or run.bash, as well."]
    return Foreign("train", settings, [*notes, *prepared["notes"]], missing=missing)


# --- training --------------------------------------------------------------------------------------------------------


def train(command: Command, prepared: Mapping[str, Any] | None, data: Mapping[str, Any] | None) -> Foreign:
    """run.bash, or the train.py that it starts. data: its YAML, where that stands in the text itself."""
    own = read_arguments(command.arguments, SCRIPTS[command.script])
    file = slashes(own["config" if command.script == RUN else "config_path"])
    notes: list[str] = []
    if data is None:
        data = _yaml(file, prepared, notes)
    base = prepared["base"] if prepared is not None else None
    # run.bash exports COMPILE_DIT=1 itself; what a person writes before the command is meant all the same.
    compiled = command.environment.get("COMPILE_DIT", "1" if command.script == RUN else "0") == "1"
    found = compat_genmo.translate(data, prepared, compiled=compiled)
    if base is not None and "base_model" in found.settings and Path(base) != Path(found.settings["base_model"]):
        notes.append(f"The clips are encoded by base_model, {found.settings['base_model']}; {base} is not read.")
    if command.script == RUN and "num_gpus" in own.given and own["num_gpus"] != 1:
        notes.append(
            f"--num_gpus {own['num_gpus']}: upstream trains on one GPU whatever it says. Several are used by "
            f"accelerate launch --num_processes {own['num_gpus']} -m trainers.train ..., see examples/accelerate."
        )
    if prepared is not None:
        notes += prepared["notes"]
    return replace(found, notes=[*found.notes, *notes])


def _yaml(file: str, prepared: Mapping[str, Any] | None, notes: list[str]) -> dict[str, Any]:
    """The YAML that a command names, relative to the folder from which we run as well."""
    path = Path(file).expanduser()
    if path.is_file():
        data = parse_yaml(read_text(path).expandtabs(2), file)
        if not compat_genmo.knows(data):
            raise ConfigError([("--config", f"{file} is no config of {compat_genmo.TOOL}")])
        return data
    if prepared is None or prepared["base"] is None:
        raise ConfigError(
            [
                (
                    "--config",
                    f"names {file}, which is not in {Path.cwd()} and holds everything that matters: give that file "
                    "itself, or go to the folder from which its path counts",
                )
            ]
        )
    notes.append(
        f"{file} is not here: what it may say has the value of Genmo's own lora.yaml, and no prompts are drawn."
    )
    return {
        "init_checkpoint_path": f"{prepared['base'].rstrip('/')}/dit.safetensors",
        "checkpoint_dir": "finetunes/my_mochi_lora",
        "train_data_dir": prepared["out"],
        "optimizer": {"lr": 2e-4, "weight_decay": 0.01},
        "model": {
            "type": "lora",
            "kwargs": {f"{part}_proj_lora_{what}": 16 for part in ("qkv", "out") for what in ("rank", "alpha")},
        },
        "training": {"save_interval": 200},
        "sample": {"interval": 200, "kwargs": {"num_frames": prepared["dataset"]["num_frames"]}},
    }


# --- drawing ---------------------------------------------------------------------------------------------------------

#: What a line of a sweep file may say -> the option that it stands for.
_SWEPT = (
    "prompt",
    "cfg_scale",
    "num_steps",
    "threshold_noise",
    "linear_steps",
    "seed",
    "width",
    "height",
    "num_frames",
)


def draw(command: Command) -> Foreign:
    """cli.py as a comparison of one take."""
    own = read_arguments(command.arguments, SCRIPTS[CLI])
    values, notes = dict(own.values), list[str]()
    missing = {}
    prompts = [] if values["prompt"] is None or not values["prompt"].strip() else [values["prompt"].strip()]
    if values["sweep_file"] is not None:
        prompts = _swept(slashes(values["sweep_file"]), values, prompts)
    elif not prompts:
        missing["prompts"] = (
            "must be given, for upstream draws an example of its own without --prompt: write them into the config, or "
            "add --set 'prompts=[...]'"
        )
    strength, each = constant_guidance([values["cfg_scale"]] * max(1, min(values["num_steps"], 1000)))
    half = values["linear_steps"]
    schedule = LinearQuadratic(values["num_steps"], values["threshold_noise"], half)
    lora = None if values["lora_path"] is None else _checkpoint(slashes(values["lora_path"]), notes)
    settings = {
        "family": "mochi",
        "base_model": slashes(values["model_dir"]),
        "checkpoints": [] if lora is None else [lora],
        "strengths": [1.0],
        "include_base": lora is None,
        "prompts": prompts,
        "negative_prompt": values["negative_prompt"],
        "seeds": [values["seed"]],
        "num_frames": values["num_frames"],
        "height": values["height"],
        "width": values["width"],
        "num_inference_steps": schedule.num_steps,
        "guidance_scale": strength,
        "guidance_schedule": each,
        "threshold_noise": schedule.threshold_noise,
        "linear_steps": schedule.linear_steps,
        "fps": FPS,
        "mixed_precision": "bf16",
        "vae_tiling": True,
        "cpu_offload": values["cpu_offload"],
    }
    return Foreign("sample", settings, notes, slashes(values["out_dir"]), numbered=True, missing=missing)


def _checkpoint(path: str, notes: list[str]) -> str:
    """The LoRA; where the file is not here but a run of Dailies lies in its folder, the checkpoint of that step."""
    of_a_run = re.fullmatch(r"(.*?)/?model_(\d+)\.lora\.(?:safetensors|pt)", path)
    if of_a_run is None or Path(path).expanduser().exists():
        return path
    own = f"{of_a_run.group(1) or '.'}/checkpoints/step-{int(of_a_run.group(2)):06d}"
    if not Path(own).expanduser().is_dir():
        return path
    notes.append(f"--lora_path {path} is not here; {own} is, the same step of a run of Dailies.")
    return own


def _swept(file: str, values: dict[str, Any], prompts: list[str]) -> list[str]:
    """The prompts of a sweep file, a JSON object a line; what else all of its lines say goes into `values`."""
    try:
        lines = [json.loads(line) for line in read_text(Path(file).expanduser()).splitlines() if line.strip()]
    except ValueError as error:
        raise ConfigError([("--sweep-file", f"{file} has a line that is no JSON: {error}")]) from error
    if not lines or not all(isinstance(line, dict) for line in lines):
        raise ConfigError(
            [("--sweep-file", f'{file} must hold a JSON object in each line, such as {{"prompt": "..."}}')]
        )
    for name in _SWEPT[1:]:
        found = [line.get(name, values[name]) for line in lines]
        if any(value != found[0] for value in found):
            raise ConfigError(
                [
                    (
                        "--sweep-file",
                        f"{file} has lines of different {name}, but a comparison has one; give one after the other",
                    )
                ]
            )
        values[name] = _kind_of(name)(name, found[0], file)
    drawn = [str(line.get("prompt", "")).strip() or next(iter(prompts), "") for line in lines]
    if not all(drawn):
        raise ConfigError([("--sweep-file", f"{file} has a line without a prompt; give one, or --prompt for those")])
    return list(dict.fromkeys(drawn))


def _kind_of(name: str) -> Callable[[str, Any, str], Any]:
    kind = SCRIPTS[CLI].keys[name].kind

    def checked(name: str, value: Any, file: str) -> Any:
        if value is None and name == "linear_steps":
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or kind(value) != value:
            raise ConfigError([("--sweep-file", f"{file} has {value!r} for {name}, but it must be a number")])
        return kind(value)

    return checked
