"""Mochi's attention over text without its padding: nothing is looked up in a mask, layer by layer, while it runs.

diffusers' own processor asks in each layer which tokens are valid (`torch.nonzero`), for which a GPU must wait, a
compiled block breaks, and memory cannot be told beforehand. Here the text is trimmed once, before the transformer.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from diffusers import MochiTransformer3DModel
from torch.nn.functional import pad, scaled_dot_product_attention

from trainers import lora


def trimmed(embeds: torch.Tensor, mask: torch.Tensor, least: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Text (b, tokens, width) with its valid tokens only, by a mask (b, tokens) bool, wherever they stand: text has no
    positions. Shorter ones of a batch are padded to the longest, or to `least`, and there is a mask for that, else
    None.

    There are none or several, never one alone: of blocks over a single token torch.compile made wrong code (2.13, CPU,
    with checkpointing), and a length of one is compiled apart in any case."""
    order = torch.argsort(~mask, dim=1, stable=True)  # the valid ones first
    lengths = mask.sum(dim=1).tolist()  # the one place where a GPU is waited for
    longest = max(least, *lengths)
    if longest == 1 and mask.shape[1] > 1:
        longest = 2
    order = order[:, :longest]
    found = embeds.gather(1, order[..., None].expand(-1, -1, embeds.shape[2]))
    return found, None if min(lengths) == longest else mask.gather(1, order)


class TrimmedAttention:
    """The processor of one attention. tied_video, tied_text: whether query, key and value of a stream share the lower
    half of their LoRA."""

    def __init__(self, tied_video: bool = False, tied_text: bool = False) -> None:
        self.tied_video, self.tied_text = tied_video, tied_text

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Video (b, v, width) and text (b, t, text width) attend to both. attention_mask: (b, t) bool, or None where
        all text is valid.

        Where there is no text, its weights take no part: they get no gradient, not one of zeros, and the optimizer
        leaves them alone for that step, as in Genmo's trainer. (One of zeros would move them on by its momentum.)"""
        video = _heads((attn.to_q, attn.to_k, attn.to_v), hidden_states, attn.heads, self.tied_video)
        video[0], video[1] = attn.norm_q(video[0]), attn.norm_k(video[1])
        if image_rotary_emb is not None:
            video[0], video[1] = _rotated(video[0], *image_rotary_emb), _rotated(video[1], *image_rotary_emb)
        if encoder_hidden_states.shape[1] == 0:
            query, key, value = (part.transpose(1, 2) for part in video)
            attended = scaled_dot_product_attention(query, key, value)
            return _out(attn, attended.transpose(1, 2).flatten(2)), encoder_hidden_states
        text = _heads(
            (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), encoder_hidden_states, attn.heads, self.tied_text
        )
        text[0], text[1] = attn.norm_added_q(text[0]), attn.norm_added_k(text[1])
        query, key, value = (torch.cat(pair, dim=1).transpose(1, 2) for pair in zip(video, text, strict=True))

        tokens = hidden_states.shape[1]
        mask = None if attention_mask is None else pad(attention_mask, (tokens, 0), value=True)[:, None, None, :]
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended = attended.transpose(1, 2).flatten(2)  # (b, v + t, width)

        seen, read = attended[:, :tokens], attended[:, tokens:]
        return _out(attn, seen), read if attn.context_pre_only else attn.to_add_out(read)


def _out(attn: Any, attended: torch.Tensor) -> torch.Tensor:
    projected: torch.Tensor = attn.to_out[1](attn.to_out[0](attended))
    return projected


def _heads(layers: tuple[Any, ...], inputs: torch.Tensor, heads: int, tied: bool) -> list[torch.Tensor]:
    """Query, key and value (b, tokens, heads, width of a head)."""
    outputs = lora.tied_outputs(layers, inputs) if tied else [layer(inputs) for layer in layers]
    return [output.unflatten(2, (heads, -1)) for output in outputs]


def _rotated(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Pairs of neighbours turned by their position's angles, in 32 bits."""
    even, odd = states[..., 0::2].float(), states[..., 1::2].float()
    turned = (even * cosines - odd * sines).to(states.dtype), (even * sines + odd * cosines).to(states.dtype)
    return torch.stack(turned, dim=-1).flatten(-2)


def use_trimmed_text(transformer: MochiTransformer3DModel) -> None:
    """Let a transformer take trimmed text: embeddings (b, t, width), and None as their mask where all are valid."""
    for block in transformer.transformer_blocks:
        block.attn1.processor = TrimmedAttention()
    # On a CPU the positions' own autocast to 32 bits is refused with this warning, and they are in 32 bits then.
    warnings.filterwarnings("ignore", message="In CPU autocast, but the target dtype is not supported")
    transformer.time_embed.pooler.register_forward_pre_hook(_all_valid)


def _all_valid(pooler: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The pooling of text wants a mask in any case."""
    embeds, mask = args
    return embeds, embeds.new_ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask


def tie_qkv(transformer: MochiTransformer3DModel) -> None:
    """Let query, key and value of each stream share the lower half of the LoRA that they carry."""
    for block in transformer.transformer_blocks:
        attn = block.attn1
        video = lora.tie([attn.to_q, attn.to_k, attn.to_v])
        text = lora.tie([attn.add_q_proj, attn.add_k_proj, attn.add_v_proj])
        attn.processor = TrimmedAttention(video, text)
