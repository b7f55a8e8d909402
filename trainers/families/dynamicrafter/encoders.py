"""The frozen parts on others' classes: CLIP's two towers (transformers) and the autoencoder (diffusers)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch.nn.functional import conv2d, interpolate, pad
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from trainers.families.dynamicrafter.facts import TextFacts, VaeFacts, VisionFacts

#: Mean and deviation of the colours that CLIP was trained with.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
_PERCEPTRON = 4  # times as wide as the towers are its layers


# --- text ------------------------------------------------------------------------------------------------------------


def text_tower(facts: TextFacts) -> CLIPTextModel:
    """OpenCLIP's text tower without its last layer, whose output DynamiCrafter does not take."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=facts.vocab_size,
            hidden_size=facts.width,
            intermediate_size=_PERCEPTRON * facts.width,
            num_hidden_layers=facts.layers - 1,
            num_attention_heads=facts.heads,
            max_position_embeddings=facts.context_length,
            hidden_act="gelu",
            bos_token_id=facts.vocab_size - 2,
            eos_token_id=facts.vocab_size - 1,
            pad_token_id=0,
        )
    )


def text_states(tower: CLIPTextModel, ids: torch.Tensor) -> torch.Tensor:
    """(b, tokens, width) for tokens (b, tokens): the last but one layer of CLIP's, normed."""
    return tower(input_ids=ids).last_hidden_state  # type: ignore[no-any-return]


# --- images ----------------------------------------------------------------------------------------------------------


def image_tower(facts: VisionFacts) -> CLIPVisionModel:
    """OpenCLIP's image tower."""
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=facts.width,
            intermediate_size=_PERCEPTRON * facts.width,
            num_hidden_layers=facts.layers,
            num_attention_heads=facts.width // facts.head_width,
            image_size=facts.image_size,
            patch_size=facts.patch_size,
            hidden_act="gelu",
        )
    )


def image_states(tower: CLIPVisionModel, pixels: torch.Tensor) -> torch.Tensor:
    """(b, 1 + patches, width) for pictures (b, 3, h, w) in [-1, 1] of any size: all layers, without the last norm."""
    fitted = clip_pixels(pixels, tower.config.image_size)
    return tower(pixel_values=fitted.to(tower.dtype)).last_hidden_state  # type: ignore[no-any-return]


def clip_pixels(pixels: torch.Tensor, size: int = 224) -> torch.Tensor:
    """Pictures (b, 3, h, w) in [-1, 1] as CLIP takes them, (b, 3, size, size) in 32 bits.

    The resize is that of kornia 0.9 with antialiasing: where a side shrinks, a Gaussian first, whose width follows how
    far it shrinks; then bicubic, corner to corner. Proportions are not kept.
    """
    pixels = pixels.float()
    factors = [side / size for side in pixels.shape[2:]]
    if max(factors) > 1:
        rows, columns = (_gaussian(factor, pixels.device) for factor in factors)
        around = [len(columns) // 2] * 2 + [len(rows) // 2] * 2
        blurred = pad(pixels, around, mode="reflect").flatten(0, 1)[:, None]  # (b*3, 1, h, w)
        blurred = conv2d(conv2d(blurred, rows[None, None, :, None]), columns[None, None, None, :])
        pixels = blurred.reshape(pixels.shape)
    resized = interpolate(pixels, (size, size), mode="bicubic", align_corners=True)
    mean, deviation = (torch.tensor(each, device=pixels.device).view(3, 1, 1) for each in (_MEAN, _DEVIATION))
    return ((resized + 1) / 2 - mean) / deviation


def _gaussian(factor: float, device: torch.device) -> torch.Tensor:
    """A kernel that sums to 1, for a side that shrinks by a factor."""
    sigma = max((factor - 1) / 2, 0.001)
    length = int(max(4 * sigma, 3)) | 1  # odd
    places = torch.arange(length, device=device, dtype=torch.float32) - length // 2
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    return weights / weights.sum()


# --- video -----------------------------------------------------------------------------------------------------------


def vae(facts: VaeFacts, scale_factor: float = 0.18215) -> AutoencoderKL:
    """Stable Diffusion's autoencoder, which takes frame by frame. scale_factor: of latents, for its settings only."""
    levels = len(facts.ch_mult)
    settings: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": facts.z_channels,
        "block_out_channels": tuple(facts.ch * times for times in facts.ch_mult),
        "layers_per_block": facts.num_res_blocks,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 32,
        "scaling_factor": scale_factor,
    }
    return AutoencoderKL(**settings)
