"""What a DynamiCrafter base model is, told without reading its weights. No torch, no network.

Four models are published, all of one network: 256 x 256, 320 x 512, 320 x 512 between two frames, and 576 x 1024.
Their files hold no settings. Which one a file is, its name says as a rule, or the setting `variant`; a `config.yaml` in
the reference's form (`model.params`) beside the weights says it exactly, and is how a model of other sizes is
described. The sizes of the two CLIP towers stand in no such file: they are those of ViT-H-14 unless an
`open_clip_config.json` lies there.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from trainers.families.base import ModelError, is_hub_id
from trainers.settings import ConfigError, parse_yaml, read_text

Variant = Literal["256", "512", "512-interp", "1024"]

CONFIG = "config.yaml"
CLIP_CONFIG = "open_clip_config.json"
#: Names of the weights in a folder, the first that is there.
WEIGHTS = ("model.safetensors", "model.ckpt")
#: Learned strengths of the image's attention, which only the 256 model has.
ALPHA = "attn2.alpha"
_LONGEST_HEADER = 100_000_000  # bytes; the limit of safetensors itself


@dataclass(frozen=True)
class UNetFacts:
    """The shape of the network. attention_resolutions: factors by which the sides have shrunk where attention stands.

    default_fs: what stands for `fs` when none is given."""

    in_channels: int = 8
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (4, 2, 1)
    num_head_channels: int = 64
    context_dim: int = 1024
    dropout: float = 0.1
    temporal_length: int = 16
    default_fs: int = 24
    image_cross_attention_scale_learnable: bool = False


@dataclass(frozen=True)
class ResamplerFacts:
    """What turns the image tower's tokens into `num_queries` tokens for each of `video_length` frames."""

    dim: int = 1024
    depth: int = 4
    dim_head: int = 64
    heads: int = 12
    num_queries: int = 16
    embedding_dim: int = 1280
    output_dim: int = 1024
    ff_mult: int = 4
    video_length: int = 16


@dataclass(frozen=True)
class TextFacts:
    """CLIP's text tower."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    vocab_size: int = 49408
    context_length: int = 77


@dataclass(frozen=True)
class VisionFacts:
    """CLIP's image tower."""

    width: int = 1280
    layers: int = 32
    head_width: int = 80
    patch_size: int = 14
    image_size: int = 224


