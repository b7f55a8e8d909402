"""THE schema: everything a run needs, each setting once, with its type, bound, default and meaning.

The form, ``--help``, the YAML check and the docs are drawn from these classes. A family extends `TrainConfig` and
`SampleConfig` in its own ``config.py``; the table in ``trainers.families`` joins them. No torch here.
"""

from __future__ import annotations

import importlib.util
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from trainers.settings import FieldError, Section, setting


class DatasetConfig(Section):
    """What the model will see."""

    path: str = setting(
        ...,
        "Folder of the dataset: clips/ and metadata.jsonl; or what the format below names.",
        basic=True,
        min_length=1,
    )
    format: Literal["dailies", "list", "sidecar", "webvid", "paired", "hub"] = setting(
        "dailies",
        "How clips and captions lie there. dailies: clips/ and metadata.jsonl. list: the videos and prompts named "
        "here, relative to path. sidecar: a folder of videos, the caption of a.mp4 in a.txt or a.json. webvid: a CSV "
        "file with the columns name and contentUrl (or videoid). paired: a folder with videos.txt and prompts.txt, "
        "line by line. hub: a dataset of the Hugging Face Hub by its id, or a folder with metadata.jsonl, metadata.csv "
        "or another table. Other formats than dailies are read where they lie.",
    )
    subfolders: bool = setting(
        False, "Take the videos of the folders below as well.", show_if={"dataset.format": ["sidecar"]}
    )
    video_folder: str | None = setting(
        None,
        "Folder of the videos that the table names. Empty: the folder of the table.",
        show_if={"dataset.format": ["webvid", "hub"]},
    )
    video_list: str = setting(
        "videos.txt",
        "Text file in the folder above with the path of a video in each line.",
        min_length=1,
        show_if={"dataset.format": ["paired"]},
    )
    caption_list: str = setting(
        "prompts.txt",
        "Text file in the folder above with their captions, one per line in the same order.",
        min_length=1,
        show_if={"dataset.format": ["paired"]},
    )
    video_column: str = setting(
        "video",
        "Column of the table that names the videos; where there is none, file_name as on the Hub.",
        min_length=1,
        show_if={"dataset.format": ["hub"]},
    )
    caption_column: str = setting(
        "text", "Column of the table that holds the captions.", min_length=1, show_if={"dataset.format": ["hub"]}
    )
    hub_config: str | None = setting(
        None,
        "Which of several parts of a Hub dataset to take, by its name. Empty: the one that it offers first.",
        min_length=1,
        show_if={"dataset.format": ["hub"]},
    )
    videos: list[str] = setting([], "Video files, one per line.", show_if={"dataset.format": ["list"]})
    prompts: list[str] = setting(
        [],
        "Their captions in the same order, one per line; a single one is for all of them.",
        show_if={"dataset.format": ["list"]},
    )
    max_clips: int | None = setting(None, "Use only the first so many clips. Empty: all.", ge=1)
    max_clips_at_random: bool = setting(
        False,
        "Take that many rows from anywhere in the table, the same ones every time, as pandas' sample does with "
        "random_state 0.",
        show_if={"dataset.format": ["webvid"]},
    )
    repeats: int = setting(1, "How often every clip is seen in one pass over the dataset.", ge=1, le=10_000)
    num_frames: int = setting(16, "Frames of each training sample.", basic=True, ge=1)
    height: int = setting(256, "Height of the training frames in pixels.", basic=True, ge=8)
    width: int = setting(256, "Width of the training frames in pixels.", basic=True, ge=8)
    frame_stride: int = setting(
        1,
        "Take every n-th frame of a clip: 1 takes neighbours, 4 shows four times as much movement.",
        ge=1,
        show_if={"dataset.frame_selection": ["first", "random", "windows"]},
    )
    frame_stride_min: int | None = setting(
        None,
        "Take each sample at a random stride from this up to frame_stride. Empty: always at frame_stride.",
        ge=1,
        show_if={"dataset.frame_selection": ["random"]},
    )
    lower_stride: bool = setting(
        False,
        "Let a clip that is too short for the stride train at a smaller one, its frames / num_frames rounded down, "
        "instead of leaving it out. Where fps is set, it must have half of what the stride asks for.",
        show_if={"dataset.frame_selection": ["random"]},
    )
    fps: float | None = setting(
        None,
        "Resample clips to this many frames per second before the stride is applied, so that clips of different "
        "rates move at the same speed. Empty keeps each clip's own rate.",
        gt=0,
        le=240,
        show_if={"dataset.frame_selection": ["first", "random", "windows"]},
    )
    fps_rounding: Literal["nearest", "earlier", "stride"] = setting(
        "nearest",
        "Which frame stands for a moment between two of the clip's, where it is resampled. nearest: the one that is "
        "nearer in time. earlier: the one that a player would still show, as MoviePy takes it. stride: every n-th "
        "frame of the clip, n being frame_stride x the clip's rate / fps rounded down, so that steps are even but the "
        "rate is only about what was asked for.",
        show_if={"dataset.frame_selection": ["first", "random", "windows"]},
    )
    frame_selection: Literal["first", "uniform", "random", "windows", "strided"] = setting(
        "random",
        "Which frames a clip gives: first (from start_frame on), uniform (spread over the whole clip), random (a "
        "random start), windows (every window of the clip, one after the other), strided (from its beginning, at the "
        "largest whole stride at which it has enough frames, whatever its rate).",
    )
    start_frame: int = setting(
        0,
        "First frame to take, counted from 0 behind those that are skipped.",
        ge=0,
        show_if={"dataset.frame_selection": ["first"]},
    )
    skip_frames_start: int = setting(0, "Frames at the beginning of every clip that are never used.", ge=0)
    skip_frames_end: int = setting(0, "Frames at the end of every clip that are never used.", ge=0)
    fit: Literal["crop", "cut", "stretch", "buckets", "middle", "piece"] = setting(
        "crop",
        "How a clip of another shape becomes height x width: crop (resize until it fills, then take the middle), cut "
        "(take the middle in that shape, then resize), stretch (distorts), buckets (keep the clip's shape: the nearest "
        "size with about the same number of pixels), middle (the middle as it is, not resized), piece (the same, "
        "anywhere). Clips too small for the last two are left out.",
    )
    upscale: bool = setting(
        True, "Enlarge clips that are smaller than the training frames. Off: such clips are left out."
    )
    frame_buckets: bool = setting(
        False, "Let a clip that is too short train with the most frames that it has, instead of leaving it out."
    )
    repeat_frames: bool = setting(
        False,
        "Let a clip that is too short fill the sample. random: its frames are spread over it, some of them several "
        "times. strided: its last frame is repeated.",
        show_if={"dataset.frame_selection": ["random", "strided"]},
    )
    flip: bool = setting(
        False, "Mirror half of the samples left to right. Not for clips where direction has a meaning."
    )
    id_token: str | None = setting(
        None,
        "A word that is put before every training caption, to call what was learned by it: write it before your "
        "prompts as well. The files stay as they are.",
        min_length=1,
    )
    id_token_glued: bool = setting(
        False, "Put that word before the captions as it is, without a space between, as early trainers did."
    )
    caption_dropout: float = setting(
        0.1, "Share of samples trained without their caption, which guidance at generation needs.", ge=0, le=1
    )
    batch_size: int = setting(1, "Samples in one forward pass, per device.", ge=1)
    variants: int = setting(
        1, "How many differently drawn samples (start, flip) to prepare for each clip; epochs walk through them.", ge=1
    )
    cache: bool = setting(
        True, "Encode every sample once and train from the stored latents. Off: decode and encode again at every step."
    )
    cache_dir: str | None = setting(
        None, "Folder for encoded samples, shared between runs. Empty: inside the run folder."
    )

    @property
    def prepared(self) -> bool:
        """Whether the videos are encoded already, which only some families read: they widen `format` by that word."""
        return str(self.format) == "prepared"

    @property
    def decoded_size(self) -> tuple[int, int] | None:
        """(height, width) to which frames are squeezed as they are decoded, before anything else; None: as they are.
        Families whose reference does so say it."""
        return None

    @property
    def smooth(self) -> bool:
        """Whether frames are resized as floats, as references do that convert them first. Else in whole levels, which
        is faster, and those that are stretched by the decoder itself, as Tune-A-Video and its kin do it."""
        return False

    @property
    def as_reference(self) -> bool:
        """Whether the table is read and samples are drawn with the mistakes of a family's reference."""
        return False

    @model_validator(mode="after")
    def _strides_have_an_order(self) -> Self:
        if self.frame_stride_min is not None and self.frame_stride_min > self.frame_stride:
            raise FieldError(
                "dataset.frame_stride_min",
                f"is {self.frame_stride_min}, but dataset.frame_stride, up to which strides are drawn, is "
                f"{self.frame_stride}; lower it or raise that",
            )
        return self

    @model_validator(mode="after")
    def _prepared_stays(self) -> Self:
        if self.prepared and self.flip:
            raise FieldError("dataset.flip", "cannot mirror clips that are encoded already; turn it off")
        if self.prepared and self.id_token is not None:
            raise FieldError("dataset.id_token", "cannot go before captions that are encoded already; leave it empty")
        return self

    @model_validator(mode="after")
    def _list_is_paired(self) -> Self:
        if self.format == "list":
            if not self.videos:
                raise FieldError("dataset.videos", "must name at least one video for dataset.format list")
            if len(self.prompts) not in (1, len(self.videos)):
                raise FieldError(
                    "dataset.prompts",
                    f"has {_counted(len(self.prompts), 'prompt')} for {_counted(len(self.videos), 'video')}; give one "
                    "for each video, or a single one for all",
                )
        return self


