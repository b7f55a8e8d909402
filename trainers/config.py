"""THE schema: everything a run needs, each setting once, with its type, bound, default and meaning.

The form, ``--help``, the YAML check and the docs are drawn from these classes. A family extends `TrainConfig` and
`SampleConfig` in its own ``config.py``; the table in ``trainers.families`` joins them. No torch here.
"""

from __future__ import annotations

import difflib
import importlib.util
import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

C = TypeVar("C", bound="Section")


class FieldError(ValueError):
    """For validators of several fields: names the field at which the problem can be mended."""

    def __init__(self, where: str, what: str) -> None:
        self.where = where
        super().__init__(what)


class ConfigError(Exception):
    """A config that cannot be used: one sentence per problem, each naming its field. Doors exit with code 2."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(f"{where}: {what}" if where else what for where, what in self.problems))


def setting(
    default: Any,
    description: str,
    *,
    basic: bool = False,
    show_if: Mapping[str, Sequence[Any]] | None = None,
    lines: bool = False,
    **bounds: Any,
) -> Any:
    """A pydantic field with what the form needs to know.

    basic: among the few fields that everybody sees. show_if: {"dotted.field": [values]}; the setting has an effect
    only when the other field has one of the values. lines: a text of several lines. Bounds: ge, gt, le, lt.
    """
    hints: dict[str, Any] = {"basic": basic, "lines": lines}
    if show_if:
        hints["show_if"] = {key: list(values) for key, values in show_if.items()}
    if default is ...:
        return Field(description=description, json_schema_extra=hints, **bounds)
    return Field(default=default, description=description, json_schema_extra=hints, **bounds)


class Section(BaseModel):
    """Base of every config class: an unknown key is an error, defaults are checked like given values."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False)


