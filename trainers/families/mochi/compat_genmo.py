"""The YAML of Genmo's fine-tuner (``lora.yaml``), as its ``train.py`` reads it. No torch.

Every key is mapped to our words or spoken of in a note; a key that is left out has the value of the shipped file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.families.mochi.compat_code import LinearQuadratic, read_code, schedule_of
from trainers.families.mochi.compat_parts import HEIGHT, PREPARATION, WIDTH, check_frames, interpolated
from trainers.foreign import Foreign, Key, read_keys, slashes, texts, without_effect
from trainers.settings import ConfigError

TOOL = "Genmo's fine-tuner"
FPS = 30
BLOCKS = 48

TOP = {
    "init_checkpoint_path": Key(str, ...),
    "checkpoint_dir": Key(str, ...),
    "train_data_dir": Key(str, ...),
    "attention_mode": Key(str, "sdpa"),
    "single_video_mode": Key(bool, False),
    "wandb": Key(dict, {}),
    "optimizer": Key(dict, {}),
    "model": Key(dict, ...),
    "training": Key(dict, {}),
    "sample": Key(dict, {}),
}
WANDB = {"project": Key(str), "name": Key(str), "group": Key(str)}
#: All of it goes to torch's AdamW.
OPTIMIZER = {
    "lr": Key(float, 1e-3),
    "weight_decay": Key(float, 0.01),
    "betas": Key(object, [0.9, 0.999]),
    "eps": Key(float, 1e-8),
    "amsgrad": Key(bool, False),
    "maximize": Key(bool, False),
    "foreach": Key(bool),
    "fused": Key(bool),
    "capturable": Key(bool, False),
    "differentiable": Key(bool, False),
}
MODEL = {"type": Key(str, ...), "kwargs": Key(dict, {})}
KWARGS = {
    "qkv_proj_lora_rank": Key(int, 0),
    "qkv_proj_lora_alpha": Key(float),
    "qkv_proj_lora_dropout": Key(float, 0.0),
    "out_proj_lora_rank": Key(int, 0),
    "out_proj_lora_alpha": Key(float),
    "out_proj_lora_dropout": Key(float, 0.0),
}
TRAINING = {
    "model_dtype": Key(str, "bf16"),
    "warmup_steps": Key(int, 200),
    "num_qkv_checkpoint": Key(int, 48),
    "num_ff_checkpoint": Key(int, 48),
    "num_post_attn_checkpoint": Key(int, 48),
    "num_steps": Key(int, 2000),
    "save_interval": Key(int, 0),
    "caption_dropout": Key(float, 0.1),
    "grad_clip": Key(float, 0.0),
    "save_safetensors": Key(bool, True),
}
SAMPLE = {
    "interval": Key(int, 0),
    "output_dir": Key(str),
    "decoder_path": Key(str),
    "prompts": Key(list, []),
    "seed": Key(int, 12345),
    "kwargs": Key(dict, {}),
}
#: Upstream evaluates any of them whose name goes on with `CODE`.
SAMPLE_KWARGS = {
    "height": Key(int, HEIGHT),
    "width": Key(int, WIDTH),
    "num_frames": Key(int, 37),
    "num_inference_steps": Key(int),
    "sigma_schedule": Key(object),
    "cfg_schedule": Key(object),
    "batch_cfg": Key(bool, False),
}
CODE = "_python_code"

VIDEO_STREAM = {"qkv": ["to_q", "to_k", "to_v"], "out": ["to_out.0"]}
TEXT_STREAM = {"qkv": ["add_q_proj", "add_k_proj", "add_v_proj"], "out": ["to_add_out"]}
_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_OF_A_RUN = re.compile(r"model_(\d+)\.(lora|checkpoint)\.(safetensors|pt)$")


def knows(data: Mapping[str, Any]) -> bool:
    """Whether settings are those of Genmo's fine-tuner."""
    own = {"init_checkpoint_path", "checkpoint_dir", "train_data_dir", "single_video_mode", "attention_mode"}
    return "family" not in data and len(own & data.keys()) >= 2


