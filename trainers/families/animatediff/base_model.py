"""The image model under the motion modules: a Stable Diffusion 1.5 pipeline folder, single file or Hub repository."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from trainers.families.animatediff.checkpoint import load_strictly
from trainers.families.base import ModelError, is_hub_id
from trainers.families.files import WEIGHT_FILES, fetch, identity, part_files, read_json, read_tensors
from trainers.families.weights import FAILURES, read_part, unreadable

CLIP = "openai/clip-vit-large-patch14"  # whose tokenizer Stable Diffusion 1.5 uses

#: What a single file does not say of itself: the shapes of Stable Diffusion 1.5.
SD15_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 4, "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "cross_attention_dim": 768,
    "attention_head_dim": 8, "norm_num_groups": 32,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
SD15_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL", "sample_size": 512, "in_channels": 3, "out_channels": 3, "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}  # fmt: skip
SD15_TEXT: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 768,
    "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1,
}  # fmt: skip

_PATTERNS = [
    "model_index.json",
    "scheduler/*.json",
    "tokenizer/*",
    *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
]
_FAILURES = (*FAILURES, SingleFileComponentError)


class BaseModel:
    """Where an image model lies, and its parts, read when asked for."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.path = self._find(source)

    @property
    def is_file(self) -> bool:
        return self.path.is_file()

    def _find(self, source: str) -> Path:
        path = Path(source).expanduser()
        if path.is_file():
            if path.suffix not in WEIGHT_FILES:
                raise ModelError(f"base_model {source} is not a model file; known endings: {', '.join(WEIGHT_FILES)}")
            return path
        if path.is_dir():
            lacking = [part for part in ("unet", "vae", "text_encoder", "tokenizer") if not (path / part).is_dir()]
            if lacking:
                raise ModelError(
                    f"base_model {source} is not a Stable Diffusion 1.5 pipeline folder: it has no {lacking[0]}/"
                )
            return path
        if is_hub_id(source):
            return fetch(source, _PATTERNS, "base_model")
        raise ModelError(f"base_model {source} does not exist; give a folder, a model file or a Hub id")

    def unet(self, dtype: torch.dtype) -> UNet2DConditionModel:
        if self.is_file:
            return self._from_file(UNet2DConditionModel, SD15_UNET, dtype)
        return self._from_folder(UNet2DConditionModel, "unet", torch_dtype=dtype)

    def vae(self, dtype: torch.dtype) -> AutoencoderKL:
        if self.is_file:
            return self._from_file(AutoencoderKL, SD15_VAE, dtype)
        return self._from_folder(AutoencoderKL, "vae", torch_dtype=dtype)

    def text_encoder(self) -> CLIPTextModel:
        if not self.is_file:
            return self._from_folder(CLIPTextModel, "text_encoder")
        prefix = "cond_stage_model.transformer."
        state, _ = read_tensors(self.path)
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        own = {key: value.float() for key, value in own.items() if not key.endswith("position_ids")}
        model = CLIPTextModel(CLIPTextConfig(**SD15_TEXT))
        if not hasattr(model, "text_model"):  # transformers 5.6 took this level out of the names
            own = {key.removeprefix("text_model."): value for key, value in own.items()}
        load_strictly(model, own, f"the text encoder in base_model {self.source}")
        return model.eval()

    def tokenizer(self) -> CLIPTokenizer:
        if not self.is_file:
            return self._reading("tokenizer", lambda: CLIPTokenizer.from_pretrained(self.path / "tokenizer"))
        patterns = ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]
        try:
            return CLIPTokenizer.from_pretrained(fetch(CLIP, patterns, "tokenizer"))
        except (ModelError, *_FAILURES) as error:
            raise ModelError(
                f"base_model {self.source} is a single file, which holds no tokenizer, and {CLIP} cannot be had "
                "from the Hub; give a pipeline folder instead, or fetch that tokenizer once while there is a network"
            ) from error

    def scheduler_config(self) -> dict[str, Any]:
        """The noise schedule of the base itself; Stable Diffusion's where it has none."""
        file = self.path / "scheduler" / "scheduler_config.json"
        if not self.is_file and file.is_file():
            return read_json(file)
        return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

    def vae_config(self) -> dict[str, Any]:
        return SD15_VAE if self.is_file else read_json(self.path / "vae" / "config.json")

    def identity(self, parts: tuple[str, ...]) -> str:
        """A hash over the files of these parts (the whole file, of a single one). Loads nothing into memory."""
        return identity(
            [self.path] if self.is_file else [file for part in parts for file in part_files(self.path / part)]
        )

    def _from_folder(self, kind: Any, part: str, **options: Any) -> Any:
        return read_part(kind, self.path / part, f"{part} of base_model {self.source}", **options)

    def _from_file(self, kind: Any, config: dict[str, Any], dtype: torch.dtype) -> Any:
        def read() -> Any:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
                return kind.from_single_file(str(self.path), config=folder, subfolder="", torch_dtype=dtype).eval()

        return self._reading(kind.__name__, read)

    def _reading(self, part: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except _FAILURES as error:
            files = [self.path] if self.is_file else part_files(self.path / part)
            raise unreadable(f"{part} of base_model {self.source}", files, error) from error
