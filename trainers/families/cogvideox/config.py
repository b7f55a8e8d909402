"""What a person may set for CogVideoX, and its frame and size rules. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from trainers.config import (
    AdapterConfig,
    DatasetConfig,
    MemoryConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
    ValidationConfig,
)
from trainers.families.base import Finding, ModelFamily, is_hub_id
from trainers.families.cogvideox.facts import PUBLISHED, TRANSFORMER_CONFIG, Facts, base_facts
from trainers.families.cogvideox.presets import PRESETS
from trainers.families.rules import check_frames, check_size, frames_within
from trainers.foreign import Foreign
from trainers.runs import Checkpoint
from trainers.settings import setting

if TYPE_CHECKING:
    from trainers.data.ledger import LedgerRow

SIZE_MULTIPLE = 16  # the VAE makes an eighth of each side, and a patch is two of those
FRAME_MULTIPLE = 4  # a latent frame is four frames, but the first, which is one
ENOUGH_CLIPS, ENOUGH_RANK, ENOUGH_SCALE = 25, 64, 0.25
Method = Literal["lora", "full"]
Rotary = Literal["pipeline", "integers"]
ImageScale = Literal["pipeline", "video"]

# The sections with this family's defaults: each field is the common one, with another value.
_DATASET, _ADAPTER, _OPTIMIZER = DatasetConfig.model_fields, AdapterConfig.model_fields, OptimizerConfig.model_fields
_MEMORY, _VALIDATION, _SAMPLE = MemoryConfig.model_fields, ValidationConfig.model_fields, SampleConfig.model_fields


class CogVideoXDatasetConfig(DatasetConfig):
    """What the model will see."""

    num_frames: Annotated[int, _DATASET["num_frames"]] = 49
    height: Annotated[int, _DATASET["height"]] = 480
    width: Annotated[int, _DATASET["width"]] = 720
    fps: Annotated[float | None, _DATASET["fps"]] = 8
    caption_dropout: Annotated[float, _DATASET["caption_dropout"]] = 0.0


class CogVideoXAdapterConfig(AdapterConfig):
    """The low-rank adapter that method lora trains."""

    rank: Annotated[int, _ADAPTER["rank"]] = 128


class CogVideoXOptimizerConfig(OptimizerConfig):
    """How weights are changed."""

    beta2: Annotated[float, _OPTIMIZER["beta2"]] = 0.95
    weight_decay: Annotated[float, _OPTIMIZER["weight_decay"]] = 1e-4


VaeTiling = Annotated[
    bool,
    setting(
        True,
        "Encode and decode video in overlapping tiles: a quarter of the memory, and seams that are hardly seen. Clips "
        "that are no larger than half of 480 x 720 are one tile.",
    ),
]
VaeSlicing = Annotated[bool, setting(True, "Encode and decode the clips of a batch one after the other.")]


class CogVideoXMemoryConfig(MemoryConfig):
    """What trades time for memory."""

    gradient_checkpointing: Annotated[Literal["none", "full", "sac"], _MEMORY["gradient_checkpointing"]] = "full"
    vae_tiling: VaeTiling = True
    vae_slicing: VaeSlicing = True


class CogVideoXValidationConfig(ValidationConfig):
    """How the run is judged while it goes."""

    num_inference_steps: Annotated[int, _VALIDATION["num_inference_steps"]] = 50
    guidance_scale: Annotated[float, _VALIDATION["guidance_scale"]] = 6


Scheduler = Annotated[
    Literal["ddim", "dpm"],
    setting(
        "dpm",
        "How samples are drawn, with the base model's schedule. dpm: with fresh noise in each step, as CogVideoX's "
        "trainers and the 5B models' examples do. ddim: without, as those of 2B do.",
    ),
]
DynamicGuidance = Annotated[
    bool,
    setting(
        False,
        "Let guidance change over the steps by a cosine, as the pipeline's use_dynamic_cfg does.",
    ),
]


class CogVideoXTrainConfig(TrainConfig):
    """A training run of CogVideoX."""

    family: Literal["cogvideox"] = setting("cogvideox", "Model family.")
    method: Method = setting(
        "lora",
        "lora: a small adapter on the attention of every block. full: every weight of the transformer (SFT).",
        basic=True,
    )
    dataset: CogVideoXDatasetConfig
    adapter: CogVideoXAdapterConfig = Field(default_factory=CogVideoXAdapterConfig)
    optimizer: CogVideoXOptimizerConfig = Field(default_factory=CogVideoXOptimizerConfig)
    memory: CogVideoXMemoryConfig = Field(default_factory=CogVideoXMemoryConfig)
    validation: CogVideoXValidationConfig = Field(default_factory=CogVideoXValidationConfig)
    image_noise_dropout: float = setting(
        0.05,
        "Image to video: share of samples that train without their image, so that the text is heard as well.",
        ge=0,
        le=1,
    )
    image_noise: bool = setting(
        True,
        "Image to video: put a little noise on the image, of another strength each time (log-normal, about 0.05), so "
        "that movement is not given up for likeness.",
    )
    rotary: Rotary = setting(
        "pipeline",
        "Where a patch stands, for models with rotary positions. pipeline: as diffusers' pipelines have it, which fit "
        "other sizes into the base's. integers: counted, as CogVideo's current trainer does; the same at "
        "the base's own size, and for CogVideoX 1.5.",
    )
    image_latent_scale: ImageScale = setting(
        "pipeline",
        "Image to video: how the image's latents are scaled. pipeline: as diffusers' pipeline does, which divides "
        "instead of multiplying for CogVideoX 1.5. video: like the video's, as other trainers do; such a LoRA is off "
        "by a factor of two in the pipeline.",
    )
    learned_positions: bool = setting(
        True,
        "Use the learned positions of CogVideoX-5B-I2V, which tie it to 480 x 720. Off: leave them out, in training "
        "and in sampling, so that other sizes work; their effect is small.",
    )
    use_dynamic_cfg: DynamicGuidance
    scheduler: Scheduler

    @model_validator(mode="after")
    def _rules(self) -> Self:
        check_size(self.dataset.height, self.dataset.width, SIZE_MULTIPLE, "dataset.")
        check_frames(self.dataset.num_frames, FRAME_MULTIPLE, "CogVideoX", "dataset.num_frames")
        if self.validation.height or self.validation.width:
            check_size(*self.drawn_size, SIZE_MULTIPLE, "validation.")
        if self.validation.num_frames:
            check_frames(self.validation.num_frames, FRAME_MULTIPLE, "CogVideoX", "validation.num_frames")
        return self


class CogVideoXSampleConfig(SampleConfig):
    """A comparison of CogVideoX takes."""

    family: Literal["cogvideox"] = setting("cogvideox", "Model family.")
    num_frames: Annotated[int, _SAMPLE["num_frames"]] = 49
    height: Annotated[int, _SAMPLE["height"]] = 480
    width: Annotated[int, _SAMPLE["width"]] = 720
    num_inference_steps: Annotated[int, _SAMPLE["num_inference_steps"]] = 50
    guidance_scale: Annotated[float, _SAMPLE["guidance_scale"]] = 6
    rotary: Rotary | None = setting(
        None, "Where a patch stands. Empty: as each checkpoint was trained; as the pipeline has it where none says."
    )
    image_latent_scale: ImageScale | None = setting(
        None, "How the image's latents are scaled. Empty: as each checkpoint was trained; as the pipeline does else."
    )
    learned_positions: bool | None = setting(
        None, "Use the learned positions of CogVideoX-5B-I2V. Empty: as each checkpoint was trained; else use them."
    )
    use_dynamic_cfg: DynamicGuidance
    scheduler: Scheduler
    vae_tiling: VaeTiling
    vae_slicing: VaeSlicing

    @model_validator(mode="after")
    def _rules(self) -> Self:
        check_size(self.height, self.width, SIZE_MULTIPLE, "")
        check_frames(self.num_frames, FRAME_MULTIPLE, "CogVideoX", "num_frames")
        return self


# --- findings --------------------------------------------------------------------------------------------------------


def takes_image(config: TrainConfig | SampleConfig) -> bool | None:
    """Whether what is drawn begins from an image; None where the base model cannot be read here."""
    facts = base_facts(config.base_model)
    return None if facts is None else facts.takes_image


def findings(config: TrainConfig | SampleConfig) -> list[Finding]:
    """What can be said of a config from the base model's settings."""
    assert isinstance(config, (CogVideoXTrainConfig, CogVideoXSampleConfig))
    path = Path(config.base_model).expanduser()
    if not path.exists() and not is_hub_id(config.base_model):
        text = f"base_model {config.base_model} does not exist; give a folder or a Hub id"
        return [Finding("error", text, "base_model")]
    if path.exists() and not (path / TRANSFORMER_CONFIG).is_file():
        text = f"base_model {config.base_model} is not a CogVideoX pipeline folder: it has no {TRANSFORMER_CONFIG}"
        return [Finding("error", text, "base_model")]
    facts = base_facts(config.base_model)
    if facts is None and path.exists():
        text = f"base_model {config.base_model} is no CogVideoX: {TRANSFORMER_CONFIG} is of another kind of model"
        return [Finding("error", text, "base_model")]
    if facts is None:
        return []
    return [*_image_findings(config, facts), *_position_findings(config, facts), *_hints(config, facts)]


