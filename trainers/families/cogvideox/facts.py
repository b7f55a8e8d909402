"""What a CogVideoX base model is, told from its settings alone. No torch, no weights, no network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.families.base import is_hub_id

TRANSFORMER_CONFIG = "transformer/config.json"
TRANSFORMER = "CogVideoXTransformer3DModel"


@dataclass(frozen=True)
class Facts:
    """The shape of a transformer. Sizes in latents (an eighth of a pixel), frames in pixels, as its file has them."""

    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2
    patch_size_t: int | None = None
    sample_height: int = 60
    sample_width: int = 90
    sample_frames: int = 49
    max_text_seq_length: int = 226
    rotary: bool = False
    learned_positions: bool = False

    @property
    def takes_image(self) -> bool:
        """Image to video: as many channels again hold the image."""
        return self.in_channels == 2 * self.out_channels

    @property
    def native(self) -> tuple[int, int, int]:
        """(frames, height, width) in pixels that it was made for."""
        return self.sample_frames, 8 * self.sample_height, 8 * self.sample_width


#: The published models by the last part of their ids, for when a Hub id is not on this machine yet.
PUBLISHED = {
    "CogVideoX-2b": Facts(),
    "CogVideoX-5b": Facts(rotary=True),
    "CogVideoX-5b-I2V": Facts(in_channels=32, rotary=True, learned_positions=True),
    "CogVideoX1.5-5B": Facts(patch_size_t=2, sample_height=300, sample_width=300, sample_frames=81, rotary=True),
    "CogVideoX1.5-5B-I2V": Facts(
        in_channels=32, patch_size_t=2, sample_height=300, sample_width=300, sample_frames=81, rotary=True
    ),
}


def facts_of(config: dict[str, Any]) -> Facts:
    """Facts from a transformer's config; what it leaves out is as diffusers' class has it."""
    default = Facts()
    names = ("in_channels", "out_channels", "patch_size", "patch_size_t", "sample_height", "sample_width",
             "sample_frames", "max_text_seq_length")  # fmt: skip
    return Facts(
        **{name: config.get(name, getattr(default, name)) for name in names},
        rotary=bool(config.get("use_rotary_positional_embeddings", False)),
        learned_positions=bool(config.get("use_learned_positional_embeddings", False)),
    )


def base_facts(base_model: str) -> Facts | None:
    """What a folder, or a Hub id, is; None where that cannot be told without the network, or it is no CogVideoX."""
    file = _config_file(base_model)
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file else None
    except (OSError, ValueError):
        return None
    if isinstance(config, dict):
        return facts_of(config) if config.get("_class_name", TRANSFORMER) == TRANSFORMER else None
    if not is_hub_id(base_model):
        return None
    name = base_model.rpartition("/")[2].lower()
    return next((facts for known, facts in PUBLISHED.items() if known.lower() == name), None)


def _config_file(base_model: str) -> Path | None:
    """The transformer's config in a folder, or in the Hub's cache on this machine."""
    path = Path(base_model).expanduser()
    if path.exists():
        return path / TRANSFORMER_CONFIG if (path / TRANSFORMER_CONFIG).is_file() else None
    if not is_hub_id(base_model):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(base_model, TRANSFORMER_CONFIG)
    return Path(found) if isinstance(found, str) else None
