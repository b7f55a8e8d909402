"""What every family does with weights: where and how precisely they compute, what fits a model, LoRAs put on it and
filled, whole weights moved from the base towards a take."""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn.parallel import DistributedDataParallel

from trainers import lora
from trainers.errors import why
from trainers.families.base import ModelError
from trainers.families.files import WEIGHT_FILES, part_files, read_tensors
from trainers.lora import Lora, some

State = dict[str, torch.Tensor]

PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

#: What the libraries raise at a folder or file that is not what it should be.
FAILURES = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ImportError, EOFError, SafetensorError,
    pickle.UnpicklingError,
)  # fmt: skip


# --- computing -------------------------------------------------------------------------------------------------------


def device() -> torch.device:
    """The CUDA device that this process uses, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def computing(where: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Compute in `dtype` there, whatever the weights have."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(where.type, dtype)


def callable_alone(network: torch.nn.Module) -> torch.nn.Module:
    """The network to call: without its distributed wrapper where no gradient is wanted, for one process may sample
    alone and the wrapper would wait for the others."""
    if isinstance(network, DistributedDataParallel) and not torch.is_grad_enabled():
        return network.module  # type: ignore[no-any-return]
    return network


def several_processes() -> bool:
    """Whether other processes train along, which then wait for a gradient of every trained weight in every step."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


