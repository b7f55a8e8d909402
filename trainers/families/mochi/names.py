"""Genmo's names of Mochi's weights and diffusers', both ways. Every weight has its place, or there is an error.

The two differ in more than names: query, key and value are one layer here and three there (rows behind one another),
and where a layer gives two things at once (gate and value, shift and scale), they stand the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainers.families.base import ModelError
from trainers.families.weights import State
from trainers.lora import Lora, some

VIDEO = ("to_q", "to_k", "to_v")
TEXT = ("add_q_proj", "add_k_proj", "add_v_proj")


@dataclass(frozen=True)
class Rule:
    """A weight of Genmo's, and the one of diffusers', or the several that its rows make. swapped: its halves are."""

    diffusers: tuple[str, ...]
    genmo: str
    swapped: bool = False


def to_diffusers(state: Mapping[str, torch.Tensor], rules: Sequence[Rule], source: str) -> State:
    """Weights under diffusers' names. ModelError when some lack, or are none of these."""
    rest = dict(state)
    _check_there([rule.genmo for rule in rules], rest, source)
    made: State = {}
    for rule in rules:
        value = rest.pop(rule.genmo)
        if value.shape[0] % (2 if rule.swapped else len(rule.diffusers)):
            raise ModelError(f"{source} does not fit: {rule.genmo} is {tuple(value.shape)}, which has no equal parts")
        parts = (
            value.chunk(len(rule.diffusers))
            if len(rule.diffusers) > 1
            else (_swapped(value) if rule.swapped else value,)
        )
        made.update(zip(rule.diffusers, parts, strict=True))
    if rest:
        raise ModelError(f"{source} has weights that Mochi lacks: {some(rest)}")
    return made


def to_genmo(state: Mapping[str, torch.Tensor], rules: Sequence[Rule], source: str) -> State:
    """Weights under Genmo's names. ModelError when some lack, or are none of these."""
    rest = dict(state)
    _check_there([key for rule in rules for key in rule.diffusers], rest, source)
    made: State = {}
    for rule in rules:
        parts = [rest.pop(key) for key in rule.diffusers]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        made[rule.genmo] = _swapped(value) if rule.swapped else value
    if rest:
        raise ModelError(f"{source} has weights that Genmo's Mochi lacks: {some(rest)}")
    return made


def _check_there(wanted: Iterable[str], state: Mapping[str, Any], source: str) -> None:
    missing = [key for key in wanted if key not in state]
    if missing:
        raise ModelError(f"{source} is not whole: it lacks {some(missing)}")


def _swapped(value: torch.Tensor) -> torch.Tensor:
    first, second = value.chunk(2)
    return torch.cat([second, first])


# --- the transformer -------------------------------------------------------------------------------------------------

_WITH_BIAS = {  # Genmo's -> diffusers'
    "x_embedder.proj": "patch_embed.proj",
    "t_embedder.mlp.0": "time_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_embed.timestep_embedder.linear_2",
    "t5_y_embedder.to_kv": "time_embed.pooler.to_kv",
    "t5_y_embedder.to_q": "time_embed.pooler.to_q",
    "t5_y_embedder.to_out": "time_embed.pooler.to_out",
    "t5_yproj": "time_embed.caption_proj",
    "final_layer.linear": "proj_out",
}
_NORMS = {"q_norm_x": "norm_q", "k_norm_x": "norm_k", "q_norm_y": "norm_added_q", "k_norm_y": "norm_added_k"}


def is_transformer(keys: Iterable[str]) -> bool:
    """Whether these are names of Genmo's transformer."""
    return "blocks.0.attn.qkv_x.weight" in set(keys)


