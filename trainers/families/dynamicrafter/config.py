"""What a person may set for DynamiCrafter, and its frame and size rules. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainers.config import (
    AdapterConfig,
    DatasetConfig,
    MemoryConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
    ValidationConfig,
    check_images,
)
from trainers.families.base import Finding, ModelError, ModelFamily, is_hub_id
from trainers.families.dynamicrafter.compat import read_foreign
from trainers.families.dynamicrafter.facts import (
    HUB_BASES,
    WEIGHTS,
    Facts,
    Variant,
    facts_of,
    has_network,
    keys_of,
    weights_in,
)
from trainers.families.dynamicrafter.presets import PRESETS
from trainers.families.rules import check_size
from trainers.settings import FieldError, setting

DECODED = (300, 530)  # height and width to which the reference's decoder may squeeze clips
SIZE_MULTIPLE = 64  # the VAE makes an eighth of each side, and the network halves it three times
Method = Literal["lora", "full"]

# The sections with this family's defaults: each field is the common one, with another value.
_DATASET, _OPTIMIZER = DatasetConfig.model_fields, OptimizerConfig.model_fields
_MEMORY, _VALIDATION, _SAMPLE = MemoryConfig.model_fields, ValidationConfig.model_fields, SampleConfig.model_fields

#: Every linear layer of the network, by the names that its blocks repeat.
TARGETS = [
    "to_q", "to_k", "to_v", "to_out.0", "to_k_ip", "to_v_ip", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
    "emb_layers.1", "time_embed.0", "time_embed.2", "fps_embedding.0", "fps_embedding.2",
]  # fmt: skip


class DynamiCrafterDatasetConfig(DatasetConfig):
    """What the model will see."""

    num_frames: Annotated[int, _DATASET["num_frames"]] = 16
    height: Annotated[int, _DATASET["height"]] = 320
    width: Annotated[int, _DATASET["width"]] = 512
    lower_stride: Annotated[bool, _DATASET["lower_stride"]] = True
    fps_rounding: Annotated[Literal["nearest", "earlier", "stride"], _DATASET["fps_rounding"]] = "stride"
    decode_small: bool = setting(
        False,
        "Squeeze clips to 530 x 300 as they are decoded, before they are fitted to height x width. It distorts all "
        "that have another shape; the reference does so unless load_raw_resolution is set.",
    )
    upstream_defects: bool = setting(
        False,
        "Read clips with the mistakes of DynamiCrafter's own reader, to repeat what was trained so: a clip that is too "
        "short shows the next one, whose stride is multiplied once more; clips that are too narrow have black bars; "
        "rows of a table with an empty cell are lost.",
    )

    @property
    def decoded_size(self) -> tuple[int, int] | None:
        return DECODED if self.decode_small else None

    @property
    def smooth(self) -> bool:
        return True

    @property
    def as_reference(self) -> bool:
        return self.upstream_defects

    @model_validator(mode="after")
    def _drawn_as_reference(self) -> Self:
        if self.upstream_defects and (self.frame_selection != "random" or self.fps_rounding != "stride"):
            raise FieldError(
                "dataset.upstream_defects",
                "repeats a reader of random samples at whole strides: set dataset.frame_selection to random and "
                "dataset.fps_rounding to stride, or turn it off",
            )
        return self


class DynamiCrafterAdapterConfig(AdapterConfig):
    """The low-rank adapter that method lora trains."""

    rank: Annotated[int, AdapterConfig.model_fields["rank"]] = 64
    alpha: float | None = setting(
        None,
        "Strength of the LoRA is alpha / rank. Empty: half of rank, strength 0.5.",
        gt=0,
        show_if={"method": ["lora"]},
    )
    dropout: Annotated[float, AdapterConfig.model_fields["dropout"]] = 0.1
    target_modules: Annotated[list[str], AdapterConfig.model_fields["target_modules"]] = TARGETS
    skip_layers: list[str] = setting(
        [],
        "Parts of a layer's path, one per line: layers with one of them in their path get no LoRA. Paths are as in the "
        "model's file, such as model.diffusion_model.middle_block.1.proj_in.",
        show_if={"method": ["lora"]},
    )


class DynamiCrafterOptimizerConfig(OptimizerConfig):
    """How weights are changed."""

    learning_rate: Annotated[float, _OPTIMIZER["learning_rate"]] = 1e-5
    lr_scheduler: Annotated[
        Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"],
        _OPTIMIZER["lr_scheduler"],
    ] = "constant"
    gradient_accumulation_steps: Annotated[int, _OPTIMIZER["gradient_accumulation_steps"]] = 16
    max_grad_norm: Annotated[float | None, _OPTIMIZER["max_grad_norm"]] = 0.5


class DynamiCrafterMemoryConfig(MemoryConfig):
    """What trades time for memory."""

    gradient_checkpointing: Annotated[Literal["none", "full", "sac"], _MEMORY["gradient_checkpointing"]] = "full"


NONE: list[str] = []
EndImages = Annotated[
    list[str],
    setting(
        [],
        "Image files that the clips end with, one for each prompt or a single one for all: the 512-interp model draws "
        "what lies between.",
    ),
]
Loop = Annotated[bool, setting(False, "End with the image that the clip begins from, so that it can run in a circle.")]
Pace = Annotated[
    int | None,
    setting(
        None,
        "How fast the clips move, as the model was told in its training. 512 and 1024: frames per second, 5 to 30; "
        "fewer move more. 256: frames from one to the next, 1 to 6; more move more. Empty: the model's usual one (256: "
        "3, 512: 24, 512-interp: 5, 1024: 10).",
        ge=1,
        le=1000,
    ),
]
Eta = Annotated[float, setting(1.0, "Fresh noise in each step: 1 as much as it takes away, 0 none.", ge=0, le=1)]
GuidanceRescale = Annotated[
    float | None,
    setting(
        None,
        "How far the contrast that guidance adds is taken back. Empty: as the model was made for, 0.7, and 0 for 256.",
        ge=0,
        le=1,
    ),
]
ImageGuidance = Annotated[
    float | None,
    setting(
        None,
        "How strongly a clip follows its image, apart from its prompt; a third computation in each step. Empty: "
        "guidance is for both together.",
        ge=0,
        le=100,
    ),
]


class DynamiCrafterValidationConfig(ValidationConfig):
    """How the run is judged while it goes."""

    num_inference_steps: Annotated[int, _VALIDATION["num_inference_steps"]] = 50
    end_images: EndImages = NONE
    loop: Loop = False
    fs: Pace = None
    eta: Eta = 1.0
    guidance_rescale: GuidanceRescale = None
    image_guidance_scale: ImageGuidance = None

    @property
    def last_images(self) -> list[str]:
        return self.end_images

    @model_validator(mode="after")
    def _ends_fit(self) -> Self:
        _check_ends("validation.", self)
        return self


VariantSetting = Annotated[
    Variant | None,
    setting(
        None,
        "Which of the published models the base is, whose files do not say it. Empty: as the name of the file or its "
        "folder tells, or a config.yaml beside it.",
    ),
]


class DynamiCrafterTrainConfig(TrainConfig):
    """A training run of DynamiCrafter."""

    family: Literal["dynamicrafter"] = setting("dynamicrafter", "Model family.")
    method: Method = setting(
        "lora",
        "lora: a small adapter on every linear layer of the network. full: every weight of the network, and of the "
        "resampler between it and the image encoder.",
        basic=True,
    )
    variant: VariantSetting
    dataset: DynamiCrafterDatasetConfig
    adapter: DynamiCrafterAdapterConfig = Field(default_factory=DynamiCrafterAdapterConfig)
    optimizer: DynamiCrafterOptimizerConfig = Field(default_factory=DynamiCrafterOptimizerConfig)
    memory: DynamiCrafterMemoryConfig = Field(default_factory=DynamiCrafterMemoryConfig)
    validation: DynamiCrafterValidationConfig = Field(default_factory=DynamiCrafterValidationConfig)
    start_from: str | None = setting(
        None,
        "Weights to go on from: a checkpoint folder, or a file with a LoRA of the same rank or, for method full, with "
        "a whole network. Empty: the base alone.",
        min_length=1,
    )
    image_dropout: float = setting(
        0.1,
        "Share of samples that train without what the image encoder sees, which guidance at generation needs. Half of "
        "those without their caption (dataset.caption_dropout) are among them.",
        ge=0,
        le=1,
    )
    rand_cond_frame: bool = setting(
        True,
        "Condition on a random frame of the clip instead of the first, so that not only its beginning is learned from.",
    )
    interp_mode: bool | None = setting(
        None,
        "Learn what lies between the first frame and the last, both of which are given. Empty: as the base model was "
        "made.",
    )
    fps_max: int | None = setting(
        None, "The most frames per second that the model is told a clip has. Empty: as it is.", ge=1
    )

    @model_validator(mode="after")
    def _rules(self) -> Self:
        check_size(self.dataset.height, self.dataset.width, SIZE_MULTIPLE, "dataset.")
        if self.validation.height or self.validation.width:
            check_size(*self.drawn_size, SIZE_MULTIPLE, "validation.")
        if self.image_dropout + self.dataset.caption_dropout / 2 > 1:
            raise FieldError(
                "image_dropout",
                f"is {self.image_dropout:g}: together with half of dataset.caption_dropout it must not be more than 1",
            )
        return self


class DynamiCrafterSampleConfig(SampleConfig):
    """A comparison of DynamiCrafter takes."""

    family: Literal["dynamicrafter"] = setting("dynamicrafter", "Model family.")
    variant: VariantSetting
    num_frames: Annotated[int, _SAMPLE["num_frames"]] = 16
    height: Annotated[int, _SAMPLE["height"]] = 320
    width: Annotated[int, _SAMPLE["width"]] = 512
    num_inference_steps: Annotated[int, _SAMPLE["num_inference_steps"]] = 50
    interp_mode: bool | None = setting(
        None,
        "Draw what lies between two images. Empty: as each checkpoint was trained, else as the base model was made.",
    )
    end_images: EndImages
    loop: Loop
    fs: Pace
    eta: Eta
    guidance_rescale: GuidanceRescale
    image_guidance_scale: ImageGuidance

    @property
    def last_images(self) -> list[str]:
        return self.end_images

    @model_validator(mode="after")
    def _rules(self) -> Self:
        check_size(self.height, self.width, SIZE_MULTIPLE, "")
        _check_ends("", self)
        return self


#: The settings of what is drawn, for either stage.
Drawing = DynamiCrafterValidationConfig | DynamiCrafterSampleConfig


# --- rules -----------------------------------------------------------------------------------------------------------


def _check_ends(prefix: str, drawing: Drawing) -> None:
    check_images(f"{prefix}end_images", drawing.end_images, drawing.prompts)
    if drawing.end_images and drawing.loop:
        raise FieldError(f"{prefix}loop", f"ends where it began, but {prefix}end_images are given; leave one of them")


# --- findings --------------------------------------------------------------------------------------------------------


def findings(config: TrainConfig | SampleConfig) -> list[Finding]:
    """What can be said of a config from the base model's file, without reading weights."""
    assert isinstance(config, (DynamiCrafterTrainConfig, DynamiCrafterSampleConfig))
    problem = _problem_of_base(config.base_model)
    if problem is not None:
        return [Finding("error", problem, "base_model")]
    try:
        facts = facts_of(config.base_model, config.variant)
    except ModelError as error:
        return [Finding("error", str(error), "base_model")]
    if facts is None:
        return [Finding("error", unknown_variant(config.base_model), "variant")]
    start = config.start_from if isinstance(config, DynamiCrafterTrainConfig) else None
    if start is not None and not Path(start).expanduser().exists():
        text = f"start_from {start} does not exist; give a checkpoint folder or a file, or leave it empty"
        return [Finding("error", text, "start_from")]
    return [*_frame_findings(config, facts), *_image_findings(config, facts), *_size_findings(config, facts)]