class AdapterConfig(Section):
    """The low-rank adapter that method lora trains."""

    rank: int = setting(
        16,
        "Size of the LoRA: more learns more and forgets more.",
        basic=True,
        ge=1,
        le=1024,
        show_if={"method": ["lora"]},
    )
    alpha: float | None = setting(
        None,
        "Strength of the LoRA is alpha / rank. Empty: the same as rank, strength 1.",
        gt=0,
        show_if={"method": ["lora"]},
    )
    dropout: float = setting(
        0.0, "Share of the LoRA's input that is zeroed while training.", ge=0, lt=1, show_if={"method": ["lora"]}
    )
    target_modules: list[str] = setting(
        ["to_q", "to_k", "to_v", "to_out.0"],
        "Names of the layers that get a LoRA, one per line, matched at the end of a layer's path. A line with signs of "
        "a regular expression must match the whole path.",
        min_length=1,
        show_if={"method": ["lora"]},
    )


class OptimizerConfig(Section):
    """How weights are changed."""

    name: Literal["adamw", "adam", "adamw8bit", "adam8bit", "prodigy"] = setting(
        "adamw",
        "adamw; adam (its weight decay goes through the gradient); adamw8bit and adam8bit (bitsandbytes, where both "
        "decay as adamw does) keep their states in a quarter of the memory; prodigy (prodigyopt) finds the size of a "
        "step by itself.",
    )
    learning_rate: float = setting(
        1e-4,
        "Size of a step. LoRA: about 1e-4; whole modules: 1e-5 to 1e-4; prodigy: 1, which multiplies what it finds.",
        basic=True,
        gt=0,
    )
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = setting("cosine", "How the learning rate goes over the run, counted in optimizer steps.")
    lr_warmup_steps: int = setting(
        0,
        "Optimizer steps over which the learning rate rises from zero.",
        ge=0,
        show_if={
            "optimizer.lr_scheduler": ["constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
        },
    )
    lr_num_cycles: int = setting(
        1,
        "How often the cosine begins anew.",
        ge=1,
        show_if={"optimizer.lr_scheduler": ["cosine_with_restarts"]},
    )
    lr_power: float = setting(
        1.0, "Exponent of the polynomial; 1 is a line.", gt=0, show_if={"optimizer.lr_scheduler": ["polynomial"]}
    )
    beta1: float = setting(0.9, "Adam's decay of the gradient average.", ge=0, lt=1)
    beta2: float = setting(0.999, "Adam's decay of the squared gradient average.", ge=0, lt=1)
    weight_decay: float = setting(0.01, "Pull of the weights towards zero.", ge=0)
    epsilon: float = setting(1e-8, "Smallest divisor in Adam.", gt=0)
    prodigy_beta3: float | None = setting(
        None,
        "Prodigy's decay of what it estimates its step from. Empty: the square root of beta2.",
        ge=0,
        lt=1,
        show_if={"optimizer.name": ["prodigy"]},
    )
    prodigy_decouple: bool = setting(
        True,
        "Weight decay as in adamw; off: through the gradient, as in adam.",
        show_if={"optimizer.name": ["prodigy"]},
    )
    prodigy_use_bias_correction: bool = setting(
        False, "Correct Adam's averages for their beginning at zero.", show_if={"optimizer.name": ["prodigy"]}
    )
    prodigy_safeguard_warmup: bool = setting(
        False,
        "Keep the warm-up of the learning rate out of the estimate; on wherever lr_warmup_steps is not 0.",
        show_if={"optimizer.name": ["prodigy"]},
    )
    gradient_accumulation_steps: int = setting(
        1, "Batches added up before one optimizer step: a larger batch without more memory.", ge=1
    )
    max_grad_norm: float | None = setting(
        1.0, "Largest norm of the gradient; longer ones are shortened. Empty: off.", gt=0
    )


class MemoryConfig(Section):
    """What trades time for memory."""

    gradient_checkpointing: Literal["none", "full", "sac"] = setting(
        "none",
        "full computes each block again in the backward pass: much less memory, about a quarter more time. sac does so "
        "with everything but attention, whose results it keeps: a little more memory than full, less time.",
    )
    offload_optimizer: bool = setting(
        False,
        "Keep the optimizer's states and a 32-bit copy of the trained weights in main memory, and step on the CPU. For "
        "training whole models: 8 bytes less for each trained weight on the device, but slower steps.",
    )


class ValidationConfig(Section):
    """How the run is judged while it goes."""

    every_steps: int | None = setting(
        100, "Validation loss and samples at step 0, every so many steps and at the end. Empty: never.", ge=1
    )
    prompts: list[str] = setting([], "Prompts to sample, one per line. None: no samples, only the loss.", basic=True)
    samples_per_prompt: int = setting(
        1, "Samples of each prompt: with the seed below, the next one, and so on.", ge=1, le=100
    )
    images: list[str] = setting(
        [],
        "Image files that samples begin from, one per line; of a video file its first frame. One for each prompt, or a "
        "single one for all. Only for base models that turn an image into a video.",
    )
    negative_prompt: str = setting("", "What the samples should avoid.")
    num_frames: int | None = setting(None, "Frames of a sample. Empty: as trained.", ge=1)
    height: int | None = setting(None, "Height of a sample in pixels. Empty: as trained.", ge=8)
    width: int | None = setting(None, "Width of a sample in pixels. Empty: as trained.", ge=8)
    seed: int = setting(
        42, "Seed of the samples and of the validation loss; the same at every step.", ge=0, le=2**63 - 1
    )
    num_inference_steps: int = setting(25, "Denoising steps of a sample.", ge=1, le=1000)
    guidance_scale: float = setting(
        7.5, "How strongly a sample follows its prompt; 1 turns guidance off.", ge=1, le=100
    )
    fps: float = setting(8, "Frames per second of the sample files.", gt=0, le=240)
    holdout: int = setting(
        0,
        "Clips kept out of training to measure the validation loss. 0: measured on a fixed part of the training clips.",
        ge=0,
    )
    loss_draws: int = setting(
        8, "Fixed pairs of noise and timestep per validation; more gives a smoother curve and takes longer.", ge=1
    )

    @property
    def seeds(self) -> list[int]:
        """The seeds with which each prompt is sampled."""
        return [(self.seed + number) % 2**63 for number in range(self.samples_per_prompt)]

    @property
    def last_images(self) -> list[str]:
        """Image files that samples end with, in families that have a setting for them."""
        return []

    @model_validator(mode="after")
    def _images_fit(self) -> Self:
        check_images("validation.images", self.images, self.prompts)
        return self


class CheckpointConfig(Section):
    """What is kept. The last step is always saved."""

    every_steps: int | None = setting(500, "Save every so many optimizer steps. Empty: only the last step.", ge=1)
    keep_last: int | None = setting(
        None,
        "Delete older checkpoints beyond this many; the best by validation loss and starred ones always stay. "
        "Empty: keep all.",
        ge=1,
    )


class TrackingConfig(Section):
    """What is written while training, besides the run folder's own event log."""

    tracker: Literal["none", "tensorboard"] = setting("none", "tensorboard writes RUN/tensorboard as well.")
    every_steps: int = setting(
        10, "Write loss and learning rate every so many steps; reading the loss makes a GPU wait.", ge=1
    )


def _no_is_a_word(value: Any) -> Any:
    """YAML reads no as false; for a precision it is a word."""
    return "no" if value is False else value


Precision = Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_no_is_a_word)]


