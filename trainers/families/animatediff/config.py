"""What a person may set for AnimateDiff, and its frame and size rule. No torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from trainers.config import FieldError, SampleConfig, TrainConfig, setting
from trainers.families.base import Finding, ModelFamily

SIZE_MULTIPLE = 8  # the VAE halves each side three times
Method = Literal["lora", "motion_module", "full"]


class AnimateDiffTrainConfig(TrainConfig):
    """A training run of AnimateDiff."""

    family: Literal["animatediff"] = setting("animatediff", "Model family.")
    method: Method = setting(
        "lora",
        "lora: a small adapter on the motion modules. motion_module: the motion modules themselves. full: every weight "
        "of the denoiser.",
        basic=True,
    )
    motion_adapter: str | None = setting(
        None,
        "The motion module to start from: a diffusers MotionAdapter folder, an original checkpoint file (.ckpt, .pth, "
        ".safetensors), or a Hub id. Empty: new motion modules that begin without effect (not for method lora).",
        basic=True,
    )
    motion_module_pe_multiplier: int = setting(
        1,
        "Stretch the positions of the motion module so that it takes this many times as many frames: each position is "
        "repeated in place. A file that is stretched already needs 1.",
        ge=1,
        le=64,
    )
    trainable_modules: list[str] = setting(
        [],
        "Train only these parts of the motion modules, one per line, matched at the end of a module's path (to_q, ff, "
        "attn1). A line with signs of a regular expression must match the whole path. None: all of them.",
        show_if={"method": ["motion_module"]},
    )
    motion_max_seq_length: int = setting(
        32,
        "Positions of a new motion module: the most frames it can ever take. A given one has its own.",
        ge=1,
        le=4096,
    )
    norm_semantics: Literal["original", "diffusers"] = setting(
        "original",
        "original computes the norms as AnimateDiff, ComfyUI and sd-webui do; diffusers as its pipelines do. Train "
        "with the one that you will generate with.",
    )
    beta_schedule: Literal["linear", "scaled_linear", "base"] = setting(
        "linear",
        "Noise schedule. Motion modules were trained on linear; scaled_linear is Stable Diffusion's own; base takes "
        "the base model's file.",
    )
    prediction_type: Literal["epsilon", "v_prediction"] = setting("epsilon", "What the denoiser predicts.")
    context_length: int | None = setting(
        None,
        "Draw samples in overlapping windows of this many frames, so that they may be longer than the motion module's "
        "positions. Empty: all frames at once.",
        ge=1,
    )
    context_stride: int = setting(3, "How many spacings of frames within a window are used: 1, 2, 4, ...", ge=1, le=16)
    context_overlap: int = setting(4, "Frames that neighbouring windows share.", ge=0)
    num_inversion_steps: int | None = setting(
        None,
        "Begin validation samples from a training clip turned back into noise in this many steps (DDIM inversion), "
        "which shows what of that clip is kept. Empty: from noise.",
        ge=1,
        le=1000,
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        _check_size(self.dataset.height, self.dataset.width, "dataset.")
        if self.method == "lora" and self.motion_adapter is None:
            raise FieldError(
                "motion_adapter",
                "must be set for method lora: new motion modules begin without effect, and a LoRA on them gets no "
                "gradient at all; name a motion adapter or choose method motion_module",
            )
        if self.motion_adapter is None and self.dataset.num_frames > self.motion_max_seq_length:
            raise FieldError(
                "dataset.num_frames",
                f"is {self.dataset.num_frames}, but the motion module has {self.motion_max_seq_length} positions; "
                f"lower it to {self.motion_max_seq_length} or raise motion_max_seq_length",
            )
        return self


class AnimateDiffSampleConfig(SampleConfig):
    """A comparison of AnimateDiff takes."""

    family: Literal["animatediff"] = setting("animatediff", "Model family.")
    motion_adapter: str | None = setting(
        None, "The motion module under the takes. Empty: the one that the checkpoints were trained on.", basic=True
    )
    norm_semantics: Literal["original", "diffusers"] | None = setting(
        None, "How norms are computed. Empty: as each checkpoint was trained; original where none says."
    )
    beta_schedule: Literal["linear", "scaled_linear", "base"] | None = setting(
        None, "Noise schedule. Empty: as each checkpoint was trained; linear where none says."
    )
    context_length: int | None = setting(
        None,
        "Draw in overlapping windows of this many frames, so that clips may be longer than the motion module's "
        "positions. Empty: all frames at once.",
        ge=1,
    )
    context_stride: int = setting(3, "How many spacings of frames within a window are used: 1, 2, 4, ...", ge=1, le=16)
    context_overlap: int = setting(4, "Frames that neighbouring windows share.", ge=0)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        _check_size(self.height, self.width, "")
        return self


def _check_size(height: int, width: int, prefix: str) -> None:
    for name, size in (("height", height), ("width", width)):
        if size % SIZE_MULTIPLE:
            down = max(SIZE_MULTIPLE, size // SIZE_MULTIPLE * SIZE_MULTIPLE)
            up = (size // SIZE_MULTIPLE + 1) * SIZE_MULTIPLE
            raise FieldError(prefix + name, f"is {size}, but must be a multiple of {SIZE_MULTIPLE}: set {down} or {up}")


def motion_positions(adapter: str | None) -> int | None:
    """Positions (the most frames) of a motion adapter folder, read from its config; None when not known without
    its weights."""
    if adapter is None:
        return None
    try:
        settings = json.loads((Path(adapter).expanduser() / "config.json").read_text(encoding="utf-8"))
        return int(settings["motion_max_seq_length"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def findings(config: TrainConfig | SampleConfig) -> list[Finding]:
    """What can be said of the files that a config names."""
    found: list[Finding] = []
    for where in ("base_model", "motion_adapter"):
        value = getattr(config, where)
        if value is not None and not Path(value).expanduser().exists() and not is_hub_id(value):
            found.append(Finding("error", f"{where} {value} does not exist; give a folder, a file or a Hub id", where))
    frames = config.dataset.num_frames if isinstance(config, TrainConfig) else config.num_frames
    positions = motion_positions(getattr(config, "motion_adapter", None))
    if positions is not None and frames > positions:
        where = "dataset.num_frames" if isinstance(config, TrainConfig) else "num_frames"
        found.append(
            Finding(
                "error",
                f"{where} is {frames}, but the motion module {config.motion_adapter} has {positions} positions; "  # type: ignore[union-attr]
                f"lower it to {positions}",
                where,
            )
        )
    return found


def is_hub_id(value: str) -> bool:
    """Whether a text that is no path here can be OWNER/NAME on the Hugging Face Hub."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", value)) and not value.endswith(
        (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
    )


#: name -> settings; what a preset does not name stays at its default.
PRESETS: dict[str, dict[str, Any]] = {
    "one movement from a few clips (LoRA)": {
        "method": "lora",
        "adapter.rank": 16,
        "optimizer.learning_rate": 1e-4,
        "max_train_steps": 500,
        "checkpoint.every_steps": 100,
    },
    "a new way of moving (motion module)": {
        "method": "motion_module",
        "dataset.frame_stride": 4,
        "optimizer.learning_rate": 1e-4,
        "optimizer.lr_warmup_steps": 10,
        "optimizer.weight_decay": 0.008,
        "max_train_steps": 2000,
        "checkpoint.every_steps": 200,
        "validation.every_steps": 200,
    },
    "the pictures alone (image stage)": {
        "method": "full",
        "dataset.num_frames": 1,
        "dataset.variants": 8,
        "dataset.batch_size": 8,
        "beta_schedule": "scaled_linear",
        "optimizer.learning_rate": 1e-5,
        "max_train_steps": 2000,
    },
    "little memory": {
        "method": "lora",
        "adapter.rank": 8,
        "memory.gradient_checkpointing": "full",
        "memory.encode_frames": 1,
        "max_train_steps": 500,
        "checkpoint.every_steps": 100,
    },
}

FAMILY = ModelFamily(
    name="animatediff",
    title="AnimateDiff",
    tasks=("text-to-video",),
    methods={
        "lora": "A small adapter on the motion modules: one movement, from a few clips.",
        "motion_module": "The motion modules themselves: a new way of moving, from many clips.",
        "full": "Every weight of the denoiser; with one frame, the image model alone.",
    },
    export_formats={
        "original": "AnimateDiff's own motion module file (.safetensors): ComfyUI, sd-webui, the original repository.",
        "diffusers": "A diffusers MotionAdapter folder.",
    },
    train_config=AnimateDiffTrainConfig,
    sample_config=AnimateDiffSampleConfig,
    presets=PRESETS,
    size_multiple=SIZE_MULTIPLE,
    frames_within=lambda available: available,
    findings=findings,
    model="trainers.families.animatediff.model:AnimateDiff",
    exporter="trainers.families.animatediff.checkpoint:export",
)