def unknown_variant(base_model: str) -> str:
    """The sentence for a base whose name does not tell which model it is."""
    return (
        f"nothing tells which of the models base_model {base_model} is: set variant to 256, 512, 512-interp or 1024, "
        "or name the file or its folder so"
    )


def _problem_of_base(base_model: str) -> str | None:
    """Why a base model cannot be read, as far as names tell."""
    path = Path(base_model).expanduser()
    if not path.exists():
        return (
            None if is_hub_id(base_model) else f"base_model {base_model} does not exist; give a file, folder or Hub id"
        )
    file = weights_in(path)
    if file is None:
        return f"base_model {base_model} is not a DynamiCrafter folder: it has no {' and no '.join(WEIGHTS)}"
    keys = keys_of(file)
    if keys and not has_network(keys):
        return f"base_model {file} holds no DynamiCrafter network; give a whole model, as model.ckpt of the Hub is one"
    return None


def _frame_findings(config: DynamiCrafterTrainConfig | DynamiCrafterSampleConfig, facts: Facts) -> list[Finding]:
    if isinstance(config, DynamiCrafterSampleConfig):
        counts = {"num_frames": config.num_frames}
    else:
        counts = {"dataset.num_frames": config.dataset.num_frames}
        if config.draws:
            counts["validation.num_frames"] = config.drawn_frames
    for where, count in counts.items():
        if count != facts.num_frames:
            return [Finding("error", f"{where} is {wrong_frames(count, config.base_model, facts)}", where)]
    if isinstance(config, DynamiCrafterTrainConfig) and config.dataset.frame_buckets:
        text = (
            f"dataset.frame_buckets lets shorter clips in, but {config.base_model} takes {facts.num_frames} frames only"
        )
        return [Finding("warning", f"{text}, and the run ends at such a clip; turn it off", "dataset.frame_buckets")]
    return []


