"""AnimateDiff in memory: a Stable Diffusion 1.5 UNet with motion modules, and all its conventions.

Shapes: b clips, f frames, h x w pixels; latents (b, 4, f, h/8, w/8); prompt embeddings (b, tokens, width).
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from trainers import lora
from trainers.families.animatediff.base_model import BaseModel
from trainers.families.animatediff.checkpoint import (
    MotionFacts,
    Take,
    build_adapter,
    check_fit,
    find_adapter,
    fitting_heads,
    load_strictly,
    motion_part,
    read_motion,
    read_take,
)
from trainers.families.animatediff.config import AnimateDiffSampleConfig, AnimateDiffTrainConfig
from trainers.families.animatediff.norms import set_norms
from trainers.families.base import Example, ModelError, SampleRequest, Stage, VideoModel
from trainers.families.base import Take as TakeAt
from trainers.noise import Draws

log = logging.getLogger(__name__)

TRAIN_TIMESTEPS = 1000
BETAS = {"beta_start": 0.00085, "beta_end": 0.012}  # Stable Diffusion's and AnimateDiff's
FRESH_SEED = 0  # new motion modules are the same in every run
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def device() -> torch.device:
    """The CUDA device that this process uses, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


@dataclass(frozen=True)
class Conventions:
    """How a take was trained, and must be sampled."""

    norm_semantics: Literal["original", "diffusers"] = "original"
    beta_schedule: Literal["linear", "scaled_linear", "base"] = "linear"
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"


@dataclass(frozen=True)
class Motion:
    """Which motion modules the denoiser is built with: those of `source`, or new ones of this form."""

    source: str | None
    positions: int = 32
    mid_block: bool = True
    heads: int | None = None
    version: Literal["v1", "v2", "v3"] | None = None


