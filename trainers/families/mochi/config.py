"""What a person may set for Mochi, and its frame and size rules. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from trainers.config import (
    AdapterConfig,
    CheckpointConfig,
    DatasetConfig,
    MemoryConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
    ValidationConfig,
)
from trainers.families.base import Finding, ModelFamily, is_hub_id
from trainers.families.mochi.facts import GENMO_FILES, TRANSFORMER_CONFIG, is_base, is_genmo, is_pipeline
from trainers.families.mochi.prepared import prepared
from trainers.families.mochi.presets import PRESETS
from trainers.families.rules import check_frames, check_size, frames_within
from trainers.foreign import Foreign
from trainers.settings import FieldError, setting

if TYPE_CHECKING:
    from trainers.data.ledger import LedgerRow

SIZE_MULTIPLE = 16  # the VAE makes an eighth of each side, and a patch is two of those
FRAME_MULTIPLE = 6  # a latent frame is six frames, but the first, which is one
MAX_TOKENS = 256  # of a prompt
COMPILERS = ("g++", "c++", "clang++")  # what torch.compile looks for
LONGEST = 85  # frames that the published training goes up to
Method = Literal["lora", "full"]
LatentNormalisation = Literal["consistent", "genmo", "none"]

# The sections with this family's defaults: each field is the common one, with another value.
_DATASET, _ADAPTER, _OPTIMIZER = DatasetConfig.model_fields, AdapterConfig.model_fields, OptimizerConfig.model_fields
_MEMORY, _VALIDATION, _SAMPLE = MemoryConfig.model_fields, ValidationConfig.model_fields, SampleConfig.model_fields
_CHECKPOINT, _TRAIN = CheckpointConfig.model_fields, TrainConfig.model_fields
_FOR_LORA: dict[str, list[str | bool]] = {"method": ["lora"]}


class MochiDatasetConfig(DatasetConfig):
    """What the model will see."""

    format: Literal["dailies", "list", "sidecar", "webvid", "paired", "hub", "prepared"] = setting(  # type: ignore[assignment]
        "dailies",
        f"{_DATASET['format'].description} prepared: a folder of videos that Genmo's preparation or "
        "cogvideox-factory's has encoded (a.mp4, a.latent.pt and a.embed.pt side by side); nothing is encoded again, "
        "and frames and size are those of the encodings.",
    )
    num_frames: Annotated[int, _DATASET["num_frames"]] = 37
    height: Annotated[int, _DATASET["height"]] = 480
    width: Annotated[int, _DATASET["width"]] = 848
    fps: Annotated[float | None, _DATASET["fps"]] = 30
    fps_rounding: Annotated[Literal["nearest", "earlier"], _DATASET["fps_rounding"]] = "earlier"
    frame_selection: Annotated[
        Literal["first", "uniform", "random", "windows", "strided"], _DATASET["frame_selection"]
    ] = "first"
    fit: Annotated[Literal["crop", "cut", "stretch", "buckets"], _DATASET["fit"]] = "cut"
    upscale: Annotated[bool, _DATASET["upscale"]] = False
    subfolders: bool = setting(
        True, str(_DATASET["subfolders"].description), show_if={"dataset.format": ["sidecar", "prepared"]}
    )


class MochiAdapterConfig(AdapterConfig):
    """The low-rank adapter that method lora trains."""

    target_modules: Annotated[list[str], _ADAPTER["target_modules"]] = Field(
        default=["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    )
    out_rank: int | None = setting(
        None, "Rank of the output projections (to_out.0, to_add_out). Empty: the same.", ge=1, le=1024,
        show_if=_FOR_LORA,
    )  # fmt: skip
    out_alpha: float | None = setting(
        None,
        "Alpha of the output projections. Empty: the same, or the rank of theirs where alpha is empty.",
        gt=0,
        show_if=_FOR_LORA,
    )
    out_dropout: float | None = setting(
        None, "Dropout of the output projections. Empty: the same.", ge=0, lt=1, show_if=_FOR_LORA
    )
    tie_qkv: bool = setting(
        True,
        "Query, key and value of a stream share one lower half (A), as Genmo's trainer has it, so that the LoRA fits "
        "Genmo's file and ComfyUI at its own rank. Off: each has its own; exported for these the rank is three times "
        "as large.",
        show_if=_FOR_LORA,
    )


class MochiOptimizerConfig(OptimizerConfig):
    """How weights are changed."""

    learning_rate: Annotated[float, _OPTIMIZER["learning_rate"]] = 2e-4
    lr_warmup_steps: Annotated[int, _OPTIMIZER["lr_warmup_steps"]] = 200
    max_grad_norm: Annotated[float | None, _OPTIMIZER["max_grad_norm"]] = None


VaeTiling = Annotated[
    bool,
    setting(
        True,
        "Encode and decode video in overlapping tiles of 256 x 256: much less memory, and seams that are hardly seen. "
        "Off: whole, as Genmo's preparation encodes.",
    ),
]
VaeSlicing = Annotated[bool, setting(True, "Encode and decode the clips of a batch one after the other.")]


class MochiMemoryConfig(MemoryConfig):
    """What trades time for memory."""

    gradient_checkpointing: Annotated[Literal["none", "full", "sac"], _MEMORY["gradient_checkpointing"]] = "full"
    checkpointed_blocks: int | None = setting(
        None,
        "Compute only the first so many blocks again, of 48 in the published model: fewer are faster and need more "
        "memory. Empty: all.",
        ge=0,
        show_if={"memory.gradient_checkpointing": ["full", "sac"]},
    )
    compile_blocks: bool = setting(
        False,
        "Compile each block of the transformer (torch.compile), which saves time and memory once it is done; it needs "
        "a C++ compiler, and minutes at the first step.",
    )
    vae_tiling: VaeTiling = True
    vae_slicing: VaeSlicing = True


class MochiValidationConfig(ValidationConfig):
    """How the run is judged while it goes."""

    every_steps: Annotated[int | None, _VALIDATION["every_steps"]] = 200
    num_inference_steps: Annotated[int, _VALIDATION["num_inference_steps"]] = 64
    guidance_scale: Annotated[float, _VALIDATION["guidance_scale"]] = 6
    fps: Annotated[float, _VALIDATION["fps"]] = 30


class MochiCheckpointConfig(CheckpointConfig):
    """What is kept. The last step is always saved."""

    every_steps: Annotated[int | None, _CHECKPOINT["every_steps"]] = 200


TextEncoder = Annotated[
    str,
    setting(
        "google/t5-v1_1-xxl",
        "The text encoder (T5) and its tokenizer, a folder or an id on the Hugging Face Hub, for base models without "
        "their own: Genmo's folder of weights has none.",
        min_length=1,
    ),
]
ThresholdNoise = Annotated[
    float,
    setting(
        0.025,
        "Share of the noise that the linear part of the sampling schedule takes away, before the quadratic part takes "
        "the rest.",
        gt=0,
        lt=1,
    ),
]
LinearSteps = Annotated[
    int | None, setting(None, "Denoising steps of the linear part. Empty: half of them, rounded down.", ge=1)
]
GuidanceSchedule = Annotated[
    list[float],
    setting([], "Guidance of each denoising step, one per line, instead of guidance_scale. Empty: that for all."),
]


class MochiTrainConfig(TrainConfig):
    """A training run of Mochi."""

    family: Literal["mochi"] = setting("mochi", "Model family.")
    method: Method = setting(
        "lora",
        "lora: a small adapter on the attention of every block, in both streams. full: every weight of the "
        "transformer.",
        basic=True,
    )
    max_train_steps: Annotated[int, _TRAIN["max_train_steps"]] = 2000
    dataset: MochiDatasetConfig
    adapter: MochiAdapterConfig = Field(default_factory=MochiAdapterConfig)
    optimizer: MochiOptimizerConfig = Field(default_factory=MochiOptimizerConfig)
    memory: MochiMemoryConfig = Field(default_factory=MochiMemoryConfig)
    validation: MochiValidationConfig = Field(default_factory=MochiValidationConfig)
    checkpoint: MochiCheckpointConfig = Field(default_factory=MochiCheckpointConfig)
    latent_normalisation: LatentNormalisation = setting(
        "consistent",
        "In which space the model learns. consistent: latents normalised per channel in what it gets and in what it "
        "should answer, as it samples. genmo: only in the answer, as Genmo's trainer since 2025-01-08. none: nowhere, "
        "as Genmo's before and cogvideox-factory's.",
    )
    start_from: str | None = setting(
        None,
        "Weights to begin from: a checkpoint of a run, or a file of Genmo's trainer or of diffusers. start_step "
        "says how many steps they took. Empty: a new LoRA, or the base model as it is.",
        min_length=1,
    )
    text_encoder: TextEncoder
    threshold_noise: ThresholdNoise
    linear_steps: LinearSteps
    guidance_schedule: GuidanceSchedule

    @model_validator(mode="after")
    def _rules(self) -> Self:
        check_size(self.dataset.height, self.dataset.width, SIZE_MULTIPLE, "dataset.")
        check_frames(self.dataset.num_frames, FRAME_MULTIPLE, "Mochi", "dataset.num_frames")
        if self.validation.height or self.validation.width:
            check_size(*self.drawn_size, SIZE_MULTIPLE, "validation.")
        if self.validation.num_frames:
            check_frames(self.validation.num_frames, FRAME_MULTIPLE, "Mochi", "validation.num_frames")
        _check_steps(self, self.validation.num_inference_steps, "validation.num_inference_steps")
        return self


class MochiSampleConfig(SampleConfig):
    """A comparison of Mochi takes."""

    family: Literal["mochi"] = setting("mochi", "Model family.")
    num_frames: Annotated[int, _SAMPLE["num_frames"]] = 37
    height: Annotated[int, _SAMPLE["height"]] = 480
    width: Annotated[int, _SAMPLE["width"]] = 848
    num_inference_steps: Annotated[int, _SAMPLE["num_inference_steps"]] = 64
    guidance_scale: Annotated[float, _SAMPLE["guidance_scale"]] = 6
    fps: Annotated[float, _SAMPLE["fps"]] = 30
    text_encoder: TextEncoder
    threshold_noise: ThresholdNoise
    linear_steps: LinearSteps
    guidance_schedule: GuidanceSchedule
    vae_tiling: VaeTiling
    vae_slicing: VaeSlicing
    cpu_offload: bool = setting(
        False,
        "Keep each model in main memory and on the GPU only while it works: the text encoder, then the transformer, "
        "then the decoder. Slower between clips; the GPU needs room for the largest of them only.",
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        check_size(self.height, self.width, SIZE_MULTIPLE, "")
        check_frames(self.num_frames, FRAME_MULTIPLE, "Mochi", "num_frames")
        _check_steps(self, self.num_inference_steps, "num_inference_steps")
        return self


# --- rules -----------------------------------------------------------------------------------------------------------


def _check_steps(config: MochiTrainConfig | MochiSampleConfig, steps: int, where: str) -> None:
    """What is said of denoising steps one by one must fit their number."""
    schedule = config.guidance_schedule
    if schedule and len(schedule) != steps:
        raise FieldError(
            "guidance_schedule",
            f"has {len(schedule)} numbers, but {where} is {steps}: give one for each step, or none",
        )
    wrong = [guidance for guidance in schedule if not 0 <= guidance <= 100]
    if wrong:
        raise FieldError("guidance_schedule", f"has {wrong[0]:g}; guidance is from 0 to 100, and 1 turns it off")
    if config.linear_steps is not None and config.linear_steps >= max(steps, 2):
        raise FieldError(
            "linear_steps", f"is {config.linear_steps}, but of {steps} denoising steps some must be left: lower it"
        )


# --- findings --------------------------------------------------------------------------------------------------------


def findings(config: TrainConfig | SampleConfig) -> list[Finding]:
    """What can be said of a config from the files that it names."""
    assert isinstance(config, (MochiTrainConfig, MochiSampleConfig))
    return [*_base_findings(config), *_start_findings(config), *_hints(config)]


def _base_findings(config: MochiTrainConfig | MochiSampleConfig) -> list[Finding]:
    path = Path(config.base_model).expanduser()
    if not path.exists():
        if is_hub_id(config.base_model):
            return []
        text = f"base_model {config.base_model} does not exist; give a folder or a Hub id"
        return [Finding("error", text, "base_model")]
    if not is_base(path):
        if (path / TRANSFORMER_CONFIG).is_file():
            text = f"base_model {config.base_model} is no Mochi: {TRANSFORMER_CONFIG} is of another kind of model"
        else:
            text = (
                f"base_model {config.base_model} is no Mochi: it has neither {TRANSFORMER_CONFIG}, as a pipeline "
                f"folder, nor all of Genmo's {', '.join(GENMO_FILES)}"
            )
        return [Finding("error", text, "base_model")]
    if is_pipeline(path) or not is_genmo(path):
        return []
    encoder = Path(config.text_encoder).expanduser()
    if not encoder.exists() and not is_hub_id(config.text_encoder):
        text = (
            f"text_encoder {config.text_encoder} does not exist, and base_model {config.base_model} has none of its "
            "own; give a folder or a Hub id"
        )
        return [Finding("error", text, "text_encoder")]
    return []


def _start_findings(config: MochiTrainConfig | MochiSampleConfig) -> list[Finding]:
    start = config.start_from if isinstance(config, MochiTrainConfig) else None
    if start is None or Path(start).expanduser().exists():
        return []
    text = f"start_from {start} does not exist; give a checkpoint folder or a file, or leave it empty"
    return [Finding("error", text, "start_from")]


def _hints(config: MochiTrainConfig | MochiSampleConfig) -> list[Finding]:
    found = []
    if config.mixed_precision == "fp16":
        text = "mixed_precision is fp16, but Mochi was trained in bf16 and can overflow: set bf16"
        found.append(Finding("warning", text, "mixed_precision"))
    if isinstance(config, MochiTrainConfig):
        if config.memory.compile_blocks and not any(map(shutil.which, COMPILERS)):
            text = "memory.compile_blocks needs a C++ compiler, and there is none: install g++, or turn it off"
            found.append(Finding("error", text, "memory.compile_blocks"))
        if config.dataset.num_frames > LONGEST and not config.dataset.prepared:
            text = (
                f"dataset.num_frames is {config.dataset.num_frames}: {LONGEST} is the most that was published to train "
                "on a card of 80 GB; samples may be longer than what was trained"
            )
            found.append(Finding("info", text, "dataset.num_frames"))
        if config.latent_normalisation != "consistent":
            text = (
                f"latent_normalisation is {config.latent_normalisation}, as another trainer has it; samples are drawn "
                "in normalised space, which only consistent trains in as well"
            )
            found.append(Finding("info", text, "latent_normalisation"))
    return found


def advice(config: TrainConfig, rows: Sequence[LedgerRow]) -> list[Finding]:
    """What Genmo's guide advises: hints, never obstacles."""
    found = []
    rate = config.optimizer.learning_rate
    if config.method == "lora" and config.optimizer.name != "prodigy" and not 1e-4 <= rate <= 2e-4:
        text = f"optimizer.learning_rate is {rate:g}: 1e-4 to 2e-4 works well for a LoRA"
        found.append(Finding("info", text, "optimizer.learning_rate"))
    cut = [row.clip.name for row in rows if row.status != "dropped" and len(row.clip.text.split()) >= MAX_TOKENS]
    if cut:
        text = f"{cut[0]} has a caption of more than {MAX_TOKENS} tokens, whose end is not read"
        others = f" (and {len(cut) - 1} more)" if len(cut) > 1 else ""
        found.append(Finding("warning", text.replace(" has a", f"{others} has a"), "dataset.path"))
    return found