def wrong_frames(count: int, base_model: str, facts: Facts) -> str:
    """The rest of the sentence about a number of frames that a base does not take."""
    return (
        f"{count}, but {base_model} takes exactly {facts.num_frames} frames, for each of which it has tokens of the "
        f"image: set {facts.num_frames}"
    )


def _image_findings(config: DynamiCrafterTrainConfig | DynamiCrafterSampleConfig, facts: Facts) -> list[Finding]:
    """What samples need to begin from, and to end with."""
    train = isinstance(config, DynamiCrafterTrainConfig)
    drawing: Drawing = config.validation if isinstance(config, DynamiCrafterTrainConfig) else config
    prefix = "validation." if train else ""
    if isinstance(config, DynamiCrafterTrainConfig) and not config.draws:
        return []
    otherwise = ", or leave validation.prompts empty" if train else ""
    if not drawing.images:
        text = f"DynamiCrafter turns an image into a video, so samples need one: name an image in {prefix}images"
        return [Finding("error", text + otherwise, f"{prefix}images")]
    interp = facts.interp if config.interp_mode is None else config.interp_mode
    follows = isinstance(config, DynamiCrafterSampleConfig) and config.interp_mode is None and config.checkpoints
    if interp and not drawing.end_images and not drawing.loop:
        text = f"{config.base_model} draws what lies between two images: name the second in {prefix}end_images"
        return [Finding("error", f"{text}, or set {prefix}loop to true", f"{prefix}end_images")]
    if not interp and drawing.end_images and not follows:  # a checkpoint may have been trained so
        text = f"{prefix}end_images are given, but {config.base_model} draws what follows one image"
        return [Finding("error", f"{text}: leave them empty, or set interp_mode to true", f"{prefix}end_images")]
    return []


