"""A tiny AnimateDiff: Stable Diffusion 1.5's image model with motion modules, and CLIP with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from examples.tiny.texts import WORDS, write_json

MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Shape:
    """The shape of a denoiser. heads: of every attention; groups: of every group norm; text_width: of embeddings."""

    channels: tuple[int, ...]
    layers: int
    heads: int
    groups: int
    text_width: int


#: tiny for tests, mid for measuring overhead, full as large as the real one. The encoders are tiny in all of them.
SHAPES = {
    "tiny": Shape((32, 64), layers=1, heads=4, groups=8, text_width=32),
    "mid": Shape((128, 256, 256), layers=1, heads=8, groups=32, text_width=128),
    "full": Shape((320, 640, 1280, 1280), layers=2, heads=8, groups=32, text_width=768),
}


def write_animatediff(out: Path, size: str) -> dict[str, str]:
    """A pipeline folder in the manner of Stable Diffusion 1.5, and out/motion_adapter with trained-like (non-zero)
    motion modules of 32 positions and a mid block."""
    shape = SHAPES[size]
    below = len(shape.channels) - 1  # every level but the lowest attends to the prompt
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=shape.channels,
        layers_per_block=shape.layers,
        down_block_types=("CrossAttnDownBlock2D",) * below + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * below,
        cross_attention_dim=shape.text_width,
        attention_head_dim=shape.heads,  # the number of heads, as in Stable Diffusion 1.5's own file
        norm_num_groups=shape.groups,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),  # four levels: each side becomes an eighth
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=0.18215,
    )
    adapter = MotionAdapter(
        block_out_channels=shape.channels,
        motion_layers_per_block=shape.layers,
        motion_num_attention_heads=shape.heads,
        motion_norm_num_groups=shape.groups,
        motion_max_seq_length=32,
        use_motion_mid_block=True,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    vocabulary = write_clip_tokenizer(out / "tokenizer")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=shape.text_width,
            intermediate_size=2 * shape.text_width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=vocabulary[START],
            eos_token_id=vocabulary[END],
            pad_token_id=vocabulary[END],
        )
    )
    spread_latents(vae)
    unet.half().save_pretrained(out / "unet")  # half the size on disk; read in any precision
    vae.save_pretrained(out / "vae")
    save_text_encoder(text_encoder, out / "text_encoder")
    scheduler.save_pretrained(out / "scheduler")
    adapter.save_pretrained(out / "motion_adapter")
    write_index(out)
    return {"base_model": str(out), "motion_adapter": str(out / "motion_adapter")}


def write_index(out: Path) -> None:
    """Say which classes read the parts of a Stable Diffusion pipeline folder."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(out / "model_index.json", index)


def spread_latents(vae: AutoencoderKL) -> None:
    """Scale a random encoder so that coloured patterns give latents of about unit size with little posterior noise,
    as a trained one does; otherwise the posterior's noise would drown what is seen."""
    colours = torch.rand(16, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        mean = vae.encode(torch.nn.functional.interpolate(colours, size=64)).latent_dist.mean
        scale = 1 / (mean.std() * vae.config.scaling_factor)
        vae.quant_conv.weight[:4] *= scale
        vae.quant_conv.bias[:4] = (vae.quant_conv.bias[:4] - mean.mean(dim=(0, 2, 3))) * scale
        vae.quant_conv.bias[4:] = -8.0


def save_text_encoder(text_encoder: CLIPTextModel, folder: Path) -> None:
    """Write it with the key names that published files have; newer transformers write them without their prefix."""
    text_encoder.save_pretrained(folder)
    weights = folder / "model.safetensors"
    state = {"text_model." + key.removeprefix("text_model."): value for key, value in load_file(weights).items()}
    save_file(state, weights, metadata={"format": "pt"})


def write_clip_tokenizer(folder: Path, words: Sequence[str] = WORDS, max_tokens: int = MAX_TOKENS) -> dict[str, int]:
    """A CLIP tokenizer of our own: all bytes (so that any text can be spelt), and `words`. Gives its vocabulary."""
    letters = _byte_letters()
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        pieces = _merged([*word[:-1], word[-1] + "</w>"], merges)
        while len(pieces) > 1:  # behind all others, so that the words before it stay what they are
            merges[(pieces[0], pieces[1])] = None
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_tokens, "do_lower_case": True, **special},
    )
    return vocabulary


def _merged(pieces: list[str], merges: Iterable[tuple[str, str]]) -> list[str]:
    """What byte-pair encoding makes of a word's pieces: it carries out the merges in their order."""
    for left, right in merges:
        at = 0
        while at + 1 < len(pieces):
            if (pieces[at], pieces[at + 1]) == (left, right):
                pieces = [*pieces[:at], left + right, *pieces[at + 2 :]]
            at += 1
    return pieces


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in byte-level BPE, as GPT-2 and CLIP define it."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + place) for place in range(len(moved))]
