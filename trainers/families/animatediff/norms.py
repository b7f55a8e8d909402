"""The two ways to take group norms over a clip, put into a UNetMotionModel in place.

AnimateDiff's own code takes the norm at the entry of a motion module over each frame alone; diffusers takes it over
all frames together. The first modules (v1) were moreover trained on an image model whose resnet norms ran over all
frames of a clip together; ComfyUI and sd-webui do the same for them. Names and values of the weights stay as they are.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import UNetMotionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import nn

Semantics = Literal["original", "diffusers"]


class FrameNorm(nn.GroupNorm):
    """A group norm over each frame of (b, c, f, h, w) alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        images = input.transpose(1, 2)  # (b, f, c, h, w)
        normed = super().forward(images.flatten(0, 1))
        return normed.reshape(images.shape).transpose(1, 2)


class ClipNorm(nn.GroupNorm):
    """A group norm over all frames of a clip together, for images (b*f, c, h, w) of `frames` frames each."""

    frames = 1

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        clips = input.reshape(-1, self.frames, *input.shape[1:]).transpose(1, 2)  # (b, c, f, h, w)
        return super().forward(clips).transpose(1, 2).flatten(0, 1)


def set_norms(unet: UNetMotionModel, semantics: Semantics, joint: bool) -> None:
    """Compute the norms of `unet` in that way from now on.

    joint: the motion module is a v1, so that semantics "original" takes the image model's norms over whole clips.
    """
    original = semantics == "original"
    image_norm = ClipNorm if original and joint else nn.GroupNorm
    for module in unet.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            module.norm = _as(FrameNorm if original else nn.GroupNorm, module.norm)
        elif isinstance(module, ResnetBlock2D):
            module.norm1 = _as(image_norm, module.norm1)
            module.norm2 = _as(image_norm, module.norm2)
    if unet.conv_norm_out is not None:
        unet.conv_norm_out = _as(image_norm, unet.conv_norm_out)
    if not hasattr(unet, "_clip_norms"):
        unet.register_forward_pre_hook(_count_frames, with_kwargs=True)
    unet._clip_norms = [module for module in unet.modules() if isinstance(module, ClipNorm)]


def _count_frames(unet: UNetMotionModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    sample = args[0] if args else kwargs["sample"]
    for norm in unet._clip_norms:
        norm.frames = sample.shape[2]


def _as(kind: type[nn.GroupNorm], norm: nn.GroupNorm) -> nn.GroupNorm:
    """The same norm, with the same parameter objects, computed by `kind`."""
    if type(norm) is kind:
        return norm
    changed = kind(norm.num_groups, norm.num_channels, norm.eps, device="meta")
    changed.weight, changed.bias = norm.weight, norm.bias
    return changed.train(norm.training)
