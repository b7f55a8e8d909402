"""Settings to start from: the sizes of the published models, as their trainers train them, for a card. No torch.

Calculated figures are the most that the tensors of one training step hold together, counted over every operation of the
full-size network (1.44 billion weights, and 0.05 of the resampler; a LoRA of rank 64 has 63 million). Encoding clips
and captions and drawing samples are not in it: encoders take 2.1 GB more where clips are not encoded beforehand. A card
has a fifth more. What is kept of a step grows with the size: of a LoRA at 320 x 512, 39 GB where no block is computed
again.
"""

from __future__ import annotations

from typing import Any

_SIZES = {"256": (256, 256), "512": (320, 512), "1024": (576, 1024)}


def _clips(size: str) -> dict[str, Any]:
    height, width = _SIZES[size]
    return {
        "mixed_precision": "bf16",
        "dataset.num_frames": 16,
        "dataset.height": height,
        "dataset.width": width,
        "dataset.batch_size": 1,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 1e-5,
        "optimizer.lr_scheduler": "constant",
        "optimizer.max_grad_norm": 0.5,
        "memory.gradient_checkpointing": "full",
        "memory.offload_optimizer": False,
    }


def _lora(size: str) -> dict[str, Any]:
    """As the fork for LoRAs trains one, at a size: neighbouring frames of clips with about 16 per second."""
    return {
        **_clips(size),
        "method": "lora",
        "dataset.frame_stride": 1,
        "dataset.fps": 16,
        "adapter.rank": 64,
        "adapter.alpha": 32,
        "adapter.dropout": 0.1,
        "optimizer.gradient_accumulation_steps": 16,
        "max_train_steps": 1500,
        "checkpoint.every_steps": 250,
        "validation.every_steps": 250,
    }


def _full(size: str) -> dict[str, Any]:
    """As DynamiCrafter's own trainer trains network and resampler: strides from 1 to 6."""
    return {
        **_clips(size),
        "method": "full",
        "dataset.frame_stride": 6,
        "dataset.frame_stride_min": 1,
        "optimizer.gradient_accumulation_steps": 4,
        "max_train_steps": 10_000,
        "checkpoint.every_steps": 1000,
        "checkpoint.keep_last": 2,
        "validation.every_steps": 1000,
    }


#: name -> settings; what a preset does not name stays at its default.
PRESETS: dict[str, dict[str, Any]] = {
    "512: LoRA of rank 64, as the fork trains it (calculated: 7 GB)": _lora("512"),
    "256: LoRA of rank 64 (calculated: 5 GB)": _lora("256"),
    "1024: LoRA of rank 64 (calculated: 14 GB)": _lora("1024"),
    "24 GB card: LoRA of 512, four clips at a time (calculated: 15 GB)": {
        **_lora("512"),
        "dataset.batch_size": 4,
        "optimizer.gradient_accumulation_steps": 4,
    },
    "24 GB card: every weight of 512, optimizer in main memory (calculated: 14 GB, and 24 GB there)": {
        **_full("512"),
        "memory.offload_optimizer": True,
    },
    "512: every weight (calculated: 26 GB)": _full("512"),
    "1024: every weight (calculated: 30 GB)": _full("1024"),
}
