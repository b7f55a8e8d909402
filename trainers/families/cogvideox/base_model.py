"""The parts of a CogVideoX pipeline folder or Hub repository, read when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from transformers import T5EncoderModel, T5Tokenizer

from trainers.families.base import ModelError, is_hub_id
from trainers.families.cogvideox.facts import Facts, facts_of
from trainers.families.files import fetch, identity, part_files, read_json
from trainers.families.weights import FAILURES, read_part, unreadable

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
_PATTERNS = ["model_index.json", *(f"{part}/*.{end}" for part in PARTS for end in ("json", "safetensors", "model"))]


class BaseModel:
    """Where a base model lies, and its parts."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.path = self._find(source)
        self.facts: Facts = facts_of(read_json(self.path / "transformer" / "config.json"))

    def _find(self, source: str) -> Path:
        path = Path(source).expanduser()
        if path.is_dir():
            lacking = [part for part in PARTS if not (path / part).is_dir()]
            if lacking:
                raise ModelError(f"base_model {source} is not a CogVideoX pipeline folder: it has no {lacking[0]}/")
            return path
        if path.exists():
            raise ModelError(f"base_model {source} is a file; CogVideoX is read from a pipeline folder or a Hub id")
        if is_hub_id(source):
            return fetch(source, _PATTERNS, "base_model")
        raise ModelError(f"base_model {source} does not exist; give a folder or a Hub id")

    def transformer(self, dtype: torch.dtype) -> CogVideoXTransformer3DModel:
        return self._read(CogVideoXTransformer3DModel, "transformer", torch_dtype=dtype)

    def vae(self, dtype: torch.dtype) -> AutoencoderKLCogVideoX:
        return self._read(AutoencoderKLCogVideoX, "vae", torch_dtype=dtype)

    def text_encoder(self, dtype: torch.dtype) -> T5EncoderModel:
        return self._read(T5EncoderModel, "text_encoder", dtype=dtype)

    def tokenizer(self) -> T5Tokenizer:
        name = f"tokenizer of base_model {self.source}"
        try:
            return T5Tokenizer.from_pretrained(self.path / "tokenizer")
        except FAILURES as error:
            raise unreadable(name, (), error) from error

    def scheduler_config(self) -> dict[str, Any]:
        """The noise schedule; ModelError when it is not for the prediction of velocity, which is all that is known."""
        file = self.path / "scheduler" / "scheduler_config.json"
        config = read_json(file)
        if config.get("prediction_type") != "v_prediction":
            raise ModelError(f"{file} has prediction_type {config.get('prediction_type')}; only v_prediction is known")
        return config

    def vae_config(self) -> dict[str, Any]:
        return read_json(self.path / "vae" / "config.json")

    def identity(self, parts: tuple[str, ...]) -> str:
        """A hash over the files of these parts. Loads nothing into memory."""
        return identity(file for part in parts for file in part_files(self.path / part))

    def _read(self, kind: Any, part: str, **options: Any) -> Any:
        return read_part(kind, self.path / part, f"{part} of base_model {self.source}", **options)