def translate(
    data: Mapping[str, Any], preparation: Mapping[str, Any] | None = None, *, compiled: bool | None = None
) -> Foreign:
    """Its settings in our words. ConfigError for unknown keys and for what could not be trained.

    preparation: the section dataset of the commands that prepare the clips, where the text has these as well. compiled:
    whether the command that starts it compiles the blocks; None where there is none.
    """
    top = read_keys(interpolated(data), TOP, TOOL)
    read_keys(top["wandb"], WANDB, TOOL, "wandb.")
    given = {name: top[name] for name in ("training", "sample")}
    training = read_keys(top["training"], TRAINING, TOOL, "training.")
    sample = read_keys(top["sample"], SAMPLE, TOOL, "sample.")
    notes: list[str] = []
    idle: dict[str, str] = {}
    method = "lora" if _read_model(top)["type"] == "lora" else "full"
    start = _start(top, sample, training, notes)
    if start is None:
        start = {"base_model": _base(top, sample, notes)}
    adapter = _adapter(top, idle) if method == "lora" else None
    drawn = _sampling(sample)
    dataset = _dataset(top, drawn, preparation, notes)
    if training["model_dtype"] != "bf16":
        raise ConfigError([("training.model_dtype", f"is {training['model_dtype']!r}, but must be bf16 or left out")])
    if method == "full" and top["model"].get("kwargs"):
        idle["model.kwargs"] = "every weight is trained, for model.type is not lora"
    settings: dict[str, Any] = {
        "family": "mochi",
        "method": method,
        **start,
        "latent_normalisation": "consistent",
        **drawn["own"],
        "seed": 42,
        "max_train_steps": training["num_steps"],
        "mixed_precision": "bf16",
        "dataset": {**dataset, "caption_dropout": training["caption_dropout"], "batch_size": 1},
        **({} if adapter is None else {"adapter": adapter}),
        "optimizer": _optimizer(top, training, method, notes, idle),
        "memory": {**_checkpointing(training, given["training"], notes, idle), "compile_blocks": bool(compiled)},
        "validation": _validation(top, sample, drawn, dataset, notes),
        "checkpoint": {"every_steps": training["save_interval"] or None, "keep_last": None},
    }
    _say_the_rest(top, given, compiled, notes, idle)
    missing = {} if "base_model" in start else {"base_model": NO_BASE}
    told = [NORMALISATION, *notes, *_told(_run_dir(top), settings, idle)]
    return Foreign("train", settings, told, _run_dir(top), missing=missing)


NO_BASE = (
    "must be set: init_checkpoint_path names what to go on from, and there is no sample.decoder_path beside which the "
    "base model would lie"
)


NORMALISATION = (
    "latent_normalisation is consistent: the model learns in the normalised space in which samples are drawn. Genmo's "
    "trainer normalises what the model should answer, but not what it gets; for its losses set latent_normalisation "
    "to genmo, or to none for what it did before 2025-01-08."
)


def _told(run: str, settings: Mapping[str, Any], idle: Mapping[str, str]) -> list[str]:
    told = []
    if settings["validation"]["every_steps"]:
        told.append("Samples are drawn before the first step and after the last one as well, all of them with the seed "
                    "itself; upstream adds the number of the prompt.")  # fmt: skip
    if settings["method"] == "lora":
        told.append(
            f"Step {settings['max_train_steps']} is saved as well, which upstream stops short of. Genmo's own file of "
            f"it: python -m trainers.export {run}/checkpoints/step-{settings['max_train_steps']:06d} --format "
            f"genmo-lora --out model_{settings['max_train_steps']}.lora.safetensors."
        )
        told.append("The LoRA and the optimizer's states have 32 bits; upstream's have 16, in which late updates are "
                    "lost.")  # fmt: skip
    told.append("seed is 42, so that the run can be repeated; upstream has none for its training.")
    return [*told, *([without_effect(idle)] if idle else [])]


