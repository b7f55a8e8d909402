"""Tiny CogVideoX models, one for each kind of published one, with a T5 encoder and a tokenizer of our own."""

from __future__ import annotations

import io
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from transformers import T5Config, T5EncoderModel

from examples.tiny.texts import WORDS, write_json

MAX_TOKENS = 226  # as the published models' prompts


@dataclass(frozen=True)
class Shape:
    """The shape of a transformer. text_width: of embeddings; channels: of latents."""

    heads: int
    head_dim: int
    layers: int
    time_width: int
    text_width: int
    channels: int


#: tiny for tests, mid for measuring overhead, full as large as the real 2B. The encoders are tiny in all of them.
SHAPES = {
    "tiny": Shape(heads=2, head_dim=16, layers=2, time_width=16, text_width=32, channels=4),
    "mid": Shape(heads=8, head_dim=64, layers=6, time_width=128, text_width=128, channels=16),
    "full": Shape(heads=30, head_dim=64, layers=30, time_width=512, text_width=4096, channels=16),
}


@dataclass(frozen=True)
class Kind:
    """What tells the published models apart. native: the size in pixels, 64 x 64 where ours is smaller."""

    scaling_factor: float = 0.7
    snr_shift_scale: float = 1.0
    rotary: bool = True
    image: bool = False
    learned_positions: bool = False
    newer: bool = False  # 1.5: patches in time


KINDS = {
    "cogvideox": Kind(scaling_factor=1.15258426, snr_shift_scale=3.0, rotary=False),
    "cogvideox-5b": Kind(),
    "cogvideox-5b-i2v": Kind(image=True, learned_positions=True),
    "cogvideox-1.5": Kind(newer=True),
    "cogvideox-1.5-i2v": Kind(image=True, newer=True),
}


def write_cogvideox(out: Path, size: str, kind: str = "cogvideox") -> dict[str, str]:
    """A pipeline folder in the manner of a published model: `cogvideox` is 2B, the others are named in `KINDS`.

    It draws 9 frames of 64 x 64 by itself; full is for 49 of 480 x 720, as the real ones are.
    """
    shape, facts = SHAPES[size], KINDS[kind]
    height, width, frames = (480, 720, 49) if size == "full" else (64, 64, 9)
    newer = {"patch_size_t": 2, "patch_bias": False} if facts.newer else {}
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_dim,
        in_channels=shape.channels * (2 if facts.image else 1),
        out_channels=shape.channels,
        time_embed_dim=shape.time_width,
        text_embed_dim=shape.text_width,
        num_layers=shape.layers,
        sample_height=300 if facts.newer else height // 8,
        sample_width=300 if facts.newer else width // 8,
        sample_frames=81 if facts.newer else frames,
        max_text_seq_length=MAX_TOKENS,
        use_rotary_positional_embeddings=facts.rotary,
        use_learned_positional_embeddings=facts.learned_positions,
        ofs_embed_dim=shape.time_width if facts.image and facts.newer else None,
        **newer,
    )
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),  # four levels: each side becomes an eighth
        latent_channels=shape.channels,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=height,
        sample_width=width,
        scaling_factor=facts.scaling_factor,
        invert_scale_latents=facts.image and facts.newer,
    )
    scheduler = CogVideoXDDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True,
        prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True,
        snr_shift_scale=facts.snr_shift_scale,
    )  # fmt: skip
    text_encoder = T5EncoderModel(
        T5Config(
            vocab_size=write_t5_tokenizer(out / "tokenizer"),
            d_model=shape.text_width,
            d_kv=8,
            d_ff=2 * shape.text_width,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )
    _perturb(transformer)
    _spread_latents(vae)
    transformer.half().save_pretrained(out / "transformer")  # half the size on disk; read in any precision
    vae.save_pretrained(out / "vae")
    text_encoder.save_pretrained(out / "text_encoder")
    scheduler.save_pretrained(out / "scheduler")
    index = {
        "_class_name": "CogVideoXImageToVideoPipeline" if facts.image else "CogVideoXPipeline",
        "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    write_json(out / "model_index.json", index)
    return {"base_model": str(out)}


def _perturb(transformer: CogVideoXTransformer3DModel) -> None:
    """Biases and norms that are not 0 and 1, as in a trained model, so that none of them can be forgotten unseen; and
    learned positions that are more than the sines that they begin as."""
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
        positions = getattr(transformer.patch_embed, "pos_embedding", None)
        if positions is not None and transformer.config.use_learned_positional_embeddings:
            positions += 0.1 * torch.randn_like(positions)


def _spread_latents(vae: AutoencoderKLCogVideoX) -> None:
    """Scale a random encoder so that coloured patterns give latents of about unit size with little posterior noise,
    as a trained one does; otherwise the posterior's noise would drown what is seen."""
    colours = torch.rand(8, 3, 8, 8) * 2 - 1
    last, channels = vae.encoder.conv_out.conv, vae.config.latent_channels
    with torch.no_grad():
        videos = torch.nn.functional.interpolate(colours, size=64)[:, :, None]  # (b, 3, 1, h, w)
        mean = vae.encode(videos).latent_dist.mean
        scale = 1 / (mean.std() * vae.config.scaling_factor)
        last.weight[:channels] *= scale
        last.bias[:channels] = (last.bias[:channels] - mean.mean(dim=(0, 2, 3, 4))) * scale
        last.bias[channels:] = -8.0


def write_t5_tokenizer(folder: Path, words: Sequence[str] = WORDS, max_tokens: int = MAX_TOKENS) -> int:
    """A T5 tokenizer of our own, which knows `words` and letters; other signs are unknown to it. Gives its size."""
    import sentencepiece

    model = io.BytesIO()
    letters = " ".join(string.ascii_letters + string.digits + string.punctuation)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*words, letters]),
        model_writer=model,
        model_type="unigram",
        vocab_size=1000,
        hard_vocab_limit=False,
        user_defined_symbols=["▁" + word for word in words],
        character_coverage=1.0,
        normalization_rule_name="identity",
        pad_id=0,  # T5's own: padding, end, unknown, and no beginning
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "T5Tokenizer", "model_max_length": max_tokens, "extra_ids": 0, "legacy": True, **special},
    )
    return int(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size())
