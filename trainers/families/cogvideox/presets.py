"""Settings to start from: recipes as they were published, and sizes for cards. No torch.

Published figures are of others' trainers at 49 frames of 480 x 720, one clip at a time where nothing else is said:
CogVideo's own guide (2B LoRA 16 GB, 5B LoRA 24 GB, CogVideoX1.5 LoRA 35 GB at 81 frames of 768 x 1360) and
cogvideox-factory's tables (2B LoRA 13 GB, 5B LoRA 21 to 22 GB, 5B LoRA with a batch of four 48 GB; from encoded clips,
without the text encoder). Calculated ones are the weights, their gradients and the optimizer's states in the precision
of this trainer, and the activations that checkpointing leaves (one copy of 17 776 tokens for each block and the work of
one block); for the smallest, the text encoder alone, before the training. A card has a fifth more.
"""

from __future__ import annotations

from typing import Any


def _card(method: str, precision: str, frames: int = 49, height: int = 480, width: int = 720) -> dict[str, Any]:
    """A preset by the memory that it needs."""
    return {
        "method": method,
        "mixed_precision": precision,
        "dataset.num_frames": frames,
        "dataset.height": height,
        "dataset.width": width,
        "dataset.batch_size": 1,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 1e-4 if method == "lora" else 1e-5,
        "memory.gradient_checkpointing": "full",
        "memory.offload_optimizer": False,
        "memory.vae_tiling": True,
        "memory.vae_slicing": True,
        "max_train_steps": 2000,
        "checkpoint.every_steps": 500,
        "validation.every_steps": 500,
    }


#: What CogVideo's authors and diffusers' example advise: a cosine with a few hundred steps of warm-up.
_SCHEDULE = {
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-4,
    "optimizer.lr_scheduler": "cosine_with_restarts",
    "optimizer.lr_warmup_steps": 200,
}

#: name -> settings; what a preset does not name stays at its default.
PRESETS: dict[str, dict[str, Any]] = {
    "a style or a character from 25 to 50 clips (LoRA)": {
        "method": "lora",
        "adapter.rank": 128,
        **_SCHEDULE,
        "max_train_steps": 2000,
        "checkpoint.every_steps": 250,
        "validation.every_steps": 250,
    },
    "a concept from 100 clips, as CogVideo's authors advise (LoRA)": {
        "method": "lora",
        "adapter.rank": 128,
        **_SCHEDULE,
        "optimizer.lr_warmup_steps": 400,
        "max_train_steps": 4000,
        "checkpoint.every_steps": 500,
        "validation.every_steps": 500,
    },
    "as CogVideo's train_cogvideox_lora.py (LoRA)": {
        "method": "lora",
        "adapter.rank": 128,
        "dataset.frame_selection": "strided",
        "dataset.frame_buckets": True,
        "dataset.fit": "stretch",
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 1e-4,
        "optimizer.lr_scheduler": "constant",
        "max_train_steps": 4000,
        "checkpoint.every_steps": 500,
        "validation.every_steps": 500,
    },
    "an image that comes to life, from 25 clips or more (image-to-video LoRA)": {
        "method": "lora",
        "adapter.rank": 128,
        **_SCHEDULE,
        "optimizer.lr_warmup_steps": 400,
        "image_noise": True,
        "image_noise_dropout": 0.05,
        "max_train_steps": 3000,
        "checkpoint.every_steps": 500,
        "validation.every_steps": 500,
    },
    "every weight, from many clips (SFT)": {
        "method": "full",
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 1e-5,
        "optimizer.lr_scheduler": "constant_with_warmup",
        "optimizer.lr_warmup_steps": 200,
        "optimizer.gradient_accumulation_steps": 4,
        "max_train_steps": 5000,
        "checkpoint.every_steps": 1000,
        "checkpoint.keep_last": 2,
        "validation.every_steps": 500,
    },
    "12 GB card: LoRA of 2B, rank 64 (calculated: 10 GB)": {**_card("lora", "fp16"), "adapter.rank": 64},
    "16 GB card: LoRA of 2B (published: 13 to 16 GB)": {**_card("lora", "fp16"), "adapter.rank": 128},
    "24 GB card: LoRA of 5B, rank 64 (published: 21 to 24 GB)": {**_card("lora", "bf16"), "adapter.rank": 64},
    "40 GB card: LoRA of 5B, attention kept (calculated: 26 GB)": {
        **_card("lora", "bf16"),
        "adapter.rank": 128,
        "memory.gradient_checkpointing": "sac",
    },
    "40 GB card: all of 2B, 8-bit Adam (calculated: 25 GB)": {
        **_card("full", "fp16"),
        "optimizer.name": "adamw8bit",
    },
    "80 GB card: LoRA of 5B, four clips at a time (published: 48 GB)": {
        **_card("lora", "bf16"),
        "adapter.rank": 128,
        "dataset.batch_size": 4,
    },
    "80 GB card: LoRA of CogVideoX1.5, 81 frames of 768 x 1360 (published: 35 GB, and more than 40)": {
        **_card("lora", "bf16", 81, 768, 1360),
        "adapter.rank": 128,
    },
    "80 GB card: all of 5B, optimizer in main memory (calculated: 64 GB, and 89 GB there)": {
        **_card("full", "bf16"),
        "memory.offload_optimizer": True,
    },
}