def _image_findings(config: CogVideoXTrainConfig | CogVideoXSampleConfig, facts: Facts) -> list[Finding]:
    if isinstance(config, CogVideoXTrainConfig):
        where, images, drawn = "validation.images", config.validation.images, config.draws
    else:
        where, images, drawn = "images", config.images, True
    if not facts.takes_image or images or not drawn:
        return []
    text = f"{config.base_model} turns an image into a video, so samples need one: name an image in {where}"
    if isinstance(config, CogVideoXTrainConfig):
        text += ", or leave validation.prompts empty"
    return [Finding("error", text, where)]


def _position_findings(config: CogVideoXTrainConfig | CogVideoXSampleConfig, facts: Facts) -> list[Finding]:
    """What learned positions forbid. (diffusers makes sine positions for another number of frames by itself.)"""
    if not facts.learned_positions or _without_learned(config):
        return []
    frames, height, width = facts.native
    sizes = {"height": (config.height, config.width)} if isinstance(config, CogVideoXSampleConfig) else {}
    if isinstance(config, CogVideoXTrainConfig):
        sizes["dataset.height"] = (config.dataset.height, config.dataset.width)
        if config.draws:
            sizes["validation.height"] = config.drawn_size
        if config.dataset.fit == "buckets" and sizes["dataset.height"] == (height, width):
            text = f"dataset.fit is buckets, but {_tied(config, facts)}: set dataset.fit to crop"
            return [Finding("error", f"{text}, or learned_positions to false", "dataset.fit")]
    for where, size in sizes.items():
        if size != (height, width):
            prefix = where.removesuffix("height")
            at = where if size[0] != height else f"{prefix}width"
            text = f"{at} makes it {size[0]} x {size[1]}, but {_tied(config, facts)}"
            return [
                Finding(
                    "error",
                    f"{text}: set {prefix}height to {height} and {prefix}width to {width}, or learned_positions to "
                    "false",
                    at,
                )
            ]
    used = config.num_frames if isinstance(config, CogVideoXSampleConfig) else config.dataset.num_frames
    if used != frames:
        at = "num_frames" if isinstance(config, CogVideoXSampleConfig) else "dataset.num_frames"
        text = f"{at} is {used}: the learned positions of {config.base_model} are for {frames} frames and not used then"
        return [Finding("warning", text, at)]
    return []


