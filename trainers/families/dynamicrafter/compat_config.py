"""The YAML of DynamiCrafter's trainer, and of the fork of it that trains LoRAs. No torch.

Every key is mapped to our words or spoken of in a note; a key that is left out has upstream's own default. Sections in
which the fork's trainer ends when they are missing (`lora`, `lora_path`, `optimize_matmul`, `compile`) may be missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from trainers.config import DatasetConfig
from trainers.data.clips import DatasetError
from trainers.data.formats import webvid
from trainers.families.base import ModelError
from trainers.families.dynamicrafter.compat_parts import (
    CALLBACK,
    CHECKPOINTS,
    DATA,
    DESCRIBING,
    DRAWN,
    FIXED,
    IDLE_PARAMS,
    IDLE_TRAINER,
    IMAGES,
    LIGHTNING,
    LOGGED,
    LORA,
    MODEL,
    PARAMS,
    TOOL,
    TOP,
    TRAINER,
    WEBVID,
    clips_of,
    from_main,
)
from trainers.families.dynamicrafter.facts import CONFIG, PUBLISHED, SWITCHES, Facts, UNetFacts, facts_of, from_params
from trainers.foreign import Foreign, Key, read_keys, slashes, without_effect
from trainers.settings import ConfigError

SEED = 20230211  # upstream's own, where a command gives none


@dataclass(frozen=True)
class Launch:
    """What the command says around the config. run_dir: where upstream writes; seed: None where it gives none."""

    run_dir: str | None = None
    seed: int | None = None
    processes: int = 1
    notes: tuple[str, ...] = ()
    idle: Mapping[str, str] = field(default_factory=dict)


def knows(data: Mapping[str, Any]) -> bool:
    """Whether settings are those of DynamiCrafter's trainer."""
    model = data.get("model")
    if "family" in data or not isinstance(model, Mapping):
        return False
    return "pretrained_checkpoint" in model or str(model.get("target", "")).startswith("lvdm.")


def knows_clips(data: Mapping[str, Any]) -> bool:
    """Whether settings are arguments of its WebVid reader alone, as the fork's guide prints them."""
    own = {"video_length", "load_raw_resolution", "spatial_transform", "random_fs", "fixed_fps", "frame_stride"}
    return bool(data) and data.keys() <= WEBVID.keys() and len(own & data.keys()) >= 3


def translate(data: Mapping[str, Any], launch: Launch | None = None) -> Foreign:
    """Its settings in our words. ConfigError for unknown keys and for what could not be trained."""
    launch = launch or Launch()
    if "data" not in data:
        text = "must be set: this describes a model alone, which is read as it is where it lies beside its weights"
        raise ConfigError([("data", text)])
    top = read_keys(data, TOP, TOOL)
    idle = dict(launch.idle)
    model = read_keys(top["model"], MODEL, TOOL, "model.")
    params = _params(model["params"], idle)
    lightning = read_keys(top["lightning"], LIGHTNING, TOOL, "lightning.")
    trainer = _trainer(lightning["trainer"], idle)
    lora = None if lightning["lora"] is None else read_keys(_on(lightning["lora"]), LORA, TOOL, "lightning.lora.")
    if lora is not None and not lora["enabled"]:
        lora = None

    first: list[str] = []  # of the lines that the fork marks for its users, which come before all others
    notes: list[str] = []
    base = _base(model, params, notes)
    clips = _clips(top["data"], idle, notes)
    batch = clips["batch_size"]
    per_epoch = _steps_of_an_epoch(clips, batch * launch.processes, trainer["accumulate_grad_batches"])
    checkpoint = _checkpoints(lightning["callbacks"], per_epoch, trainer, first)
    drawing = _drawing(lightning["callbacks"], notes, idle)
    _say_the_rest(params, lightning, lora, clips, notes, idle)
    settings: dict[str, Any] = {
        "family": "dynamicrafter",
        "method": "full" if lora is None else "lora",
        **base,
        "start_from": _start(model, lora, notes),
        "seed": SEED if launch.seed is None else launch.seed,
        "max_train_steps": _length(trainer, per_epoch, notes),
        "mixed_precision": _precision(lightning["precision"]),
        "image_dropout": 2 * params["uncond_prob"],
        "rand_cond_frame": params["rand_cond_frame"],
        "interp_mode": params["interp_mode"],
        "fps_max": clips.pop("fps_max"),
        "dataset": {**clips, "caption_dropout": 2 * params["uncond_prob"], "cache": False},
        **({} if lora is None else {"adapter": _adapter(lora, notes)}),
        "optimizer": {
            "name": "adamw",
            "learning_rate": _rate(model, batch * launch.processes, notes),
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "weight_decay": 0.01,
            "gradient_accumulation_steps": trainer["accumulate_grad_batches"],
            "max_grad_norm": trainer["gradient_clip_val"] or None,
        },
        "memory": {"gradient_checkpointing": "full" if _unet(params).get("use_checkpoint", False) else "none"},
        "validation": drawing,
        "checkpoint": checkpoint,
        "tracking": {"tracker": "tensorboard", "every_steps": max(1, trainer["log_every_n_steps"])},
    }
    notes.append(
        "Clips are encoded anew at every visit, each from a new random start, as upstream does; dataset.cache with "
        "some dataset.variants is faster, and needs no encoders in memory while it trains."
    )
    told = [*first, *notes, *launch.notes, *([without_effect(idle)] if idle else [])]
    return Foreign("train", settings, told, launch.run_dir)


