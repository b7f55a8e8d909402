"""What a person may set for AnimateDiff, and its frame and size rule. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainers.config import MemoryConfig, SampleConfig, TrainConfig
from trainers.families.animatediff.positions import is_lora_file, motion_positions
from trainers.families.base import Finding, ModelFamily, is_hub_id
from trainers.foreign import Foreign
from trainers.settings import FieldError, setting

if TYPE_CHECKING:
    from trainers.data.ledger import LedgerRow

SIZE_MULTIPLE = 8  # the VAE halves each side three times
Method = Literal["lora", "motion_module", "full"]

# Windows, the same for the samples of a run and for a comparison. Not a class that both inherit: its fields would come
# before the family's own in the form, in --help and in YAML.
ContextLength = Annotated[
    int | None,
    setting(
        None,
        "Draw clips in overlapping windows of this many frames, so that they may be longer than the motion module's "
        "positions. Empty: all frames at once.",
        ge=1,
    ),
]
ContextStride = Annotated[
    int, setting(3, "How many spacings of frames within a window are used: 1, 2, 4, ...", ge=1, le=16)
]
ContextOverlap = Annotated[
    int, setting(4, "Frames that neighbouring windows share; at most one less than a window has.", ge=0)
]


class AnimateDiffMemoryConfig(MemoryConfig):
    """What trades time for memory."""

    attention: Literal["sdpa", "xformers"] = setting(
        "sdpa",
        "sdpa is PyTorch's own. xformers is used only if it works on the device; otherwise sdpa, with a message.",
    )
    encode_frames: int = setting(8, "Frames that the video encoder and decoder take at a time.", ge=1)


class AnimateDiffTrainConfig(TrainConfig):
    """A training run of AnimateDiff."""

    family: Literal["animatediff"] = setting("animatediff", "Model family.")
    method: Method = setting(
        "lora",
        "lora: a small adapter on the motion modules. motion_module: the motion modules themselves. full: every weight "
        "of the denoiser.",
        basic=True,
    )
    memory: AnimateDiffMemoryConfig = Field(default_factory=AnimateDiffMemoryConfig)
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
        show_if={"motion_adapter": [None]},
    )
    motion_mid_block: bool = setting(
        True,
        "Put a new motion module into the middle block as well, as in AnimateDiff's v2. Off: they are a v3 if they "
        "have 32 positions, else a v1, with norms over whole clips; ComfyUI tells the versions apart in the same way.",
        show_if={"motion_adapter": [None]},
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
    context_length: ContextLength
    context_stride: ContextStride
    context_overlap: ContextOverlap
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
        if self.validation.height or self.validation.width:
            _check_size(*self.drawn_size, "validation.")
        if self.motion_adapter is None:
            self._check_positions(self.motion_max_seq_length)
        if self.num_inversion_steps is not None:
            trained = (self.dataset.num_frames, self.dataset.height, self.dataset.width)
            if (self.drawn_frames, *self.drawn_size) != trained:
                raise FieldError(
                    "num_inversion_steps",
                    "lets samples begin from a training clip, so they must have its frames and size; leave "
                    "validation.num_frames, validation.height and validation.width empty",
                )
        return self

    def _check_positions(self, positions: int) -> None:
        """FieldError when a motion module of so many positions takes fewer frames than are asked for."""
        stretched = positions * self.motion_module_pe_multiplier
        asked = {"dataset.num_frames": self.dataset.num_frames}
        if self.draws:
            window = min(self.drawn_frames, self.context_length or self.drawn_frames)
            asked["validation.num_frames" if window == self.drawn_frames else "context_length"] = window
        for where, frames in asked.items():
            if frames > stretched:
                other = ", set context_length" if where == "validation.num_frames" else ""
                name = "" if self.motion_adapter is None else f" {self.motion_adapter}"
                raise FieldError(
                    where,
                    f"is {frames}, but the motion module{name} has {stretched} positions; lower it to {stretched}"
                    f"{other} or set motion_module_pe_multiplier to {-(-frames // positions)}",
                )


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
    context_length: ContextLength
    context_stride: ContextStride
    context_overlap: ContextOverlap
    attention: Literal["sdpa", "xformers"] = setting("sdpa", "sdpa is PyTorch's own; xformers only if it works.")
    encode_frames: int = setting(8, "Frames that the video decoder takes at a time.", ge=1)

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


def findings(config: TrainConfig | SampleConfig) -> list[Finding]:
    """What can be said of the files that a config names."""
    found: list[Finding] = []
    for where in ("base_model", "motion_adapter"):
        value = getattr(config, where)
        if value is not None and not Path(value).expanduser().exists() and not is_hub_id(value):
            found.append(Finding("error", f"{where} {value} does not exist; give a folder, a file or a Hub id", where))
    adapter = getattr(config, "motion_adapter", None)
    if is_lora_file(adapter):
        text = f"motion_adapter {adapter} is a LoRA, not a motion module; name the module that it was trained on"
        found.append(Finding("error", text, "motion_adapter"))
    positions = motion_positions(adapter)
    if positions is not None:
        try:
            _check_frames(config, positions)
        except FieldError as error:
            found.append(Finding("error", f"{error.where} {error}", error.where))
    return found


def _check_frames(config: TrainConfig | SampleConfig, positions: int) -> None:
    if isinstance(config, AnimateDiffTrainConfig):
        config._check_positions(positions)
    elif isinstance(config, AnimateDiffSampleConfig) and not config.checkpoints:  # a checkpoint may have stretched it
        frames = min(config.num_frames, config.context_length or config.num_frames)
        if frames > positions:
            raise FieldError(
                "num_frames" if frames == config.num_frames else "context_length",
                f"is {frames}, but the motion module {config.motion_adapter} has {positions} positions; lower it to "
                f"{positions}" + (" or set context_length" if frames == config.num_frames else ""),
            )


def advice(config: TrainConfig, rows: Sequence[LedgerRow]) -> list[Finding]:
    """What people who trained whole motion modules found: about 1000 steps for one clip and 2000 for many, a cosine,
    and a few copies of a single clip, which then burns less."""
    found = _without_start(config, rows)
    used = len({row.clip.sha256 for row in rows if row.status != "dropped"})
    if config.method != "motion_module" or config.dataset.num_frames == 1 or not used:
        return found
    hints = []
    enough = 1000 if used == 1 else 2000
    passes = config.max_train_steps * config.optimizer.gradient_accumulation_steps * config.dataset.batch_size / used
    if config.max_train_steps > 1.5 * enough and passes > 100:
        clips = "a single clip" if used == 1 else f"{used} clips"
        hints.append(
            f"max_train_steps is {config.max_train_steps}: about {enough} were enough for {clips}; later checkpoints "
            "may have lost the base's style"
        )
    if used == 1 and config.dataset.repeats == 1 and config.dataset.variants == 1:
        hints.append("a single clip is said to burn less with copies that start elsewhere: set dataset.variants to 4")
    if config.optimizer.lr_scheduler in ("constant", "constant_with_warmup") and config.max_train_steps >= 500:
        hints.append(f"optimizer.lr_scheduler is {config.optimizer.lr_scheduler}: cosine did best for whole modules")
    return found + [Finding("info", text) for text in hints]


def _without_start(config: TrainConfig, rows: Sequence[LedgerRow]) -> list[Finding]:
    """That no clip trains at full length, where samples are to begin from one."""
    if not isinstance(config, AnimateDiffTrainConfig) or config.num_inversion_steps is None:
        return []
    if not config.draws:
        return []
    used = [row for row in rows if row.status != "dropped"]
    wanted = (config.dataset.num_frames, config.dataset.height, config.dataset.width)
    if not used or any((row.num_frames, row.height, row.width) == wanted for row in used):
        return []
    return [
        Finding(
            "error",
            f"num_inversion_steps begins samples from a training clip, but none trains with {wanted[0]} frames at "
            f"{wanted[2]} x {wanted[1]}; lower dataset.num_frames to {max(row.num_frames for row in used)}, or leave "
            "num_inversion_steps empty",
            "num_inversion_steps",
        )
    ]


def _card(method: Method, frames: int, height: int, width: int, rank: int | None = None) -> dict[str, Any]:
    """A preset by the memory that it needs."""
    return {
        "method": method,
        "dataset.num_frames": frames,
        "dataset.height": height,
        "dataset.width": width,
        **({} if rank is None else {"adapter.rank": rank}),
        "memory.gradient_checkpointing": "full",
        "memory.encode_frames": 1 if frames * height * width <= 16 * 384 * 384 else 4,
        "max_train_steps": 1000 if method == "lora" else 2000,
        "checkpoint.every_steps": 200,
        "validation.every_steps": 200,
    }


def read_foreign(text: str) -> Foreign | None:
    """An upstream config or command in our words; its rooms are read only when there is one."""
    from trainers.families.animatediff import compat

    return compat.read_foreign(text)


#: name -> settings; what a preset does not name stays at its default. The sizes for cards are calculated, with a fifth
#: to spare, from the weights, their gradients and optimizer states, and the activations that checkpointing leaves.
PRESETS: dict[str, dict[str, Any]] = {
    "one movement from a few clips (LoRA)": {
        "method": "lora",
        "adapter.rank": 16,
        "optimizer.learning_rate": 1e-4,
        "max_train_steps": 500,
        "checkpoint.every_steps": 100,
    },
    "the whole motion module, as tumurzakov's trainer": {
        "method": "motion_module",
        "dataset.num_frames": 24,
        "dataset.height": 512,
        "dataset.width": 768,
        "dataset.frame_selection": "first",
        "dataset.fit": "stretch",
        "dataset.frame_buckets": True,
        "dataset.caption_dropout": 0.0,
        "optimizer.learning_rate": 1e-4,
        "optimizer.lr_scheduler": "cosine",
        "optimizer.lr_warmup_steps": 10,
        "optimizer.weight_decay": 0.008,
        "memory.gradient_checkpointing": "full",
        "max_train_steps": 2000,
        "checkpoint.every_steps": 200,
        "validation.every_steps": 200,
    },
    "a LoRA from captioned stock clips, as swift": {
        "method": "lora",
        "adapter.rank": 8,
        "adapter.alpha": 32.0,
        "adapter.dropout": 0.05,
        "adapter.target_modules": [
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "proj_in",
            "proj_out",
            "ff.net.0.proj",
            "ff.net.2",
        ],
        "dataset.frame_stride": 4,
        "dataset.repeat_frames": True,
        "dataset.flip": True,
        "dataset.variants": 4,
        "optimizer.learning_rate": 1e-4,
        "optimizer.lr_scheduler": "constant",
        "optimizer.gradient_accumulation_steps": 16,
    },
    "new motion modules from captioned stock clips, as swift": {
        "method": "motion_module",
        "motion_adapter": None,
        "dataset.frame_stride": 4,
        "dataset.repeat_frames": True,
        "dataset.flip": True,
        "dataset.variants": 4,
        "dataset.batch_size": 4,
        "optimizer.learning_rate": 1e-4,
        "optimizer.lr_scheduler": "constant",
        "optimizer.gradient_accumulation_steps": 16,
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
    "8 GB card: LoRA, 16 frames of 384 x 384": _card("lora", 16, 384, 384, rank=8),
    "12 GB card: LoRA, 16 frames of 512 x 512": _card("lora", 16, 512, 512, rank=16),
    "16 GB card: motion module, 16 frames of 384 x 384": _card("motion_module", 16, 384, 384),
    "24 GB card: motion module, 24 frames of 512 x 768": _card("motion_module", 24, 512, 768),
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
        "original": "AnimateDiff's own motion module file (.safetensors, .ckpt or .pth): ComfyUI, sd-webui, the "
        "original repository. A LoRA is merged into its motion module.",
        "diffusers": "A diffusers MotionAdapter folder. A LoRA is merged into its motion module.",
        "motion-lora": "A motion LoRA file in AnimateDiff's own naming: ComfyUI, the original repository.",
        "diffusers-lora": "A LoRA file for diffusers' load_lora_weights: a .safetensors file, or a folder with one.",
    },
    train_config=AnimateDiffTrainConfig,
    sample_config=AnimateDiffSampleConfig,
    presets=PRESETS,
    size_multiple=SIZE_MULTIPLE,
    frames_within=lambda available: available,
    findings=findings,
    is_base=lambda folder: (folder / "model_index.json").is_file() and (folder / "unet").is_dir(),
    hub_bases=("stable-diffusion-v1-5/stable-diffusion-v1-5",),
    read_foreign=read_foreign,
    reads="YAML of tumurzakov/AnimateDiff or guoyww/AnimateDiff, commands of swift (animatediff_sft.py, "
    "animatediff_infer.py)",
    advice=advice,
    model="trainers.families.animatediff.model:AnimateDiff",
    exporter="trainers.families.animatediff.export:export",
)