def _tied(config: CogVideoXTrainConfig | CogVideoXSampleConfig, facts: Facts) -> str:
    _, height, width = facts.native
    return f"the learned positions of {config.base_model} are for {height} x {width} only"


def _without_learned(config: CogVideoXTrainConfig | CogVideoXSampleConfig) -> bool:
    """Whether learned positions are left out: as the config says, else as the first checkpoint was trained."""
    if config.learned_positions is None and isinstance(config, CogVideoXSampleConfig) and config.checkpoints:
        first = Path(config.checkpoints[0]).expanduser()  # a folder, or the file in it
        return Checkpoint(first.parent if first.is_file() else first).meta().get("learned_positions") is False
    return config.learned_positions is False


def _hints(config: CogVideoXTrainConfig | CogVideoXSampleConfig, facts: Facts) -> list[Finding]:
    found = []
    if facts.rotary and config.mixed_precision == "fp16":
        text = f"mixed_precision is fp16, but {config.base_model} was trained in bf16 and can overflow: set bf16"
        found.append(Finding("warning", text, "mixed_precision"))
    if not facts.rotary and config.mixed_precision == "bf16":
        text = f"mixed_precision is bf16; {config.base_model} was trained in fp16, which is a little more exact for it"
        found.append(Finding("info", text, "mixed_precision"))
    own = config.dataset if isinstance(config, CogVideoXTrainConfig) else config
    if facts.patch_size_t and (min(own.height, own.width) != 768 or max(own.height, own.width) > 1360):
        text = f"CogVideoX 1.5 was made for 768 x 1360, not for {own.height} x {own.width}"
        text += "; from an image, the longer side may be shorter" if facts.takes_image else ""
        found.append(Finding("info", text, "dataset.height" if own is not config else "height"))
    drawn, at = _drawn(config)
    if drawn and drawn != 1 and (drawn - 1) // FRAME_MULTIPLE % 2:
        near = drawn - FRAME_MULTIPLE if drawn > 2 * FRAME_MULTIPLE else drawn + FRAME_MULTIPLE
        text = (
            f"samples of {drawn} frames are cut from {drawn + 3}, for the decoder begins with whole groups of four "
            f"unless there are 8k + 1 frames: set {at} to {near} or {drawn + FRAME_MULTIPLE}"
        ).replace(f"{near} or {near}", str(near))
        found.append(Finding("info", text, at))
    return found