def _run_dir(top: Mapping[str, Any]) -> str:
    return slashes(top["checkpoint_dir"])


def _read_model(top: Mapping[str, Any]) -> dict[str, Any]:
    return read_keys(top["model"], MODEL, TOOL, "model.")


def _say_the_rest(
    top: Mapping[str, Any],
    given: Mapping[str, Mapping[str, Any]],
    compiled: bool | None,
    notes: list[str],
    idle: dict[str, str],
) -> None:
    """What has nothing to do here, and what only the command says that starts upstream."""
    if top["attention_mode"] not in ("sdpa", "flash", "sage"):
        raise ConfigError([("attention_mode", f"is {top['attention_mode']!r}; choose sdpa, flash or sage")])
    if top["attention_mode"] != "sdpa":
        idle["attention_mode"] = "PyTorch's own attention is used, which takes flash attention where it can"
    if any(value is not None for value in top["wandb"].values()):
        idle["wandb"] = "nothing is sent there; the run folder holds curves and samples, tracking.tracker can be "
        idle["wandb"] += "tensorboard"
    if given["training"].get("save_safetensors") is False:
        idle["training.save_safetensors"] = "weights are always .safetensors files"
    folder = given["sample"].get("output_dir")
    if folder is not None and slashes(str(folder)).rstrip("/") != f"{_run_dir(top).rstrip('/')}/samples":
        idle["sample.output_dir"] = "samples lie in the run folder"
    if compiled is None:
        notes.append(
            "memory.compile_blocks is off. Upstream's run.bash compiles the blocks, which saves time and memory on a "
            "GPU: for that set it, or give the command together with this file."
        )


# --- what is trained -------------------------------------------------------------------------------------------------


def _base(top: Mapping[str, Any], sample: Mapping[str, Any], notes: list[str]) -> str:
    """base_model: the folder that holds the file which upstream begins from."""
    path = slashes(top["init_checkpoint_path"])
    name = path.rstrip("/").rpartition("/")[2]
    folder = path[: -len(name)].rstrip("/") or ("/" if path.startswith("/") else ".")
    if not name.endswith(_WEIGHTS):
        base = path  # a pipeline of diffusers, or an id on the Hub
    elif folder.rpartition("/")[2] == "transformer":
        base = folder.rpartition("/")[0] or "."
    elif name == "dit.safetensors":
        base = folder
    else:
        raise ConfigError(
            [
                (
                    "init_checkpoint_path",
                    f"is {path}; a base model is a folder with dit.safetensors, encoder.safetensors and "
                    "decoder.safetensors: give the file the first of these names",
                )
            ]
        )
    decoder = slashes(sample["decoder_path"] or "")
    beside = decoder.rpartition("/")[0] or "."
    if decoder and Path(beside) != Path(base) and name == "dit.safetensors":
        notes.append(f"sample.decoder_path {decoder} is left out: the decoder is that of base_model, {base}.")
    return base


def _start(
    top: Mapping[str, Any], sample: Mapping[str, Any], training: Mapping[str, Any], notes: list[str]
) -> dict[str, Any] | None:
    """The settings of a run that goes on from a file of an earlier one, None where it begins from the base model.

    Upstream names that file in the place of the base model, which then nothing names but the decoder beside it.
    """
    path = slashes(top["init_checkpoint_path"])
    of_a_run = _OF_A_RUN.search(path)
    if of_a_run is None:
        return None
    step, lora = int(of_a_run.group(1)), of_a_run.group(2) == "lora"
    if step >= training["num_steps"]:
        raise ConfigError(
            [("init_checkpoint_path", f"is of step {step}, but num_steps is {training['num_steps']}; raise num_steps")]
        )
    decoder = slashes(sample["decoder_path"] or "")
    base = (decoder.rpartition("/")[0] or ".") if decoder else None
    notes.append(
        f"init_checkpoint_path {path}: the run goes on from it, at step {step} and the learning rate of that step, "
        "with new states of the optimizer. Upstream begins its schedule anew"
        + (", and leaves the base model at random values: a LoRA is all that it then loads." if lora else ".")
    )
    return {"start_from": path, "start_step": step, **({} if base is None else {"base_model": base})}