def _size_findings(config: DynamiCrafterTrainConfig | DynamiCrafterSampleConfig, facts: Facts) -> list[Finding]:
    own = config.dataset if isinstance(config, DynamiCrafterTrainConfig) else config
    if (own.height, own.width) == facts.native or facts.native[0] % SIZE_MULTIPLE or facts.native[1] % SIZE_MULTIPLE:
        return []
    height, width = facts.native
    where = "dataset.height" if own is not config else "height"
    text = f"{config.base_model} was made for {height} x {width}, not for {own.height} x {own.width}"
    return [Finding("info", text, where)]


def is_base(folder: Path) -> bool:
    """Whether a folder holds a whole DynamiCrafter model."""
    file = weights_in(folder)
    return file is not None and has_network(keys_of(file))


FAMILY = ModelFamily(
    name="dynamicrafter",
    title="DynamiCrafter",
    tasks=("image-to-video",),
    methods={
        "lora": "A small adapter on every linear layer of the network: a movement or a style, from some hundred clips.",
        "full": "Every weight of the network and of the resampler: from many clips, with the memory of a large card.",
    },
    export_formats={
        "merged": "A whole model in the names of DynamiCrafter's own files, for its scripts and ComfyUI's "
        "DynamiCrafterWrapper, which tells the model by the file's name: dynamicrafter_512_NAME.safetensors. A LoRA is "
        "merged into its base.",
        "lora": "A LoRA file in the names of the fork that trains LoRAs, for its apply_lora.py, with rank and alpha in "
        "the header.",
    },
    train_config=DynamiCrafterTrainConfig,
    sample_config=DynamiCrafterSampleConfig,
    presets=PRESETS,
    size_multiple=SIZE_MULTIPLE,
    frames_within=lambda available: available,
    findings=findings,
    is_base=is_base,
    hub_bases=HUB_BASES,
    read_foreign=read_foreign,
    reads="the config of DynamiCrafter's trainer and of its fork for LoRAs, with the command that starts it, and "
    "inference.py commands",
    takes_image=lambda config: True,
    model="trainers.families.dynamicrafter.model:DynamiCrafter",
    exporter="trainers.families.dynamicrafter.export:export",
    export_commands={
        "extract": "trainers.families.dynamicrafter.commands:extract",
        "apply": "trainers.families.dynamicrafter.commands:apply",
    },
)
