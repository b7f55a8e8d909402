"""The tensors of a clip that another trainer has encoded, in the names of `VideoModel.encode_video` and
`encode_prompt`. The layouts are described in ``prepared.py``, which has looked at the files before."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from trainers.data.formats.prepared import beside
from trainers.families.base import ModelError
from trainers.families.mochi.prepared import prepared


def read_prepared(video: Path, width: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What lies encoded beside a video, on the CPU and without a batch dimension, in 32 bits. width: of the model's
    text.

    Of the video: ``latents_mean`` and ``latents_logvar``, (12, t, h, w), in raw VAE space. Of the prompt:
    ``prompt_embeds`` (256, width) and ``prompt_attention_mask`` (256,) bool. DatasetError or ModelError, one sentence,
    for files that cannot be trained from.
    """
    prepared(video)
    latent, embed = beside(video)
    latents, text = _tensors(latent), _tensors(embed)
    mean, logvar = latents["ldist"].chunk(2, dim=1) if "ldist" in latents else (latents["mean"], latents["logvar"])
    if "y_feat" in text:
        embeds, mask = _only(text["y_feat"]), _only(text["y_mask"])
    else:
        embeds, mask = text["prompt_embeds"], text["prompt_attention_mask"]
    if embeds.shape[-1] != width:
        raise ModelError(
            f"{embed.name} is of another text encoder: its embeddings are {embeds.shape[-1]} wide, the base model's "
            f"{width}; prepare the clip with the base model's own"
        )
    for name, tensors in ((latent.name, (mean, logvar)), (embed.name, (embeds,))):
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise ModelError(f"{name} has values that are no numbers; prepare the clip again, or remove it")
    return (
        {"latents_mean": mean[0].float().contiguous(), "latents_logvar": logvar[0].float().contiguous()},
        {"prompt_embeds": embeds[0].float(), "prompt_attention_mask": mask[0].bool()},
    )


def _only(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def _tensors(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{file.name} cannot be read: it is damaged; prepare the clip again, or remove it") from error
    return found
