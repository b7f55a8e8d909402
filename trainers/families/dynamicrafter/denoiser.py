"""What is trained and called as one: the resampler, which makes tokens for each frame of an image, and the network."""

from __future__ import annotations

import torch
from torch import nn

from trainers.families.dynamicrafter.names import PREFIXES
from trainers.families.dynamicrafter.resampler import Resampler
from trainers.families.dynamicrafter.unet import VideoUNet

#: Where the two stand in the reference's files.
_OURS = {"unet.": PREFIXES["unet"], "resampler.": PREFIXES["resampler"]}


class Denoiser(nn.Module):
    """A clip's latents to noise or velocity."""

    def __init__(self, unet: VideoUNet, resampler: Resampler) -> None:
        super().__init__()
        self.unet, self.resampler = unet, resampler

    def forward(
        self,
        model_input: torch.Tensor,
        timesteps: torch.Tensor,
        text: torch.Tensor,
        image: torch.Tensor,
        fs: torch.Tensor,
    ) -> torch.Tensor:
        """(b, c, f, h, w) for noisy latents and the image's (b, 2c, f, h, w), timesteps (b,), text states (b, 77,
        width), the image tower's states (b, n, its width), and the pace (b,)."""
        tokens = self.resampler(image.to(text.dtype))
        return self.unet(model_input, timesteps, torch.cat([text, tokens.to(text.dtype)], dim=1), fs)  # type: ignore[no-any-return]


def in_reference(key: str) -> str:
    """A parameter of ours under the reference's name."""
    ours = next(ours for ours in _OURS if key.startswith(ours))
    return _OURS[ours] + key.removeprefix(ours)


def in_denoiser(key: str) -> str | None:
    """A parameter of the reference under our name; None where it belongs to another part."""
    for ours, theirs in _OURS.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return None
