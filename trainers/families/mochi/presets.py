"""Settings to start from: the lengths that Genmo's guide has, and sizes for smaller and larger cards. No torch.

Published figures are Genmo's own for its trainer on one H100, a clip of 480 x 848 at a time: attention kept and all
else computed again ("sac" here), blocks compiled. Calculated ones are the most that a training step of this one holds,
counted from the tensors of the model at its full size (10 billion weights in 16 bits, a LoRA of rank 16) or, where the
length was not counted, from the formula that was fitted to these counts: weights + tokens x 3072 x 2 bytes x (48 blocks
x 2.16 for sac, 1.1 for full, + 37). Encoding clips and prompts and drawing samples are not in it. A card has a fifth
more. Training every weight takes 4 bytes each for weights and gradients and 2 for what is computed with, and in main
memory 16.
"""

from __future__ import annotations

from typing import Any

HEIGHT, WIDTH = 480, 848


def _lora(frames: int, height: int = HEIGHT, width: int = WIDTH, checkpointing: str = "sac") -> dict[str, Any]:
    """Genmo's lora.yaml at a length."""
    return {
        "method": "lora",
        "mixed_precision": "bf16",
        "dataset.num_frames": frames,
        "dataset.height": height,
        "dataset.width": width,
        "dataset.batch_size": 1,
        "adapter.rank": 16,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 2e-4,
        "optimizer.lr_scheduler": "cosine",
        "optimizer.lr_warmup_steps": 200,
        "memory.gradient_checkpointing": checkpointing,
        "memory.offload_optimizer": False,
        "memory.vae_tiling": True,
        "memory.vae_slicing": True,
        "max_train_steps": 2000,
        "checkpoint.every_steps": 200,
        "validation.every_steps": 200,
    }


#: name -> settings; what a preset does not name stays at its default.
PRESETS: dict[str, dict[str, Any]] = {
    "37 frames, 1.2 s: LoRA (published: 50 GB; calculated: 28 GB)": _lora(37),
    "61 frames, 2 s: LoRA (published: 64 GB; calculated: 33 GB)": _lora(61),
    "79 frames, 2.6 s: LoRA (published: 69 to 78 GB; calculated: 37 GB)": _lora(79),
    "85 frames, 2.8 s: LoRA (published: 80 GB; calculated: 38 GB)": _lora(85),
    "32 GB card: LoRA of 37 frames, attention computed again (calculated: 25 GB)": _lora(37, checkpointing="full"),
    "24 GB card: LoRA of 25 frames of 240 x 432, far below the model's size, without samples (calculated: 20 GB)": {
        **_lora(25, 240, 432, checkpointing="full"),
        "validation.every_steps": None,
    },
    "141 GB card: every weight, 37 frames, optimizer in main memory (calculated: 106 GB, and 160 GB there)": {
        **_lora(37, checkpointing="full"),
        "method": "full",
        "optimizer.learning_rate": 1e-5,
        "optimizer.max_grad_norm": 1.0,
        "memory.offload_optimizer": True,
        "checkpoint.every_steps": 500,
        "checkpoint.keep_last": 2,
    },
}
