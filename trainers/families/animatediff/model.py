"""AnimateDiff in memory: a Stable Diffusion 1.5 UNet with motion modules, and all its conventions.

Shapes: b clips, f frames, h x w pixels; latents (b, 4, f, h/8, w/8); prompt embeddings (b, tokens, width).
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, MotionAdapter, UNet2DConditionModel

from trainers import lora
from trainers.families.animatediff.base_model import BaseModel
from trainers.families.animatediff.checkpoint import (
    MotionFacts,
    Take,
    build_adapter,
    check_fit,
    check_mid_block,
    find_adapter,
    motion_part,
    read_motion,
    read_take,
)
from trainers.families.animatediff.config import AnimateDiffSampleConfig, AnimateDiffTrainConfig
from trainers.families.animatediff.denoiser import (
    Motion,
    blocks,
    chosen_parameters,
    joined,
    lora_targets,
    new_motion_modules,
    skip_motion,
    stretched,
    use_xformers,
)
from trainers.families.animatediff.norms import set_norms
from trainers.families.animatediff.windows import windows
from trainers.families.base import Example, ModelError, SampleRequest, Stage, VideoModel
from trainers.families.base import Take as TakeAt
from trainers.families.weights import (
    PRECISIONS,
    State,
    callable_alone,
    computing,
    device,
    evaluating,
    fill_trained_lora,
    interpolate,
    lasting,
    sample_loras,
    shapes_of,
)
from trainers.memory import checkpoint_blocks
from trainers.noise import Draws

log = logging.getLogger(__name__)

TRAIN_TIMESTEPS = 1000
BETAS = {"beta_start": 0.00085, "beta_end": 0.012}  # Stable Diffusion's and AnimateDiff's


@dataclass(frozen=True)
class Conventions:
    """How a take was trained, and must be sampled."""

    norm_semantics: Literal["original", "diffusers"] = "original"
    beta_schedule: Literal["linear", "scaled_linear", "base"] = "linear"
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"


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
        self._untouched: State = {}  # base weights that a take covers, on the CPU
        self._first = _described(config) if isinstance(config, AnimateDiffSampleConfig) else None
        self._build(self._motion_for(self._first))
        self._follow(self._first)
        if isinstance(config, AnimateDiffTrainConfig):
            self._check_frames(config.dataset.num_frames, "dataset.num_frames")
            if config.validation.prompts and config.validation.every_steps:
                self._check_drawn(config.drawn_frames, "validation.num_frames")

    # --- building ---

    def _motion_for(self, take: Take | None) -> Motion:
        """The motion modules to build with: the config's, else those that the take was trained on, else new ones."""
        if isinstance(self.config, AnimateDiffTrainConfig):
            stretch = self.config.motion_module_pe_multiplier
            if self.config.motion_adapter is not None:
                return Motion(self.config.motion_adapter, stretch=stretch)
            positions, mid_block = self.config.motion_max_seq_length, self.config.motion_mid_block
            return Motion(None, positions, mid_block, stretch=stretch)
        stretch = int(take.meta.get("motion_module_pe_multiplier", 1)) if take is not None else 1
        if self.config.motion_adapter is not None:
            return Motion(self.config.motion_adapter, stretch=stretch)
        if take is None:
            return Motion(None)
        recorded = take.meta.get("motion_adapter")
        if take.facts is None:
            if recorded is None:  # on new motion modules it would have no effect at all
                raise ModelError(
                    f"{take.path} is a LoRA that does not say which motion adapter it was made for; set motion_adapter"
                )
            return Motion(str(recorded), stretch=stretch)
        if recorded is not None:
            with contextlib.suppress(ModelError):
                find_adapter(str(recorded))
                return Motion(str(recorded), stretch=stretch)
            log.warning("%s was trained on %s, which is gone; its base is sampled without motion", take.path, recorded)
        return Motion(None, take.facts.positions, take.facts.mid_block, take.facts.heads, take.facts.version)

    def _build(self, motion: Motion) -> None:
        """Read the image model, put the motion modules into it, make the meant weights trainable, move it."""
        self._motion = motion
        with torch.random.fork_rng(devices=[]):
            unet2d = self._base.unet(torch.float32 if self.method == "full" else self.dtype)
            adapter, self._facts = self._motion_modules(motion, unet2d)
            self.unet = joined(unet2d, adapter, self._base.source, motion.source)
            del unet2d, adapter
            self.unet.requires_grad_(False)
            if isinstance(self.config, AnimateDiffTrainConfig):
                self._make_trainable(self.config)
        self._untouched.clear()
        self._set_precision()
        self.unet.to(self.device)
        self.unet.train(self.stage == "train")
        if isinstance(self.config, AnimateDiffTrainConfig):
            memory, dropout = self.config.memory, self.config.adapter.dropout
            checkpoint_blocks(blocks(self.unet), memory.gradient_checkpointing, keep_random_state=dropout > 0)
            attention = memory.attention
        else:
            attention = self.config.attention
        if attention == "xformers":
            use_xformers(self.unet, self.device, self.dtype)
        self.denoiser = {"denoiser": self.unet}

    def _motion_modules(self, motion: Motion, unet2d: UNet2DConditionModel) -> tuple[MotionAdapter, MotionFacts]:
        if motion.source is None:
            adapter, facts = new_motion_modules(unet2d, motion)
            if motion.stretch == 1:
                return adapter, facts
            state, name = adapter.state_dict(), "the new motion modules"
        else:
            state, facts = read_motion(find_adapter(motion.source))
            name = motion.source
        state = stretched(state, motion.stretch)
        facts = replace(facts, positions=facts.positions * motion.stretch)
        dtype = torch.float32 if self.method in ("motion_module", "full") else self.dtype
        state = {key: value.to(torch.float32 if key.endswith(".pe") else dtype) for key, value in state.items()}
        return build_adapter(state, facts, unet2d.config.norm_num_groups, name), facts

    def _make_trainable(self, config: AnimateDiffTrainConfig) -> None:
        if config.method == "full":
            self.unet.requires_grad_(True)
            if config.dataset.num_frames == 1:  # a single frame says nothing of motion: the image model alone
                for name, parameter in self.unet.named_parameters():
                    parameter.requires_grad_(".motion_modules." not in name)
                if config.motion_adapter is None:
                    skip_motion(self.unet)
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
        """ModelError when the motion module has too few positions for so many frames at once."""
        positions = self._facts.positions
        if frames <= positions:
            return
        ways = [f"lower it to {positions}"]
        if isinstance(self.config, AnimateDiffTrainConfig):
            times = -(-frames * self._motion.stretch // positions)
            ways.append(f"set motion_module_pe_multiplier to {times}")
            if self._motion.source is None:
                ways.append("raise motion_max_seq_length")
        else:
            ways.append("choose a motion_adapter with more positions")
        if where != "dataset.num_frames":
            ways.append(f"set context_length to {positions}")
        adapter = "" if self._motion.source is None else f" {self._motion.source}"
        raise ModelError(
            f"{where} is {frames}, but the motion module{adapter} has {positions} positions; {', '.join(ways[:-1])} or "
            f"{ways[-1]}"
        )

    def _check_drawn(self, frames: int, where: str) -> None:
        """The same for a clip to draw, of which the motion module sees one window at a time."""
        if self.config.context_length is not None and frames > self.config.context_length:
            frames, where = self.config.context_length, "context_length"
        self._check_frames(frames, where)

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
        network = callable_alone(self.denoiser[example.denoiser])
        frames = example.model_input.shape[2]
        with computing(self.device, self.dtype):
            prediction = network(
                example.model_input,
                example.timesteps,
                # the UNet takes frames as images, clip after clip, each with its clip's embedding
                encoder_hidden_states=example.conditions["prompt_embeds"].repeat_interleave(frames, dim=0),
                return_dict=False,
            )[0]
        return prediction.float()  # type: ignore[no-any-return]

    # --- sampling ---

    @property
    def starts_from_clip(self) -> bool:  # type: ignore[override]
        return isinstance(self.config, AnimateDiffTrainConfig) and self.config.num_inversion_steps is not None

    def sample(self, request: SampleRequest, draws: Draws) -> np.ndarray:
        self._check_drawn(request.num_frames, "num_frames")
        scheduler = self._ddim()
        scheduler.set_timesteps(request.num_inference_steps)
        guided = request.guidance_scale > 1
        prompts = [request.negative_prompt, request.prompt] if guided else [request.prompt]
        shape = (1, 4, request.num_frames, request.height // 8, request.width // 8)
        with torch.no_grad(), evaluating(self.denoiser.values()):
            if request.start is None:
                latents = draws.normal("latents", shape, self.device) * scheduler.init_noise_sigma
            else:
                latents = self._inverted(request.start, shape)
            prompt_embeds = self._embed(prompts).to(self.device)
            for number, timestep in enumerate(scheduler.timesteps.tolist()):
                prediction = self._predict_clip(latents, timestep, prompt_embeds, number)
                if guided:
                    unconditional, conditional = prediction.chunk(2)
                    prediction = unconditional + request.guidance_scale * (conditional - unconditional)
                latents = scheduler.step(prediction, timestep, latents).prev_sample
            return self._decode(latents)

    def _predict_clip(
        self, latents: torch.Tensor, timestep: int, prompt_embeds: torch.Tensor, number: int
    ) -> torch.Tensor:
        """The prediction for one clip (1, 4, f, h/8, w/8) under each prompt (b, ...): the mean over the windows of
        denoising step `number`, where the clip is drawn in windows."""
        prompts, frames = prompt_embeds.shape[0], latents.shape[2]
        timesteps = torch.full((prompts,), timestep, device=self.device)
        seen = list(self._windows(number, frames))
        if len(seen) == 1:
            model_input = latents.expand(prompts, -1, -1, -1, -1)
            return self.predict(Example(model_input, timesteps, None, conditions={"prompt_embeds": prompt_embeds}))
        total = torch.zeros((prompts, *latents.shape[1:]), device=self.device)
        visits = torch.zeros(frames, device=self.device)
        for window in seen:
            model_input = latents[:, :, window].expand(prompts, -1, -1, -1, -1)
            example = Example(model_input, timesteps, None, conditions={"prompt_embeds": prompt_embeds})
            total[:, :, window] += self.predict(example)  # a frame that stands twice in a window counts once
            visits[window] += 1
        return total / visits[:, None, None]

    def _windows(self, number: int, frames: int) -> list[list[int]]:
        config = self.config
        if config.context_length is None:
            return [list(range(frames))]
        return windows(number, frames, config.context_length, config.context_stride, config.context_overlap)

    def _inverted(self, start: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        """The noise from which DDIM, run forward, draws about this clip: each of its steps taken backwards, without
        prompt and guidance (Song et al. 2021, section 4.3)."""
        assert isinstance(self.config, AnimateDiffTrainConfig) and self.config.num_inversion_steps is not None
        latents = start["latents_mean"].transpose(0, 1)[None].to(self.device) * self._scaling_factor
        if latents.shape != shape:
            raise ModelError(
                f"a training clip of {latents.shape[2]} frames at {latents.shape[3] * 8} x {latents.shape[4] * 8} "
                f"cannot begin a sample of {shape[2]} frames at {shape[3] * 8} x {shape[4] * 8}; make them equal or "
                "leave num_inversion_steps empty"
            )
        prompt_embeds = self._embed([""]).to(self.device)
        scheduler = self._ddim()
        scheduler.set_timesteps(self.config.num_inversion_steps)
        stride = TRAIN_TIMESTEPS // self.config.num_inversion_steps
        for number, timestep in enumerate(reversed(scheduler.timesteps.tolist())):
            before = timestep - stride  # where the scheduler's own step from `timestep` arrives
            signal = scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod
            prediction = self._predict_clip(latents, timestep, prompt_embeds, number)
            if self.conventions.prediction_type == "epsilon":
                noise = prediction
                clean = (latents - (1 - signal).sqrt() * noise) / signal.sqrt()
            else:
                noise = signal.sqrt() * prediction + (1 - signal).sqrt() * latents
                clean = signal.sqrt() * latents - (1 - signal).sqrt() * prediction
            signal = scheduler.alphas_cumprod[timestep]
            latents = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        return latents

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
            "base_model": lasting(self.config.base_model),
            "motion_adapter": None if self.config.motion_adapter is None else lasting(self.config.motion_adapter),
            "motion_module_pe_multiplier": self._motion.stretch,
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
        adapters = [(take.lora, strength, str(take.path)) for take, strength in read if take.kind == "lora"]
        for adapter, _, source in adapters:
            self._check_layers(adapter, source)
        sample_loras(self.unet, adapters)
        self._follow(first)

    def _load_to_train(self, read: Sequence[tuple[Take, float]]) -> None:
        """Into the parameters that are trained, in place: the optimizer knows them by identity."""
        if self.method != "lora":
            for take, _ in read:
                if take.kind == "lora":
                    raise ModelError(f"{take.path} is a LoRA and cannot be trained on with method {self.method}")
            self._apply_weights(read)
            return
        if not read:
            fill_trained_lora(self.unet, None, "")
            return
        take, strength = read[0]
        if len(read) > 1 or strength != 1 or take.kind != "lora":
            raise ModelError("training a LoRA goes on from one LoRA at strength 1")
        self._check_layers(take.lora, str(take.path))
        fill_trained_lora(self.unet, take.lora, str(take.path))

    def _check_layers(self, adapter: Mapping[str, lora.Lora], source: str) -> None:
        """ModelError when a LoRA is for motion modules with a mid block, and these have none."""
        known = dict(self.unet.named_modules())
        check_mid_block([path for path in adapter if path not in known], source)

    def _apply_weights(self, read: Sequence[tuple[Take, float]]) -> None:
        """Whole weights of the takes, or those of their motion modules, in place of the base's."""
        current = self.unet.state_dict()
        for take, _ in read:
            meant = current if take.kind == "full" else motion_part(current)
            check_fit(shapes_of(meant), take.state, str(take.path))
        interpolate(current, self._untouched, [(take.state, strength) for take, strength in read])


def _described(config: AnimateDiffSampleConfig) -> Take | None:
    """What the first checkpoint of a comparison says of itself: the base is sampled as it was trained."""
    if not config.checkpoints:
        return None
    return replace(read_take(Path(config.checkpoints[0]).expanduser()), state={}, lora={})  # without its weights
