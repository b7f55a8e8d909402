"""Low-rank adapters: PEFT's layers put into a model in place, and their files in diffusers' naming.

Several adapters can lie on one layer, each under its own name and at its own strength; they are never merged.
A model without adapters is exactly what it was before.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

FILE_NAME = "pytorch_lora_weights.safetensors"
HEADER = "lora_adapter_metadata"  # where diffusers (0.35 and later) looks for rank and alpha

#: PEFT's names (lora_A, or lora_A.NAME as it stands in a model), diffusers' (lora.down), and the older ones on
#: attention processors, whose layer stands before _lora (processor.to_q_lora.down).
_KEY = re.compile(
    r"(?P<module>.+?)\."
    r"(?:(?P<half>lora_A|lora_B)(?:\.(?!weight$)[^.]+)?|lora\.(?P<older>down|up)"
    r"|processor\.(?P<old>\w+)_lora\.(?P<side>down|up))"
    r"\.weight"
)
_PREFIXES = ("base_model.model.",)  # what PEFT puts before a module's path
#: Ways to begin a LoRA that also change the weights beneath it, which its file does not hold (PEFT: init_lora_weights).
_CHANGES_ITS_BASE = ("pissa", "olora", "corda", "loftq")


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

    def folded(self, strength: float = 1.0) -> Lora:
        """The same effect, times `strength`, at alpha = rank: its factor has gone into `up`."""
        return Lora(self.down.float(), self.up.float() * (strength * self.alpha / self.rank), float(self.rank))


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


def set_dropout(model: torch.nn.Module, dropouts: Mapping[str, float], name: str = "default") -> None:
    """Give the named layers' adapters a dropout of their own."""
    for path, layer in layers(model):
        if path in dropouts:
            own = torch.nn.Dropout(dropouts[path]) if dropouts[path] > 0 else torch.nn.Identity()
            layer.lora_dropout[name] = own


def tie(group: Sequence[torch.nn.Module], name: str = "default") -> bool:
    """Let those of these layers that carry an adapter share the first one's lower half and dropout. Whether there is
    anything to share; `tied_outputs` computes them then."""
    carrying = [layer for layer in group if isinstance(layer, LoraLayer) and name in layer.lora_A]
    for layer in carrying[1:]:
        layer.lora_A[name], layer.lora_dropout[name] = carrying[0].lora_A[name], carrying[0].lora_dropout[name]
    return len(carrying) > 1


def tied_outputs(group: Sequence[Any], inputs: torch.Tensor, name: str = "default") -> list[torch.Tensor]:
    """What tied layers give for the same inputs: the lower half is computed once, under one dropout, as a single layer
    for all of them would."""
    carrying = [layer for layer in group if isinstance(layer, LoraLayer)]
    low = carrying[0].lora_A[name](carrying[0].lora_dropout[name](inputs))
    return [
        layer.get_base_layer()(inputs) + layer.lora_B[name](low) * layer.scaling[name]
        if isinstance(layer, LoraLayer)
        else layer(inputs)
        for layer in group
    ]


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
    """Copy weights into an adapter of the same layers and ranks, in place; the effect is that of `adapter`, whatever
    alpha the layers have."""
    with torch.no_grad():
        for path, layer in layers(model):
            if name in layer.lora_A:
                given, alpha = adapter[path], float(layer.lora_alpha[name])
                up = given.up if given.alpha == alpha else given.up.float() * (given.alpha / alpha)
                layer.lora_A[name].weight.copy_(given.down)
                layer.lora_B[name].weight.copy_(up)


def taken(model: torch.nn.Module, name: str = "default") -> dict[str, Lora]:
    """The weights of one adapter by module path, on the CPU."""
    found = {}
    for path, layer in layers(model):
        if name in layer.lora_A:
            down, up = layer.lora_A[name].weight.detach().cpu(), layer.lora_B[name].weight.detach().cpu()
            found[path] = Lora(down, up, float(layer.lora_alpha[name]))
    return found


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
    _save(file, state, header, {})


def write_folded(
    file: Path, adapter: Mapping[str, Lora], prefix: str, dtype: torch.dtype, notes: Mapping[str, str]
) -> None:
    """Write an adapter in diffusers' naming with every alpha folded into its `up`: loaders apply it in full at scale 1,
    whether they read the header or not. notes: further entries of the file's header."""
    rank = _most_common(layer.rank for layer in adapter.values())
    others = {path: layer.rank for path, layer in adapter.items() if layer.rank != rank}
    header = {
        f"{prefix}.r": rank,
        f"{prefix}.lora_alpha": rank,
        f"{prefix}.target_modules": list(adapter),
        f"{prefix}.rank_pattern": others,
        f"{prefix}.alpha_pattern": others,
    }
    _save(file, folded_state(adapter, prefix, dtype), header, notes)