def translate_clips(data: Mapping[str, Any]) -> Foreign:
    """Arguments of the WebVid reader alone: a run on such clips, all else as Dailies has it."""
    values = read_keys({"data_dir": "-", "meta_path": "-", **data}, WEBVID, TOOL)
    clips = clips_of(values)
    settings: dict[str, Any] = {"family": "dynamicrafter", "method": "lora", "fps_max": values["fps_max"]}
    missing = {"base_model": "must be set, for these lines say of clips only how they are read"}
    if "meta_path" in data:
        clips |= {"path": from_main(values["meta_path"]), "format": "webvid"}
        clips["video_folder"] = f"{from_main(values['data_dir']).rstrip('/')}/videos" if "data_dir" in data else None
    else:
        missing["dataset.path"] = "must be set: the folder of the clips, or with dataset.format webvid the CSV file"
    said = (
        "Only how clips are read is from this text; all else is as Dailies has it. Give the whole config to have it so."
    )
    return Foreign("train", {**settings, "dataset": clips}, [said], missing=missing)


# --- the model -------------------------------------------------------------------------------------------------------


def _params(given: Mapping[str, Any], idle: dict[str, str]) -> dict[str, Any]:
    """`model.params`, read. ConfigError for what no DynamiCrafter has."""
    fixed = {name: key for name, (key, _) in FIXED.items()}
    keys = {**PARAMS, **DESCRIBING, **fixed, **dict.fromkeys(IDLE_PARAMS, Key(object))}
    params = read_keys(given, keys, TOOL, "model.params.")
    wrong = [
        (f"model.params.{name}", f"is {params[name]!r}, but this model has {value!r}")
        for name, (_, value) in FIXED.items()
        if params[name] != value
    ]
    if params["uncond_type"] != "empty_seq":
        wrong.append(("model.params.uncond_type", f"is {params['uncond_type']!r}, but this model has 'empty_seq'"))
    layer = _inner(params, "cond_stage_config").get("layer", "penultimate")
    if layer != "penultimate":
        wrong.append(("model.params.cond_stage_config.params.layer", f"is {layer!r}, but this model has 'penultimate'"))
    known = {*(one.name for one in fields(UNetFacts)), *SWITCHES, "use_checkpoint"}
    wrong += [
        (f"model.params.unet_config.params.{name}", "is no part of this network; take it out")
        for name in _unet(params)
        if name not in known
    ]
    if wrong:
        raise ConfigError(wrong)
    for name, why in IDLE_PARAMS.items():
        if name in given:
            idle[f"model.params.{name}"] = why
    return params


