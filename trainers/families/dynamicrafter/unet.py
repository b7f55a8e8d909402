"""DynamiCrafter's denoiser: an image UNet whose blocks also look along time, conditioned on text, image tokens of each
frame, and how fast the clip goes. Modules and parameters are called as in its checkpoints, so weights load as they are.

Shapes: b clips of t frames, c channels, h x w latent pixels; images are (b*t, c, h, w), tokens (b, n, c).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import gelu, group_norm, interpolate, linear, scaled_dot_product_attention

from trainers.families.dynamicrafter.facts import UNetFacts

TEXT_TOKENS = 77
#: Image tokens of one frame.
IMAGE_TOKENS = 16
#: Heads of the attention along time right after the first convolution, whatever its channels.
FIRST_HEADS = 8
#: Within temporal convolutions, whatever the settings say of dropout elsewhere.
TEMPORAL_DROPOUT = 0.1


class GroupNorm(nn.GroupNorm):
    """A group norm of 32 groups whose statistics and result are computed in 32 bits, given in the input's precision."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(32, channels, eps)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        normed = group_norm(input.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(input.dtype)


def sinusoid(numbers: torch.Tensor, width: int) -> torch.Tensor:
    """Numbers (b,) as waves (b, width) of falling frequency, cosines before sines, in 32 bits."""
    half = width // 2
    steps = torch.arange(half, device=numbers.device, dtype=torch.float32)
    angles = numbers.float()[:, None] * torch.exp(steps * (-math.log(10000) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def as_clips(images: torch.Tensor, frames: int) -> torch.Tensor:
    """Images (b*t, c, h, w) as clips (b, c, t, h, w)."""
    return images.reshape(-1, frames, *images.shape[1:]).transpose(1, 2)


def as_images(clips: torch.Tensor) -> torch.Tensor:
    """Clips (b, c, t, h, w) as images (b*t, c, h, w)."""
    return clips.transpose(1, 2).flatten(0, 1)


# --- convolutions ----------------------------------------------------------------------------------------------------


class TemporalConv(nn.Module):
    """Four convolutions over three neighbouring frames, beside the input. Norms are taken over all frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()

        def stage(dropout: bool) -> nn.Sequential:
            between = [nn.Dropout(TEMPORAL_DROPOUT)] if dropout else []
            return nn.Sequential(
                GroupNorm(channels), nn.SiLU(), *between, nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
            )

        self.conv1, self.conv2, self.conv3, self.conv4 = stage(False), stage(True), stage(True), stage(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (b, c, t, h, w)
        changed: torch.Tensor = self.conv4(self.conv3(self.conv2(self.conv1(x))))
        return x + changed


class ResBlock(nn.Module):
    """Two convolutions with the embedding of time between them, then convolutions along time."""

    def __init__(self, channels: int, out_channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        self.temopral_conv = TemporalConv(out_channels)  # so spelt in checkpoints

    def forward(self, x: torch.Tensor, embedding: torch.Tensor, frames: int) -> torch.Tensor:
        """Images (b*t, c, h, w) and the embeddings (b*t, width) of their times."""
        hidden = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        hidden = self.skip_connection(x) + self.out_layers(hidden)
        return as_images(self.temopral_conv(as_clips(hidden, frames)))


class Downsample(nn.Module):
    """Half the height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Twice the height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(interpolate(x, scale_factor=2, mode="nearest"))  # type: ignore[no-any-return]


# --- attention -------------------------------------------------------------------------------------------------------


def attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """(b, n, c) for queries (b, n, c), and keys and values (b or fewer, m, c), each for as many queries in a row."""
    if len(key) != len(query):
        times = len(query) // len(key)
        key, value = key.repeat_interleave(times, dim=0), value.repeat_interleave(times, dim=0)
    query, key, value = (part.reshape(*part.shape[:2], heads, -1).transpose(1, 2) for part in (query, key, value))
    return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Attention to the tokens themselves, or to text; and to an image beside text, with keys and values of its own.

    context_width: of text and image; None attends to the tokens themselves. learnable: the image's part is multiplied
    by tanh(alpha) + 1, alpha being learned, instead of by 1.
    """

    def __init__(
        self, width: int, heads: int, head_width: int, context_width: int | None = None, learnable: bool = False
    ) -> None:
        super().__init__()
        inner, source = heads * head_width, context_width or width
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(source, inner, bias=False)
        self.to_v = nn.Linear(source, inner, bias=False)
        if context_width is not None:
            self.to_k_ip = nn.Linear(context_width, inner, bias=False)
            self.to_v_ip = nn.Linear(context_width, inner, bias=False)
        self.alpha = nn.Parameter(torch.zeros(())) if learnable else None
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def forward(
        self, x: torch.Tensor, text: torch.Tensor | None = None, image: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x: (b*t, n, c). text and image: (b, m, width) the same for all frames of a clip, or (b*t, m, width)."""
        query, source = self.to_q(x), x if text is None else text
        out = attended(query, self.to_k(source), self.to_v(source), self.heads)
        if image is not None:
            seen = attended(query, self.to_k_ip(image), self.to_v_ip(image), self.heads)
            out = out + (seen if self.alpha is None else seen * (self.alpha.tanh() + 1).to(seen.dtype))
        return self.to_out(out)  # type: ignore[no-any-return]


class GatedGelu(nn.Module):
    """One half of a projection, gated by GELU of the other."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, gates = self.proj(x).chunk(2, dim=-1)
        return values * gelu(gates)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # The identity keeps the places of the checkpoint's names.
        self.net = nn.Sequential(GatedGelu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention to the tokens themselves, to text and image (or, without any, to themselves again), and a layer for
    each token."""

    def __init__(
        self, width: int, heads: int, head_width: int, context_width: int | None = None, learnable: bool = False
    ) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, head_width)
        self.attn2 = Attention(width, heads, head_width, context_width, learnable)
        self.ff = FeedForward(width)

    def forward(
        self, x: torch.Tensor, text: torch.Tensor | None = None, image: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text, image)
        return x + self.ff(self.norm3(x))  # type: ignore[no-any-return]


class SpatialTransformer(nn.Module):
    """Attention between the pixels of a frame, and to its text and image."""

    def __init__(self, channels: int, head_width: int, context_width: int, learnable: bool) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, channels // head_width, head_width, context_width, learnable)]
        )
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Images (b*t, c, h, w); text and image as `Attention` takes them."""
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (b*t, h*w, c)
        for block in self.transformer_blocks:
            tokens = block(tokens, text, image)
        return x + self.proj_out(tokens).transpose(1, 2).reshape(x.shape)  # type: ignore[no-any-return]


class TokenConv(nn.Conv1d):
    """A linear layer over tokens whose weight is kept as that of a convolution of size 1, as in checkpoints. LoRAs
    are put on linear layers, and the reference's leave it out for this reason."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__(width, out_width, 1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight[..., 0], self.bias)