def read_foreign(text: str) -> Foreign | None:
    """An upstream config or command in our words; its rooms are read only when there is one."""
    from trainers.families.mochi import compat

    return compat.read_foreign(text)


FAMILY = ModelFamily(
    name="mochi",
    title="Mochi",
    tasks=("text-to-video",),
    methods={
        "lora": "A small adapter on the attention of every block, in the video and the text stream: a concept, a style "
        "or a movement.",
        "full": "Every weight of the transformer: from many clips, with the memory of several cards.",
    },
    export_formats={
        "diffusers-lora": "A LoRA file for diffusers' load_lora_weights, alpha folded in: a .safetensors file, or a "
        "folder with one.",
        "genmo-lora": "A LoRA file for Genmo's demos and ComfyUI (model_200.lora.safetensors), alpha folded in. Of "
        "query, key and value that do not share a lower half, the rank is three times as large.",
        "diffusers": "A whole transformer/ folder for diffusers. A LoRA is merged into its base model's transformer.",
        "genmo": "A whole transformer as Genmo's dit.safetensors. A LoRA is merged into its base model's transformer.",
    },
    train_config=MochiTrainConfig,
    sample_config=MochiSampleConfig,
    presets=PRESETS,
    size_multiple=SIZE_MULTIPLE,
    frames_within=partial(frames_within, multiple=FRAME_MULTIPLE),
    findings=findings,
    is_base=is_base,
    hub_bases=("genmo/mochi-1-preview",),
    read_foreign=read_foreign,
    reads="the config and commands of Genmo's fine-tuner (lora.yaml; preprocess.bash, run.bash, cli.py) and commands "
    "of cogvideox-factory's mochi-1 trainer",
    prepared=prepared,
    advice=advice,
    model="trainers.families.mochi.model:Mochi",
    exporter="trainers.families.mochi.export:export",
)