@dataclass(frozen=True)
class VaeFacts:
    """The autoencoder of Stable Diffusion."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4


@dataclass(frozen=True)
class Facts:
    """A base model, and how it is sampled by default.

    base_scale: latents are scaled down to it as noise grows; None: they are not. fs_kind: what the number `fs` counts,
    frames per second, or frames from one to the next. sample_fs: its usual value. native: height and width in pixels.
    perframe_ae: the noise of the VAE's posterior is drawn frame by frame.
    """

    variant: Variant
    unet: UNetFacts = field(default_factory=UNetFacts)
    resampler: ResamplerFacts = field(default_factory=ResamplerFacts)
    text: TextFacts = field(default_factory=TextFacts)
    vision: VisionFacts = field(default_factory=VisionFacts)
    vae: VaeFacts = field(default_factory=VaeFacts)
    parameterization: Literal["eps", "v"] = "v"
    zero_terminal_snr: bool = True
    base_scale: float | None = 0.7
    fs_kind: Literal["fps", "stride"] = "fps"
    sample_fs: int = 24
    spacing: Literal["uniform", "uniform_trailing"] = "uniform_trailing"
    guidance_rescale: float = 0.7
    native: tuple[int, int] = (320, 512)
    perframe_ae: bool = True
    scale_factor: float = 0.18215

    @property
    def num_frames(self) -> int:
        """Frames of a clip: as many as the resampler has tokens for."""
        return self.resampler.video_length

    @property
    def interp(self) -> bool:
        """Whether it draws what lies between two pictures, instead of what follows one."""
        return self.variant == "512-interp"


PUBLISHED: dict[str, Facts] = {
    "256": Facts(
        "256",
        unet=UNetFacts(default_fs=3, image_cross_attention_scale_learnable=True),
        parameterization="eps",
        zero_terminal_snr=False,
        base_scale=None,
        fs_kind="stride",
        sample_fs=3,
        spacing="uniform",
        guidance_rescale=0.0,
        native=(256, 256),
        perframe_ae=False,
    ),
    "512": Facts("512"),
    "512-interp": Facts("512-interp", sample_fs=5),
    "1024": Facts("1024", unet=UNetFacts(default_fs=10), base_scale=0.3, sample_fs=10, native=(576, 1024)),
}

HUB_BASES = (
    "Doubiiu/DynamiCrafter_512",
    "Doubiiu/DynamiCrafter",
    "Doubiiu/DynamiCrafter_512_Interp",
    "Doubiiu/DynamiCrafter_1024",
)


def facts_of(base_model: str, variant: str | None = None) -> Facts | None:
    """What a base model is: by the config beside its weights, else as named by `variant`, else as its own name, its
    folder's or its keys tell. None where that cannot be told.

    ModelError where a config beside the weights cannot be meant, or says another kind than `variant`.
    """
    path = Path(base_model).expanduser()
    folder = path if path.is_dir() else path.parent
    if path.exists() and (folder / CONFIG).is_file():
        found = _facts_beside(folder, variant)
        if found is not None:
            return found
    name = variant or variant_in_name(base_model) or _variant_in_keys(path)
    return PUBLISHED[name] if name is not None else None


def weights_in(path: Path) -> Path | None:
    """The file of weights that a path means: itself, or the one in a folder."""
    if path.is_file():
        return path
    return next((path / name for name in WEIGHTS if (path / name).is_file()), None)


def variant_in_name(base_model: str) -> Variant | None:
    """The published model that a file's or folder's name speaks of, or a Hub id."""
    if is_hub_id(base_model) and not Path(base_model).expanduser().exists():
        names = [base_model.rpartition("/")[2]]
    else:
        path = Path(base_model).expanduser().absolute()
        names = [path.name, path.parent.name] if path.suffix else [path.name]
    for name in (n.lower() for n in names):
        if "interp" in name:
            return "512-interp"
        for known in ("1024", "512", "256"):
            if known in name:
                return known  # type: ignore[return-value]
        if name == "dynamicrafter":  # as the 256 model is called on the Hub
            return "256"
    return None


def _variant_in_keys(path: Path) -> Variant | None:
    """The model that names of tensors tell: the learned strengths are the 256 model's; the others are alike."""
    file = weights_in(path)
    return "256" if file is not None and any(key.endswith(ALPHA) for key in keys_of(file)) else None


def has_network(keys: Iterable[str]) -> bool:
    """Whether a file with these keys holds the network: temporal layers, image attention and the fps all at once."""
    signs = ("temopral_conv", "to_k_ip.weight", "fps_embedding.0.weight|framestride_embed.0.weight")
    known = list(keys)
    return all(any(part in key for key in known for part in sign.split("|")) for sign in signs)


def keys_of(file: Path) -> set[str]:
    """Names of the tensors of a file, and of a pickle other words that stand in it; none where it is no such file, or a
    pickle of torch before 1.6. Nothing is unpickled."""
    try:
        if file.suffix == ".safetensors":
            with file.open("rb") as handle:
                length = int.from_bytes(handle.read(8), "little")
                header = json.loads(handle.read(length)) if length <= _LONGEST_HEADER else {}
            return set(header) - {"__metadata__"} if isinstance(header, dict) else set()
        with zipfile.ZipFile(file) as archive:
            name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            return set() if name is None else set(_words(archive.read(name)))
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, EOFError):
        return set()


def _words(pickled: bytes) -> Iterator[str]:
    """The texts in a pickle: BINUNICODE has four bytes of length before them, SHORT_BINUNICODE one."""
    for sign, size in ((b"X", 4), (b"\x8c", 1)):
        place = pickled.find(sign)
        while place >= 0:
            start = place + 1 + size
            length = int.from_bytes(pickled[place + 1 : start], "little")
            word = pickled[start : start + length]
            if 0 < length < 300 and re.fullmatch(rb"[\w.]+", word):
                yield word.decode("ascii")
            place = pickled.find(sign, place + 1)


