"""What a family is: `ModelFamily` before its weights are read, `VideoModel` with the weights in memory.

Importing this file loads no torch: the studio draws forms and checks clips from `ModelFamily` alone.
"""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainers.config import SampleConfig, TrainConfig
from trainers.data.images import sha256_of_image
from trainers.foreign import Foreign
from trainers.settings import Section

if TYPE_CHECKING:
    import numpy as np
    import torch

    from trainers.data.ledger import LedgerRow
    from trainers.noise import Draws

Stage = Literal["train", "sample"]

#: A checkpoint folder or adapter file, and the strength at which it is applied.
Take = tuple[Path, float]


class ModelError(Exception):
    """A model, adapter or checkpoint that cannot be used: one sentence with the file and what to do."""


def is_hub_id(value: str) -> bool:
    """Whether a text that is no path here can be OWNER/NAME on the Hugging Face Hub."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", value)) and not value.endswith(
        (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
    )


@dataclass(frozen=True)
class Example:
    """One training example: what the denoiser gets and what it should answer.

    denoiser: name of the network it is for. weight: broadcasts over the loss of each element, or None.
    conditions: further inputs of the network, by name.
    """

    model_input: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor | None
    weight: torch.Tensor | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    denoiser: str = "denoiser"


@dataclass(frozen=True)
class SampleRequest:
    """One clip to draw. Its randomness comes from the `Draws` given beside it."""

    prompt: str
    negative_prompt: str
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    #: An encoded clip as `VideoModel.encode_video` gives it, without the batch dimension: where the family is to begin.
    start: Mapping[str, torch.Tensor] | None = field(default=None, repr=False, compare=False)
    #: The picture that the clip begins from, (h, w, 3) uint8 at its own size, which the family fits to the clip's.
    image: np.ndarray | None = field(default=None, repr=False, compare=False)
    #: The picture that the clip ends with, likewise.
    end_image: np.ndarray | None = field(default=None, repr=False, compare=False)

    def facts(self) -> dict[str, Any]:
        """What was asked for in plain values: for a cache key, and for the file's own metadata. An image stands there
        as its SHA-256, as `sha256_of_image` gives it."""
        pictures = {"image": self.image, "end_image": self.end_image}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("start", *pictures)}
        return plain | {name: sha256_of_image(shown) for name, shown in pictures.items() if shown is not None}


@dataclass(frozen=True)
class Prepared:
    """A clip that another trainer has encoded, by what lies beside its video: as how many frames, and at what size.

    sha256: of everything that is trained from.
    """

    num_frames: int
    height: int
    width: int
    sha256: str


@dataclass(frozen=True)
class ExportRequest:
    """A checkpoint, or a file from elsewhere that the family reads, to write in a format of the field.

    format: a key of the family's `export_formats`. dtype: of the weights. strength: of a LoRA, as it is merged or
    written. onto: what a LoRA is merged into; None where the checkpoint says it.
    """

    checkpoint: Path
    format: str
    out: Path
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    strength: float = 1.0
    onto: str | None = None


class VideoModel(ABC):
    """The weights in memory. Every sign, scale and space convention of a family lives in its subclass."""

    #: The trained module or modules, by name. The loop may replace one by its wrapped form.
    denoiser: dict[str, torch.nn.Module]
    #: Whether a validation sample begins from a training clip: the loop gives it as `SampleRequest.start` then.
    starts_from_clip: bool = False

    @abstractmethod
    def fingerprint(self, encoder: Literal["video", "prompt"]) -> str:
        """Identity of an encoder's weights and settings, for the cache key. Loads nothing."""

    @abstractmethod
    def encode_video(self, pixels: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
        """What to cache of clips: pixels (b, f, 3, h, w) uint8 -> plain tensors (b, ...), on the CPU. Where datasets of
        the family are `smooth`, pixels are float32 of the same range.

        In raw VAE space (posterior mean and logvar), so that target conventions can change without encoding again.
        """

    @abstractmethod
    def encode_prompt(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Embeddings, masks, pooled of texts: (b, ...) on the CPU. The empty text gives what dropout substitutes."""

    def read_prepared(self, file: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """What lies encoded beside a video, where the family's `prepared` finds it: as `encode_video` and
        `encode_prompt` give them, without a batch dimension. ModelError where it does not fit."""
        raise ModelError(f"{file.name} cannot be used as it is prepared; choose another dataset.format")

    @abstractmethod
    def example(self, batch: Mapping[str, torch.Tensor], draws: Draws) -> Example:
        """Noise, timesteps, input, target, weight. `batch` holds what the encoders gave, with the prompt's tensors
        under their own names and those of the empty prompt under ``null_`` + name, on the device."""

    @abstractmethod
    def predict(self, example: Example) -> torch.Tensor:
        """A tensor like the target; the only call of the network."""

    @abstractmethod
    def save(self, folder: Path) -> dict[str, Any]:
        """Write the trained weights into `folder`; give what ``meta.json`` must say to load them again."""

    @abstractmethod
    def load(self, takes: Sequence[Take]) -> None:
        """Apply checkpoints or adapter files at their strengths, replacing what was loaded; [] is the base.

        Full weights interpolate from the base. Never merges. In stage train one take at strength 1 restores the
        trained weights exactly, in place. ModelError when keys do not fit.
        """

    @abstractmethod
    def sample(self, request: SampleRequest, draws: Draws) -> np.ndarray:
        """The clip as (f, h, w, 3) uint8. Validation, Compare and tests all come through here."""

    @abstractmethod
    def release(self, stage: Literal["encoders", "decoder"]) -> None:
        """Free what a stage no longer needs; it is read again when it is next asked for."""

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that the optimizer gets."""
        return [p for module in self.denoiser.values() for p in module.parameters() if p.requires_grad]


@dataclass(frozen=True)
class Finding:
    """Something to say about a config before it runs. error: it would not start."""

    level: Literal["error", "warning", "info"]
    text: str
    where: str = ""


@dataclass(frozen=True)
class ModelFamily:
    """A family before its weights: its name, its settings, its rules. Torch-free."""

    name: str
    title: str
    tasks: tuple[str, ...]
    methods: dict[str, str]  # method -> what it trains, in a sentence
    export_formats: dict[str, str]  # format -> what it is and where it loads
    train_config: type[TrainConfig]
    sample_config: type[SampleConfig]
    #: name -> {dotted field: value}; the form fills them in, the rest stays at its default.
    presets: dict[str, dict[str, Any]]
    size_multiple: int
    #: The most frames that the family can use of n available ones (its frame rule), or 0.
    frames_within: Callable[[int], int]
    #: Findings on a config from the files that it names, without reading weights into memory.
    findings: Callable[[TrainConfig | SampleConfig], list[Finding]]
    #: Whether a folder is a base of this family, from its settings and the names of its weights alone.
    is_base: Callable[[Path], bool]
    #: The torch module "package.module:Class" with the VideoModel; imported in `load` only.
    model: str
    #: "package.module:function" of an ExportRequest -> report sentence.
    exporter: str
    #: Whether what is drawn begins from an image, which depends on the base model; None where that cannot be told yet.
    takes_image: Callable[[TrainConfig | SampleConfig], bool | None] = lambda config: False
    #: Bases on the Hugging Face Hub that a form offers, the usual one first.
    hub_bases: tuple[str, ...] = ()
    #: Reads an upstream config or command; None when it is not one that this family knows. ConfigError when it is one,
    #: but cannot be meant.
    read_foreign: Callable[[str], Foreign | None] = lambda text: None
    #: What that is, in words.
    reads: str = ""
    #: What lies encoded beside a video; DatasetError where that cannot be used. None: the family reads no such files.
    prepared: Callable[[Path], Prepared | None] = lambda file: None
    #: Further commands of the export door, name -> "package.module:function" of the words after it -> report sentence.
    export_commands: Mapping[str, str] = field(default_factory=dict)
    #: What experience says of a run on so many clips: hints, never obstacles.
    advice: Callable[[TrainConfig, Sequence[LedgerRow]], list[Finding]] = lambda config, rows: []

    @property
    def has_image_models(self) -> bool:
        """Whether some base models of the family turn an image into a video."""
        return "image-to-video" in self.tasks

    def load(self, config: Section, stage: Stage) -> VideoModel:
        """The model in memory. The one place that imports torch."""
        model: VideoModel = _resolve(self.model)(config, stage)
        return model

    def export(self, request: ExportRequest) -> str:
        """Write a checkpoint in a foreign format; a sentence on what was written and checked."""
        report: str = _resolve(self.exporter)(request)
        return report

    def export_command(self, name: str, arguments: Sequence[str]) -> str:
        """Carry out one of `export_commands`; a sentence on what was written."""
        report: str = _resolve(self.export_commands[name])(arguments)
        return report


def _resolve(address: str) -> Any:
    module, _, name = address.partition(":")
    return getattr(importlib.import_module(module), name)