class TrainConfig(Section):
    """A training run. A family's subclass narrows `family` and `method` and adds its own fields."""

    family: str = setting(..., "Model family.")
    method: str = setting(..., "What is trained.", basic=True)
    base_model: str = setting(
        ..., "The model to start from: a folder, a file, or an id on the Hugging Face Hub.", basic=True, min_length=1
    )
    seed: int = setting(42, "Start of every random number of the run.", ge=0, le=2**63 - 1)
    max_train_steps: int = setting(1000, "Optimizer steps of the whole run.", basic=True, ge=1)
    start_step: int = setting(
        0,
        "Optimizer steps that the weights to start from have behind them: counting, file names and the learning rate "
        "go on from there.",
        ge=0,
    )
    mixed_precision: Precision = setting(
        "bf16", "Precision of the computation; trained weights stay in 32 bits. no: 32 bits throughout."
    )
    dataset: DatasetConfig
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    memory: MemoryConfig = Field(default_factory=MemoryConfig)
    validation: ValidationConfig = Field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @model_validator(mode="after")
    def _steps_within_run(self) -> Self:
        if self.start_step >= self.max_train_steps:
            raise FieldError(
                "start_step",
                f"is {self.start_step}, but the whole run has only {self.max_train_steps} steps; raise max_train_steps",
            )
        if self.memory.offload_optimizer and self.optimizer.name.endswith("8bit"):
            raise FieldError(
                "memory.offload_optimizer",
                f"keeps the optimizer's states in 32 bits, which {self.optimizer.name} does not; choose adamw or adam, "
                "or turn it off",
            )
        if self.optimizer.lr_warmup_steps > self.max_train_steps:
            raise FieldError(
                "optimizer.lr_warmup_steps",
                f"is {self.optimizer.lr_warmup_steps}, but the run has only {self.max_train_steps} steps; lower it or "
                "raise max_train_steps",
            )
        return self

    @property
    def draws(self) -> bool:
        """Whether the run draws samples."""
        return bool(self.validation.every_steps and self.validation.prompts)

    @property
    def drawn_frames(self) -> int:
        """Frames of a validation sample."""
        return self.validation.num_frames or self.dataset.num_frames

    @property
    def drawn_size(self) -> tuple[int, int]:
        """(height, width) of a validation sample."""
        return self.validation.height or self.dataset.height, self.validation.width or self.dataset.width