def _facts_beside(folder: Path, variant: str | None) -> Facts | None:
    """What the config in a folder says; None where it is a config of something else."""
    file = folder / CONFIG
    try:
        data = parse_yaml(read_text(file), str(file))
    except ConfigError as error:
        raise ModelError(f"{error}; mend it or take it away from the weights") from error
    model = data.get("model")
    params = model.get("params") if isinstance(model, Mapping) else None
    if not isinstance(params, Mapping) or not isinstance(params.get("unet_config"), Mapping):
        return None
    try:
        return from_params(params, _clip_config(folder / CLIP_CONFIG), variant)
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{file} does not describe a DynamiCrafter model: {error}") from error


def _clip_config(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    found = data.get("model_cfg", data) if isinstance(data, dict) else None
    if not isinstance(found, dict):
        raise ModelError(f"{file} does not describe a CLIP model in open_clip's form")
    return found


def from_params(params: Mapping[str, Any], clip: Mapping[str, Any], variant: str | None = None) -> Facts:
    """Facts from the reference's `model.params`, and open_clip's description of the two towers (empty: ViT-H-14).

    ValueError where the config asks for what the published networks do not have, or contradicts `variant`.
    """
    unet = _params(params, "unet_config")
    for name, value in SWITCHES.items():
        if name in unet and unet[name] != value:
            raise ValueError(f"unet_config.{name} is {unet[name]!r}, but this network has only {value!r}")
    eps = params.get("parameterization", "eps") == "eps"
    size = params.get("image_size", [40, 64])
    height, width = (8 * int(side) for side in (size if isinstance(size, (list, tuple)) else (size, size)))
    scaled = bool(params.get("use_dynamic_rescale", False))
    base_scale = float(params.get("base_scale", 0.7)) if scaled else None
    if params.get("interp_mode"):
        told = "512-interp"
    elif eps:
        told = "256"
    else:
        told = "1024" if base_scale == 0.3 else "512"
    if variant is not None and PUBLISHED[variant].parameterization != PUBLISHED[told].parameterization:
        raise ValueError(f"its parameterization is that of {told}, but variant is {variant}; leave variant empty")
    base = PUBLISHED[variant or told]
    return replace(
        base,
        unet=_read(replace(base.unet, image_cross_attention_scale_learnable=False), unet),
        resampler=_read(base.resampler, _params(params, "image_proj_stage_config")),
        text=_read(base.text, clip.get("text_cfg", {})),
        vision=_read(base.vision, clip.get("vision_cfg", {})),
        vae=_read(base.vae, _params(params, "first_stage_config").get("ddconfig", {})),
        parameterization="eps" if eps else "v",
        zero_terminal_snr=bool(params.get("rescale_betas_zero_snr", False)),
        base_scale=base_scale,
        fs_kind="fps" if params.get("fps_condition_type", "fs") == "fps" else "stride",
        native=(height, width),
        perframe_ae=bool(params.get("perframe_ae", False)),
        scale_factor=float(params.get("scale_factor", base.scale_factor)),
    )


#: Switches of the reference's network that every published model sets so.
SWITCHES: dict[str, Any] = {
    "transformer_depth": 1,
    "use_linear": True,
    "temporal_conv": True,
    "temporal_attention": True,
    "temporal_selfatt_only": True,
    "use_relative_position": False,
    "use_causal_attention": False,
    "addition_attention": True,
    "image_cross_attention": True,
    "fs_condition": True,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "tempspatial_aware": False,
}


def _params(params: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    found = params.get(section)
    inner = found.get("params") if isinstance(found, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


_T = TypeVar("_T", UNetFacts, ResamplerFacts, TextFacts, VisionFacts, VaeFacts)


def _read(default: _T, settings: Mapping[str, Any]) -> _T:
    """A part's facts with what settings say of its own fields."""
    said: dict[str, Any] = {}
    for one in fields(default):
        if one.name in settings:
            value, like = settings[one.name], getattr(default, one.name)
            if isinstance(like, tuple):
                value = tuple(int(number) for number in value)
            elif isinstance(value, bool) != isinstance(like, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{one.name} is {value!r}")
            said[one.name] = type(like)(value)
    return replace(default, **said)
