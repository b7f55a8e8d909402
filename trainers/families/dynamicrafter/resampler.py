"""What turns the image tower's tokens into a few tokens for each frame: a perceiver with learned queries."""

from __future__ import annotations

import torch
from torch import nn

from trainers.families.dynamicrafter.facts import ResamplerFacts
from trainers.families.dynamicrafter.unet import attended


class PerceiverAttention(nn.Module):
    """Attention of the queries to the image and to themselves. Its norms belong to the image, then to the queries."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, image: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        image, queries = self.norm1(image), self.norm2(queries)
        key, value = self.to_kv(torch.cat([image, queries], dim=1)).chunk(2, dim=2)
        return self.to_out(attended(self.to_q(queries), key, value, self.heads))  # type: ignore[no-any-return]


def feed_forward(width: int, inner: int) -> nn.Sequential:
    """A layer for each query, the norm before it included."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, width, bias=False)
    )


class Resampler(nn.Module):
    """Image tokens (b, n, embedding_dim), any number n, to (b, num_queries * video_length, output_dim), frame by frame.

    Parameters are called as in checkpoints (`image_proj_model`)."""

    def __init__(self, facts: ResamplerFacts) -> None:
        super().__init__()
        width, inner = facts.dim, facts.dim * facts.ff_mult
        queries = facts.num_queries * facts.video_length
        self.latents = nn.Parameter(torch.randn(1, queries, width) / width**0.5)
        self.proj_in = nn.Linear(facts.embedding_dim, width)
        self.proj_out = nn.Linear(width, facts.output_dim)
        self.norm_out = nn.LayerNorm(facts.output_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width, facts.heads, facts.dim_head), feed_forward(width, inner)])
            for _ in range(facts.depth)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = self.proj_in(image)
        queries = self.latents.to(image.dtype).expand(len(image), -1, -1)
        for layer in self.layers:
            queries = queries + layer[0](image, queries)  # type: ignore[index]
            queries = queries + layer[1](queries)  # type: ignore[index]
        return self.norm_out(self.proj_out(queries))  # type: ignore[no-any-return]
