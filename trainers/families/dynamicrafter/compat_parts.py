"""What DynamiCrafter's configs and commands have in common: keys, and the clips of its WebVid reader. No torch."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.foreign import Key, slashes
from trainers.settings import ConfigError

TOOL = "DynamiCrafter's trainer"

# --- keys: upstream's own defaults, ... where it has none ------------------------------------------------------------

TOP = {"model": Key(dict, ...), "data": Key(dict, ...), "lightning": Key(dict, {})}
MODEL = {
    "pretrained_checkpoint": Key(str, ...),
    "lora_path": Key(str),
    "base_learning_rate": Key(float, ...),
    "scale_lr": Key(bool, True),
    "target": Key(str),
    "params": Key(dict, {}),
}
#: `model.params` that say something of the training itself.
PARAMS = {
    "uncond_prob": Key(float, 0.2),
    "uncond_type": Key(str, "empty_seq"),
    "rand_cond_frame": Key(bool, False),
    "interp_mode": Key(bool, False),
    "image_proj_model_trainable": Key(bool, True),
    "cond_stage_trainable": Key(bool, False),
    "use_ema": Key(bool, True),
    "use_scheduler": Key(bool, False),
    "unet_config": Key(dict, {}),
    "first_stage_config": Key(dict, {}),
    "cond_stage_config": Key(dict, {}),
    "img_cond_stage_config": Key(dict, {}),
    "image_proj_stage_config": Key(dict, {}),
    "image_size": Key(object),
}
#: Those that describe the model, as `facts.from_params` reads them.
DESCRIBING = {
    "rescale_betas_zero_snr": Key(bool, False),
    "parameterization": Key(str, "eps"),
    "use_dynamic_rescale": Key(bool, False),
    "base_scale": Key(float, 0.7),
    "fps_condition_type": Key(str, "fs"),
    "perframe_ae": Key(bool, False),
    "scale_factor": Key(float, 1.0),
}
#: Those that are the same in every config of DynamiCrafter -> the value that this model has.
FIXED: dict[str, tuple[Key, Any]] = {
    "linear_start": (Key(float, 0.00085), 0.00085),
    "linear_end": (Key(float, 0.012), 0.012),
    "beta_schedule": (Key(str, "linear"), "linear"),
    "timesteps": (Key(int, 1000), 1000),
    "num_timesteps_cond": (Key(int, 1), 1),
    "first_stage_key": (Key(str, "video"), "video"),
    "cond_stage_key": (Key(str, "caption"), "caption"),
    "conditioning_key": (Key(str, "hybrid"), "hybrid"),
    "channels": (Key(int, 4), 4),
    "scale_by_std": (Key(bool, False), False),
    "loss_type": (Key(str, "l2"), "l2"),
    "noise_strength": (Key(float, 0.0), 0.0),
    "turning_step": (Key(int, 400), 400),
    "freeze_embedder": (Key(bool, True), True),
    "only_model": (Key(bool, False), False),
    "encoder_type": (Key(str, "2d"), "2d"),
}
#: Those that change nothing of what is trained -> why.
LOGGED = "progress stands in the run folder"
IDLE_PARAMS = {
    "log_every_t": LOGGED,
    "monitor": LOGGED,
    "logdir": LOGGED,
    "en_and_decode_n_samples_a_time": "pictures are encoded a few at a time",
    "loop_video": "no video is made to loop in training",
}
DATA = {
    "batch_size": Key(int, ...),
    "num_workers": Key(int),
    "wrap": Key(bool, False),
    "train": Key(dict, ...),
    "validation": Key(dict),
    "test": Key(dict),
    "predict": Key(dict),
    "shuffle_test_loader": Key(bool, False),
    "shuffle_val_dataloader": Key(bool, False),
    "use_worker_init_fn": Key(bool, False),
    "train_img": Key(dict),
    "test_max_n_samples": Key(int),
}
WEBVID = {
    "meta_path": Key(str, ...),
    "data_dir": Key(str, ...),
    "subsample": Key(int),
    "video_length": Key(int, 16),
    "resolution": Key(object, [256, 512]),
    "frame_stride": Key(int, 1),
    "frame_stride_min": Key(int, 1),
    "spatial_transform": Key(str),
    "crop_resolution": Key(object),
    "fps_max": Key(int),
    "load_raw_resolution": Key(bool, False),
    "fixed_fps": Key(float),
    "random_fs": Key(bool, False),
}
LORA = {
    "enabled": Key(bool, ...),
    "rank": Key(int, ...),
    "alpha": Key(float, ...),
    "dropout": Key(float, 0.0),
    "skip_layers": Key(list, []),
    "save_only_lora": Key(bool, False),
}
LIGHTNING = {
    "precision": Key(str, "32"),
    "strategy": Key(object),
    "optimize_matmul": Key(bool, False),
    "compile": Key(bool, False),
    "lora": Key(dict),
    "trainer": Key(dict, {}),
    "callbacks": Key(dict, {}),
    "logger": Key(dict),
}
_DEVICES = "a command starts one process for each device, see examples/accelerate"
_VALIDATED = "upstream validates on no clips either"
TRAINER = {
    "accumulate_grad_batches": Key(int, 1),
    "max_steps": Key(int, -1),
    "max_epochs": Key(int, -1),
    "log_every_n_steps": Key(int, 50),
    "gradient_clip_val": Key(float, 0.0),
    "gradient_clip_algorithm": Key(str, "norm"),
    "precision": Key(str),
}
IDLE_TRAINER = {
    "benchmark": "PyTorch chooses its own convolutions",
    "val_check_interval": _VALIDATED,
    "check_val_every_n_epoch": _VALIDATED,
    "limit_val_batches": _VALIDATED,
    "num_sanity_val_steps": _VALIDATED,
    "num_nodes": _DEVICES,
    "devices": _DEVICES,
    "accelerator": _DEVICES,
    "strategy": _DEVICES,
    "sync_batchnorm": "there is no batch norm in the network",
    "enable_progress_bar": LOGGED,
    "deterministic": "the seed makes a run repeat as far as the device's own sums do",
}
CHECKPOINTS = {
    "every_n_train_steps": Key(int),
    "every_n_epochs": Key(int),
    "save_top_k": Key(int),
    "filename": Key(str),
    "dirpath": Key(str),
    "save_weights_only": Key(bool, False),
    "save_last": Key(bool, False),
    "verbose": Key(bool, False),
    "monitor": Key(str),
    "mode": Key(str),
}
CALLBACK = {"target": Key(str), "params": Key(dict, {})}
IMAGES = {
    "batch_frequency": Key(int, 1000),
    "max_images": Key(int, 8),
    "to_local": Key(bool, False),
    "clamp": Key(bool, True),
    "rescale": Key(bool, True),
    "save_dir": Key(str),
    "log_images_kwargs": Key(dict, {}),
}
DRAWN = {
    "ddim_steps": Key(int, 50),
    "ddim_eta": Key(float, 1.0),
    "unconditional_guidance_scale": Key(float, 1.0),
    "timestep_spacing": Key(str, "uniform"),
    "guidance_rescale": Key(float, 0.0),
}

# --- clips -----------------------------------------------------------------------------------------------------------

#: The reader's `spatial_transform` -> our `dataset.fit`. None: clips have the size already.
TRANSFORMS = {
    "resize_center_crop": "crop",
    "center_crop": "middle",
    "random_crop": "piece",
    "resize": "stretch",
    None: "middle",
}


def clips_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the arguments of the WebVid reader (`WEBVID`, read) say of the section dataset, files aside.

    ConfigError for what the reader itself could not do."""
    height, width = _sides(values["resolution"], "resolution")
    transform = values["spatial_transform"]
    if transform not in TRANSFORMS:
        known = ", ".join(name for name in TRANSFORMS if name)
        raise ConfigError([(_TRAIN + "spatial_transform", f"is {transform!r}; choose {known}")])
    if transform == "random_crop" and _sides(values["crop_resolution"], "crop_resolution") != (height, width):
        raise ConfigError(
            [(_TRAIN + "crop_resolution", f"is {values['crop_resolution']}, but must be resolution, {[height, width]}")]
        )
    least = values["frame_stride_min"] if values["random_fs"] else None
    if least is not None and least > values["frame_stride"]:
        text = f"is {least}, but strides are drawn from it up to frame_stride, {values['frame_stride']}"
        raise ConfigError([(_TRAIN + "frame_stride_min", text)])
    return {
        "num_frames": values["video_length"],
        "height": height,
        "width": width,
        "frame_stride": values["frame_stride"],
        "frame_stride_min": least,
        "lower_stride": True,
        "fps": values["fixed_fps"],
        "fps_rounding": "stride",
        "frame_selection": "random",
        "fit": TRANSFORMS[transform],
        "decode_small": not values["load_raw_resolution"],
    }


_TRAIN = "data.params.train.params."


def _sides(given: Any, name: str) -> tuple[int, int]:
    """(height, width) of a number or of [height, width]."""
    sides = list(given) if isinstance(given, (list, tuple)) else [given, given]
    try:
        height, width = (int(side) for side in sides)
    except (TypeError, ValueError):
        raise ConfigError([(_TRAIN + name, f"is {given!r}, but must be [height, width]")]) from None
    return height, width


def from_main(path: str) -> str:
    """A path that upstream counts from its folder main/, to which it goes, counted from the folder around it."""
    path = slashes(path)
    if not path.startswith("../"):
        return path
    outside = posixpath.normpath(posixpath.join("main", path))
    as_it_is, without = Path(path).expanduser(), Path(outside)
    return path if as_it_is.exists() and not without.exists() else outside