def folded_state(adapter: Mapping[str, Lora], prefix: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What `write_folded` writes. Every tensor is one of its own: a file cannot hold halves that layers share."""
    state = {}
    for path, layer in adapter.items():
        own = layer.folded()
        state[f"{prefix}.{path}.lora_A.weight"] = own.down.to(dtype, copy=True).contiguous()
        state[f"{prefix}.{path}.lora_B.weight"] = own.up.to(dtype, copy=True).contiguous()
    return state


def _save(file: Path, state: dict[str, torch.Tensor], header: dict[str, Any], notes: Mapping[str, str]) -> None:
    save_file(state, file, metadata={**notes, "format": "pt", HEADER: json.dumps(header, indent=2, sort_keys=True)})


def is_lora(keys: Iterable[str]) -> bool:
    """Whether the keys of a file are those of an adapter."""
    signs = (".lora_A.", ".lora.", "_lora.", ".lora_down.", ".lora_up.")
    return any(sign in key for key in keys for sign in signs)


def settings_of(header: Mapping[str, str], prefix: str) -> dict[str, Any]:
    """PEFT's settings of an adapter from a file's header, as diffusers writes them; {} where there are none."""
    try:
        found = json.loads(header.get(HEADER, "{}"))
    except ValueError:
        return {}
    own = found.items() if isinstance(found, dict) else ()
    return {key.removeprefix(prefix + "."): value for key, value in own if key.startswith(prefix + ".")}


def parse(state: Mapping[str, Any], settings: Mapping[str, Any], prefix: str, source: str) -> dict[str, Lora]:
    """The adapter in a state dict, by module path.

    settings: PEFT's (an adapter_config.json, a header's), or {}: full strength is up @ down then. LoraError names keys
    that are no part of an adapter, and adapters that are more than low-rank weights.
    """
    _check_settings(settings, source)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    alphas: dict[str, float] = {}
    unknown = []
    for key, value in state.items():
        own = key
        for start in (*_PREFIXES, prefix + "."):
            own = own.removeprefix(start)
        if own.endswith(".alpha") and torch.is_tensor(value) and value.numel() == 1:
            alphas[own.removesuffix(".alpha")] = float(value)
            continue
        match = _KEY.fullmatch(own)
        if match is None or not torch.is_tensor(value) or value.ndim != 2:
            unknown.append(key)
            continue
        sides = halves.setdefault(_path(match), {})
        side = "down" if (match["half"] or match["older"] or match["side"]) in ("lora_A", "down") else "up"
        if side in sides:
            raise LoraError(f"{source} holds two adapters for {_path(match)}; give a file with one")
        sides[side] = value
    unknown += [path for path, sides in halves.items() if len(sides) != 2]
    unknown += [f"{path}.alpha" for path in alphas if path not in halves]
    if unknown or not halves:
        named = f"{some(unknown)} cannot be read" if unknown else "it has no adapter weights"
        raise LoraError(f"{source} is not a LoRA that is known here: {named}")
    found = {}
    for path, sides in halves.items():
        down, up = sides["down"], sides["up"]
        if down.shape[0] != up.shape[1]:
            raise LoraError(f"{source} is damaged: {path} has rank {down.shape[0]} below and {up.shape[1]} above")
        rank = float(down.shape[0])
        alpha = alphas.get(path, _from_pattern(settings.get("alpha_pattern"), path, settings.get("lora_alpha")))
        alpha = rank if alpha is None else float(alpha)
        found[path] = Lora(down, up, alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha)
    return found


def _check_settings(settings: Mapping[str, Any], source: str) -> None:
    """LoraError when the settings tell of an adapter that up @ down does not describe."""
    kind = settings.get("peft_type") or settings.get("swift_type") or "LORA"
    if kind != "LORA":
        raise LoraError(f"{source} is an adapter of type {kind}; only LORA is read")
    if settings.get("use_dora"):
        raise LoraError(f"{source} is a DoRA (use_dora), which is more than a LoRA and is not read")
    beginning = settings.get("init_lora_weights")
    if isinstance(beginning, str) and beginning.lower().startswith(_CHANGES_ITS_BASE):
        raise LoraError(
            f"{source} was begun with init_lora_weights {beginning}, which changes the weights beneath it as well; "
            "convert it to a plain LoRA with PEFT (path_initial_model_for_weight_conversion) first"
        )


def _from_pattern(pattern: Any, path: str, common: Any) -> Any:
    """The value of the first pattern that matches the end of `path`, as PEFT looks it up; `common` where none does."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return common


def _path(match: re.Match[str]) -> str:
    if match["old"] is None:
        return match["module"]
    layer = match["old"]
    return f"{match['module']}.{'to_out.0' if layer == 'to_out' else layer}"


def some(names: Iterable[str]) -> str:
    """A few of the names, and how many more."""
    known = sorted(map(str, names))
    return ", ".join(known[:3]) + ("" if len(known) <= 3 else f" and {len(known) - 3} more")


def _most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]
