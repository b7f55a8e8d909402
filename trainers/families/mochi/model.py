"""Mochi in memory: a transformer over video and text in two streams, and all its conventions.

Shapes: b clips, f frames, H x W pixels; F latent frames (the first frame, then one for every six), h x w = H/8 x W/8;
c channels of latents (12): latents (b, c, F, h, w), prompt embeddings (b, tokens, width).
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler

from trainers import lora
from trainers.families.adapters import as_trained, write_lora
from trainers.families.base import Example, ModelError, SampleRequest, Stage, VideoModel
from trainers.families.base import Take as TakeAt
from trainers.families.mochi.attention import tie_qkv, trimmed, use_trimmed_text
from trainers.families.mochi.base_model import BaseModel
from trainers.families.mochi.checkpoint import PREFIX, Take, read_take
from trainers.families.mochi.config import MAX_TOKENS, MochiAdapterConfig, MochiSampleConfig, MochiTrainConfig
from trainers.families.mochi.names import TEXT, VIDEO
from trainers.families.mochi.prepared_tensors import read_prepared
from trainers.families.mochi.schedule import linear_quadratic
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
    several_processes,
    shapes_of,
)
from trainers.lora import Lora
from trainers.memory import checkpoint_blocks, compile_blocks
from trainers.noise import Draws

TIMESTEPS = 1000  # of which the network is told how many are done: 0 is noise alone, 1000 the clip
OUTPUTS = ("to_out.0", "to_add_out")


class Mochi(VideoModel):
    """`config` is a MochiTrainConfig (stage "train") or a MochiSampleConfig (stage "sample")."""

    def __init__(self, config: MochiTrainConfig | MochiSampleConfig, stage: Stage) -> None:
        self.config = config
        self.stage = stage
        self.device = device()
        self.dtype = PRECISIONS[config.mixed_precision]
        self.method = config.method if isinstance(config, MochiTrainConfig) else None
        self._base = BaseModel(config.base_model, config.text_encoder)
        self._vae_config = self._base.vae_config()
        self._scheduler_config = self._base.scheduler_config()
        self._encoder: AutoencoderKLMochi | None = None
        self._decoder: AutoencoderKLMochi | None = None
        self._text: tuple[Any, Any] | None = None  # tokenizer and text encoder
        self._embedded: dict[str, dict[str, torch.Tensor]] = {}
        self._untouched: State = {}  # base weights that a take covers, on the CPU
        self._build()
        if isinstance(config, MochiTrainConfig) and config.start_from is not None:
            self.load([(Path(config.start_from), 1.0)])

    # --- building ---

    def _build(self) -> None:
        """Read the transformer, make the meant weights trainable, move it."""
        with torch.random.fork_rng(devices=[]):
            self.transformer = self._base.transformer(torch.float32 if self.method == "full" else self.dtype)
            self.transformer.requires_grad_(False)
            use_trimmed_text(self.transformer)
            if isinstance(self.config, MochiTrainConfig):
                self._make_trainable(self.config)
        if not self._waits:
            self.transformer.to(self.device)
        self.transformer.train(self.stage == "train")
        self.denoiser = {"denoiser": self.transformer}

    @property
    def _waits(self) -> bool:
        """Whether the transformer waits in main memory while others work: until everything is encoded, or whenever it
        is not drawing."""
        config = self.config
        return config.dataset.cache if isinstance(config, MochiTrainConfig) else config.cpu_offload

    def _make_trainable(self, config: MochiTrainConfig) -> None:
        dropout = 0.0
        if config.method == "full":
            self.transformer.requires_grad_(True)
        else:
            dropout = self._add_lora(config.adapter, config.seed)
        blocks, memory = self.transformer.transformer_blocks, config.memory
        checkpoint_blocks(
            blocks[: memory.checkpointed_blocks], memory.gradient_checkpointing, keep_random_state=dropout > 0
        )
        if memory.compile_blocks:
            compile_blocks(blocks)

    def _add_lora(self, adapter: MochiAdapterConfig, seed: int) -> float:
        """The LoRA that is trained; the largest of its dropouts."""
        chosen = lora_targets(
            self.transformer, adapter.target_modules, "transformer_blocks.", "the transformer's blocks", _kinds
        )
        ranks, alphas, dropouts = {}, {}, {}
        for path in chosen:
            output = path.endswith(OUTPUTS)
            rank, alpha = adapter.rank, adapter.alpha
            if output:
                rank, alpha = _first(adapter.out_rank, rank), _first(adapter.out_alpha, alpha)
            ranks[path], alphas[path] = rank, float(rank if alpha is None else alpha)
            dropouts[path] = _first(adapter.out_dropout, adapter.dropout) if output else adapter.dropout
        torch.manual_seed(seed)  # inside fork_rng: the run's own generators are not touched
        lora.inject(self.transformer, ranks, alphas)
        lora.set_dropout(self.transformer, dropouts)
        if adapter.tie_qkv:
            tie_qkv(self.transformer)
        return max(dropouts.values())

    # --- encoders ---

    def fingerprint(self, encoder: Literal["video", "prompt"]) -> str:
        computed = str(torch.float32 if self.device.type == "cpu" else self.dtype).removeprefix("torch.")
        if encoder == "prompt":
            return f"{self._base.text_identity()}-{computed}-{MAX_TOKENS}"
        return "-".join([self._base.video_identity(), computed, *(["tiled"] if self._settings.vae_tiling else [])])

    @property
    def _settings(self) -> Any:
        """Where `vae_tiling` and `vae_slicing` stand."""
        return self.config.memory if isinstance(self.config, MochiTrainConfig) else self.config

    @property
    def _offloads(self) -> bool:
        return isinstance(self.config, MochiSampleConfig) and self.config.cpu_offload

    @property
    def _part_dtype(self) -> torch.dtype:
        """In which decoder and text encoder compute."""
        return torch.float32 if self.device.type == "cpu" else self.dtype

    def _vae(self, half: Literal["encoder", "decoder"]) -> AutoencoderKLMochi:
        """The encoder stays in 32 bits: with fewer, the waves that it makes of each pixel's brightness (up to 128 in
        its range) would be nonsense, so it takes pixels in 32 bits and computes the rest as autocast does."""
        vae = self._base.vae(torch.float32 if half == "encoder" else self._part_dtype, half)
        if self._settings.vae_tiling:
            vae.enable_tiling()
        if self._settings.vae_slicing:
            vae.enable_slicing()
        return self._placed(vae)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _working(self, module: torch.nn.Module) -> Iterator[None]:
        """Where models are kept in main memory: the module on the device, and afterwards there again."""
        if not self._offloads:  # nor is a model in shards touched, which would gather them anew
            yield
            return
        module.to(self.device)
        try:
            yield
        finally:
            module.to("cpu")
            self._tidy()

    def _placed(self, module: Any) -> Any:
        """An encoder or decoder that was just read, for use; on the device unless models are kept in main memory."""
        module.requires_grad_(False)
        return module if self._offloads else module.to(self.device)

    def encode_video(self, pixels: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
        if self._encoder is None:
            self._encoder = self._vae("encoder")
        videos = pixels.to(self.device).float().transpose(1, 2) / 127.5 - 1  # (b, 3, f, H, W)
        with torch.no_grad(), self._working(self._encoder), computing(self.device, self._part_dtype):
            posterior = self._encoder.encode(videos).latent_dist
        return {"latents_mean": posterior.mean.float().cpu(), "latents_logvar": posterior.logvar.float().cpu()}

    def encode_prompt(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The empty prompt is true zeros, none of which is valid; where it is asked for alone, nothing is loaded."""
        if not any(text.strip() for text in texts):
            size = len(texts), MAX_TOKENS
            width = int(self.transformer.config.text_embed_dim)
            return {"prompt_embeds": torch.zeros(*size, width), "prompt_attention_mask": torch.zeros(size).bool()}
        if self._text is None:
            self._text = (self._base.tokenizer(), self._placed(self._base.text_encoder(self._part_dtype)))
        tokenizer, text_encoder = self._text
        tokens = tokenizer(
            [text.strip() for text in texts],
            padding="max_length",
            max_length=MAX_TOKENS,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        said = torch.tensor([bool(text.strip()) for text in texts])
        mask = tokens.attention_mask.bool() & said[:, None]
        with torch.no_grad(), self._working(text_encoder):
            ids, seen = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
            embeds = text_encoder(ids, attention_mask=seen)[0].cpu()
        return {"prompt_embeds": embeds * said[:, None, None], "prompt_attention_mask": mask}  # (b, t, w), (b, t)

    def read_prepared(self, file: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return read_prepared(file, int(self.transformer.config.text_embed_dim))

    def release(self, stage: Literal["encoders", "decoder"]) -> None:
        if stage == "encoders":
            self._text = None
            self._encoder = None
            if self.stage == "train":
                self.transformer.to(self.device)  # see _waits
        else:
            self._decoder = None
        self._tidy()

    def _tidy(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # --- the objective ---

    def example(self, batch: Mapping[str, torch.Tensor], draws: Draws) -> Example:
        assert isinstance(self.config, MochiTrainConfig)
        mean, logvar = batch["latents_mean"], batch["latents_logvar"]  # (b, c, F, h, w)
        clips, where, space = mean.shape[0], mean.device, self.config.latent_normalisation

        latents = mean + torch.exp(0.5 * logvar) * draws.normal("posterior", mean.shape, where)
        if space == "consistent":
            latents = self.normalised(latents)
        noise = draws.normal("noise", latents.shape, where)
        sigma = draws.uniform("sigma", (clips,), where)  # share of noise, one for a whole clip
        level = sigma.view(-1, 1, 1, 1, 1)
        model_input = (1 - level) * latents + level * noise
        target = latents - noise  # velocity, from noise to clip: the other way than in most such models
        if space == "genmo":
            target = self.normalised(target)

        embeds, mask = batch["prompt_embeds"], batch["prompt_attention_mask"]  # (b, t, width), (b, t)
        if self.config.dataset.caption_dropout > 0:
            dropped = draws.uniform("caption_dropout", (clips,), where) < self.config.dataset.caption_dropout
            embeds = torch.where(dropped[:, None, None], batch["null_prompt_embeds"], embeds)
            mask = torch.where(dropped[:, None], batch["null_prompt_attention_mask"], mask)
        text = _conditions(embeds, mask, least=1 if several_processes() else 0)
        return Example(model_input, TIMESTEPS * (1 - sigma), target, conditions=text)

    def normalised(self, latents: torch.Tensor) -> torch.Tensor:
        """From the video encoder's space into the one in which the transformer draws: per channel about N(0, 1)."""
        mean, std = self._statistics(latents.device)
        return (latents - mean) / std

    def unnormalised(self, latents: torch.Tensor) -> torch.Tensor:
        """And back."""
        mean, std = self._statistics(latents.device)
        return latents * std / float(self._vae_config.get("scaling_factor", 1.0)) + mean

    def _statistics(self, where: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, deviation), each (1, c, 1, 1, 1), of the video encoder's latents."""
        mean, std = (torch.tensor(self._vae_config[f"latents_{name}"], device=where) for name in ("mean", "std"))
        return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)

    def predict(self, example: Example) -> torch.Tensor:
        network = callable_alone(self.denoiser[example.denoiser])
        with computing(self.device, self.dtype):
            prediction = network(
                hidden_states=example.model_input,
                encoder_hidden_states=example.conditions["prompt_embeds"],
                timestep=example.timesteps,
                encoder_attention_mask=example.conditions["prompt_attention_mask"],
                return_dict=False,
            )[0]
        return prediction.float()  # type: ignore[no-any-return]

    # --- sampling ---

    def sample(self, request: SampleRequest, draws: Draws) -> np.ndarray:
        if request.image is not None:
            raise ModelError(f"{self._base.source} takes no image: leave images empty")
        with torch.no_grad(), evaluating(self.denoiser.values()):
            return self._decode(self.unnormalised(self._draw(request, draws)))

    def _draw(self, request: SampleRequest, draws: Draws) -> torch.Tensor:
        """Latents (1, c, F, h, w) of normalised space, from noise."""
        guidances = self.config.guidance_schedule or [request.guidance_scale] * request.num_inference_steps
        scheduler = self._scheduler(request.num_inference_steps)
        channels = self.transformer.config.in_channels
        shape = (1, channels, (request.num_frames - 1) // 6 + 1, request.height // 8, request.width // 8)
        prompt = self._embed(request.prompt)
        negative = self._embed(request.negative_prompt) if any(g != 1 for g in guidances) else prompt
        latents = draws.normal("latents", shape, self.device)
        with self._working(self.transformer):
            for timestep, guidance in zip(scheduler.timesteps, guidances, strict=True):
                at = timestep.expand(1).to(self.device)
                prediction = self.predict(Example(latents, at, None, conditions=prompt))
                if guidance != 1:  # each for itself: their texts differ in length
                    unconditional = self.predict(Example(latents, at, None, conditions=negative))
                    prediction = unconditional + guidance * (prediction - unconditional)
                latents = scheduler.step(prediction, timestep, latents).prev_sample
        return latents

    def _scheduler(self, steps: int) -> FlowMatchEulerDiscreteScheduler:
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self._scheduler_config)
        levels = linear_quadratic(steps, self.config.threshold_noise, self.config.linear_steps)
        scheduler.set_timesteps(sigmas=np.array(levels))
        scheduler.set_begin_index(0)
        return scheduler

    def _embed(self, text: str) -> dict[str, torch.Tensor | None]:
        """A prompt as conditions of the network, encoded once; while training the encoder goes at once."""
        resident = self._text is not None
        if text not in self._embedded:
            self._embedded[text] = self.encode_prompt([text])
        if self.stage == "train" and not resident:
            self._text = None
        found = self._embedded[text]
        return _conditions(found["prompt_embeds"].to(self.device), found["prompt_attention_mask"].to(self.device))

    def _decode(self, latents: torch.Tensor) -> np.ndarray:
        """Latents (1, c, F, h, w) of the video encoder's space as frames (f, H, W, 3) uint8."""
        if self._decoder is None:
            self._decoder = self._vae("decoder")
        with self._working(self._decoder):
            decoded = self._decoder.decode(latents.to(self._part_dtype)).sample[0].float()  # (3, f, H, W)
        frames = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        found: np.ndarray = frames.permute(1, 2, 3, 0).contiguous().cpu().numpy()
        return found

    # --- checkpoints ---

    def save(self, folder: Path) -> dict[str, Any]:
        if not isinstance(self.config, MochiTrainConfig):
            raise ModelError("only a training run has weights of its own to save")
        config = self.config
        facts: dict[str, Any] = {
            "family": config.family,
            "method": config.method,
            "base_model": lasting(config.base_model),
            "latent_normalisation": config.latent_normalisation,
        }
        if self._base.genmo:
            facts["text_encoder"] = lasting(config.text_encoder)
        if config.method == "lora":
            adapter = lora.taken(self.transformer)
            inner = [layer for path, layer in adapter.items() if not path.endswith(OUTPUTS)]
            first = inner[0] if inner else next(iter(adapter.values()))
            facts |= {"rank": first.rank, "alpha": first.alpha, "target_modules": config.adapter.target_modules}
            outer = [layer for path, layer in adapter.items() if path.endswith(OUTPUTS)]
            if outer and (outer[0].rank, outer[0].alpha) != (first.rank, first.alpha):
                facts |= {"out_rank": outer[0].rank, "out_alpha": outer[0].alpha}
            facts["tie_qkv"] = config.adapter.tie_qkv
            write_lora(folder, adapter, PREFIX, facts)
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
        adapter = as_trained(take.path, take.lora, take.meta)
        if isinstance(self.config, MochiTrainConfig) and self.config.adapter.tie_qkv:
            _check_tied(adapter, str(take.path))
        fill_trained_lora(self.transformer, adapter, str(take.path))

    def _apply_weights(self, read: Sequence[tuple[Take, float]]) -> None:
        """Whole transformers in place of the base's."""
        current = {key: value for key, value in self.transformer.state_dict().items() if ".lora_" not in key}
        for take, _ in read:
            check_fit(shapes_of(current), take.state, str(take.path))
        interpolate(current, self._untouched, [(take.state, strength) for take, strength in read])


def _conditions(embeds: torch.Tensor, mask: torch.Tensor, least: int = 0) -> dict[str, torch.Tensor | None]:
    """What the network is told of prompts: their valid tokens."""
    found, among = trimmed(embeds, mask, least)
    return {"prompt_embeds": found, "prompt_attention_mask": among}


def _check_tied(adapter: Mapping[str, Lora], source: str) -> None:
    """ModelError unless query, key and value of each stream have the same lower half."""
    for path, layer in adapter.items():
        place, _, name = path.rpartition(".")
        for group in (VIDEO, TEXT):
            first = adapter.get(f"{place}.{group[0]}") if name in group else None
            if first is not None and not (first.rank == layer.rank and torch.equal(first.down, layer.down)):
                raise ModelError(
                    f"{source} was trained with query, key and value apart ({path}): set adapter.tie_qkv to false to "
                    "go on from it"
                )


def _first(own: Any, other: Any) -> Any:
    """The own setting, or else the other."""
    return other if own is None else own


def _kinds(paths: Sequence[str]) -> list[str]:
    """The names of layers within a block, each once: attn1.to_q, ff.net.2, ..."""
    return list(dict.fromkeys(path.split(".", 2)[2] for path in paths))