def _adapter(top: Mapping[str, Any], idle: dict[str, str]) -> dict[str, Any]:
    kwargs = read_keys(_read_model(top)["kwargs"], KWARGS, TOOL, "model.kwargs.")
    problems = []
    ranks = {part: kwargs[f"{part}_proj_lora_rank"] for part in ("qkv", "out")}
    for part, rank in ranks.items():
        alpha = kwargs[f"{part}_proj_lora_alpha"]
        if rank < 0:
            problems.append((f"model.kwargs.{part}_proj_lora_rank", f"is {rank}; write a whole number from 0 on"))
        elif rank and not alpha:
            said = "must be set" if alpha is None else "is 0, with which a LoRA has no effect; set it to the rank"
            problems.append((f"model.kwargs.{part}_proj_lora_alpha", said))
        elif not rank:
            for what in ("alpha", "dropout"):
                if top["model"]["kwargs"].get(f"{part}_proj_lora_{what}"):
                    idle[f"model.kwargs.{part}_proj_lora_{what}"] = "these layers have no LoRA, for its rank is 0"
    if not any(ranks.values()):
        problems.append(
            ("model.kwargs.qkv_proj_lora_rank", "and out_proj_lora_rank are 0, so nothing would be trained")
        )
    if problems:
        raise ConfigError(problems)
    first = "qkv" if ranks["qkv"] else "out"
    adapter = {name: kwargs[f"{first}_proj_lora_{name}"] for name in ("rank", "alpha", "dropout")}
    other = {f"out_{name}": None for name in adapter}
    if all(ranks.values()):
        out = {f"out_{name}": kwargs[f"out_proj_lora_{name}"] for name in adapter}
        other = {name: None if out == {f"out_{n}": v for n, v in adapter.items()} else out[name] for name in other}
    trained = [part for part, rank in ranks.items() if rank]
    targets = [name for stream in (VIDEO_STREAM, TEXT_STREAM) for part in trained for name in stream[part]]
    return {**adapter, **other, "tie_qkv": True, "target_modules": targets}


def _optimizer(
    top: Mapping[str, Any], training: Mapping[str, Any], method: str, notes: list[str], idle: dict[str, str]
) -> dict[str, Any]:
    values = read_keys(top["optimizer"], OPTIMIZER, TOOL, "optimizer.")
    for name in ("amsgrad", "maximize"):
        if values[name]:
            raise ConfigError([(f"optimizer.{name}", "is not part of Dailies; leave it out")])
    for name in ("foreach", "fused", "capturable", "differentiable"):
        if values[name]:
            idle[f"optimizer.{name}"] = "how AdamW computes is chosen by the device"
    betas = values["betas"]
    if not isinstance(betas, list) or len(betas) != 2 or not all(isinstance(beta, (int, float)) for beta in betas):
        raise ConfigError([("optimizer.betas", f"is {betas!r}; write two numbers, such as [0.9, 0.999]")])
    if training["grad_clip"] and method == "lora":
        notes.append(
            f"training.grad_clip {training['grad_clip']:g}: gradients are shortened to it, which upstream refuses to "
            "do for a LoRA."
        )
    warmup, total = training["warmup_steps"], training["num_steps"]
    if warmup > total:
        notes.append(f"training.warmup_steps {warmup} is more than the whole run: it is {total} here.")
    return {
        "name": "adamw",
        "learning_rate": values["lr"],
        "lr_scheduler": "cosine",
        "lr_warmup_steps": min(warmup, total),
        "beta1": float(betas[0]),
        "beta2": float(betas[1]),
        "weight_decay": values["weight_decay"],
        "epsilon": values["eps"],
        "gradient_accumulation_steps": 1,
        "max_grad_norm": training["grad_clip"] or None,
    }