def _unet(params: Mapping[str, Any]) -> Mapping[str, Any]:
    return _inner(params, "unet_config")


def _inner(params: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    inner = params[section].get("params")
    return inner if isinstance(inner, Mapping) else {}


def _base(model: Mapping[str, Any], params: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """base_model and variant. What `model.params` say of the model must be what the weights are known to be."""
    base = slashes(model["pretrained_checkpoint"])
    try:
        described = from_params({name: value for name, value in params.items() if value is not None}, {})
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError([("model.params", f"describe no DynamiCrafter model: {error}")]) from error
    path = Path(base).expanduser()
    if path.exists() and ((path if path.is_dir() else path.parent) / CONFIG).is_file():
        try:
            own = facts_of(base)
        except ModelError as error:
            raise ConfigError([("model.pretrained_checkpoint", str(error))]) from error
        if own is not None:
            other = _other(described, own)
            if other:
                notes.append(
                    f"model.params: {', '.join(other)} is as {CONFIG} beside the weights says, not as this one does."
                )
            return {"base_model": base, "variant": None}
    other = _other(described, PUBLISHED[described.variant])
    if other:
        notes.append(
            f"model.params: {', '.join(other)} is other than in the published model, {described.variant}. To have it "
            f"so, put this file as {CONFIG} beside the weights, where it is read; without it the base is taken for the "
            "published one."
        )
    return {"base_model": base, "variant": described.variant}


def _other(described: Facts, own: Facts) -> list[str]:
    """What differs between a model as a config describes it and as it is, in the config's words."""
    same = replace(described.unet, default_fs=own.unet.default_fs)  # used where no fps is given, which is never
    found = {
        "unet_config": same != own.unet,
        "first_stage_config": described.vae != own.vae,
        "image_proj_stage_config": described.resampler != own.resampler,
        "parameterization": described.parameterization != own.parameterization,
        "rescale_betas_zero_snr": described.zero_terminal_snr != own.zero_terminal_snr,
        "use_dynamic_rescale": described.base_scale != own.base_scale,
        "fps_condition_type": described.fs_kind != own.fs_kind,
        "scale_factor": described.scale_factor != own.scale_factor,
    }
    return [name for name, differs in found.items() if differs]


def _start(model: Mapping[str, Any], lora: Mapping[str, Any] | None, notes: list[str]) -> str | None:
    """The LoRA that the run goes on from."""
    path = model["lora_path"]
    if path is None or path.strip().lower() in ("", "none", "null"):
        return None
    if lora is None:
        notes.append(f"model.lora_path {path} is left out: no LoRA is trained.")
        return None
    if not Path(slashes(path)).expanduser().exists():
        notes.append(
            f"model.lora_path {path} is not here. Upstream would begin anew without a word; this run does not start "
            "until the file is there, or start_from is empty."
        )
    return slashes(path)


def _adapter(lora: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    if lora["alpha"] <= 0:
        text = f"is {lora['alpha']:g}: a LoRA of that strength does not learn; set 0.5, or up to 1"
        raise ConfigError([("lightning.lora.alpha", text)])
    alpha = lora["rank"] * lora["alpha"]
    notes.append(
        f"lightning.lora.alpha {lora['alpha']:g} is the strength itself, which is adapter.alpha / adapter.rank here: "
        f"{alpha:g} / {lora['rank']}. A checkpoint says it, so python -m trainers.export apply takes it by itself; "
        f"upstream's apply_lora.py has to be told, and merges {1 / lora['alpha']:g} times as much with --alpha=1.0 as "
        "its guide has it."
    )
    elsewhere = [line for line in lora["skip_layers"] if any(part in line for part in _NOT_TRAINED)]
    if elsewhere:
        notes.append(f"lightning.lora.skip_layers: {', '.join(elsewhere)} gets no LoRA that learns, upstream as well.")
    return {
        "rank": lora["rank"],
        "alpha": alpha,
        "dropout": lora["dropout"],
        "skip_layers": [line for line in lora["skip_layers"] if line not in elsewhere],
    }


#: Parts outside of the network, and names that only they have: upstream gives some of them a LoRA that never learns.
_NOT_TRAINED = (
    "cond_stage_model",
    "embedder",
    "first_stage_model",
    "image_proj_model",
    "model.transformer",
    "model.visual",
    "resblocks",
    "mlp",
    "c_fc",
    "c_proj",
    "out_proj",
)


def _on(lora: Mapping[str, Any]) -> dict[str, Any]:
    """The section lora; one that is off needs no rank."""
    off = lora.get("enabled") is False
    return {**({"rank": 64, "alpha": 0.5} if off else {}), **lora}


# --- clips -----------------------------------------------------------------------------------------------------------


def _clips(data: Mapping[str, Any], idle: dict[str, str], notes: list[str]) -> dict[str, Any]:
    """The section dataset, and fps_max."""
    module = read_keys(data, CALLBACK, TOOL, "data.")
    values = read_keys(module["params"], DATA, TOOL, "data.params.")
    for name in ("num_workers", "wrap", "use_worker_init_fn"):
        if module["params"].get(name):
            idle[f"data.params.{name}"] = "clips are read as they are needed"
    for name in ("validation", "test", "predict", "test_max_n_samples", "train_img"):
        if module["params"].get(name):
            idle[f"data.params.{name}"] = (
                "a run trains on the clips of train; validation.holdout keeps some of them out"
            )
    train = read_keys(values["train"], CALLBACK, TOOL, "data.params.train.")
    if not str(train["target"] or "WebVid").endswith("WebVid"):
        text = f"is {train['target']}, but only clips of lvdm.data.webvid.WebVid can be read"
        raise ConfigError([("data.params.train.target", text)])
    given = read_keys(train["params"], WEBVID, TOOL, "data.params.train.params.")
    table, folder = from_main(given["meta_path"]), from_main(given["data_dir"]).rstrip("/")
    if (table, folder) != (slashes(given["meta_path"]), slashes(given["data_dir"]).rstrip("/")):
        notes.append(
            f"data_dir and meta_path count from the folder main/ upstream; from the folder around it they are {folder} "
            f"and {table}, which is where the run is to be started."
        )
    clips = clips_of(given)
    if given["fixed_fps"] is not None:
        notes.append(
            f"fixed_fps {given['fixed_fps']:g} chooses a whole stride for each clip, so that most come only near it; "
            "the model is told the rate that they come to, as upstream does."
        )
    notes.append(
        "Mistakes of upstream's reader are not repeated: a row with an empty cell is kept, a clip that cannot be used "
        "is named and left out instead of showing the next one at a stride that grows, and a narrow clip is cut "
        "instead of having black bars. dataset.upstream_defects brings them back."
    )
    if not given["load_raw_resolution"]:
        notes.append(
            "load_raw_resolution is off, so clips are squeezed to 530 x 300 first, whatever their shape "
            "(dataset.decode_small)."
        )
    return {
        "path": table,
        "format": "webvid",
        "video_folder": f"{folder}/videos",
        "max_clips": given["subsample"],
        **({"max_clips_at_random": True} if given["subsample"] is not None else {}),
        **clips,
        "flip": False,
        "batch_size": values["batch_size"],
        "fps_max": given["fps_max"],
    }


def _steps_of_an_epoch(clips: Mapping[str, Any], batch: int, accumulation: int) -> int | None:
    """Optimizer steps of a pass over the table, None where that is not here. Lightning steps at its end as well."""
    names = ("path", "format", "video_folder", "max_clips", "max_clips_at_random")
    table = {name: clips[name] for name in names if name in clips}
    try:
        rows = len(webvid.read(DatasetConfig.model_validate(table), Path()))
    except (DatasetError, ValueError):
        return None
    return max(1, math.ceil(math.ceil(rows / max(1, batch)) / max(1, accumulation)))


# --- the run ---------------------------------------------------------------------------------------------------------


def _trainer(given: Mapping[str, Any], idle: dict[str, str]) -> dict[str, Any]:
    own = {name: value for name, value in given.items() if name not in IDLE_TRAINER}
    trainer = read_keys(own, TRAINER, TOOL, "lightning.trainer.")
    for name in (name for name in given if name in IDLE_TRAINER):
        idle[f"lightning.trainer.{name}"] = IDLE_TRAINER[name]
    if trainer["precision"] is not None:
        idle["lightning.trainer.precision"] = "lightning.precision decides, upstream as well"
    if trainer["gradient_clip_algorithm"] != "norm" and trainer["gradient_clip_val"]:
        text = f"is {trainer['gradient_clip_algorithm']!r}, but only the norm of all gradients can be clipped: set norm"
        raise ConfigError([("lightning.trainer.gradient_clip_algorithm", text)])
    return trainer


def _length(trainer: Mapping[str, Any], per_epoch: int | None, notes: list[str]) -> int:
    steps, epochs = int(trainer["max_steps"]), int(trainer["max_epochs"])
    if steps > 0:
        return steps
    if epochs < 1:
        raise ConfigError([("lightning.trainer.max_steps", "must be set: a run without an end cannot be planned")])
    if per_epoch is None:
        raise ConfigError(
            [("lightning.trainer.max_steps", f"must be set, for the clips of {epochs} epochs cannot be counted here")]
        )
    notes.append(f"max_train_steps is {epochs * per_epoch}: {epochs} epochs of {per_epoch} steps.")
    return epochs * per_epoch


def _rate(model: Mapping[str, Any], batch: int, notes: list[str]) -> float:
    rate = float(model["base_learning_rate"])
    if not model["scale_lr"] or batch == 1:
        return rate
    notes.append(f"scale_lr: the learning rate is {rate * batch:g}, as often as there are clips in a batch.")
    return rate * batch


def _precision(given: str) -> str:
    known = {"16": "fp16", "16-mixed": "fp16", "bf16": "bf16", "bf16-mixed": "bf16", "32": "no", "32-true": "no"}
    if given not in known:
        raise ConfigError([("lightning.precision", f"is {given!r}; choose {', '.join(known)}")])
    return known[given]


def _checkpoints(
    callbacks: Mapping[str, Any], per_epoch: int | None, trainer: Mapping[str, Any], first: list[str]
) -> dict[str, Any]:
    """The section checkpoint. Upstream has two of a kind: one overwrites its file, the other keeps them all."""
    kinds = {"model_checkpoint": CHECKPOINTS, "metrics_over_trainsteps_checkpoint": CHECKPOINTS, "batch_logger": IMAGES}
    idle = ("learning_rate_logger", "cuda_callback")
    read = {
        name: read_keys(
            read_keys(given or {}, CALLBACK, TOOL, f"lightning.callbacks.{name}.")["params"],
            kinds[name],
            TOOL,
            f"lightning.callbacks.{name}.params.",
        )
        for name, given in callbacks.items()
        if name in kinds
    }
    unknown = [name for name in callbacks if name not in (*kinds, *idle)]
    if unknown:
        raise ConfigError([(f"lightning.callbacks.{name}", f"is unknown to {TOOL}") for name in unknown])

    last = read.get("model_checkpoint") or {name: key.default for name, key in CHECKPOINTS.items()}
    history = read.get("metrics_over_trainsteps_checkpoint")
    chosen, name = (last, "model_checkpoint")
    if history is not None:
        chosen, name = history, "metrics_over_trainsteps_checkpoint"
    top = chosen["save_top_k"]
    keep = None if history is not None or top == -1 else max(1, 1 if top is None else top)
    kept = "all are kept" if keep is None else "the last one is kept" if keep == 1 else f"the last {keep} are kept"
    steps, words = _cadence(chosen, per_epoch)
    again, often = _cadence(last, per_epoch)
    if steps is not None:
        said = f"{name} writes {words}: checkpoint.every_steps is {steps}, and {kept}"
        if history is not None:
            said += f"; what model_checkpoint overwrites {often} is left out, for a run that is stopped saves first"
    else:
        steps = again or 500
        said = (
            f"{name} writes {words}, which cannot be counted in steps while the table is not here: "
            f"checkpoint.every_steps is {steps}{', as often as model_checkpoint writes' if again else ''}, and {kept}"
        )
    first.append(
        f"The lines marked # CONFIGURE: accumulate_grad_batches {trainer['accumulate_grad_batches']} is "
        f"optimizer.gradient_accumulation_steps; log_every_n_steps {trainer['log_every_n_steps']} is "
        f"tracking.every_steps; {said}."
    )
    return {"every_steps": steps, "keep_last": keep}


def _cadence(callback: Mapping[str, Any], per_epoch: int | None) -> tuple[int | None, str]:
    """(steps between two checkpoints, None where epochs cannot be counted; the same in words)."""
    if callback["every_n_train_steps"]:
        return int(callback["every_n_train_steps"]), f"every {callback['every_n_train_steps']} steps"
    epochs = int(callback["every_n_epochs"] or 1)
    return (
        None if per_epoch is None else epochs * per_epoch
    ), "every epoch" if epochs == 1 else f"every {epochs} epochs"


def _drawing(callbacks: Mapping[str, Any], notes: list[str], idle: dict[str, str]) -> dict[str, Any]:
    """The section validation: how samples are drawn. Upstream draws those of the clips at hand."""
    images = (callbacks.get("batch_logger") or {}).get("params") or {}
    values = read_keys(images, IMAGES, TOOL, "lightning.callbacks.batch_logger.params.")
    drawn = read_keys(
        values["log_images_kwargs"], DRAWN, TOOL, "lightning.callbacks.batch_logger.params.log_images_kwargs."
    )
    if images:
        notes.append(
            "batch_logger: no samples are drawn until they are asked for, which upstream takes from the clips at hand: "
            "set validation.every_steps, validation.prompts and an image for each in validation.images."
        )
        idle["lightning.callbacks.batch_logger"] = "but for how samples are drawn"
    return {
        "every_steps": None,
        "num_inference_steps": drawn["ddim_steps"],
        "guidance_scale": max(1.0, drawn["unconditional_guidance_scale"]) if images else 7.5,
        "guidance_rescale": drawn["guidance_rescale"] if images else None,
        "eta": drawn["ddim_eta"],
        "fps": 8,
    }


def _say_the_rest(
    params: Mapping[str, Any],
    lightning: Mapping[str, Any],
    lora: Mapping[str, Any] | None,
    clips: Mapping[str, Any],
    notes: list[str],
    idle: dict[str, str],
) -> None:
    """What has nothing to do here, and what is done in another way."""
    size = params["image_size"]
    pair = list(size) if isinstance(size, (list, tuple)) else [size, size]
    if size is not None and [8 * side for side in pair] != [clips["height"], clips["width"]]:
        idle["model.params.image_size"] = "the resolution of the clips decides"
    if lora is None and not params["image_proj_model_trainable"]:
        notes.append("image_proj_model_trainable is off, but method full trains the resampler as well.")
    if lora is not None and params["image_proj_model_trainable"]:
        idle["model.params.image_proj_model_trainable"] = "beside a LoRA nothing else learns, upstream as well"
    if params["cond_stage_trainable"]:
        notes.append("cond_stage_trainable is on, but the text encoder does not learn here.")
    if params["use_ema"]:
        notes.append("use_ema: no average of the weights is kept.")
    if params["use_scheduler"]:
        notes.append("use_scheduler: the learning rate stays as it is; optimizer.lr_scheduler can change it.")
    why = {
        "optimize_matmul": "PyTorch's own setting is left as it is",
        "compile": "upstream compiles, but trains what is not compiled",
        "strategy": "a command starts one process for each device, see examples/accelerate",
        "logger": LOGGED,
    }
    for name, reason in why.items():
        if lightning[name]:
            idle[f"lightning.{name}"] = reason
    if lora is not None and lora["save_only_lora"]:
        idle["lightning.lora.save_only_lora"] = "a checkpoint of a LoRA holds nothing else"