def _drawn(config: CogVideoXTrainConfig | CogVideoXSampleConfig) -> tuple[int, str]:
    """(frames of a sample, or 0; where they are set)."""
    if isinstance(config, CogVideoXSampleConfig):
        return config.num_frames, "num_frames"
    return (config.drawn_frames if config.draws else 0), "validation.num_frames"


def advice(config: TrainConfig, rows: Sequence[LedgerRow]) -> list[Finding]:
    """What CogVideoX's own guide and the reports of those who followed it advise: hints, never obstacles."""
    found = []
    clips = len({row.clip.sha256 for row in rows if row.status != "dropped"})
    if 0 < clips < ENOUGH_CLIPS:
        text = f"{clips} clips: {ENOUGH_CLIPS} or more work best for a new concept or style"
        found.append(Finding("info", text.replace("1 clips", "1 clip") if clips == 1 else text, "dataset.path"))
    if config.method == "lora":
        rank, alpha = config.adapter.rank, config.adapter.alpha
        if rank < ENOUGH_RANK:
            text = (
                f"adapter.rank is {rank}: {ENOUGH_RANK} or more is recommended; 16 or 32 are enough where the base "
                "already does well on such captions"
            )
            found.append(Finding("info", text, "adapter.rank"))
        if alpha is not None and alpha / rank < ENOUGH_SCALE:
            text = (
                f"adapter.alpha is {alpha:g} at rank {rank}: a strength of {alpha / rank:.3g} hardly learns; leave it "
                f"empty, or set {rank // 2 or 1}"
            )
            found.append(Finding("warning", text, "adapter.alpha"))
    if not config.dataset.id_token:
        text = "dataset.id_token is empty: a word of its own before every caption helps to call what was learned"
        found.append(Finding("info", text, "dataset.id_token"))
    facts = base_facts(config.base_model)
    most = facts.max_text_seq_length if facts else Facts().max_text_seq_length
    cut = [row.clip.name for row in rows if row.status != "dropped" and len(row.clip.text.split()) >= most]
    if cut:
        text = f"{cut[0]} has a caption of more than {most} tokens, whose end is not read"
        others = f" (and {len(cut) - 1} more)" if len(cut) > 1 else ""
        found.append(Finding("warning", text.replace(" has a", f"{others} has a"), "dataset.path"))
    return found


def read_foreign(text: str) -> Foreign | None:
    """An upstream command in our words; its rooms are read only when there is one."""
    from trainers.families.cogvideox import compat

    return compat.read_foreign(text)


FAMILY = ModelFamily(
    name="cogvideox",
    title="CogVideoX",
    tasks=("text-to-video", "image-to-video"),
    methods={
        "lora": "A small adapter on the attention of every block: a concept, a style or a movement, from some 25 clips "
        "or more.",
        "full": "Every weight of the transformer (SFT): from many clips, with the memory of several cards.",
    },
    export_formats={
        "diffusers-lora": "A LoRA file for diffusers' load_lora_weights and ComfyUI, alpha folded in: a .safetensors "
        "file, or a folder with one.",
        "diffusers": "A whole transformer/ folder for diffusers. A LoRA is merged into its base model's transformer.",
    },
    train_config=CogVideoXTrainConfig,
    sample_config=CogVideoXSampleConfig,
    presets=PRESETS,
    size_multiple=SIZE_MULTIPLE,
    frames_within=partial(frames_within, multiple=FRAME_MULTIPLE),
    findings=findings,
    is_base=lambda folder: (folder / "model_index.json").is_file() and base_facts(str(folder)) is not None,
    hub_bases=tuple(f"THUDM/{name}" for name in PUBLISHED),
    takes_image=takes_image,
    read_foreign=read_foreign,
    reads="commands of CogVideo (train_cogvideox_lora.py; train.py), of diffusers' examples for CogVideoX "
    "(train_cogvideox_lora.py, train_cogvideox_image_to_video_lora.py) and of cogvideox-factory "
    "(cogvideox_text_to_video_lora.py and its three others)",
    advice=advice,
    model="trainers.families.cogvideox.model:CogVideoX",
    exporter="trainers.families.cogvideox.export:export",
)
