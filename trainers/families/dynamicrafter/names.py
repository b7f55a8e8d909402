"""Names in DynamiCrafter's files and ours, both ways. Every weight has its place, or is known to be unused.

The denoiser and the resampler are called there as here, behind a prefix. CLIP's towers are called as OpenCLIP calls
them, with query, key and value in one; the autoencoder as Stable Diffusion's own code calls it, with convolutions of
size 1 for the linear layers of its attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import torch
from accelerate import init_empty_weights

from trainers.families.dynamicrafter import encoders
from trainers.families.dynamicrafter.facts import Facts
from trainers.families.dynamicrafter.resampler import Resampler
from trainers.families.dynamicrafter.schedule import buffers
from trainers.families.dynamicrafter.unet import VideoUNet
from trainers.families.weights import State

Part = Literal["unet", "resampler", "vae", "text", "vision"]
PARTS: tuple[Part, ...] = get_args(Part)

PREFIXES: dict[Part, str] = {
    "unet": "model.diffusion_model.",
    "resampler": "image_proj_model.",
    "vae": "first_stage_model.",
    "text": "cond_stage_model.model.",
    "vision": "embedder.model.",
}
#: What DeepSpeed puts before every name.
_WRAPPED = "_forward_module."
#: The layer of `fs` has this name in the published 256 file, and the other one in all others.
_OLD_FS, _FS = "framestride_embed", "fps_embedding"

_Replacements = tuple[tuple[str, str], ...]  # (pattern of ours, what the file has there)
_TOWER: _Replacements = (
    (r"^(text_model|vision_model)\.", ""),  # transformers before 5.6
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"self_attn\.[qkv]_proj\.", "attn.in_proj_"),
    (r"self_attn\.", "attn."),
    (r"layer_norm([12])\.", r"ln_\1."),
    (r"mlp\.fc1\.", "mlp.c_fc."),
    (r"mlp\.fc2\.", "mlp.c_proj."),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^embeddings\.", ""),
)
_REPLACEMENTS: dict[Part, _Replacements] = {
    "unet": (),
    "resampler": (),
    "vae": (
        (r"(down|up)_blocks\.", r"\1."),
        (r"\.(\d+)\.resnets\.", r".\1.block."),
        (r"(downsample|upsample)rs\.0\.", r"\1."),
        (r"mid_block\.attentions\.0\.", "mid.attn_1."),
        (r"mid_block\.resnets\.0\.", "mid.block_1."),
        (r"mid_block\.resnets\.1\.", "mid.block_2."),
        (r"(attn_1)\.group_norm\.", r"\1.norm."),
        (r"(attn_1)\.to_([qkv])\.", r"\1.\2."),
        (r"(attn_1)\.to_out\.0\.", r"\1.proj_out."),
        (r"conv_shortcut\.", "nin_shortcut."),
        (r"conv_norm_out\.", "norm_out."),
    ),
    "text": (*_TOWER, (r"^final_layer_norm\.", "ln_final.")),
    "vision": (
        *_TOWER,
        (r"^patch_embedding\.", "conv1."),
        (r"^pre_layrnorm\.", "ln_pre."),
        (r"^post_layernorm\.", "ln_post."),
        (r"^", "visual."),
    ),
}


@dataclass(frozen=True)
class Weight:
    """Where a tensor of a file belongs: in our part, under these names.

    ours: several where the file has them in one, by rows. shape: in the file. convolution: of size 1 there, and a
    matrix here."""

    part: Part
    ours: tuple[str, ...]
    shape: tuple[int, ...]
    convolution: bool = False


@lru_cache(maxsize=8)
def weights_of(facts: Facts) -> Mapping[str, Weight]:
    """Every tensor of a file that the model is made of, by its name there. Nothing is allocated."""
    found: dict[str, Weight] = {}
    for part in PARTS:
        for key, value in empty(part, facts).state_dict().items():
            name, shape = reference_name(part, key, facts), tuple(value.shape)
            convolution = part == "vae" and ".attn_1." in name and len(shape) == 2
            weight = Weight(part, (key,), (*shape, 1, 1) if convolution else shape, convolution)
            if name in found:  # another of query, key and value, which stand in this order there
                others = found[name]
                keys = sorted((*others.ours, key), key=lambda each: "qkv".index(each[each.index("_proj.") - 1]))
                weight = replace(others, ours=tuple(keys), shape=(others.shape[0] + shape[0], *shape[1:]))
            found[name] = weight
    return found


def schedule_names(facts: Facts) -> frozenset[str]:
    """Names of the numbers of the schedule, which files hold as well."""
    return frozenset(buffers(facts))


def leftovers(facts: Facts) -> frozenset[str]:
    """What files hold and nothing uses: the last layer of CLIP's text tower and its projections, and what of the text
    tower was left in the image tower's part."""
    text, vision = PREFIXES["text"], PREFIXES["vision"]
    block = ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    last = [f"{name}.{kind}" for name in block for kind in ("weight", "bias")]
    last += ["attn.in_proj_weight", "attn.in_proj_bias"]
    own = ["text_projection", "logit_scale", *(f"transformer.resblocks.{facts.text.layers - 1}.{key}" for key in last)]
    dead = ["positional_embedding", "text_projection", "logit_scale", "token_embedding.weight"]
    dead += ["ln_final.weight", "ln_final.bias", "visual.proj"]
    return frozenset([*(text + key for key in own), *(vision + key for key in dead)])


def empty(part: Part, facts: Facts) -> torch.nn.Module:
    """A part without memory for its weights."""
    with init_empty_weights():
        match part:
            case "unet":
                return VideoUNet(facts.unet)
            case "resampler":
                return Resampler(facts.resampler)
            case "vae":
                return encoders.vae(facts.vae, facts.scale_factor)  # type: ignore[no-any-return]
            case "text":
                return encoders.text_tower(facts.text)  # type: ignore[no-any-return]
            case "vision":
                return encoders.image_tower(facts.vision)  # type: ignore[no-any-return]


def reference_name(part: Part, key: str, facts: Facts) -> str:
    """How a file calls our weight."""
    for pattern, there in _REPLACEMENTS[part]:
        key = re.sub(pattern, there, key)
    if part == "vae":  # counted from the smallest level here, from the largest there
        last = len(facts.vae.ch_mult) - 1
        key = re.sub(r"^decoder\.up\.(\d+)", lambda found: f"decoder.up.{last - int(found[1])}", key)
    return PREFIXES[part] + key


def plain(key: str) -> str:
    """A name without what DeepSpeed puts before it, and as all but the published 256 file have it."""
    return key.removeprefix(_WRAPPED).replace(_OLD_FS, _FS)


def ours(weight: Weight, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """(our name, tensor) of a file's tensor, which has the weight's shape."""
    if weight.convolution:
        value = value[..., 0, 0]
    parts = value.chunk(len(weight.ours)) if len(weight.ours) > 1 else (value,)
    yield from zip(weight.ours, parts, strict=True)


def in_reference(state: Mapping[str, torch.Tensor], part: Part, facts: Facts) -> State:
    """A part's weights, all of them, under the names and in the shapes of a file."""
    found: State = {}
    for name, weight in weights_of(facts).items():
        if weight.part == part:
            value = torch.cat([state[key] for key in weight.ours]) if len(weight.ours) > 1 else state[weight.ours[0]]
            found[name] = value.reshape(weight.shape)
    return found