class SampleConfig(Section):
    """A comparison: every take (base, and each checkpoint at each strength) with every prompt and seed."""

    family: str = setting(..., "Model family.")
    base_model: str = setting(
        ..., "The base model: a folder, a file, or an id on the Hugging Face Hub.", basic=True, min_length=1
    )
    checkpoints: list[str] = setting([], "Checkpoint folders or adapter files to compare, one per line.", basic=True)
    strengths: list[float] = setting([1.0], "Strengths at which each checkpoint is applied.", min_length=1)
    include_base: bool = setting(True, "Sample the base model without any checkpoint as well.")
    prompts: list[str] = setting(..., "Prompts, one per line.", basic=True, min_length=1)
    images: list[str] = setting(
        [],
        "Image files that the clips begin from, one per line; of a video file its first frame. One for each prompt, or "
        "a single one for all. Only for base models that turn an image into a video.",
    )
    negative_prompt: str = setting("", "What the clips should avoid.")
    seeds: list[int] = setting([42], "Seeds; the same seed gives every take the same noise.", basic=True, min_length=1)
    num_frames: int = setting(16, "Frames of each clip.", ge=1)
    height: int = setting(256, "Height in pixels.", ge=8)
    width: int = setting(256, "Width in pixels.", ge=8)
    num_inference_steps: int = setting(25, "Denoising steps.", ge=1, le=1000)
    guidance_scale: float = setting(7.5, "How strongly a clip follows its prompt; 1 turns guidance off.", ge=1, le=100)
    fps: float = setting(8, "Frames per second of the files.", gt=0, le=240)
    mixed_precision: Precision = setting("bf16", "Precision of the computation. no: 32 bits.")
    cache_dir: str | None = setting(
        None, "Folder of clips already sampled, shared between comparisons. Empty: inside the run folder."
    )

    @property
    def last_images(self) -> list[str]:
        """Image files that the clips end with, in families that have a setting for them."""
        return []

    @field_validator("seeds")
    @classmethod
    def _seeds_are_natural(cls, seeds: list[int]) -> list[int]:
        for seed in seeds:
            if not 0 <= seed < 2**63:
                raise ValueError(f"seed {seed} is not between 0 and 2^63 - 1")
        return seeds

    @model_validator(mode="after")
    def _images_fit(self) -> Self:
        check_images("images", self.images, self.prompts)
        return self


def check_images(where: str, images: list[str], prompts: list[str]) -> None:
    """FieldError unless every prompt has its image, or a single one is for all of them, or there are none."""
    if len(images) > 1 and len(images) != len(prompts):
        raise FieldError(
            where,
            f"are {len(images)} for {_counted(len(prompts), 'prompt')}; give one for each prompt, or a single one for "
            "all",
        )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


#: What an optimizer needs beyond PyTorch: the name to install and to import.
OPTIMIZER_PACKAGES = {"adamw8bit": "bitsandbytes", "adam8bit": "bitsandbytes", "prodigy": "prodigyopt"}


def missing_package(config: OptimizerConfig) -> str | None:
    """The package that the chosen optimizer needs and this machine lacks."""
    package = OPTIMIZER_PACKAGES.get(config.name)
    return package if package is not None and importlib.util.find_spec(package) is None else None
