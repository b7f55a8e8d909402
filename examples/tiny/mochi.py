"""A tiny Mochi with a T5 encoder and a tokenizer of our own, as diffusers' pipeline or as Genmo's files of weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiTransformer3DModel
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from examples.tiny.cogvideox import write_t5_tokenizer
from examples.tiny.texts import write_json
from trainers.families.mochi.names import to_genmo, transformer_rules

MAX_TOKENS = 256
NO_NOISE = -8.0  # logarithm of the posterior's variance


@dataclass(frozen=True)
class Shape:
    """The shape of a transformer. Widths are multiples of 96, of which Genmo and diffusers make the same layers."""

    heads: int
    head_dim: int
    layers: int
    text_stream: int
    text_width: int


#: tiny for tests, mid for measuring overhead, full as large as the real one. The encoders are tiny in all of them.
SHAPES = {
    "tiny": Shape(heads=4, head_dim=48, layers=2, text_stream=96, text_width=32),
    "mid": Shape(heads=8, head_dim=96, layers=4, text_stream=384, text_width=128),
    "full": Shape(heads=24, head_dim=128, layers=48, text_stream=1536, text_width=4096),
}


def write_mochi(out: Path, size: str, genmo: bool = False) -> dict[str, str]:
    """A pipeline folder of diffusers; or Genmo's three files of weights, and the text encoder in out/t5."""
    shape = SHAPES[size]
    transformer = MochiTransformer3DModel(
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_dim,
        num_layers=shape.layers,
        pooled_projection_dim=shape.text_stream,
        text_embed_dim=shape.text_width,
        max_sequence_length=MAX_TOKENS,
    )
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    _perturb(transformer)
    _spread_latents(vae)
    transformer.half()  # half the size on disk; read in any precision
    text = out / "t5" if genmo else out / "text_encoder"
    vocabulary = write_t5_tokenizer(out / "t5" if genmo else out / "tokenizer", max_tokens=MAX_TOKENS)
    T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=shape.text_width,
            d_kv=8,
            d_ff=2 * shape.text_width,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    ).save_pretrained(text)
    if genmo:
        state = transformer.state_dict()
        theirs = to_genmo(state, transformer_rules(state), "the tiny transformer")
        _save(theirs, out / "dit.safetensors")
        encoder, decoder = genmo_vae(vae)
        _save(encoder, out / "encoder.safetensors")
        _save(decoder, out / "decoder.safetensors")
        return {"base_model": str(out), "text_encoder": str(text)}
    transformer.save_pretrained(out / "transformer")
    vae.save_pretrained(out / "vae")
    FlowMatchEulerDiscreteScheduler(invert_sigmas=True).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "MochiPipeline",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "MochiTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLMochi"],
    }
    write_json(out / "model_index.json", index)
    return {"base_model": str(out)}


def _save(state: dict[str, torch.Tensor], file: Path) -> None:
    save_file({key: value.contiguous() for key, value in state.items()}, file, metadata={"format": "pt"})


def _perturb(transformer: MochiTransformer3DModel) -> None:
    """Biases and norms that are not 0 and 1, as in a trained model, so that none of them can be forgotten unseen; and
    positions, which begin as zeros."""
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
        transformer.pos_frequencies.copy_(torch.randn_like(transformer.pos_frequencies))


def _spread_latents(vae: AutoencoderKLMochi) -> None:
    """Scale a random encoder so that coloured patterns give latents of about unit size with little posterior noise,
    as a trained one does; otherwise the posterior's noise would drown what is seen.

    Its last layer has no bias: the first of the channels before it is made the same everywhere instead."""
    colours = torch.rand(8, 3, 8, 8) * 2 - 1
    norm, last, channels = vae.encoder.norm_out.norm_layer, vae.encoder.proj_out, vae.config.latent_channels
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = 0.0, 8.0
        constant = torch.nn.functional.silu(norm.bias[0])
        last.weight[:, 0] = 0.0
        last.weight[channels:] = 0.0
        last.weight[channels:, 0] = NO_NOISE / constant
        videos = torch.nn.functional.interpolate(colours, size=64)[:, :, None]  # (b, 3, 1, h, w)
        mean = vae.encode(videos).latent_dist.mean
        scale = 1 / mean.std()
        last.weight[:channels] *= scale
        last.weight[:channels, 0] = -mean.mean(dim=(0, 2, 3, 4)) * scale / constant


def genmo_vae(vae: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(encoder, decoder) under the names of Genmo's files."""
    encoder = {**_named("layers.0", vae.encoder.proj_in), **_named("output_norm", vae.encoder.norm_out.norm_layer)}
    encoder |= _named("output_proj", vae.encoder.proj_out)
    place = 1
    for block in range(len(vae.encoder.block_in.resnets)):
        encoder |= _genmo_block(f"layers.{place}", vae.encoder.block_in, block)
        place += 1
    for level in vae.encoder.down_blocks:
        encoder |= _named(f"layers.{place}.layers.0", level.conv_in.conv)
        for block in range(len(level.resnets)):
            encoder |= _genmo_block(f"layers.{place}.layers.{block + 1}", level, block)
        place += 1
    for block in range(len(vae.encoder.block_out.resnets)):
        encoder |= _genmo_block(f"layers.{place}", vae.encoder.block_out, block)
        place += 1
    decoder = {**_named("blocks.0.0", vae.decoder.conv_in), **_named("output_proj", vae.decoder.proj_out)}
    for block, resnet in enumerate(vae.decoder.block_in.resnets):
        decoder |= _genmo_resnet(f"blocks.0.{block + 1}", resnet)
    for number, level in enumerate(vae.decoder.up_blocks):
        for block, resnet in enumerate(level.resnets):
            decoder |= _genmo_resnet(f"blocks.{number + 1}.blocks.{block}", resnet)
        decoder |= _named(f"blocks.{number + 1}.proj", level.proj)
    for block, resnet in enumerate(vae.decoder.block_out.resnets):
        decoder |= _genmo_resnet(f"blocks.{len(vae.decoder.up_blocks) + 1}.{block}", resnet)
    return encoder, decoder


def _genmo_block(name: str, level: Any, block: int) -> dict[str, torch.Tensor]:
    state = _genmo_resnet(name, level.resnets[block])
    attention = level.attentions[block]
    if attention is not None:
        state |= _named(f"{name}.attn_block.norm", level.norms[block].norm_layer)
        state |= _named(f"{name}.attn_block.attn.out", attention.to_out[0])
        fused = torch.cat([attention.to_q.weight, attention.to_k.weight, attention.to_v.weight])
        state[f"{name}.attn_block.attn.qkv.weight"] = fused.detach()
    return state


def _genmo_resnet(name: str, resnet: Any) -> dict[str, torch.Tensor]:
    parts = {0: resnet.norm1.norm_layer, 2: resnet.conv1.conv, 3: resnet.norm2.norm_layer, 5: resnet.conv2.conv}
    return {key: value for place, part in parts.items() for key, value in _named(f"{name}.stack.{place}", part).items()}


def _named(name: str, part: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value.detach() for key, value in part.state_dict().items()}
