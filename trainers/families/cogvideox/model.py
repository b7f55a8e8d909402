"""CogVideoX in memory: a transformer over video and text together, and all its conventions.

Shapes: b clips, f frames, H x W pixels; F latent frames (the first frame, then one for every four), h x w = H/8 x W/8;
c channels of latents (16): latents (b, F, c, h, w), prompt embeddings (b, tokens, width).
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from diffusers.video_processor import VideoProcessor
from PIL import Image

from trainers import lora
from trainers.families.adapters import as_trained, write_lora
from trainers.families.base import Example, ModelError, SampleRequest, Stage, VideoModel
from trainers.families.base import Take as TakeAt
from trainers.families.cogvideox.base_model import BaseModel
from trainers.families.cogvideox.checkpoint import (
    POSITIONS,
    PREFIX,
    Take,
    described,
    read_take,
)
from trainers.families.cogvideox.config import CogVideoXSampleConfig, CogVideoXTrainConfig
from trainers.families.cogvideox.positions import rotary
from trainers.families.cogvideox.steps import dpm_step
from trainers.families.weights import (
    PRECISIONS,
    State,
    callable_alone,
    check_fit,
    computing,
    device,
    evaluating,
    fill_trained_lora,
    interpolate,
    lasting,
    lora_targets,
    sample_loras,
    shapes_of,
)
from trainers.memory import checkpoint_blocks
from trainers.noise import Draws

log = logging.getLogger(__name__)

TRAIN_TIMESTEPS = 1000
OFS = 2.0  # what the embedding `ofs` of 1.5-I2V was trained with
IMAGE_NOISE = (-3.0, 0.5)  # mean and deviation of the logarithm of the noise on an image
#: (height, width) of a tile in pixels: those of the published video encoders. Of others diffusers makes half of their
#: own size, which need not overlap by whole latents, and then the tiles do not fit together.
TILE = (240, 360)


@dataclass(frozen=True)
class Conventions:
    """How a take was trained, and must be sampled."""

    rotary: Literal["pipeline", "integers"] = "pipeline"
    image_latent_scale: Literal["pipeline", "video"] = "pipeline"
    learned_positions: bool = True


class CogVideoX(VideoModel):
    """`config` is a CogVideoXTrainConfig (stage "train") or a CogVideoXSampleConfig (stage "sample")."""

    def __init__(self, config: CogVideoXTrainConfig | CogVideoXSampleConfig, stage: Stage) -> None:
        self.config = config
        self.stage = stage
        self.device = device()
        self.dtype = PRECISIONS[config.mixed_precision]
        self.method = config.method if isinstance(config, CogVideoXTrainConfig) else None
        self._base = BaseModel(config.base_model)
        self.facts = self._base.facts
        self._vae_config = self._base.vae_config()
        self._encoder: AutoencoderKLCogVideoX | None = None
        self._decoder: AutoencoderKLCogVideoX | None = None
        self._text: tuple[Any, Any] | None = None  # tokenizer and text encoder
        self._embedded: dict[str, torch.Tensor] = {}
        self._rotary: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._untouched: State = {}  # base weights that a take covers, on the CPU
        self._schedule = CogVideoXDDIMScheduler.from_config(self._base.scheduler_config())
        self._signals = self._schedule.alphas_cumprod.double()  # (1000,), how much of a clip is left; 0 at the end
        self._first = None
        if isinstance(config, CogVideoXSampleConfig) and config.checkpoints:  # the base is sampled as it was trained
            self._first = described(Path(config.checkpoints[0]).expanduser())
        self._build()
        self._follow(self._first)
        if isinstance(config, CogVideoXTrainConfig):
            if config.dataset.fit != "buckets":
                self._check_size(config.dataset.height, config.dataset.width, "dataset.")
            if config.draws:
                self._check_size(*config.drawn_size, "validation.")

    # --- building ---

    def _build(self) -> None:
        """Read the transformer, make the meant weights trainable, move it."""
        with torch.random.fork_rng(devices=[]):
            self.transformer = self._base.transformer(torch.float32 if self.method == "full" else self.dtype)
            self.transformer.requires_grad_(False)
            if isinstance(self.config, CogVideoXTrainConfig):
                self._make_trainable(self.config)
        if not self._encodes_first:
            self.transformer.to(self.device)
        self.transformer.train(self.stage == "train")
        self.denoiser = {"denoiser": self.transformer}

    @property
    def _encodes_first(self) -> bool:
        """Whether everything is encoded before the transformer is needed, which waits in main memory until then: the
        text encoder alone takes 9.5 GB."""
        return isinstance(self.config, CogVideoXTrainConfig) and self.config.dataset.cache

    def _make_trainable(self, config: CogVideoXTrainConfig) -> None:
        if self.facts.learned_positions and not config.learned_positions:  # nor saved, for nobody will use them
            del self.transformer.patch_embed.pos_embedding
            self.transformer.register_to_config(use_learned_positional_embeddings=False)
        if config.method == "full":
            self.transformer.requires_grad_(True)
        else:
            chosen = lora_targets(
                self.transformer,
                config.adapter.target_modules,
                "transformer_blocks.",
                "the transformer's blocks",
                _kinds,
            )
            torch.manual_seed(config.seed)  # inside fork_rng: the run's own generators are not touched
            lora.inject(
                self.transformer,
                dict.fromkeys(chosen, config.adapter.rank),
                dict.fromkeys(chosen, self._alpha(config)),
                config.adapter.dropout,
            )
        checkpoint_blocks(
            self.transformer.transformer_blocks,
            config.memory.gradient_checkpointing,
            keep_random_state=config.adapter.dropout > 0 or self.transformer.config.dropout > 0,
        )

    @staticmethod
    def _alpha(config: CogVideoXTrainConfig) -> float:
        return float(config.adapter.rank if config.adapter.alpha is None else config.adapter.alpha)

    def _check_size(self, height: int, width: int, prefix: str) -> None:
        """ModelError when learned positions forbid a size in pixels."""
        _, *native = self.facts.native
        if self.facts.learned_positions and self.conventions.learned_positions and [height, width] != native:
            raise ModelError(
                f"{prefix}height and {prefix}width are {height} x {width}, but the learned positions of "
                f"{self._base.source} are for {native[0]} x {native[1]} only: set that, or learned_positions to false"
            )

    # --- conventions ---

    def _follow(self, take: Take | None) -> None:
        """The config's conventions, else as the take was trained, else the pipeline's."""
        recorded = take.meta if take is not None else {}
        chosen = {}
        for name, default in asdict(Conventions()).items():
            value = getattr(self.config, name)
            chosen[name] = value if value is not None else recorded.get(name, default)
        self.conventions = Conventions(**chosen)
        self._rotary.clear()
        if self.facts.learned_positions:  # the table stays where it is; only its use is turned off
            self.transformer.patch_embed.use_learned_positional_embeddings = self.conventions.learned_positions

    @property
    def _scaling_factor(self) -> float:
        return float(self._vae_config.get("scaling_factor", 1.15258426))

    @property
    def _image_scaling_factor(self) -> float:
        """1.5 was trained on images whose latents are divided by the factor, and its pipeline does the same."""
        if self.conventions.image_latent_scale == "pipeline" and self._vae_config.get("invert_scale_latents", False):
            return 1 / self._scaling_factor
        return self._scaling_factor

    # --- encoders ---

    def fingerprint(self, encoder: Literal["video", "prompt"]) -> str:
        if encoder == "prompt":
            dtype = str(self._text_dtype).removeprefix("torch.")
            return f"{self._base.identity(('text_encoder', 'tokenizer'))}-{dtype}-{self.facts.max_text_seq_length}"
        parts = [self._base.identity(("vae",)), str(self._vae_dtype).removeprefix("torch.")]
        parts += ["tiled"] if self._tiling else []
        parts += ["image"] if self.facts.takes_image else []
        return "-".join(parts)

    @property
    def _vae_dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else self.dtype

    @property
    def _text_dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else self.dtype

    @property
    def _tiling(self) -> bool:
        return (self.config.memory if isinstance(self.config, CogVideoXTrainConfig) else self.config).vae_tiling

    def _vae(self, drop: str) -> AutoencoderKLCogVideoX:
        """The video encoder and decoder without the one of them that is not wanted."""
        vae = self._base.vae(self._vae_dtype)
        setattr(vae, drop, None)
        if self._tiling:
            vae.enable_tiling(*TILE)
        if (self.config.memory if isinstance(self.config, CogVideoXTrainConfig) else self.config).vae_slicing:
            vae.enable_slicing()
        return vae.requires_grad_(False).to(self.device)

    def _posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, logvar), each (b, F, c, h, w) float32, of pixels (b, f, 3, H, W) in [-1, 1]."""
        if self._encoder is None:
            self._encoder = self._vae("decoder")
        with torch.no_grad():
            posterior = self._encoder.encode(pixels.transpose(1, 2).to(self.device, self._vae_dtype)).latent_dist
        return posterior.mean.transpose(1, 2).float(), posterior.logvar.transpose(1, 2).float()

    def encode_video(self, pixels: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
        mean, logvar = self._posterior(_signed(pixels.to(self.device)))
        encoded = {"latents_mean": mean.cpu(), "latents_logvar": logvar.cpu()}
        if self.facts.takes_image:  # each step puts other noise on the image and encodes it again
            encoded["first_frame"] = pixels[:, 0]  # (b, 3, H, W) uint8
        return encoded

    def encode_prompt(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        if self._text is None:
            text_encoder = self._base.text_encoder(self._text_dtype).requires_grad_(False).to(self.device)
            self._text = (self._base.tokenizer(), text_encoder)
        tokenizer, text_encoder = self._text
        tokens = tokenizer(
            list(texts),
            padding="max_length",  # what pads is attended to as well: there is no mask
            max_length=self.facts.max_text_seq_length,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        ).input_ids
        with torch.no_grad():
            embeds = text_encoder(tokens.to(self.device))[0]
        return {"prompt_embeds": embeds.cpu()}  # (b, tokens, width)

    def release(self, stage: Literal["encoders", "decoder"]) -> None:
        if stage == "encoders":
            self._text = None
            self.transformer.to(self.device)  # see _encodes_first
            if not (self.facts.takes_image and self.stage == "train"):  # see encode_video
                self._encoder = None
        else:
            self._decoder = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # --- the objective ---

    def example(self, batch: Mapping[str, torch.Tensor], draws: Draws) -> Example:
        mean, logvar = batch["latents_mean"], batch["latents_logvar"]  # (b, F, c, h, w)
        clips, where = mean.shape[0], mean.device

        posterior = mean + torch.exp(0.5 * logvar) * draws.normal("posterior", mean.shape, where)
        latents = self._padded(posterior * self._scaling_factor)

        noise = draws.normal("noise", latents.shape, where)
        timesteps = draws.integers("timesteps", 0, TRAIN_TIMESTEPS, (clips,), where)  # one for a whole clip
        signal = self._signals.to(where)[timesteps].view(-1, 1, 1, 1, 1)  # float64: bfloat16 would lose small noise
        keep, add = signal.sqrt().float(), (1 - signal).sqrt().float()
        model_input = keep * latents + add * noise
        target = keep * noise - add * latents  # velocity (Salimans and Ho 2022)

        if self.facts.takes_image:
            condition = self._image_latents(batch["first_frame"], latents.shape, draws, noisy=self._image_noise)
            if self._image_dropout > 0:
                dropped = draws.uniform("image_dropout", (clips,), where) < self._image_dropout
                condition = condition.masked_fill(dropped.view(-1, 1, 1, 1, 1), 0.0)
            model_input = torch.cat([model_input, condition], dim=2)  # (b, F, 2c, h, w)

        prompt_embeds = batch["prompt_embeds"]  # (b, tokens, width)
        if self._caption_dropout > 0:
            dropped = draws.uniform("caption_dropout", (clips,), where) < self._caption_dropout
            prompt_embeds = torch.where(dropped[:, None, None], batch["null_prompt_embeds"], prompt_embeds)
        return Example(model_input, timesteps, target, conditions={"prompt_embeds": prompt_embeds})

    def _padded(self, latents: torch.Tensor) -> torch.Tensor:
        """1.5 takes latent frames by twos: an odd one gets a copy of the first before it, where the pipeline draws one
        more and throws it away."""
        lacking = self._lacking(latents.shape[1])
        return torch.cat([latents[:, :1].expand(-1, lacking, -1, -1, -1), latents], dim=1) if lacking else latents

    def _lacking(self, frames: int) -> int:
        return 0 if self.facts.patch_size_t is None else -frames % self.facts.patch_size_t

    def _image_latents(self, image: torch.Tensor, shape: torch.Size, draws: Draws, *, noisy: bool) -> torch.Tensor:
        """What stands beside noisy latents of `shape`: the image (b, 3, H, W) as the first latent frame, then zeros."""
        pixels = _signed(image.to(self.device))
        if noisy:
            middle, deviation = IMAGE_NOISE
            sigma = torch.exp(middle + deviation * draws.normal("image_sigma", (len(pixels),), self.device))
            pixels = pixels + sigma.view(-1, 1, 1, 1) * draws.normal("image_noise", pixels.shape, self.device)
        mean, logvar = self._posterior(pixels[:, None])  # (b, 1, c, h, w)
        first = mean + torch.exp(0.5 * logvar) * draws.normal("image_posterior", mean.shape, self.device)
        condition = torch.zeros(shape, device=self.device)
        condition[:, :1] = first * self._image_scaling_factor
        return condition

    @property
    def _image_noise(self) -> bool:
        return isinstance(self.config, CogVideoXTrainConfig) and self.config.image_noise

    @property
    def _image_dropout(self) -> float:
        return self.config.image_noise_dropout if isinstance(self.config, CogVideoXTrainConfig) else 0.0

    @property
    def _caption_dropout(self) -> float:
        return self.config.dataset.caption_dropout if isinstance(self.config, CogVideoXTrainConfig) else 0.0

    def predict(self, example: Example) -> torch.Tensor:
        network = callable_alone(self.denoiser[example.denoiser])
        _, frames, _, height, width = example.model_input.shape
        ofs = example.model_input.new_full((1,), OFS) if self.transformer.config.ofs_embed_dim is not None else None
        with computing(self.device, self.dtype):
            prediction = network(
                hidden_states=example.model_input,
                encoder_hidden_states=example.conditions["prompt_embeds"],
                timestep=example.timesteps,
                ofs=ofs,
                image_rotary_emb=self.rotary(frames, height, width) if self.facts.rotary else None,
                return_dict=False,
            )[0]
        return prediction.float()  # type: ignore[no-any-return]

    def rotary(self, frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(cosines, sines) of the patches of latents of this shape."""
        shape = (frames, height, width)
        if shape not in self._rotary:
            grid = height // self.facts.patch_size, width // self.facts.patch_size
            head_dim = self.transformer.config.attention_head_dim
            cos, sin = rotary(self.facts, head_dim, frames, grid, self.conventions.rotary)
            self._rotary[shape] = cos.to(self.device), sin.to(self.device)
        return self._rotary[shape]

    # --- sampling ---

    def sample(self, request: SampleRequest, draws: Draws) -> np.ndarray:
        self._check_size(request.height, request.width, "")
        image = self._fitted(request)
        scheduler = self._sampler()
        scheduler.set_timesteps(request.num_inference_steps)
        guided = request.guidance_scale > 1
        prompts = [request.negative_prompt, request.prompt] if guided else [request.prompt]
        frames = (request.num_frames - 1) // 4 + 1
        more = self._lacking(frames)
        shape = torch.Size((1, frames + more, self.facts.out_channels, request.height // 8, request.width // 8))
        with torch.no_grad(), evaluating(self.denoiser.values()):
            condition = None if image is None else self._image_latents(image, shape, draws, noisy=False)
            latents = draws.normal("latents", shape, self.device) * scheduler.init_noise_sigma
            prompt_embeds = self._embed(prompts).to(self.device)
            clean = None
            for number, timestep in enumerate(scheduler.timesteps.tolist()):
                model_input = latents if condition is None else torch.cat([latents, condition], dim=2)
                prediction = self.predict(
                    Example(
                        model_input.expand(len(prompts), -1, -1, -1, -1),
                        torch.full((len(prompts),), timestep, device=self.device),
                        None,
                        conditions={"prompt_embeds": prompt_embeds},
                    )
                )
                if guided:
                    unconditional, conditional = prediction.chunk(2)
                    guidance = self._guidance(request, timestep)
                    prediction = unconditional + guidance * (conditional - unconditional)
                if isinstance(scheduler, CogVideoXDPMScheduler):
                    latents, clean = dpm_step(scheduler, prediction, clean, number, latents, draws)
                else:
                    latents = scheduler.step(prediction, timestep, latents).prev_sample
            return self._decode(latents[:, more:], request.num_frames)

    def _sampler(self) -> CogVideoXDDIMScheduler | CogVideoXDPMScheduler:
        kind = CogVideoXDPMScheduler if self.config.scheduler == "dpm" else CogVideoXDDIMScheduler
        return kind.from_config(self._schedule.config)

    def _guidance(self, request: SampleRequest, timestep: int) -> float:
        """As the pipeline has it: its cosine counts timesteps of training against steps of inference."""
        if not self.config.use_dynamic_cfg:
            return request.guidance_scale
        steps = request.num_inference_steps
        return 1 + request.guidance_scale * (1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5.0)) / 2

    def _fitted(self, request: SampleRequest) -> torch.Tensor | None:
        """The request's image (1, 3, H, W) in [-1, 1]: cut to the clip's shape in the middle, then sized as the
        pipeline does it. ModelError where the base model wants an image and there is none, or the other way round."""
        if request.image is None:
            if self.facts.takes_image:
                raise ModelError(f"{self._base.source} turns an image into a video: name an image to begin from")
            return None
        if not self.facts.takes_image:
            raise ModelError(f"{self._base.source} takes no image: leave images empty")
        height, width = request.image.shape[:2]
        inner = min(height, round(width * request.height / request.width))
        across = min(width, round(height * request.width / request.height))
        top, left = (height - inner) // 2, (width - across) // 2
        picture = Image.fromarray(np.ascontiguousarray(request.image[top : top + inner, left : left + across]))
        made: torch.Tensor = VideoProcessor(vae_scale_factor=8).preprocess(picture, request.height, request.width)
        return made

    def _embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings of prompts (b, tokens, width), each computed once; while training the encoder goes at once."""
        resident = self._text is not None
        for text in texts:
            if text not in self._embedded:
                self._embedded[text] = self.encode_prompt([text])["prompt_embeds"]
        if self.stage == "train" and not resident:
            self._text = None
        return torch.cat([self._embedded[text] for text in texts])

    def _decode(self, latents: torch.Tensor, num_frames: int) -> np.ndarray:
        """Latents (1, F, c, h, w) as frames (f, H, W, 3) uint8: the last so many, for of an even number of latent
        frames the decoder makes three frames too many at the beginning."""
        if self._decoder is None:
            self._decoder = self._vae("encoder")
        videos = 1 / self._scaling_factor * latents.transpose(1, 2)  # (1, c, F, h, w)
        decoded = self._decoder.decode(videos.to(self._vae_dtype)).sample[0].float()  # (3, f, H, W)
        frames = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        found: np.ndarray = frames[:, -num_frames:].permute(1, 2, 3, 0).contiguous().cpu().numpy()
        return found

    # --- checkpoints ---

    def save(self, folder: Path) -> dict[str, Any]:
        if not isinstance(self.config, CogVideoXTrainConfig):
            raise ModelError("only a training run has weights of its own to save")
        config = self.config
        adapter: dict[str, Any] = {}
        if self.method == "lora":
            adapter = {"rank": config.adapter.rank, "alpha": self._alpha(config)}
            adapter["target_modules"] = config.adapter.target_modules
        facts = {
            "family": config.family,
            "method": self.method,
            "base_model": lasting(config.base_model),
            **asdict(self.conventions),
            **adapter,
        }
        if self.method == "lora":
            write_lora(folder, lora.taken(self.transformer), PREFIX, facts)
        else:
            self.transformer.save_pretrained(folder / PREFIX)
        dataset = config.dataset
        return {**facts, "num_frames": dataset.num_frames, "height": dataset.height, "width": dataset.width}

    def load(self, takes: Sequence[TakeAt]) -> None:
        read = [(read_take(Path(path).expanduser()), strength) for path, strength in takes]
        if self.stage == "train":
            self._load_to_train(read)
            return
        lora.remove(self.transformer)
        self._apply_weights([(take, strength) for take, strength in read if take.kind == "full"])
        sample_loras(
            self.transformer, [(take.lora, strength, str(take.path)) for take, strength in read if take.kind == "lora"]
        )
        self._follow(read[0][0] if read else self._first)

    def _load_to_train(self, read: Sequence[tuple[Take, float]]) -> None:
        """Into the parameters that are trained, in place: the optimizer knows them by identity."""
        if self.method == "full":
            for take, _ in read:
                if take.kind == "lora":
                    raise ModelError(f"{take.path} is a LoRA and cannot be trained on with method full")
            self._apply_weights(read)
            return
        if not read:
            fill_trained_lora(self.transformer, None, "")
            return
        take, strength = read[0]
        if len(read) > 1 or strength != 1 or take.kind != "lora":
            raise ModelError("training a LoRA goes on from one LoRA at strength 1")
        fill_trained_lora(self.transformer, as_trained(take.path, take.lora, take.meta), str(take.path))

    def _apply_weights(self, read: Sequence[tuple[Take, float]]) -> None:
        """Whole transformers in place of the base's; one may lack learned positions, which are not used then."""
        current = self.transformer.state_dict()
        for take, _ in read:
            meant = {key: value for key, value in current.items() if key != POSITIONS or key in take.state}
            check_fit(shapes_of(meant), take.state, str(take.path))
        interpolate(current, self._untouched, [(take.state, strength) for take, strength in read])


def _signed(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 as float32 in [-1, 1]; what is in that range already stays."""
    return pixels if pixels.is_floating_point() else pixels.float() / 127.5 - 1


def _kinds(paths: Sequence[str]) -> list[str]:
    """The names of layers within a block, each once: attn1.to_q, ff.net.2, ..."""
    return list(dict.fromkeys(path.split(".", 2)[2] for path in paths))