class TemporalTransformer(nn.Module):
    """Attention of each pixel along time. The norm is taken over all frames; no frame knows its place.

    projection: the layers from the channels to the width of `heads` heads, and back."""

    def __init__(
        self, channels: int, heads: int, head_width: int, projection: type[nn.Linear] | type[TokenConv]
    ) -> None:
        super().__init__()
        inner = heads * head_width
        self.norm = GroupNorm(channels, eps=1e-6)
        self.proj_in = projection(channels, inner)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(inner, heads, head_width)])
        self.proj_out = projection(inner, channels)

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:  # (b*t, c, h, w)
        clips = as_clips(x, frames)
        batch, channels, _, height, width = clips.shape
        tokens = self.norm(clips).permute(0, 3, 4, 2, 1).flatten(0, 2)  # (b*h*w, t, c)
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens)
        changed = self.proj_out(tokens).reshape(batch, height, width, frames, channels)
        return x + changed.permute(0, 3, 4, 1, 2).flatten(0, 1)  # type: ignore[no-any-return]


# --- the network -----------------------------------------------------------------------------------------------------


class Stage(nn.Sequential):
    """Layers behind one another, each with what it needs beside the images."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, embedding: torch.Tensor, text: torch.Tensor, image: torch.Tensor, frames: int
    ) -> torch.Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding, frames)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, text, image)
            elif isinstance(layer, TemporalTransformer):
                x = layer(x, frames)
            else:
                x = layer(x)
        return x


class VideoUNet(nn.Module):
    """Latents of a clip to noise or velocity.

    Sides of the latents must be divisible by 2 ** (levels - 1), 8 in the published models. Weights are drawn as
    PyTorch draws them; last layers do not begin at zero, because the network always starts from a checkpoint.
    """

    def __init__(self, facts: UNetFacts) -> None:
        super().__init__()
        self.facts = facts
        base, head = facts.model_channels, facts.num_head_channels
        width = 4 * base
        self.time_embed = nn.Sequential(nn.Linear(base, width), nn.SiLU(), nn.Linear(width, width))
        self.fps_embedding = nn.Sequential(nn.Linear(base, width), nn.SiLU(), nn.Linear(width, width))

        def spatial(channels: int) -> SpatialTransformer:
            return SpatialTransformer(channels, head, facts.context_dim, facts.image_cross_attention_scale_learnable)

        def temporal(channels: int) -> TemporalTransformer:
            return TemporalTransformer(channels, channels // head, head, nn.Linear)

        def layers(channels: int, out_channels: int, factor: int) -> list[nn.Module]:
            found: list[nn.Module] = [ResBlock(channels, out_channels, width, facts.dropout)]
            if factor in facts.attention_resolutions:
                found += [spatial(out_channels), temporal(out_channels)]
            return found

        channels, last = base, len(facts.channel_mult) - 1
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(facts.in_channels, channels, 3, padding=1))])
        self.init_attn = Stage(TemporalTransformer(channels, FIRST_HEADS, head, TokenConv))
        skips = [channels]
        for level, times in enumerate(facts.channel_mult):
            for _ in range(facts.num_res_blocks):
                self.input_blocks.append(Stage(*layers(channels, times * base, 2**level)))
                channels = times * base
                skips.append(channels)
            if level < last:
                self.input_blocks.append(Stage(Downsample(channels)))
                skips.append(channels)

        self.middle_block = Stage(
            ResBlock(channels, channels, width, facts.dropout),
            spatial(channels),
            temporal(channels),
            ResBlock(channels, channels, width, facts.dropout),
        )

        self.output_blocks = nn.ModuleList()
        for level, times in reversed(list(enumerate(facts.channel_mult))):
            for number in range(facts.num_res_blocks + 1):
                found = layers(channels + skips.pop(), times * base, 2**level)
                channels = times * base
                if level and number == facts.num_res_blocks:
                    found.append(Upsample(channels))
                self.output_blocks.append(Stage(*found))
        self.out = nn.Sequential(GroupNorm(channels), nn.SiLU(), nn.Conv2d(channels, facts.out_channels, 3, padding=1))

    def blocks(self) -> list[nn.Module]:
        """What is worth computing again in the backward pass, none within another."""
        kinds = (ResBlock, SpatialTransformer, TemporalTransformer)
        return [module for module in self.modules() if isinstance(module, kinds)]

    def forward(
        self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, fs: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(b, out_channels, t, h, w) for noisy latents and the image's latents (b, in_channels, t, h, w).

        timesteps: (b,) in 0..999. fs: (b,) frames per second or frames from one to the next, as the model counts;
        None: its default. context: (b, 77 + n, width), text before image. With 16 image tokens for each frame, every
        frame sees its own; with any other number, every frame sees all of them.
        """
        frames = x.shape[2]
        if fs is None:
            fs = torch.full_like(timesteps, self.facts.default_fs)
        embedding = self.time_embed(sinusoid(timesteps, self.facts.model_channels).to(x.dtype))
        embedding = embedding + self.fps_embedding(sinusoid(fs, self.facts.model_channels).to(x.dtype))
        embedding = embedding.repeat_interleave(frames, dim=0)  # (b*t, width)

        text, image = context[:, :TEXT_TOKENS], context[:, TEXT_TOKENS:]
        if image.shape[1] == IMAGE_TOKENS * frames:
            image = image.reshape(-1, IMAGE_TOKENS, image.shape[2])  # (b*t, 16, width)

        hidden = as_images(x)
        skips = []
        for number, stage in enumerate(self.input_blocks):
            hidden = stage(hidden, embedding, text, image, frames)
            if number == 0:
                hidden = self.init_attn(hidden, embedding, text, image, frames)
            skips.append(hidden)
        hidden = self.middle_block(hidden, embedding, text, image, frames)
        for stage in self.output_blocks:
            hidden = stage(torch.cat([hidden, skips.pop()], dim=1), embedding, text, image, frames)
        return as_clips(self.out(hidden), frames)
