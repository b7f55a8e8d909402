"""The parts of a Mochi base model, read when asked for: of a diffusers pipeline (folder or Hub repository), or of
Genmo's own files of weights, whose text encoder lies elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiTransformer3DModel
from transformers import T5EncoderModel, T5Tokenizer

from trainers.families.base import ModelError, is_hub_id
from trainers.families.files import fetch, identity, model_files, part_files, read_json, read_tensors
from trainers.families.mochi import names
from trainers.families.mochi.facts import GENMO_FILES, TRANSFORMER, is_genmo
from trainers.families.weights import FAILURES, State, check_fit, read_part, unreadable

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
#: Of a repository: the weights in 32 bits, not the copies in fewer beside them.
_WEIGHTS = ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
_PATTERNS = [
    "model_index.json",
    *(f"{part}/*.{end}" for part in PARTS for end in ("json", "model")),
    *(f"{name}{end}" for name in _WEIGHTS for end in (".safetensors", "-*.safetensors")),
]
_TEXT_PATTERNS = ["*.json", "*.model", "*.safetensors", "pytorch_model*.bin"]
#: What is kept in 32 bits: angles of positions, which fewer would turn visibly.
EXACT = "pos_frequencies"
Half = Literal["encoder", "decoder"]


class BaseModel:
    """Where a base model lies, and its parts. text_encoder: a folder or Hub id for Genmo's files."""

    def __init__(self, source: str, text_encoder: str) -> None:
        self.source, self._text_source = source, text_encoder
        self.path = self._find(source)
        self.genmo = not (self.path / PARTS[0]).is_dir()

    def _find(self, source: str) -> Path:
        path = Path(source).expanduser()
        if path.is_dir():
            lacking = [part for part in PARTS if not (path / part).is_dir()]
            if lacking and ((path / PARTS[0]).is_dir() or not is_genmo(path)):
                raise ModelError(
                    f"base_model {source} is no Mochi: as a pipeline folder it lacks {lacking[0]}/, and it does not "
                    f"hold all of Genmo's {', '.join(GENMO_FILES)}"
                )
            return path
        if path.exists():
            raise ModelError(
                f"base_model {source} is a file; Mochi is read from a pipeline folder, a folder with Genmo's "
                f"{', '.join(GENMO_FILES)}, or a Hub id"
            )
        if is_hub_id(source):
            return fetch(source, _PATTERNS, "base_model")
        raise ModelError(f"base_model {source} does not exist; give a folder or a Hub id")

    # --- transformer ---

    def transformer(self, dtype: torch.dtype) -> MochiTransformer3DModel:
        if self.genmo:
            file = self.path / GENMO_FILES[0]
            state, config = read_transformer_file(file)
            return assembled(MochiTransformer3DModel, config, state, dtype, str(file))
        model = self._read(MochiTransformer3DModel, "transformer", torch_dtype=dtype)
        if dtype != torch.float32:
            for file in model_files(self.path / "transformer"):
                if EXACT in (found := read_tensors(file, only=(EXACT,))[0]):
                    model.pos_frequencies = torch.nn.Parameter(found[EXACT].float())
        return model

    # --- video ---

    def vae(self, dtype: torch.dtype, half: Half) -> AutoencoderKLMochi:
        """The video encoder or decoder, without the other."""
        other = "decoder" if half == "encoder" else "encoder"
        if not self.genmo:
            vae = self._read(AutoencoderKLMochi, "vae", torch_dtype=dtype)
            setattr(vae, other, None)
            return vae
        file = self.path / f"{half}.safetensors"
        state = read_tensors(file)[0]
        config_of, rules_of = {
            "encoder": (names.encoder_config, names.encoder_rules),
            "decoder": (names.decoder_config, names.decoder_rules),
        }[half]
        own = names.to_diffusers(state, rules_of(state), str(file))
        return assembled(AutoencoderKLMochi, config_of(state, str(file)), own, dtype, str(file), without=other)

    def vae_config(self) -> dict[str, Any]:
        """Settings of the video encoder; of Genmo's files the constants that its class has."""
        if self.genmo:
            with torch.device("meta"):
                return dict(AutoencoderKLMochi().config)
        return read_json(self.path / "vae" / "config.json")

    # --- text ---

    def text_encoder(self, dtype: torch.dtype) -> T5EncoderModel:
        folder, name = self._text_folder("text_encoder")
        return read_part(T5EncoderModel, folder, name, dtype=dtype)

    def tokenizer(self) -> T5Tokenizer:
        folder, name = self._text_folder("tokenizer")
        try:
            return T5Tokenizer.from_pretrained(folder)
        except FAILURES as error:
            raise unreadable(name, (), error) from error

    def _text_folder(self, part: str) -> tuple[Path, str]:
        """Where the text encoder or the tokenizer lies, and what it is in words."""
        if not self.genmo or (self.path / part).is_dir():
            return self.path / part, f"{part} of base_model {self.source}"
        name = f"{part} of text_encoder {self._text_source}"
        path = Path(self._text_source).expanduser()
        if not path.exists():
            if not is_hub_id(self._text_source):
                raise ModelError(
                    f"text_encoder {self._text_source} does not exist, and base_model {self.source} has none of its "
                    "own; give a folder or a Hub id"
                )
            path = fetch(self._text_source, _TEXT_PATTERNS, "text_encoder")
        return (path / part if (path / part).is_dir() else path), name

    # --- what they are ---

    def scheduler_config(self) -> dict[str, Any]:
        """The sampler's settings. ModelError when they are not those of Mochi, whose noise levels are told inverted."""
        if self.genmo:
            return dict(FlowMatchEulerDiscreteScheduler(invert_sigmas=True).config)
        file = self.path / "scheduler" / "scheduler_config.json"
        config = read_json(file)
        if not config.get("invert_sigmas"):
            raise ModelError(
                f"{file} has invert_sigmas {config.get('invert_sigmas')}, but Mochi's schedule is inverted"
            )
        return config

    def video_identity(self) -> str:
        """A hash over the video encoder's files. Loads nothing into memory."""
        if self.genmo:
            return identity([self.path / "encoder.safetensors"])
        return identity(part_files(self.path / "vae"))

    def text_identity(self) -> str:
        """A hash over the text encoder's and the tokenizer's files."""
        folders = dict.fromkeys(self._text_folder(part)[0] for part in ("text_encoder", "tokenizer"))
        return identity(file for folder in folders for file in part_files(folder))

    def _read(self, kind: Any, part: str, **options: Any) -> Any:
        return read_part(kind, self.path / part, f"{part} of base_model {self.source}", **options)


def read_transformer_file(file: Path) -> tuple[State, dict[str, Any]]:
    """(weights in diffusers' names, settings of diffusers' class) of Genmo's dit.safetensors."""
    state, _ = read_tensors(file)
    if not names.is_transformer(state):
        raise ModelError(f"{file} is no transformer of Genmo's Mochi")
    own = names.to_diffusers(state, names.transformer_rules(state), str(file))
    config = names.transformer_config(state, str(file))
    return own, {"_class_name": TRANSFORMER, **config}


def assembled(
    kind: Any, config: dict[str, Any], state: State, dtype: torch.dtype, source: str, without: str | None = None
) -> Any:
    """A model of diffusers' class from its weights, for evaluation. ModelError when they do not fit.

    without: a part of it that is not wanted."""
    try:
        with torch.device("meta"):
            model = kind.from_config(config)
    except FAILURES as error:
        raise ModelError(f"{source} is no Mochi: {error}") from error
    if without is not None:
        setattr(model, without, None)
    check_fit({key: value.shape for key, value in model.state_dict().items()}, state, source)
    cast = {key: value.to(torch.float32 if key == EXACT else dtype) for key, value in state.items()}
    model.load_state_dict(cast, strict=True, assign=True)
    return model.eval()