def _checkpointing(
    training: Mapping[str, Any], given: Mapping[str, Any], notes: list[str], idle: dict[str, str]
) -> dict[str, Any]:
    """gradient_checkpointing and checkpointed_blocks.

    Upstream computes the query, key and value of its first blocks again, and the feed-forward of its first blocks; the
    attention itself it keeps, as sac does.
    """
    qkv, feed_forward = (max(0, training[f"num_{part}_checkpoint"]) for part in ("qkv", "ff"))
    if given.get("num_post_attn_checkpoint") is not None:
        idle["training.num_post_attn_checkpoint"] = "upstream's trainer does not pass it on to the model"
    blocks = max(qkv, feed_forward)
    if qkv != feed_forward:
        notes.append(
            f"memory.checkpointed_blocks is {blocks}: query, key and value and the feed-forward of a block are "
            f"computed again together. Upstream does so for {qkv} and {feed_forward} blocks (num_qkv_checkpoint, "
            "num_ff_checkpoint), which needs more memory."
        )
    return {
        "gradient_checkpointing": "sac" if blocks else "none",
        "checkpointed_blocks": blocks if 0 < blocks < BLOCKS else None,
    }


# --- what is seen ----------------------------------------------------------------------------------------------------


def _dataset(
    top: Mapping[str, Any], drawn: Mapping[str, Any], preparation: Mapping[str, Any] | None, notes: list[str]
) -> dict[str, Any]:
    folder = slashes(top["train_data_dir"])
    sizes = {name: drawn[name] for name in ("num_frames", "height", "width")}
    once = {"max_clips": 1} if top["single_video_mode"] else {}
    if preparation is not None:
        out = preparation["out"]
        if out is not None and Path(out) != Path(folder):
            raise ConfigError(
                [("train_data_dir", f"is {folder}, but the clips are prepared in {out}; give both the same folder")]
            )
        return {**preparation["dataset"], **once}
    here = Path(folder).expanduser()
    videos = _videos(here)
    if videos and not any(here.glob("*.latent.pt")):
        notes.append(
            f"train_data_dir {folder} holds videos that are not prepared: they are prepared when the run begins, as "
            f"preprocess.bash would, at the frames and size of sample.kwargs."
        )
        return {"path": folder, "format": "sidecar", **sizes, **PREPARATION, "upscale": False, **once}
    if any(file.parent != here for file in here.rglob("*.mp4")):
        notes.append(
            "The videos of the folders below train_data_dir train as well; upstream takes those of the folder itself "
            "alone, for which set dataset.subfolders to false."
        )
    return {"path": folder, "format": "prepared", "subfolders": True, **sizes, **once}


def _videos(folder: Path) -> list[Path]:
    """The videos that upstream trains on, in its order."""
    return sorted(file for file in folder.glob("*.mp4") if not file.name.endswith(".recon.mp4"))


# --- what is drawn ---------------------------------------------------------------------------------------------------


