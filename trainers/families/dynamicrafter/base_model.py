"""The parts of a DynamiCrafter base model, read when asked for, out of the one file that holds them all."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from transformers import CLIPTextModel, CLIPVisionModel

from trainers.families.base import ModelError, is_hub_id
from trainers.families.dynamicrafter import names
from trainers.families.dynamicrafter.facts import CLIP_CONFIG, CONFIG, WEIGHTS, Facts, facts_of, weights_in
from trainers.families.dynamicrafter.names import PREFIXES, Part
from trainers.families.dynamicrafter.resampler import Resampler
from trainers.families.dynamicrafter.schedule import check_stored
from trainers.families.dynamicrafter.tokenizer import tokenize
from trainers.families.dynamicrafter.unet import VideoUNet
from trainers.families.files import PICKLES, WEIGHT_FILES, fetch, identity, read_tensors
from trainers.families.streaming import read_in_turn
from trainers.families.weights import State
from trainers.lora import some

TOKENIZER = "tokenizer"
_PATTERNS = [*WEIGHTS, CONFIG, CLIP_CONFIG, f"{TOKENIZER}/*"]


class BaseModel:
    """Where a base model lies, what it is, and its parts. Its names and shapes are checked here, weights are not read.

    variant: which of the published models it is, where neither its name nor a config beside it says so.
    ModelError where a tensor lacks, is of another shape, is none of the model's, or the schedule is another one.
    """

    def __init__(self, source: str, variant: str | None = None) -> None:
        self.source = source
        self.file, told_by = _find(source)
        facts = facts_of(told_by, variant)
        if facts is None:
            raise ModelError(
                f"base_model {source} does not say which DynamiCrafter it is; set variant to 256, 512, 512-interp or "
                "1024"
            )
        self.facts: Facts = facts
        shapes = _shapes(self.file)
        self._stored = {names.plain(key): key for key in shapes}
        self._check({names.plain(key): shape for key, shape in shapes.items()})
        check_stored(facts, self.schedule(), f"base_model {source}")

    # --- parts ---

    def unet(self, dtype: torch.dtype) -> VideoUNet:
        return self._part("unet", dtype)  # type: ignore[no-any-return]

    def resampler(self, dtype: torch.dtype = torch.float32) -> Resampler:
        return self._part("resampler", dtype)  # type: ignore[no-any-return]

    def vae(self, dtype: torch.dtype) -> AutoencoderKL:
        return self._part("vae", dtype)

    def text_tower(self, dtype: torch.dtype) -> CLIPTextModel:
        return self._part("text", dtype)

    def image_tower(self, dtype: torch.dtype) -> CLIPVisionModel:
        return self._part("vision", dtype)

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """(b, 77) ids of texts: by tokenizer/ beside the weights, CLIP's otherwise."""
        folder = self.file.parent / TOKENIZER
        return tokenize(texts, folder if folder.is_dir() else None, self.facts.text)

    # --- the file ---

    def schedule(self) -> State:
        """The schedule's numbers as the file holds them."""
        return {name: value.clone() for name, value in self.tensors(names.schedule_names(self.facts))}

    def leftovers(self) -> list[str]:
        """Names of what the file holds and nothing uses."""
        return sorted(names.leftovers(self.facts) & set(self._stored))

    def keys(self) -> list[str]:
        """Names of all tensors, in the file's order; the 256 file's older ones as in the others."""
        return list(self._stored)

    def tensors(self, wanted: Collection[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of all that the file holds, or of those wanted, as they are, one after another: so much of
        the file is in memory at a time. What is kept of a pickle must be copied, for it lies on the disk."""
        asked = {key: name for name, key in self._stored.items() if wanted is None or name in wanted}
        for key, value in read_in_turn(self.file, list(asked)):
            yield asked[key], value

    def identity(self) -> str:
        """A hash over the file and what describes it. Loads nothing into memory."""
        folder = self.file.parent
        beside = [folder / CONFIG, folder / CLIP_CONFIG, *sorted((folder / TOKENIZER).glob("*"))]
        return identity([self.file, *(file for file in beside if file.is_file())])

    def _part(self, part: Part, dtype: torch.dtype) -> Any:
        """A part for evaluation, its weights in `dtype`."""
        wanted = {name: weight for name, weight in names.weights_of(self.facts).items() if weight.part == part}
        model = names.empty(part, self.facts)
        state: State = {}
        for name, value in self.tensors(wanted.keys()):
            for key, own in names.ours(wanted[name], value):
                state[key] = own.to(dtype, copy=True).contiguous()
        model.load_state_dict(state, strict=True, assign=True)
        return model.eval()

    def _check(self, found: Mapping[str, Sequence[int]]) -> None:
        """ModelError unless these are the names and shapes of the model."""
        source = f"base_model {self.source}"
        if not any(name.startswith(PREFIXES["unet"]) for name in found):
            raise ModelError(
                f"{source} is no DynamiCrafter: it has no {PREFIXES['unet']}..., but {some(found)}; give the whole "
                "model.ckpt"
            )
        known = names.weights_of(self.facts)
        schedule = names.schedule_names(self.facts)
        unknown = found.keys() - known.keys() - schedule - names.leftovers(self.facts)
        adapters = [name for name in unknown if ".lora_" in name]
        if adapters:
            raise ModelError(
                f"{source} has a LoRA beside its weights ({some(adapters)}); give the model that it was trained "
                "on, and the LoRA as a take"
            )
        missing = [name for name in (*known, *schedule) if name not in found]
        told = [f"lacks {some(missing)}"] if missing else []
        told += [f"has {some(unknown)} too many"] if unknown else []
        if told:
            raise ModelError(
                f"{source} is not a whole DynamiCrafter {self.facts.variant}: it {' and '.join(told)}; give another "
                "file, or set variant if it is another model"
            )
        for name, weight in known.items():
            if tuple(found[name]) != weight.shape:
                raise ModelError(
                    f"{source} does not fit DynamiCrafter {self.facts.variant}: {name} is {tuple(found[name])}, but "
                    f"{weight.shape} is needed; a model of other sizes needs its {CONFIG} beside it"
                )


def _find(source: str) -> tuple[Path, str]:
    """The file of weights, and what tells which model it is: a path, or the name on the Hub."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in WEIGHT_FILES:
            raise ModelError(f"base_model {source} is not a model file; known endings: {', '.join(WEIGHT_FILES)}")
        return path, source
    if path.is_dir():
        folder, told_by = path, source
    elif is_hub_id(source):
        folder = fetch(source, _PATTERNS, "base_model")
        told_by = str(folder) if (folder / CONFIG).is_file() else source
    else:
        raise ModelError(f"base_model {source} does not exist; give a file, a folder or a Hub id")
    file = weights_in(folder)
    if file is None:
        raise ModelError(f"base_model {source} holds no {' or '.join(WEIGHTS)}")
    return file, told_by


def _shapes(file: Path) -> dict[str, Sequence[int]]:
    """Names and shapes of a file's tensors, without reading them. ModelError where it is damaged or no such file."""
    if file.suffix in PICKLES:
        found, _ = read_tensors(file, mapped=True)
        return {str(key): tuple(value.shape) if torch.is_tensor(value) else () for key, value in found.items()}
    read_tensors(file, only=())  # says what is wrong with it
    with safe_open(file, "pt") as opened:
        return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