@contextlib.contextmanager
def evaluating(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """The modules in evaluation mode, and afterwards as they were."""
    training = {module: module.training for module in modules}
    try:
        for module in training:
            module.eval()
        yield
    finally:
        for module, was_training in training.items():
            module.train(was_training)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_part(kind: Any, folder: Path, name: str, **options: Any) -> Any:
    """The model in a folder of its library's format, for evaluation. name: in words, for errors. ModelError when
    something lacks or cannot be read."""
    try:
        model, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    except FAILURES as error:
        raise unreadable(name, part_files(folder), error) from error
    if report["missing_keys"]:
        raise ModelError(f"{name} lacks weights: {some(report['missing_keys'])}")
    return model.eval()


def unreadable(name: str, files: Iterable[Path], error: Exception) -> ModelError:
    """What is wrong with files that a library could not read: one of them, or what it says."""
    for file in files:
        if file.suffix in WEIGHT_FILES:
            read_tensors(file)  # says what is wrong with the file, where it is the file
    return ModelError(f"{name} cannot be read: {why(error)}")


def lasting(source: str) -> str:
    """A path that means the same from every folder; a Hub id as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


# --- fitting ---------------------------------------------------------------------------------------------------------


def check_fit(shapes: Mapping[str, Sequence[int]], state: Mapping[str, torch.Tensor], source: str) -> None:
    """ModelError unless `state` has exactly these keys and shapes."""
    missing = [key for key in shapes if key not in state]
    unknown = [key for key in state if key not in shapes]
    if missing or unknown:
        told = [f"lacks {some(missing)}"] if missing else []
        told += [f"has {some(unknown)} too many"] if unknown else []
        raise ModelError(f"{source} does not fit this model: it {' and '.join(told)}")
    for key, value in state.items():
        if tuple(value.shape) != tuple(shapes[key]):
            raise ModelError(
                f"{source} does not fit this model: {key} is {tuple(value.shape)}, but {tuple(shapes[key])} is needed"
            )


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, Sequence[int]]:
    """The shape of each tensor."""
    return {key: value.shape for key, value in state.items()}


# --- LoRAs -----------------------------------------------------------------------------------------------------------


def lora_targets(
    model: torch.nn.Module, wanted: Sequence[str], part: str, named: str, kinds: Callable[[Sequence[str]], list[str]]
) -> list[str]:
    """Paths of the linear layers that get a LoRA, in the order of the model. ModelError lists what is there.

    An ending is looked for among the layers with `part` in their path, which is `named` so in words; a regular
    expression must match the whole path of any linear layer. kinds: their names by which a person means them.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    within = [name for name in linear if part in name]
    chosen: set[str] = set()
    for line in wanted:
        found = matching(line, "adapter.target_modules", linear, within)
        if not found:
            raise ModelError(
                f"adapter.target_modules: {line!r} is no linear layer of {named}; there are {', '.join(kinds(within))}"
            )
        chosen.update(found)
    return [name for name in linear if name in chosen]


def is_pattern(line: str) -> bool:
    """Whether a line is a regular expression; the names of layers consist of letters, digits, _ and dots."""
    return re.fullmatch(r"[\w.]*", line) is None


def matching(line: str, where: str, whole: Sequence[str], below: Sequence[str]) -> list[str]:
    """Names of `whole` that a regular expression matches, or names of `below` that end so."""
    if not is_pattern(line):
        return [name for name in below if name == line or name.endswith("." + line)]
    try:
        pattern = re.compile(line)
    except re.error as error:
        raise ModelError(f"{where}: {line!r} is no regular expression: {error}") from error
    return [name for name in whole if pattern.fullmatch(name)]


def add_lora(model: torch.nn.Module, adapter: Mapping[str, Lora], name: str, source: str) -> None:
    """Put a LoRA on a model under `name`; ModelError when it is for other layers or shapes."""
    known = dict(model.named_modules())
    unknown = [path for path in adapter if path not in known]
    if unknown:
        raise ModelError(f"{source} is for layers that this model lacks: {some(unknown)}")
    for path, layer in adapter.items():
        weight = lora.beneath(known[path]).weight
        if tuple(weight.shape) != (layer.up.shape[0], layer.down.shape[1]):
            raise ModelError(
                f"{source} does not fit this model: {path} is {tuple(weight.shape)}, but its adapter is for "
                f"{(int(layer.up.shape[0]), int(layer.down.shape[1]))}"
            )
    with torch.random.fork_rng(devices=[]):
        lora.inject(
            model,
            {path: layer.rank for path, layer in adapter.items()},
            {path: layer.alpha for path, layer in adapter.items()},
            name=name,
        )
    lora.fill(model, adapter, name)


def sample_loras(model: torch.nn.Module, adapters: Sequence[tuple[Mapping[str, Lora], float, str]]) -> None:
    """Replace what LoRAs a model carries by these (weights, strength, source), to sample with."""
    lora.remove(model)
    for number, (adapter, _, source) in enumerate(adapters):
        add_lora(model, adapter, f"take{number}", source)
    lora.activate(model, {f"take{number}": strength for number, (_, strength, _) in enumerate(adapters)})


def fill_trained_lora(model: torch.nn.Module, adapter: Mapping[str, Lora] | None, source: str) -> None:
    """Weights into the LoRA that is trained, in place: the optimizer knows them by identity. None: without effect, as
    at the start."""
    if adapter is None:
        with torch.no_grad():
            for key, parameter in lora.parameters(model):
                if ".lora_B." in key:
                    parameter.zero_()
        return
    shapes = {f"{path}.lora_A": (layer.r["default"], layer.in_features) for path, layer in lora.layers(model)}
    check_fit(shapes, {f"{path}.lora_A": layer.down for path, layer in adapter.items()}, source)
    lora.fill(model, adapter)


# --- whole weights ---------------------------------------------------------------------------------------------------


def interpolate(current: Mapping[str, torch.Tensor], untouched: State, takes: Sequence[tuple[State, float]]) -> None:
    """weights = base + the sum of strength * (take - base), in place; a single take at strength 1 is copied exactly.

    untouched: the base's weights that a take covers or once covered, on the CPU; completed here.
    """
    with torch.no_grad():
        for key, value in untouched.items():
            current[key].copy_(value)
        for state, _ in takes:
            for key in state:
                if key not in untouched:
                    untouched[key] = current[key].detach().cpu().clone()
        if len(takes) == 1 and takes[0][1] == 1:
            for key, value in takes[0][0].items():
                current[key].copy_(value)
            return
        for key in {key for state, _ in takes for key in state}:
            base = untouched[key].float()
            moved = base.clone()
            for state, strength in takes:
                if key in state:
                    moved += strength * (state[key].float() - base)
            current[key].copy_(moved)