class DatasetConfig(Section):
    """What the model will see."""

    path: str = setting(
        ...,
        "Folder of the dataset: clips/ and metadata.jsonl; or what the format below names.",
        basic=True,
        min_length=1,
    )
    format: Literal["dailies", "list", "sidecar", "webvid"] = setting(
        "dailies",
        "How clips and captions lie there. dailies: clips/ and metadata.jsonl. list: the videos and prompts named "
        "here, relative to path. sidecar: a folder of videos, the caption of a.mp4 in a.txt or a.json. webvid: a CSV "
        "file with the columns name and contentUrl (or videoid). Other formats than dailies are read where they lie.",
    )
    video_folder: str | None = setting(
        None,
        "Folder of the videos that the CSV file names. Empty: the folder of the CSV file.",
        show_if={"dataset.format": ["webvid"]},
    )
    videos: list[str] = setting([], "Video files, one per line.", show_if={"dataset.format": ["list"]})
    prompts: list[str] = setting(
        [],
        "Their captions in the same order, one per line; a single one is for all of them.",
        show_if={"dataset.format": ["list"]},
    )
    max_clips: int | None = setting(None, "Use only the first so many clips. Empty: all.", ge=1)
    repeats: int = setting(1, "How often every clip is seen in one pass over the dataset.", ge=1, le=10_000)
    num_frames: int = setting(16, "Frames of each training sample.", basic=True, ge=1)
    height: int = setting(256, "Height of the training frames in pixels.", basic=True, ge=8)
    width: int = setting(256, "Width of the training frames in pixels.", basic=True, ge=8)
    frame_stride: int = setting(
        1, "Take every n-th frame of a clip: 1 takes neighbours, 4 shows four times as much movement.", ge=1
    )
    fps: float | None = setting(
        None,
        "Resample clips to this many frames per second before the stride is applied, so that clips of different "
        "rates move at the same speed. Empty keeps each clip's own rate.",
        gt=0,
        le=240,
    )
    frame_selection: Literal["first", "uniform", "random", "windows"] = setting(
        "random",
        "Which frames a clip gives: first (from start_frame on), uniform (spread over the whole clip), random (a "
        "random start), windows (every window of the clip, one after the other).",
    )
    start_frame: int = setting(
        0, "First frame to take, counted from 0.", ge=0, show_if={"dataset.frame_selection": ["first"]}
    )
    fit: Literal["crop", "stretch", "buckets"] = setting(
        "crop",
        "How a clip of another shape becomes height x width: crop (fill and cut the edges), stretch (distorts), "
        "buckets (keep the clip's shape: the nearest size with about the same number of pixels).",
    )
    frame_buckets: bool = setting(
        False, "Let a clip that is too short train with the most frames that it has, instead of leaving it out."
    )
    repeat_frames: bool = setting(
        False,
        "Let a clip that is too short fill the sample: its frames are spread over it, some of them several times.",
        show_if={"dataset.frame_selection": ["random"]},
    )
    flip: bool = setting(
        False, "Mirror half of the samples left to right. Not for clips where direction has a meaning."
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

    name: Literal["adamw", "adamw8bit"] = setting(
        "adamw", "adamw, or adamw8bit (bitsandbytes, on a CUDA device) for a quarter of the optimizer memory."
    )
    learning_rate: float = setting(
        1e-4, "Size of a step. LoRA: about 1e-4; whole modules: 1e-5 to 1e-4.", basic=True, gt=0
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
    gradient_accumulation_steps: int = setting(
        1, "Batches added up before one optimizer step: a larger batch without more memory.", ge=1
    )
    max_grad_norm: float | None = setting(
        1.0, "Largest norm of the gradient; longer ones are shortened. Empty: off.", gt=0
    )


class MemoryConfig(Section):
    """What trades time for memory."""

    gradient_checkpointing: Literal["none", "full"] = setting(
        "none",
        "full computes each block again in the backward pass: much less memory, about a quarter more time.",
    )
    attention: Literal["sdpa", "xformers"] = setting(
        "sdpa",
        "sdpa is PyTorch's own. xformers is used only if it works on the device; otherwise sdpa, with a message.",
    )
    encode_frames: int = setting(8, "Frames that the video encoder and decoder take at a time.", ge=1)


class ValidationConfig(Section):
    """How the run is judged while it goes."""

    every_steps: int | None = setting(
        100, "Validation loss and samples at step 0, every so many steps and at the end. Empty: never.", ge=1
    )
    prompts: list[str] = setting([], "Prompts to sample, one per line. None: no samples, only the loss.", basic=True)
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
        if self.optimizer.lr_warmup_steps > self.max_train_steps:
            raise FieldError(
                "optimizer.lr_warmup_steps",
                f"is {self.optimizer.lr_warmup_steps}, but the run has only {self.max_train_steps} steps; lower it or "
                "raise max_train_steps",
            )
        return self


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
    negative_prompt: str = setting("", "What the clips should avoid.")
    seeds: list[int] = setting([42], "Seeds; the same seed gives every take the same noise.", basic=True, min_length=1)
    num_frames: int = setting(16, "Frames of each clip.", ge=1)
    height: int = setting(256, "Height in pixels.", ge=8)
    width: int = setting(256, "Width in pixels.", ge=8)
    num_inference_steps: int = setting(25, "Denoising steps.", ge=1, le=1000)
    guidance_scale: float = setting(7.5, "How strongly a clip follows its prompt; 1 turns guidance off.", ge=1, le=100)
    fps: float = setting(8, "Frames per second of the files.", gt=0, le=240)
    mixed_precision: Precision = setting("bf16", "Precision of the computation. no: 32 bits.")
    attention: Literal["sdpa", "xformers"] = setting("sdpa", "sdpa is PyTorch's own; xformers only if it works.")
    encode_frames: int = setting(8, "Frames that the video decoder takes at a time.", ge=1)
    cache_dir: str | None = setting(
        None, "Folder of clips already sampled, shared between comparisons. Empty: inside the run folder."
    )

    @field_validator("seeds")
    @classmethod
    def _seeds_are_natural(cls, seeds: list[int]) -> list[int]:
        for seed in seeds:
            if not 0 <= seed < 2**63:
                raise ValueError(f"seed {seed} is not between 0 and 2^63 - 1")
        return seeds


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def missing_package(config: OptimizerConfig) -> str | None:
    """The package that the chosen optimizer needs and this machine lacks."""
    if config.name == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes"
    return None


# --- YAML in, YAML out -----------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as text; people write learning rates that way. Duplicate keys are errors."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float)) and key in seen:
                raise ConfigError([(str(key), f"stands twice (line {key_node.start_mark.line + 1})")])
            if isinstance(key, (str, int, float)):
                seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_str(self, node: Any) -> str:
        """JSON escapes an emoji as two halves ("\\ud83d\\ude00"); they are joined, and a lone half is replaced."""
        return str(self.construct_scalar(node)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_yaml_str)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as numbers."""


for _end in (_Loader, _Dumper):
    _end.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


_MOST_VALUES = 1_000_000  # a few lines of aliases of aliases stand for more than any memory holds


def _written_out(value: Any, known: dict[int, int]) -> int:
    """How many values stand in one when every alias is written out. known: those of containers that were counted."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        within = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_written_out(item, known) for item in within)
    return known[id(value)]


def parse_yaml(text: str, source: str = "the text") -> dict[str, Any]:
    """A YAML mapping as a dict; ConfigError with the line where it is no YAML."""
    try:
        data = yaml.load(text, Loader=_Loader)
        if _written_out(data, {}) > _MOST_VALUES:
            raise ValueError(f"with its aliases written out it holds more than {_MOST_VALUES:,} values")
    except RecursionError as error:
        raise ConfigError([("", f"{source} is not valid YAML: it is nested without end")]) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date or a number and is none
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError([("", f"{source} is not valid YAML{line}: {problem}")]) from error
    if not isinstance(data, dict):
        raise ConfigError([("", f"{source} does not hold settings: expected lines such as 'max_train_steps: 1000'")])
    return data


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError if it is missing or not text."""
    return parse_yaml(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a config file; ConfigError if it is missing or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError([("", f"config file {path} does not exist")]) from error
    except IsADirectoryError as error:
        raise ConfigError([("", f"config file {path} cannot be read: it is a folder")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([("", f"config file {path} cannot be read: it is no text in UTF-8")]) from error
    except OSError as error:
        raise ConfigError([("", f"config file {path} cannot be read: {error.strerror or error}")]) from error


def to_yaml(config: BaseModel) -> str:
    """The whole config as YAML, in the order of the schema."""
    return dump_yaml(config.model_dump(mode="json"))


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Plain values as YAML that `parse_yaml` reads as the same values, in their order."""
    stream = io.StringIO()
    yaml.dump(
        dict(data),
        stream,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=110,
    )
    return stream.getvalue()


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`data` with ``key.path=value`` settings put in; values are read as YAML."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError([("", f"--set {override!r} should look like key.path=value")])
        *parents, last = key.strip().split(".")
        here = data
        for parent in parents:
            here = here.setdefault(parent, {})
            if not isinstance(here, dict):
                raise ConfigError([(key.strip(), f"{parent} is a value, not a section")])
        try:
            here[last] = yaml.load(value, Loader=_Loader)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError([(key.strip(), f"value {value!r} is not valid YAML")]) from error
    return data


def validate(cls: type[C], data: Mapping[str, Any]) -> C:
    """`data` as a checked config of class `cls`; ConfigError lists every problem with its field."""
    try:
        return cls.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(problems(cls, error)) from error


def problems(cls: type[Section], error: ValidationError) -> list[tuple[str, str]]:
    """(dotted field, sentence) for each problem of a pydantic error, in the words of a person."""
    known = [path for path, _ in fields(cls)]
    known += sorted({path.split(".")[0] for path in known if "." in path})
    found = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, FieldError):
            where = cause.where
        found.append((where, _sentence(item, where, known)))
    return found


def _sentence(item: Any, where: str, known: list[str]) -> str:
    kind, given = item["type"], item.get("input")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(where, known, n=1, cutoff=0.6)
        last = [path for path in known if path.rsplit(".", 1)[-1] == where.rsplit(".", 1)[-1]]
        hint = (near or last)[:1]
        return "is not a setting" + (f"; did you mean {hint[0]}?" if hint else "; see --help for all of them")
    if kind == "missing":
        return "must be set"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "literal_error":
        return f"is {given!r}; choose {item['ctx']['expected']}"
    message = item["msg"][0].lower() + item["msg"][1:]
    message = message.removeprefix("input ").replace("should", "must", 1)
    return f"is {given!r}, but {message}" if not isinstance(given, (dict, list)) else message


# --- the schema, seen from outside -----------------------------------------------------------------------------------


def fields(cls: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted path, field) of every setting, depth first, in the order of the schema."""
    for name, info in cls.model_fields.items():
        inner = section_class(info)
        if inner:
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


def section_class(info: FieldInfo) -> type[Section] | None:
    """The section class that a field holds, or None for a plain value."""
    annotation = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def hints(info: FieldInfo) -> dict[str, Any]:
    """What `setting` noted for the form: basic, lines, show_if."""
    extra = info.json_schema_extra
    return dict(extra) if isinstance(extra, dict) else {}


def unwrap_optional(annotation: Any) -> tuple[Any, bool]:
    """(type without None, whether None is allowed)."""
    if get_origin(annotation) in (Union, UnionType):
        inner = [arg for arg in get_args(annotation) if arg is not NoneType]
        if len(inner) == 1 and len(inner) < len(get_args(annotation)):
            return inner[0], True
    return annotation, False


def choices(info: FieldInfo) -> list[Any]:
    """The allowed values of a Literal field, else an empty list."""
    annotation, _ = unwrap_optional(info.annotation)
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


def value_at(config: BaseModel, path: str) -> Any:
    """The value of a dotted field."""
    here: Any = config
    for part in path.split("."):
        here = getattr(here, part)
    return here


def has_effect(cls: type[Section], path: str, values: Mapping[str, Any]) -> bool:
    """Whether a field matters, given the values (by dotted path) of the fields that it depends on."""
    info = dict(fields(cls))[path]
    return all(values.get(other) in wanted for other, wanted in hints(info).get("show_if", {}).items())


def describe(cls: type[Section]) -> str:
    """Every setting with its type, default and meaning, for ``--help``."""
    out = []
    for path, info in fields(cls):
        kind = " | ".join(map(str, choices(info))) or _type_name(info.annotation)
        default = "required" if info.is_required() else f"default {_short(info.get_default(call_default_factory=True))}"
        out.append(f"  {path}  ({kind}; {default})")
        out.append(textwrap.fill(info.description or "", 112, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(out)


def _type_name(annotation: Any) -> str:
    inner, optional = unwrap_optional(annotation)
    origin, args = get_origin(inner), get_args(inner)
    name = f"list of {_type_name(args[0])}" if origin is list else getattr(inner, "__name__", str(inner))
    return f"{name} or empty" if optional else name


def _short(value: Any) -> str:
    return "empty" if value is None or value == "" or value == [] else str(value)