def transformer_config(state: Mapping[str, torch.Tensor], source: str) -> dict[str, Any]:
    """The settings of diffusers' class for Genmo's weights, from their shapes."""
    _check_there(
        ["x_embedder.proj.weight", "blocks.0.attn.q_norm_x.weight", "t5_yproj.weight", "t_embedder.mlp.0.weight",
         "final_layer.linear.weight"],
        state, source,
    )  # fmt: skip
    width, channels, patch = state["x_embedder.proj.weight"].shape[:3]
    head = state["blocks.0.attn.q_norm_x.weight"].shape[0]
    text, embeds = state["t5_yproj.weight"].shape
    return {
        "patch_size": int(patch),
        "num_attention_heads": int(width // head),
        "attention_head_dim": int(head),
        "num_layers": _blocks(state),
        "pooled_projection_dim": int(text),
        "in_channels": int(channels),
        "out_channels": int(state["final_layer.linear.weight"].shape[0] // patch**2),
        "text_embed_dim": int(embeds),
        "time_embed_dim": int(state["t_embedder.mlp.0.weight"].shape[1]),
    }


def transformer_rules(state: Mapping[str, Any]) -> list[Rule]:
    """For a transformer under either's names. In the last block the text stream ends with its attention."""
    rules = [Rule(("pos_frequencies",), "pos_frequencies")]
    for genmo, ours in _WITH_BIAS.items():
        rules += _both(genmo, ours)
    rules += _both("final_layer.mod", "norm_out.linear", swapped=True)
    blocks = _blocks(state)
    for block in range(blocks):
        last = block == blocks - 1
        genmo, ours = f"blocks.{block}", f"transformer_blocks.{block}"
        attention = f"{genmo}.attn", f"{ours}.attn1"
        rules += _both(f"{genmo}.mod_x", f"{ours}.norm1.linear")
        rules += _both(f"{genmo}.mod_y", f"{ours}.norm1_context.linear{'_1' if last else ''}")
        for name, parts in (("qkv_x", VIDEO), ("qkv_y", TEXT)):
            rules.append(
                Rule(tuple(f"{attention[1]}.{part}.weight" for part in parts), f"{attention[0]}.{name}.weight")
            )
        for name, norm in _NORMS.items():
            rules.append(Rule((f"{attention[1]}.{norm}.weight",), f"{attention[0]}.{name}.weight"))
        rules += _both(f"{attention[0]}.proj_x", f"{attention[1]}.to_out.0")
        rules += _feed_forward(f"{genmo}.mlp_x", f"{ours}.ff")
        if not last:
            rules += _both(f"{attention[0]}.proj_y", f"{attention[1]}.to_add_out")
            rules += _feed_forward(f"{genmo}.mlp_y", f"{ours}.ff_context")
    return rules


def _blocks(state: Mapping[str, Any]) -> int:
    found = [re.match(r"(?:transformer_)?blocks\.(\d+)\.", key) for key in state]
    return max((int(match[1]) for match in found if match), default=-1) + 1


def _both(genmo: str, ours: str, swapped: bool = False) -> list[Rule]:
    return [Rule((f"{ours}.{end}",), f"{genmo}.{end}", swapped) for end in ("weight", "bias")]


def _feed_forward(genmo: str, ours: str) -> list[Rule]:
    """diffusers' gate comes last, Genmo's first."""
    return [
        Rule((f"{ours}.net.0.proj.weight",), f"{genmo}.w1.weight", swapped=True),
        Rule((f"{ours}.net.2.weight",), f"{genmo}.w2.weight"),
    ]


# --- the video encoder and decoder -----------------------------------------------------------------------------------

_RESNET = {
    "stack.0": "norm1.norm_layer",
    "stack.2": "conv1.conv",
    "stack.3": "norm2.norm_layer",
    "stack.5": "conv2.conv",
}
#: How much each of the decoder's levels enlarges, the first at the lowest: (frames, height and width).
_EXPANSIONS = ((3, 2), (2, 2), (1, 2))


def encoder_rules(state: Mapping[str, Any]) -> list[Rule]:
    """For Genmo's encoder, a row of layers: the first, some blocks, levels with blocks of their own, some blocks."""
    levels = _numbers(state, r"layers\.(\d+)\.layers\.0\.weight")
    first = levels[0] if levels else 1
    rules = _both("layers.0", "encoder.proj_in")
    for block in range(1, first):
        rules += _encoder_block(state, f"layers.{block}", "encoder.block_in", block - 1)
    for level, place in enumerate(levels):
        ours = f"encoder.down_blocks.{level}"
        rules += _both(f"layers.{place}.layers.0", f"{ours}.conv_in.conv")
        for block in _numbers(state, rf"layers\.{place}\.layers\.(\d+)\.stack\.0\.weight"):
            rules += _encoder_block(state, f"layers.{place}.layers.{block}", ours, block - 1)
    for block in _numbers(state, r"layers\.(\d+)\.stack\.0\.weight"):
        if block > first:
            rules += _encoder_block(state, f"layers.{block}", "encoder.block_out", block - first - len(levels))
    return [*rules, *_both("output_norm", "encoder.norm_out.norm_layer"),
            Rule(("encoder.proj_out.weight",), "output_proj.weight")]  # fmt: skip


def _encoder_block(state: Mapping[str, Any], genmo: str, ours: str, place: int) -> list[Rule]:
    rules = _resnet(genmo, f"{ours}.resnets.{place}")
    if f"{genmo}.attn_block.attn.qkv.weight" in state:
        attention = f"{ours}.attentions.{place}"
        rules += _both(f"{genmo}.attn_block.norm", f"{ours}.norms.{place}.norm_layer")
        rules += _both(f"{genmo}.attn_block.attn.out", f"{attention}.to_out.0")
        rules.append(Rule(tuple(f"{attention}.{part}.weight" for part in VIDEO), f"{genmo}.attn_block.attn.qkv.weight"))
    return rules


def _resnet(genmo: str, ours: str) -> list[Rule]:
    return [rule for theirs, own in _RESNET.items() for rule in _both(f"{genmo}.{theirs}", f"{ours}.{own}")]


def encoder_config(state: Mapping[str, torch.Tensor], source: str) -> dict[str, Any]:
    """What the encoder's shapes say of diffusers' class."""
    _check_there(["layers.0.weight", "output_proj.weight"], state, source)
    levels = _numbers(state, r"layers\.(\d+)\.layers\.0\.weight")
    first = levels[0] if levels else 1
    inputs = [state[f"layers.{place}.layers.0.weight"] for place in levels]  # (out, in, frames, height, width)
    blocks = [[f"layers.{n}" for n in range(1, first)]]
    for place in levels:
        inner = _numbers(state, rf"layers\.{place}\.layers\.(\d+)\.stack\.0\.weight")
        blocks.append([f"layers.{place}.layers.{n}" for n in inner])
    blocks.append([f"layers.{n}" for n in _numbers(state, r"layers\.(\d+)\.stack\.0\.weight") if n > first])
    return {
        "in_channels": int(state["layers.0.weight"].shape[1]),
        "latent_channels": int(state["output_proj.weight"].shape[0] // 2),
        "encoder_block_out_channels": [int(w.shape[0]) for w in [state["layers.0.weight"], *inputs]],
        "layers_per_block": [len(names) for names in blocks],
        "temporal_expansions": [int(weight.shape[2]) for weight in inputs],
        "spatial_expansions": [int(weight.shape[3]) for weight in inputs],
        "add_attention_block": [any(f"{name}.attn_block.norm.weight" in state for name in names) for names in blocks],
    }


def decoder_rules(state: Mapping[str, Any]) -> list[Rule]:
    """For Genmo's decoder: blocks at the lowest level, levels that end in a projection, blocks at the highest."""
    levels = _numbers(state, r"blocks\.(\d+)\.proj\.weight")
    rules = _both("blocks.0.0", "decoder.conv_in")
    for block in _numbers(state, r"blocks\.0\.(\d+)\.stack\.0\.weight"):
        rules += _resnet(f"blocks.0.{block}", f"decoder.block_in.resnets.{block - 1}")
    for level, place in enumerate(levels):
        for block in _numbers(state, rf"blocks\.{place}\.blocks\.(\d+)\.stack\.0\.weight"):
            rules += _resnet(f"blocks.{place}.blocks.{block}", f"decoder.up_blocks.{level}.resnets.{block}")
        rules += _both(f"blocks.{place}.proj", f"decoder.up_blocks.{level}.proj")
    last = levels[-1] + 1 if levels else 1
    for block in _numbers(state, rf"blocks\.{last}\.(\d+)\.stack\.0\.weight"):
        rules += _resnet(f"blocks.{last}.{block}", f"decoder.block_out.resnets.{block}")
    return [*rules, *_both("output_proj", "decoder.proj_out")]


def decoder_config(state: Mapping[str, torch.Tensor], source: str) -> dict[str, Any]:
    """What the decoder's shapes say of diffusers' class; how much each level enlarges they do not say."""
    levels = _numbers(state, r"blocks\.(\d+)\.proj\.weight")
    _check_there(["blocks.0.0.weight", "output_proj.weight"], state, source)
    if len(levels) != len(_EXPANSIONS):
        raise ModelError(f"{source} is no decoder of Mochi: it has {len(levels)} levels instead of {len(_EXPANSIONS)}")
    widths = [int(state["blocks.0.0.weight"].shape[0])]
    for place, (frames, side) in zip(levels, _EXPANSIONS, strict=True):
        widths.append(int(state[f"blocks.{place}.proj.weight"].shape[0] // (frames * side**2)))
    inner = [rf"blocks\.{place}\.blocks\.(\d+)\.stack\.0\.weight" for place in levels]
    patterns = [r"blocks\.0\.(\d+)\.stack\.0\.weight", *inner, rf"blocks\.{levels[-1] + 1}\.(\d+)\.stack\.0\.weight"]
    return {
        "latent_channels": int(state["blocks.0.0.weight"].shape[1]),
        "out_channels": int(state["output_proj.weight"].shape[0]),
        "decoder_block_out_channels": widths[::-1],
        "layers_per_block": [len(_numbers(state, pattern)) for pattern in patterns][::-1],
    }


def _numbers(state: Mapping[str, Any], pattern: str) -> list[int]:
    """What stands for the number of a pattern in the keys that it fits, in order."""
    found = [re.fullmatch(pattern, key) for key in state]
    return sorted(int(match[1]) for match in found if match)


# --- LoRAs -----------------------------------------------------------------------------------------------------------

_LORA = re.compile(r"blocks\.(\d+)\.attn\.(qkv_x|qkv_y|proj_x|proj_y)\.lora_([AB])")
#: Genmo's layer -> diffusers' within attn1.
LAYERS = {"qkv_x": VIDEO, "qkv_y": TEXT, "proj_x": ("to_out.0",), "proj_y": ("to_add_out",)}
_KINDS = {"qkv_x": "qkv_proj", "qkv_y": "qkv_proj", "proj_x": "out_proj", "proj_y": "out_proj"}


def is_lora(keys: Iterable[str]) -> bool:
    """Whether these are names of a LoRA of Genmo's trainer."""
    return any(_LORA.fullmatch(key) for key in keys)


def lora_from_genmo(state: Mapping[str, Any], kwargs: Mapping[str, Any], source: str) -> dict[str, Lora]:
    """A LoRA of Genmo's by diffusers' paths: query, key and value get the same lower half and a third of the upper.

    kwargs: from the file's header; what is not said there is taken as alpha = rank, as ComfyUI does."""
    halves: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    unknown = []
    for key, value in state.items():
        match = _LORA.fullmatch(key)
        if match is None or not torch.is_tensor(value) or value.ndim != 2:
            unknown.append(key)
        else:
            halves.setdefault((match[1], match[2]), {})[match[3]] = value
    unknown += [f"blocks.{block}.attn.{layer}" for (block, layer), pair in halves.items() if len(pair) != 2]
    if unknown:
        raise ModelError(f"{source} is not a LoRA that is known here: {some(unknown)} cannot be read")
    made = {}
    for (block, layer), pair in halves.items():
        down, up, parts = pair["A"], pair["B"], LAYERS[layer]
        rank = down.shape[0]
        if up.shape[1] != rank or up.shape[0] % len(parts):
            raise ModelError(
                f"{source} is damaged: blocks.{block}.attn.{layer} is {tuple(down.shape)} below and {tuple(up.shape)} "
                "above"
            )
        alpha = kwargs.get(f"{_KINDS[layer]}_lora_alpha")
        if alpha is not None and not isinstance(alpha, (int, float)):
            raise ModelError(f"{source} says that {_KINDS[layer]}_lora_alpha is {alpha!r}, which is no number")
        for part, own in zip(parts, up.chunk(len(parts)), strict=True):
            path = f"transformer_blocks.{block}.attn1.{part}"
            made[path] = Lora(down, own.contiguous(), float(rank if alpha is None else alpha))
    return made


def lora_to_genmo(adapter: Mapping[str, Lora], source: str) -> tuple[State, dict[str, Any]]:
    """A LoRA under Genmo's names and the kwargs of its header, every alpha folded in: it equals the rank.

    Where query, key and value do not share a lower half, theirs are put behind one another (three times the rank).
    Genmo has one rank for all such layers and one for all output projections, so smaller ones are filled up with zeros.
    ModelError for layers that Genmo's LoRA cannot have, and where only one of query, key and value says its size.
    """
    rest = {path: layer.folded() for path, layer in adapter.items()}
    found: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}
    for block in sorted({int(match[1]) for path in rest if (match := re.match(r"transformer_blocks\.(\d+)\.", path))}):
        for layer, parts in LAYERS.items():
            own = [rest.pop(f"transformer_blocks.{block}.attn1.{part}", None) for part in parts]
            if any(own):
                found[block, layer] = _joined(own)
    if rest:
        raise ModelError(
            f"{source} cannot be written in Genmo's format, which has a LoRA on attention in the blocks only: it has "
            f"{some(rest)}"
        )
    ranks = {"qkv_proj": 1, "out_proj": 1}
    for (_, layer), (down, _) in found.items():
        ranks[_KINDS[layer]] = max(ranks[_KINDS[layer]], down.shape[0])
    state: State = {}
    for (block, layer), (down, up) in found.items():
        more = ranks[_KINDS[layer]] - down.shape[0]
        state[f"blocks.{block}.attn.{layer}.lora_A"] = torch.nn.functional.pad(down, (0, 0, 0, more))
        state[f"blocks.{block}.attn.{layer}.lora_B"] = torch.nn.functional.pad(up, (0, more))
    kwargs: dict[str, Any] = {}
    for kind, rank in ranks.items():
        kwargs |= {f"{kind}_lora_rank": rank, f"{kind}_lora_alpha": rank, f"{kind}_lora_dropout": 0.0}
    return state, kwargs


def _joined(parts: Sequence[Lora | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, B) of one layer for what were several, of which some may have no LoRA. All of them give as many rows."""
    there = [part for part in parts if part is not None]
    rows, first = there[0].up.shape[0], there[0].down
    shared = all(part.down.shape == first.shape and torch.equal(part.down, first) for part in there)
    down = first if shared else torch.cat([part.down for part in there])
    up = down.new_zeros(rows * len(parts), down.shape[0])
    column = 0
    for number, part in enumerate(parts):
        if part is not None:
            up[number * rows : (number + 1) * rows, column : column + part.rank] = part.up
            column += 0 if shared else part.rank
    return down, up