def _sampling(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The values of sample.kwargs; under "own" those that stand outside of the section validation."""
    given: dict[str, Any] = {}
    named: dict[str, str] = {}
    for key, value in sample["kwargs"].items():
        name, where = str(key).removesuffix(CODE), f"sample.kwargs.{key}"
        if name in given:
            raise ConfigError([(where, f"stands beside {named[name]}; leave one of them")])
        coded = str(key).endswith(CODE) or name in ("sigma_schedule", "cfg_schedule")
        given[name if name in SAMPLE_KWARGS else str(key)] = (
            read_code(where, value) if coded and name in SAMPLE_KWARGS and value is not None else value
        )
        named[name] = where
    values = read_keys(given, SAMPLE_KWARGS, TOOL, "sample.kwargs.")
    check_frames(named.get("num_frames", "sample.kwargs.num_frames"), values["num_frames"])
    sigmas, guidance, steps = values["sigma_schedule"], values["cfg_schedule"], values["num_inference_steps"]
    if isinstance(guidance, LinearQuadratic) or (guidance is not None and not isinstance(guidance, list)):
        raise ConfigError([(named["cfg_schedule"], "is no list of numbers; write [6.0] * 64, or a list")])
    if isinstance(sigmas, list):
        sigmas = schedule_of(sigmas)
    if values["sigma_schedule"] is not None and not isinstance(sigmas, LinearQuadratic):
        raise ConfigError(
            [
                (
                    named["sigma_schedule"],
                    "is no schedule that can be drawn here; write linear_quadratic_schedule(STEPS, THRESHOLD)",
                )
            ]
        )
    if steps is None:
        steps = sigmas.num_steps if sigmas else len(guidance) if guidance else 64
    for name, count in (("sigma_schedule", sigmas and sigmas.num_steps), ("cfg_schedule", guidance and len(guidance))):
        if count is not None and count != steps:
            what = "is for" if name == "sigma_schedule" else "is a list for"
            raise ConfigError(
                [
                    (
                        named[name],
                        f"{what} {count} steps, but sample.kwargs.num_inference_steps is {steps}; make them equal",
                    )
                ]
            )
    own: dict[str, Any] = {"threshold_noise": 0.025, "linear_steps": None, "guidance_schedule": []}
    if sigmas:
        own |= {"threshold_noise": sigmas.threshold_noise, "linear_steps": sigmas.linear_steps}
    strength, own["guidance_schedule"] = constant_guidance(guidance or [6.0] * steps)
    return {**values, "num_inference_steps": steps, "guidance_scale": strength, "own": own}


def constant_guidance(schedule: list[float]) -> tuple[float, list[float]]:
    """(guidance_scale, guidance_schedule): one number for all steps where it is the same and at least 1, else each."""
    alike = len(set(schedule)) == 1 and schedule[0] >= 1
    return (float(schedule[0]), []) if alike else (6.0, [float(guidance) for guidance in schedule])


def _validation(
    top: Mapping[str, Any],
    sample: Mapping[str, Any],
    drawn: Mapping[str, Any],
    dataset: Mapping[str, Any],
    notes: list[str],
) -> dict[str, Any]:
    prompts = list(dict.fromkeys(texts(sample["prompts"])))
    if top["single_video_mode"]:
        prompts = _only_caption(slashes(top["train_data_dir"]), str(dataset["path"]), notes)
    return {
        "every_steps": sample["interval"] or None,
        "prompts": prompts,
        "num_frames": drawn["num_frames"],
        "height": drawn["height"],
        "width": drawn["width"],
        "seed": sample["seed"],
        "num_inference_steps": drawn["num_inference_steps"],
        "guidance_scale": drawn["guidance_scale"],
        "fps": FPS,
    }


def _only_caption(folder: str, path: str, notes: list[str]) -> list[str]:
    """The caption of the one clip that single_video_mode trains on: samples are drawn of it."""
    for place in (folder, path):
        videos = _videos(Path(place).expanduser())
        if videos:
            try:
                caption = videos[0].with_suffix(".txt").read_text(encoding="utf-8-sig").strip()
            except (OSError, UnicodeDecodeError):
                break
            notes.append(f"single_video_mode: {videos[0].name} alone is trained on, and its caption is drawn.")
            return [caption]
    notes.append(
        f"single_video_mode: the first video of {path} alone is trained on. Its caption, which upstream draws, cannot "
        "be read here, so no samples are drawn: set validation.prompts."
    )
    return []
