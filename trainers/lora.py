"""Low-rank adapters: PEFT's layers put into a model in place, and their files in diffusers' naming.

Several adapters can lie on one layer, each under its own name and at its own strength; they are never merged.
A model without adapters is exactly what it was before.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FILE_NAME = "pytorch_lora_weights.safetensors"
HEADER = "lora_adapter_metadata"  # where diffusers (0.35 and later) looks for rank and alpha

_KEY = re.compile(
    r"(?P<module>.+?)\."
    r"(?:(?P<half>lora_A|lora_B)(?:\.default)?|lora\.(?P<older>down|up)|processor\.(?P<old>\w+)_lora\.(?P<side>down|up))"
    r"\.weight"
)


class LoraError(Exception):
    """An adapter file that cannot be read, in one sentence that names it."""


@dataclass(frozen=True)
class Lora:
    """The adapter of one layer: it adds up @ down * alpha / rank to the layer's weight."""

    down: torch.Tensor  # (rank, in)
    up: torch.Tensor  # (out, rank)
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    def delta(self) -> torch.Tensor:
        """What it adds to the weight, (out, in) float32."""
        return self.up.float() @ self.down.float() * (self.alpha / self.rank)


# --- in a model ------------------------------------------------------------------------------------------------------


def inject(
    model: torch.nn.Module,
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    dropout: float = 0.0,
    name: str = "default",
) -> None:
    """Put a new adapter on the layers that `ranks` names (full module paths); the adapter is float32 and has no effect
    until it is trained or filled.

    Its first numbers come from the global generator: fork and seed that. It is the only active one until `activate`.
    """
    rank, alpha = _most_common(ranks.values()), _most_common(alphas.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(ranks),
        rank_pattern={re.escape(path): own for path, own in ranks.items() if own != rank},
        alpha_pattern={re.escape(path): own for path, own in alphas.items() if own != alpha},
    )
    _forget(model)
    inject_adapter_in_model(config, model, name)
    for _, layer in layers(model):
        # PEFT would copy every input to the adapter's type, once for each of q, k and v; autocast does that better.
        layer.cast_input_dtype_enabled = False
        if name in layer.lora_A:
            layer.lora_A[name].float()
            layer.lora_B[name].float()
            if not getattr(layer, "_takes_input_by_name", False):
                layer.register_forward_pre_hook(_by_position, with_kwargs=True)
                layer._takes_input_by_name = True


def _by_position(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """diffusers calls some layers as layer(input=x); PEFT's layers know only layer(x)."""
    if "input" in kwargs:
        return (kwargs.pop("input"), *args), kwargs
    return args, kwargs


def layers(model: torch.nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """(module path, layer) of every layer that carries an adapter."""
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield path, module


def beneath(module: torch.nn.Module) -> Any:
    """The layer itself, without the adapters on it."""
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def parameters(model: torch.nn.Module, name: str = "default") -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(file key without prefix, parameter) of one adapter."""
    for path, layer in layers(model):
        if name in layer.lora_A:
            yield f"{path}.lora_A.weight", layer.lora_A[name].weight
            yield f"{path}.lora_B.weight", layer.lora_B[name].weight


def fill(model: torch.nn.Module, adapter: Mapping[str, Lora], name: str = "default") -> None:
    """Copy weights into an adapter of the same layers and ranks, in place."""
    with torch.no_grad():
        for path, layer in layers(model):
            if name in layer.lora_A:
                layer.lora_A[name].weight.copy_(adapter[path].down)
                layer.lora_B[name].weight.copy_(adapter[path].up)


def activate(model: torch.nn.Module, strengths: Mapping[str, float]) -> None:
    """Use the named adapters together, each at its strength on top of its own alpha / rank. Nothing is trainable."""
    for _, layer in layers(model):
        layer.set_adapter(list(strengths), inference_mode=True)
        for name, strength in strengths.items():
            layer.set_scale(name, strength)


def remove(model: torch.nn.Module) -> None:
    """Take every adapter off; the layers beneath are as they were."""
    for path, layer in list(layers(model)):
        parent, _, own = path.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    _forget(model)


def _forget(model: torch.nn.Module) -> None:
    """Drop PEFT's note of earlier adapters: the layers carry all that is needed, and it warns at a second one."""
    model.__dict__.pop("peft_config", None)


# --- in a file -------------------------------------------------------------------------------------------------------


def write(file: Path, model: torch.nn.Module, prefix: str, name: str = "default") -> None:
    """Write one adapter in diffusers' naming (``prefix.module.lora_A.weight``), rank and alpha in the header."""
    found = [(path, layer) for path, layer in layers(model) if name in layer.lora_A]
    header = {
        f"{prefix}.r": int(found[0][1].r[name]),
        f"{prefix}.lora_alpha": found[0][1].lora_alpha[name],
        f"{prefix}.target_modules": [path for path, _ in found],
        f"{prefix}.rank_pattern": {},  # older diffusers releases want it, though every layer has the same rank
    }
    state = {f"{prefix}.{key}": value.detach().cpu().contiguous() for key, value in parameters(model, name)}
    save_file(state, file, metadata={"format": "pt", HEADER: json.dumps(header, indent=2, sort_keys=True)})


def read(file: Path, prefix: str) -> dict[str, Lora]:
    """The adapter in a safetensors file, by module path: PEFT's and diffusers' namings, old and new."""
    try:
        with safe_open(file, "pt") as opened:
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
            header = json.loads((opened.metadata() or {}).get(HEADER, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise LoraError(f"{file} cannot be read as a LoRA: {error}") from error
    return parse(state, header, prefix, str(file))


def is_lora(keys: Sequence[str]) -> bool:
    """Whether the keys of a file are those of an adapter."""
    return any(".lora_A." in key or ".lora." in key or "_lora." in key for key in keys)


def parse(state: Mapping[str, torch.Tensor], header: Mapping[str, Any], prefix: str, source: str) -> dict[str, Lora]:
    """The adapter in a state dict. header: diffusers' metadata, or {}."""
    halves: dict[str, dict[str, torch.Tensor]] = {}
    alphas: dict[str, float] = {}
    unknown = []
    for key, value in state.items():
        own = key.removeprefix(prefix + ".")
        if own.endswith(".alpha"):
            alphas[own.removesuffix(".alpha")] = float(value)
        elif (match := _KEY.fullmatch(own)) is None or value.ndim != 2:
            unknown.append(key)
        else:
            path = _path(match)
            side = match["half"] or match["older"] or match["side"]
            halves.setdefault(path, {})["down" if side in ("lora_A", "down") else "up"] = value
    unknown += [path for path, sides in halves.items() if len(sides) != 2]
    if unknown or not halves:
        named = ", ".join(sorted(unknown)[:3]) or "it has no adapter weights"
        raise LoraError(f"{source} is not a LoRA that is known here: {named}")
    pattern = {str(k): float(v) for k, v in dict(header.get(f"{prefix}.alpha_pattern") or {}).items()}
    common = header.get(f"{prefix}.lora_alpha")
    found = {}
    for path, sides in halves.items():
        rank = float(sides["down"].shape[0])
        alpha = alphas.get(path, pattern.get(path, rank if common is None else float(common)))
        found[path] = Lora(sides["down"], sides["up"], alpha)
    return found


def _path(match: re.Match[str]) -> str:
    if match["old"] is None:
        return match["module"]
    layer = match["old"]
    return f"{match['module']}.{'to_out.0' if layer == 'to_out' else layer}"


def _most_common(values: Any) -> Any:
    return Counter(values).most_common(1)[0][0]