class AnimateDiff(VideoModel):
    """`config` is an AnimateDiffTrainConfig (stage "train") or an AnimateDiffSampleConfig (stage "sample")."""

    def __init__(self, config: AnimateDiffTrainConfig | AnimateDiffSampleConfig, stage: Stage) -> None:
        self.config = config
        self.stage = stage
        self.device = device()
        self.dtype = PRECISIONS[config.mixed_precision]
        self.method = config.method if isinstance(config, AnimateDiffTrainConfig) else None
        self._base = BaseModel(config.base_model)
        self._encoder: AutoencoderKL | None = None
        self._decoder: AutoencoderKL | None = None
        self._text: tuple[Any, Any] | None = None  # tokenizer and text encoder
        self._embedded: dict[str, torch.Tensor] = {}
        self._untouched: dict[str, torch.Tensor] = {}  # base weights that a take covers, on the CPU
        self._first = _described(config) if isinstance(config, AnimateDiffSampleConfig) else None
        self._build(self._motion_for(self._first))
        self._follow(self._first)
        if isinstance(config, AnimateDiffTrainConfig):
            self._check_frames(config.dataset.num_frames, "dataset.num_frames")

    # --- building ---

    def _motion_for(self, take: Take | None) -> Motion:
        """The motion modules to build with: the config's, else those that the take was trained on, else new ones."""
        if self.config.motion_adapter is not None:
            return Motion(self.config.motion_adapter)
        if isinstance(self.config, AnimateDiffTrainConfig):
            return Motion(None, self.config.motion_max_seq_length)
        if take is None:
            return Motion(None)
        recorded = take.meta.get("motion_adapter")
        if take.facts is None:
            if recorded is None:  # on new motion modules it would have no effect at all
                raise ModelError(
                    f"{take.path} is a LoRA that does not say which motion adapter it was made for; set motion_adapter"
                )
            return Motion(str(recorded))
        if recorded is not None:
            with contextlib.suppress(ModelError):
                find_adapter(str(recorded))
                return Motion(str(recorded))
            log.warning("%s was trained on %s, which is gone; its base is sampled without motion", take.path, recorded)
        return Motion(None, take.facts.positions, take.facts.mid_block, take.facts.heads, take.facts.version)

    def _build(self, motion: Motion) -> None:
        """Read the image model, put the motion modules into it, make the meant weights trainable, move it."""
        self._motion = motion
        with torch.random.fork_rng(devices=[]):
            unet2d = self._base.unet(torch.float32 if self.method == "full" else self.dtype)
            adapter, self._facts = self._motion_modules(motion, unet2d)
            self.unet = _joined(unet2d, adapter, self._base.source, motion.source)
            del unet2d, adapter
            self.unet.requires_grad_(False)
            if isinstance(self.config, AnimateDiffTrainConfig):
                self._make_trainable(self.config)
        self._untouched.clear()
        self._set_precision()
        self.unet.to(self.device)
        self.unet.train(self.stage == "train")
        if isinstance(self.config, AnimateDiffTrainConfig):
            if self.config.memory.gradient_checkpointing == "full":
                checkpoint_blocks(self.unet, keep_random_state=self.config.adapter.dropout > 0)
            attention = self.config.memory.attention
        else:
            attention = self.config.attention
        if attention == "xformers":
            use_xformers(self.unet, self.device, self.dtype)
        self.denoiser = {"denoiser": self.unet}

    def _motion_modules(self, motion: Motion, unet2d: UNet2DConditionModel) -> tuple[MotionAdapter, MotionFacts]:
        if motion.source is None:
            return new_motion_modules(unet2d, motion)
        state, facts = read_motion(find_adapter(motion.source))
        dtype = torch.float32 if self.method in ("motion_module", "full") else self.dtype
        state = {key: value.to(torch.float32 if key.endswith(".pe") else dtype) for key, value in state.items()}
        return build_adapter(state, facts, unet2d.config.norm_num_groups, motion.source), facts

    def _make_trainable(self, config: AnimateDiffTrainConfig) -> None:
        if config.method == "full":
            self.unet.requires_grad_(True)
        elif config.method == "motion_module":
            for parameter in chosen_parameters(self.unet, config.trainable_modules):
                parameter.requires_grad_(True)
        else:
            targets = lora_targets(self.unet, config.adapter.target_modules)
            alpha = float(config.adapter.rank if config.adapter.alpha is None else config.adapter.alpha)
            torch.manual_seed(config.seed)  # inside fork_rng: the run's own generators are not touched
            lora.inject(
                self.unet,
                dict.fromkeys(targets, config.adapter.rank),
                dict.fromkeys(targets, alpha),
                config.adapter.dropout,
            )

    def _set_precision(self) -> None:
        """Trained weights stay float32, and so do all motion weights that are written out beside trained ones."""
        for name, parameter in self.unet.named_parameters():
            kept = parameter.requires_grad or (self.method == "motion_module" and "motion_modules." in name)
            parameter.data = parameter.data.to(torch.float32 if kept else self.dtype)

    def _check_frames(self, frames: int, where: str) -> None:
        if frames > self._facts.positions:
            adapter = self._motion.source
            way_out = (
                f"lower it to {self._facts.positions} or raise motion_max_seq_length"
                if adapter is None and self.stage == "train"
                else f"lower it to {self._facts.positions} or choose a motion_adapter with more positions"
            )
            raise ModelError(
                f"{where} is {frames}, but the motion module{'' if adapter is None else ' ' + adapter} has "
                f"{self._facts.positions} positions; {way_out}"
            )

    # --- conventions ---

    def _follow(self, take: Take | None) -> None:
        """Norms and noise schedule: the config's, else as the take was trained, else AnimateDiff's own."""
        recorded = take.meta if take is not None else {}
        chosen = {}
        for name, default in asdict(Conventions()).items():
            value = getattr(self.config, name, None)
            chosen[name] = value if value is not None else recorded.get(name, default)
        self.conventions = Conventions(**chosen)
        facts = take.facts if take is not None and take.facts is not None else self._facts
        set_norms(self.unet, self.conventions.norm_semantics, joint=facts.version == "v1")
        betas = (
            {
                key: value
                for key, value in self._base.scheduler_config().items()
                if key in ("beta_start", "beta_end", "beta_schedule", "trained_betas")
            }
            if self.conventions.beta_schedule == "base"
            else {**BETAS, "beta_schedule": self.conventions.beta_schedule}
        )
        schedule = {
            **betas,
            "num_train_timesteps": TRAIN_TIMESTEPS,
            "prediction_type": self.conventions.prediction_type,
            "clip_sample": False,
        }
        self._noise = DDPMScheduler(**schedule)
        self._ddim = partial(DDIMScheduler, **schedule, steps_offset=1, timestep_spacing="linspace")

    # --- encoders ---

    def fingerprint(self, encoder: Literal["video", "prompt"]) -> str:
        if encoder == "video":
            return f"{self._base.identity(('vae',))}-{str(self._vae_dtype).removeprefix('torch.')}"
        return self._base.identity(("text_encoder", "tokenizer"))

    @property
    def _vae_dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else self.dtype

    def encode_video(self, pixels: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
        if self._encoder is None:
            self._encoder = self._base.vae(self._vae_dtype)
            self._encoder.decoder = self._encoder.post_quant_conv = None
            self._encoder.requires_grad_(False).to(self.device)
        means, logvars = [], []
        with torch.no_grad():
            for images in torch.split(pixels.flatten(0, 1), self._encode_frames):  # (n, 3, h, w) uint8
                images = images.to(self.device).to(self._vae_dtype) / 127.5 - 1
                posterior = self._encoder.encode(images).latent_dist
                means.append(posterior.mean.float().cpu())
                logvars.append(posterior.logvar.float().cpu())
        clips = pixels.shape[:2]
        mean, logvar = torch.cat(means), torch.cat(logvars)  # (b*f, 4, h/8, w/8)
        return {
            "latents_mean": mean.reshape(*clips, *mean.shape[1:]),
            "latents_logvar": logvar.reshape(*clips, *logvar.shape[1:]),
        }

    def encode_prompt(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        if self._text is None:
            text_encoder = self._base.text_encoder().requires_grad_(False).to(self.device)
            self._text = (self._base.tokenizer(), text_encoder)
        tokenizer, text_encoder = self._text
        length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
        tokens = tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            embeds = text_encoder(tokens.to(self.device))[0]
        return {"prompt_embeds": embeds.float().cpu()}  # (b, tokens, width)

    def release(self, stage: Literal["encoders", "decoder"]) -> None:
        if stage == "encoders":
            self._encoder = self._text = None
        else:
            self._decoder = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _encode_frames(self) -> int:
        config = self.config
        return config.memory.encode_frames if isinstance(config, AnimateDiffTrainConfig) else config.encode_frames

    @property
    def _scaling_factor(self) -> float:
        return float(self._base.vae_config().get("scaling_factor", 0.18215))

    # --- the objective ---

    def example(self, batch: Mapping[str, torch.Tensor], draws: Draws) -> Example:
        mean, logvar = batch["latents_mean"], batch["latents_logvar"]  # (b, f, 4, h/8, w/8)
        clips, where = mean.shape[0], mean.device

        posterior = mean + torch.exp(0.5 * logvar) * draws.normal("posterior", mean.shape, where)
        latents = posterior.transpose(1, 2) * self._scaling_factor  # (b, 4, f, h/8, w/8)

        noise = draws.normal("noise", latents.shape, where)
        timesteps = draws.integers("timesteps", 0, TRAIN_TIMESTEPS, (clips,), where)  # one for a whole clip
        noisy = self._noise.add_noise(latents, noise, timesteps)
        if self.conventions.prediction_type == "epsilon":
            target = noise
        else:
            target = self._noise.get_velocity(latents, noise, timesteps)

        prompt_embeds = batch["prompt_embeds"]  # (b, tokens, width)
        if self._caption_dropout > 0:
            dropped = draws.uniform("caption_dropout", (clips,), where) < self._caption_dropout
            prompt_embeds = torch.where(dropped[:, None, None], batch["null_prompt_embeds"], prompt_embeds)
        return Example(noisy, timesteps, target, conditions={"prompt_embeds": prompt_embeds})

    @property
    def _caption_dropout(self) -> float:
        return self.config.dataset.caption_dropout if isinstance(self.config, AnimateDiffTrainConfig) else 0.0

    def predict(self, example: Example) -> torch.Tensor:
        network = self.denoiser[example.denoiser]
        if isinstance(network, DistributedDataParallel) and not torch.is_grad_enabled():
            network = network.module  # one process may sample alone; the wrapper would wait for the others
        frames = example.model_input.shape[2]
        with self._precision():
            prediction = network(
                example.model_input,
                example.timesteps,
                # the UNet takes frames as images, clip after clip, each with its clip's embedding
                encoder_hidden_states=example.conditions["prompt_embeds"].repeat_interleave(frames, dim=0),
                return_dict=False,
            )[0]
        return prediction.float()  # type: ignore[no-any-return]

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    # --- sampling ---

    def sample(self, request: SampleRequest, draws: Draws) -> np.ndarray:
        self._check_frames(request.num_frames, "num_frames")
        scheduler = self._ddim()
        scheduler.set_timesteps(request.num_inference_steps)
        guided = request.guidance_scale > 1
        prompts = [request.negative_prompt, request.prompt] if guided else [request.prompt]
        shape = (1, 4, request.num_frames, request.height // 8, request.width // 8)
        with torch.no_grad(), self._evaluating():
            prompt_embeds = self._embed(prompts).to(self.device)
            latents = draws.normal("latents", shape, self.device) * scheduler.init_noise_sigma
            for timestep in scheduler.timesteps.tolist():
                model_input = scheduler.scale_model_input(latents, timestep).expand(len(prompts), -1, -1, -1, -1)
                timesteps = torch.full((len(prompts),), timestep, device=self.device)
                prediction = self.predict(
                    Example(model_input, timesteps, None, conditions={"prompt_embeds": prompt_embeds})
                )
                if guided:
                    unconditional, conditional = prediction.chunk(2)
                    prediction = unconditional + request.guidance_scale * (conditional - unconditional)
                latents = scheduler.step(prediction, timestep, latents).prev_sample
            return self._decode(latents)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = {module: module.training for module in self.denoiser.values()}
        try:
            for module in training:
                module.eval()
            yield
        finally:
            for module, was_training in training.items():
                module.train(was_training)

    def _embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings of prompts (b, tokens, width), each computed once; while training the encoder goes at once."""
        resident = self._text is not None
        for text in texts:
            if text not in self._embedded:
                self._embedded[text] = self.encode_prompt([text])["prompt_embeds"]
        if self.stage == "train" and not resident:
            self._text = None
        return torch.cat([self._embedded[text] for text in texts])

    def _decode(self, latents: torch.Tensor) -> np.ndarray:
        """Latents (1, 4, f, h/8, w/8) as frames (f, h, w, 3) uint8."""
        if self._decoder is None:
            self._decoder = self._base.vae(self._vae_dtype)
            self._decoder.encoder = self._decoder.quant_conv = None
            self._decoder.requires_grad_(False).to(self.device)
        images = latents[0].transpose(0, 1) / self._scaling_factor  # (f, 4, h/8, w/8)
        frames = []
        for part in torch.split(images.to(self._vae_dtype), self._encode_frames):
            decoded = self._decoder.decode(part).sample.float()
            frames.append(((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu())
        return torch.cat(frames).permute(0, 2, 3, 1).contiguous().numpy()

    # --- checkpoints ---

    def save(self, folder: Path) -> dict[str, Any]:
        if not isinstance(self.config, AnimateDiffTrainConfig):
            raise ModelError("only a training run has weights of its own to save")
        if self.method == "lora":
            lora.write(folder / lora.FILE_NAME, self.unet, "unet")
        elif self.method == "motion_module":
            state = {key: value.detach().cpu().float() for key, value in motion_part(self.unet.state_dict()).items()}
            build_adapter(state, self._facts, self.unet.config.norm_num_groups, str(folder)).save_pretrained(folder)
        else:
            self.unet.save_pretrained(folder, max_shard_size="100GB")  # one file
        rank = self.config.adapter.rank
        alpha = float(rank if self.config.adapter.alpha is None else self.config.adapter.alpha)
        adapter = {"rank": rank, "alpha": alpha, "target_modules": self.config.adapter.target_modules}
        return {
            "family": "animatediff",
            "method": self.method,
            "base_model": _lasting(self.config.base_model),
            "motion_adapter": None if self.config.motion_adapter is None else _lasting(self.config.motion_adapter),
            "motion": self._facts.as_meta(),
            **asdict(self.conventions),
            "num_frames": self.config.dataset.num_frames,
            "height": self.config.dataset.height,
            "width": self.config.dataset.width,
            **(adapter if self.method == "lora" else {}),
        }

    def load(self, takes: Sequence[TakeAt]) -> None:
        read = [(read_take(Path(path)), strength) for path, strength in takes]
        first = read[0][0] if read else self._first
        if self.stage == "train":
            self._load_to_train(read)
            return
        motion = self._motion_for(first)
        if motion != self._motion:
            self._build(motion)
        lora.remove(self.unet)
        self._apply_weights([(take, strength) for take, strength in read if take.kind != "lora"])
        adapters = [(take, strength) for take, strength in read if take.kind == "lora"]
        for number, (take, _) in enumerate(adapters):
            self._add_lora(take, f"take{number}")
        lora.activate(self.unet, {f"take{number}": strength for number, (_, strength) in enumerate(adapters)})
        self._follow(first)

    def _load_to_train(self, read: Sequence[tuple[Take, float]]) -> None:
        """Into the parameters that are trained, in place: the optimizer knows them by identity."""
        if self.method != "lora":
            for take, _ in read:
                if take.kind == "lora":
                    raise ModelError(f"{take.path} is a LoRA and cannot be trained on with method {self.method}")
            self._apply_weights(read)
            return
        own = dict(lora.layers(self.unet))
        if not read:
            with torch.no_grad():
                for key, parameter in lora.parameters(self.unet):
                    if ".lora_B." in key:
                        parameter.zero_()  # without effect, as at the start
            return
        take, strength = read[0]
        if len(read) > 1 or strength != 1 or take.kind != "lora":
            raise ModelError("training a LoRA goes on from one LoRA at strength 1")
        shapes = {f"{path}.lora_A": (layer.r["default"], layer.in_features) for path, layer in own.items()}
        given = {f"{path}.lora_A": layer.down for path, layer in take.lora.items()}
        check_fit(shapes, given, str(take.path))
        lora.fill(self.unet, take.lora)

    def _add_lora(self, take: Take, name: str) -> None:
        known = dict(self.unet.named_modules())
        unknown = [path for path in take.lora if path not in known]
        if unknown:
            raise ModelError(
                f"{take.path} is for layers that this model lacks: {', '.join(sorted(unknown)[:3])}"
                f"{'' if len(unknown) <= 3 else f' and {len(unknown) - 3} more'}"
            )
        for path, layer in take.lora.items():
            module = known[path]
            weight = lora.beneath(module).weight
            if tuple(weight.shape) != (layer.up.shape[0], layer.down.shape[1]):
                raise ModelError(
                    f"{take.path} does not fit this model: {path} is {tuple(weight.shape)}, but its adapter is for "
                    f"{(int(layer.up.shape[0]), int(layer.down.shape[1]))}"
                )
        with torch.random.fork_rng(devices=[]):
            lora.inject(
                self.unet,
                {path: layer.rank for path, layer in take.lora.items()},
                {path: layer.alpha for path, layer in take.lora.items()},
                name=name,
            )
        lora.fill(self.unet, take.lora, name)

    def _apply_weights(self, read: Sequence[tuple[Take, float]]) -> None:
        """weights = base + the sum of strength * (take - base); a take at strength 1 alone is copied exactly."""
        current = self.unet.state_dict()
        with torch.no_grad():
            for key, value in self._untouched.items():
                current[key].copy_(value)
            for take, _ in read:
                meant = current if take.kind == "full" else motion_part(current)
                check_fit({key: value.shape for key, value in meant.items()}, take.state, str(take.path))
                for key in take.state:
                    if key not in self._untouched:
                        self._untouched[key] = current[key].detach().cpu().clone()
            if len(read) == 1 and read[0][1] == 1:
                for key, value in read[0][0].state.items():
                    current[key].copy_(value)
                return
            for key in {key for take, _ in read for key in take.state}:
                base = self._untouched[key].float()
                moved = base.clone()
                for take, strength in read:
                    if key in take.state:
                        moved += strength * (take.state[key].float() - base)
                current[key].copy_(moved)


# --- parts of the denoiser -------------------------------------------------------------------------------------------


def new_motion_modules(unet2d: UNet2DConditionModel, motion: Motion) -> tuple[MotionAdapter, MotionFacts]:
    """Motion modules that begin without effect: their last layer is zero, as the original's is (diffusers' is not)."""
    channels = unet2d.config.block_out_channels
    heads = motion.heads or fitting_heads(channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FRESH_SEED)
        adapter = MotionAdapter(
            block_out_channels=channels,
            motion_layers_per_block=unet2d.config.layers_per_block,
            motion_num_attention_heads=heads,
            motion_norm_num_groups=unet2d.config.norm_num_groups,
            motion_max_seq_length=motion.positions,
            use_motion_mid_block=motion.mid_block,
        )
    for module in adapter.modules():
        if isinstance(module, AnimateDiffTransformer3D):
            torch.nn.init.zeros_(module.proj_out.weight)
            torch.nn.init.zeros_(module.proj_out.bias)
    version = motion.version or ("v2" if motion.mid_block else "v3")
    return adapter, MotionFacts(motion.positions, motion.mid_block, version, heads, unet2d.config.norm_num_groups)


def _joined(unet2d: UNet2DConditionModel, adapter: MotionAdapter, base: str, source: str | None) -> UNetMotionModel:
    """One denoiser of both; it takes over their tensors, so nothing is copied or rounded."""
    name = source or "the new motion modules"
    try:
        with torch.device("meta"):
            unet = UNetMotionModel.from_unet2d(unet2d, adapter, load_weights=False)
    except ValueError as error:
        raise ModelError(f"{name} does not fit the base model {base}: {error}") from error
    load_strictly(unet, {**unet2d.state_dict(), **adapter.state_dict()}, f"{base} with {name}")
    return unet


def motion_layers(unet: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every module inside the motion modules, by path."""
    return {name: module for name, module in unet.named_modules() if ".motion_modules." in name}


def lora_targets(unet: torch.nn.Module, endings: Sequence[str]) -> list[str]:
    """Paths of the linear layers inside the motion modules that end so. ModelError lists what is there."""
    linear = [name for name, module in motion_layers(unet).items() if isinstance(module, torch.nn.Linear)]
    for ending in endings:
        if not any(_ends(name, ending) for name in linear):
            raise ModelError(
                f"adapter.target_modules: {ending!r} is no linear layer of the motion modules; there are "
                f"{', '.join(_kinds(linear))}"
            )
    return [name for name in linear if any(_ends(name, ending) for ending in endings)]


def chosen_parameters(unet: torch.nn.Module, endings: Sequence[str]) -> list[torch.nn.Parameter]:
    """All motion parameters, or those under the motion modules' parts that end so. ModelError lists what is there."""
    layers = motion_layers(unet)
    for ending in endings:
        if not any(_ends(name, ending) for name in layers):
            raise ModelError(
                f"trainable_modules: {ending!r} is no part of the motion modules; there are {', '.join(_kinds(layers))}"
            )
    chosen: dict[int, torch.nn.Parameter] = {}
    for name, module in layers.items():
        if not endings or any(_ends(name, ending) for ending in endings):
            chosen.update({id(parameter): parameter for parameter in module.parameters()})
    return list(chosen.values())


def _ends(path: str, ending: str) -> bool:
    return path == ending or path.endswith("." + ending)


def _kinds(paths: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """The names of parts within a motion module, each once: attn1.to_q, ff.net.0.proj, proj_in, ..."""
    found: dict[str, None] = {}
    for path in paths:
        own = path.split(".motion_modules.", 1)[1].partition(".")[2]
        own = own.split("transformer_blocks.", 1)[-1].partition(".")[2] if "transformer_blocks." in own else own
        if own and own != "transformer_blocks":
            found[own] = None
    return list(found)


def checkpoint_blocks(unet: UNetMotionModel, keep_random_state: bool) -> None:
    """Compute resnets, spatial transformers and motion modules again in the backward pass instead of keeping their
    activations. diffusers' own switch reaches the resnets only, at more than twice the memory."""
    for part in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for module in part.modules():
            if isinstance(module, (ResnetBlock2D, Transformer2DModel, AnimateDiffTransformer3D)):
                module.forward = partial(_checkpointed, module.forward, keep_random_state)


def _checkpointed(forward: Any, keep_random_state: bool, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=keep_random_state, **kwargs)


def use_xformers(unet: torch.nn.Module, where: torch.device, dtype: torch.dtype) -> None:
    """xformers' attention in the spatial transformers, if a tiny call works on the device; SDPA otherwise.

    Motion modules keep SDPA: their batch is every pixel of a clip, beyond what xformers' kernels can be launched with.
    """
    try:
        from xformers.ops import memory_efficient_attention

        tiny = torch.zeros(1, 16, 2, 32, device=where, dtype=dtype, requires_grad=True)
        memory_efficient_attention(tiny, tiny, tiny).sum().backward()
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError, NotImplementedError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning("xformers does not work on %s (%s); PyTorch's own attention is used", where, reason)
        return
    for module in unet.modules():
        if isinstance(module, Transformer2DModel):
            module.set_use_memory_efficient_attention_xformers(True)


def _described(config: AnimateDiffSampleConfig) -> Take | None:
    """What the first checkpoint of a comparison says of itself: the base is sampled as it was trained."""
    if not config.checkpoints:
        return None
    return replace(read_take(Path(config.checkpoints[0]).expanduser()), state={}, lora={})  # without its weights


def _lasting(source: str) -> str:
    """A path that means the same from every folder; a Hub id as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source
