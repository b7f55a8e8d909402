"""DynamiCrafter in memory: a network over a clip's latents, told by text and an image, and all its conventions.

Shapes: b clips, f frames, H x W pixels, h x w = H/8 x W/8; c channels of latents (4): latents (b, c, f, h, w). The text
tower's states (b, 77, width), the image tower's (b, 257, its width) for each picture.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import interpolate as resize

from trainers import lora
from trainers.data.images import sha256_of_image
from trainers.data.samples import placed
from trainers.families.base import Example, ModelError, SampleRequest, Stage, VideoModel
from trainers.families.base import Take as TakeAt
from trainers.families.dynamicrafter import encoders
from trainers.families.dynamicrafter.base_model import BaseModel
from trainers.families.dynamicrafter.checkpoint import WHOLE, Take, lora_state, read_take, write_state
from trainers.families.dynamicrafter.config import (
    Drawing,
    DynamiCrafterSampleConfig,
    DynamiCrafterTrainConfig,
    wrong_frames,
)
from trainers.families.dynamicrafter.denoiser import Denoiser, in_reference
from trainers.families.dynamicrafter.names import PREFIXES
from trainers.families.dynamicrafter.sampler import ddim, guided
from trainers.families.dynamicrafter.schedule import TIMESTEPS, schedule_of, steps
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

FRAMES_AT_ONCE = 4  # of a clip, in the image encoders and the decoder


class DynamiCrafter(VideoModel):
    """`config` is a DynamiCrafterTrainConfig (stage "train") or a DynamiCrafterSampleConfig (stage "sample")."""

    def __init__(self, config: DynamiCrafterTrainConfig | DynamiCrafterSampleConfig, stage: Stage) -> None:
        self.config = config
        self.stage = stage
        self.device = device()
        self.dtype = PRECISIONS[config.mixed_precision]
        self.method = config.method if isinstance(config, DynamiCrafterTrainConfig) else None
        self._base = BaseModel(config.base_model, config.variant)
        self.facts = self._base.facts
        self.interp = self.facts.interp if config.interp_mode is None else config.interp_mode
        self._schedule = schedule_of(self.facts)
        self._towers: dict[str, Any] = {}
        self._vae: Any = None
        self._embedded: dict[str, torch.Tensor] = {}
        self._seen: dict[tuple[str, int, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self._grey: torch.Tensor | None = None
        self._untouched: State = {}  # base weights that a take covers, on the CPU
        if isinstance(config, DynamiCrafterTrainConfig):
            self._check_frames(config.dataset.num_frames, "dataset.num_frames")
        self._build()
        if isinstance(config, DynamiCrafterTrainConfig) and config.start_from is not None:
            self.load([(Path(config.start_from), 1.0)])

    # --- building ---

    def _build(self) -> None:
        """Read network and resampler, make the meant weights trainable, move them."""
        dtype = torch.float32 if self.method == "full" else self.dtype
        with torch.random.fork_rng(devices=[]):
            self.network = Denoiser(self._base.unet(dtype), self._base.resampler(dtype))
            self.network.requires_grad_(False)
            if isinstance(self.config, DynamiCrafterTrainConfig):
                self._make_trainable(self.config)
        if not self._encodes_first:
            self.network.to(self.device)
        self.network.train(self.stage == "train")
        self.denoiser = {"denoiser": self.network}

    @property
    def _encodes_first(self) -> bool:
        """Whether everything is encoded before the network is needed, which waits in main memory until then."""
        return isinstance(self.config, DynamiCrafterTrainConfig) and self.config.dataset.cache

    def _make_trainable(self, config: DynamiCrafterTrainConfig) -> None:
        unet = self.network.unet
        if config.method == "full":
            self.network.requires_grad_(True)
        else:
            chosen = self._lora_layers(config.adapter.target_modules, config.adapter.skip_layers)
            torch.manual_seed(config.seed)  # inside fork_rng: the run's own generators are not touched
            lora.inject(
                unet,
                dict.fromkeys(chosen, config.adapter.rank),
                dict.fromkeys(chosen, self._alpha(config)),
                config.adapter.dropout,
            )
        checkpoint_blocks(unet.blocks(), config.memory.gradient_checkpointing, keep_random_state=True)

    def _lora_layers(self, wanted: Sequence[str], skipped: Sequence[str]) -> list[str]:
        """Paths of the layers of the network that get a LoRA."""
        chosen = lora_targets(self.network.unet, wanted, "", "the network", _kinds)
        for line in skipped:
            left = [path for path in chosen if line not in PREFIXES["unet"] + path]
            if len(left) == len(chosen):
                raise ModelError(
                    f"adapter.skip_layers: {line!r} is in the path of no layer that would get a LoRA; they are "
                    f"{', '.join(_kinds(chosen))}"
                )
            chosen = left
        if not chosen:
            raise ModelError("adapter.skip_layers leaves no layer that gets a LoRA; take a line out")
        return chosen

    @staticmethod
    def _alpha(config: DynamiCrafterTrainConfig) -> float:
        return float(config.adapter.rank / 2 if config.adapter.alpha is None else config.adapter.alpha)

    def _check_frames(self, count: int, where: str) -> None:
        """ModelError unless a clip has as many frames as the resampler makes tokens for: with another number every
        frame would see the tokens of all."""
        if count != self.facts.num_frames:
            raise ModelError(f"{where} is {wrong_frames(count, self._base.source, self.facts)}")

    # --- encoders ---

    def fingerprint(self, encoder: Literal["video", "prompt"]) -> str:
        parts = [self._base.identity(), str(self._encoder_dtype).removeprefix("torch.")]
        if encoder == "video" and not self._any_frame:
            parts.append("first")
        return "-".join(parts)

    @property
    def _encoder_dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else self.dtype

    @property
    def _any_frame(self) -> bool:
        """Whether training conditions on any frame of a clip."""
        return isinstance(self.config, DynamiCrafterTrainConfig) and self.config.rand_cond_frame

    def _tower(self, kind: Literal["text", "vision"]) -> Any:
        if kind not in self._towers:
            read = self._base.text_tower if kind == "text" else self._base.image_tower
            self._towers[kind] = read(self._encoder_dtype).requires_grad_(False).to(self.device)
        return self._towers[kind]

    def _autoencoder(self) -> Any:
        if self._vae is None:
            self._vae = self._base.vae(self._encoder_dtype).requires_grad_(False).to(self.device)
        return self._vae

    def _posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, logvar), each (n, c, h, w) float32, of pictures (n, 3, H, W) in [-1, 1]."""
        vae = self._autoencoder()
        with torch.no_grad():
            found = [vae.encode(part.to(self._encoder_dtype)).latent_dist for part in _parts(pixels)]
        return torch.cat([each.mean.float() for each in found]), torch.cat([each.logvar.float() for each in found])

    def _image_states(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 257, width) of pictures (n, 3, H, W) in [-1, 1]."""
        tower = self._tower("vision")
        with torch.no_grad():
            return torch.cat([encoders.image_states(tower, part) for part in _parts(pixels)])

    def _grey_states(self) -> torch.Tensor:
        """(1, 257, width) of a picture that is grey all over, which stands for none."""
        if self._grey is None:
            size = self.facts.vision.image_size
            self._grey = self._image_states(torch.zeros(1, 3, size, size, device=self.device)).cpu()
        return self._grey

    def encode_video(self, pixels: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
        """Beside the latents, what the image tower sees of each frame that may be the condition, and last of a grey
        picture: before the resampler, which method full trains."""
        clips, frames = pixels.shape[:2]
        self._check_frames(frames, "a sample's number of frames")
        pictures = _signed(pixels.to(self.device)).flatten(0, 1)  # (b*f, 3, H, W)
        mean, logvar = (torch.unflatten(value, 0, (clips, frames)) for value in self._posterior(pictures))
        shown = pictures if self._any_frame else pictures[::frames]
        states = torch.unflatten(self._image_states(shown), 0, (clips, -1)).cpu()  # (b, n, 257, width)
        grey = self._grey_states().expand(clips, 1, -1, -1)
        return {
            "latents_mean": mean.cpu(),  # (b, f, c, h, w)
            "latents_logvar": logvar.cpu(),
            "image_states": torch.cat([states, grey], dim=1),
        }

    def encode_prompt(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        tokens = self._base.tokens(texts).to(self.device)
        with torch.no_grad():
            states = encoders.text_states(self._tower("text"), tokens)
        return {"prompt_embeds": states.cpu()}  # (b, 77, width)

    def release(self, stage: Literal["encoders", "decoder"]) -> None:
        self._vae = None
        if stage == "encoders":
            self._towers.clear()
            self.network.to(self.device)  # see _encodes_first
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # --- the objective ---

    def example(self, batch: Mapping[str, torch.Tensor], draws: Draws) -> Example:
        mean, logvar = batch["latents_mean"], batch["latents_logvar"]  # (b, f, c, h, w)
        clips, frames, where = mean.shape[0], mean.shape[1], mean.device

        posterior = mean + torch.exp(0.5 * logvar) * draws.normal("posterior", mean.shape, where)
        latents = (posterior * self.facts.scale_factor).transpose(1, 2)  # (b, c, f, h, w)
        given = 0  # the frame that is the condition, the same for the whole batch
        if self._any_frame:
            given = int(draws.integers("cond_frame", 0, frames, (1,)))
        condition = self._beside(latents[:, :, given], latents[:, :, :1], latents[:, :, -1:], frames)

        noise = draws.normal("noise", latents.shape, where)
        timesteps = draws.integers("timesteps", 0, TIMESTEPS, (clips,), where)  # one for a whole clip
        scaled = self._schedule.scaled(latents, timesteps)  # not what stands beside them
        noisy = self._schedule.noisy(scaled, noise, timesteps)
        target = noise if self.facts.parameterization == "eps" else self._schedule.velocity(scaled, noise, timesteps)

        text_dropped, image_dropped = self._dropped(draws.uniform("dropout", (clips,), where))
        text = torch.where(text_dropped[:, None, None], batch["null_prompt_embeds"], batch["prompt_embeds"])
        seen, grey = batch["image_states"][:, given], batch["image_states"][:, -1]
        image = torch.where(image_dropped[:, None, None], grey, seen)
        return Example(
            torch.cat([noisy, condition], dim=1),  # (b, 2c, f, h, w)
            timesteps,
            target,
            conditions={"text": text, "image": image, "fs": self._pace(batch)},
        )

    def _beside(
        self, given: torch.Tensor, first: torch.Tensor, last: torch.Tensor, frames: int, *, ends: bool | None = None
    ) -> torch.Tensor:
        """What stands beside noisy latents: the given frame (b, c, h, w) at every place; or, for what lies between two
        pictures, these (b, c, 1, h, w) at both ends and zeros between."""
        if not (self.interp if ends is None else ends):
            return given[:, :, None].expand(-1, -1, frames, -1, -1)
        between = torch.zeros_like(first).expand(-1, -1, frames - 2, -1, -1)
        return torch.cat([first, between, last], dim=2)

    def _dropped(self, drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Who trains without text, and who without image, by one number each in [0, 1): half of those without text are
        without image as well."""
        assert isinstance(self.config, DynamiCrafterTrainConfig)
        text, image = self.config.dataset.caption_dropout, self.config.image_dropout
        return drawn < text, (drawn >= text / 2) & (drawn < text / 2 + image)

    def _pace(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the model is told of how fast the clips move, (b,): frames from one to the next, or frames per second,
        rounded down as the reference does it. Where frames were resampled to another rate, to the nearest."""
        stride, fps = batch["frame_stride"].float(), batch["clip_fps"].float()
        if self.facts.fs_kind == "stride":
            return stride.round().clamp(min=1).long()
        whole = stride == stride.round()
        found = torch.where(whole, torch.div(fps, stride.clamp(min=1), rounding_mode="floor"), (fps / stride).round())
        most = self.config.fps_max if isinstance(self.config, DynamiCrafterTrainConfig) else None
        return found.clamp(min=1, max=most).long()

    def predict(self, example: Example) -> torch.Tensor:
        network = callable_alone(self.denoiser[example.denoiser])
        with computing(self.device, self.dtype):
            prediction = network(example.model_input, example.timesteps, **example.conditions)
        return prediction.float()  # type: ignore[no-any-return]

    # --- sampling ---

    @property
    def _drawing(self) -> Drawing:
        """The settings of what is drawn."""
        return self.config.validation if isinstance(self.config, DynamiCrafterTrainConfig) else self.config

    def sample(self, request: SampleRequest, draws: Draws) -> np.ndarray:
        drawing, size, frames = self._drawing, (request.height, request.width), request.num_frames
        self._check_frames(frames, "num_frames")
        first, last = self._pictures(request)
        shape = (1, self.facts.unet.out_channels, frames, request.height // 8, request.width // 8)
        with torch.no_grad(), evaluating(self.denoiser.values()):
            noise = draws.normal("latents", shape, self.device)
            states, *moments = self._look(first, size)
            begin = self._latents(moments, "image_posterior", draws)  # (1, c, h, w)
            end = begin
            if last is not None:
                end = self._latents(self._look(last, size)[1:], "end_posterior", draws)
            condition = self._beside(
                begin, begin[:, :, None], end[:, :, None], frames, ends=self.interp or drawing.loop
            )
            prompt, negative = self._embed([request.prompt, request.negative_prompt]).to(self.device).chunk(2)

            grey = self._grey_states().to(self.device)
            answers = [(prompt, states)]  # then without both, and without the prompt alone
            if request.guidance_scale > 1:
                answers.append((negative, grey))
                if drawing.image_guidance_scale is not None:
                    answers.append((negative, states))
            pace = self.facts.sample_fs if drawing.fs is None else drawing.fs
            conditions = {
                "text": torch.cat([text for text, _ in answers]),
                "image": torch.cat([image for _, image in answers]),
                "fs": torch.full((len(answers),), pace, device=self.device),
            }
            rescale = self.facts.guidance_rescale if drawing.guidance_rescale is None else drawing.guidance_rescale

            def predict(latents: torch.Tensor, timestep: int) -> torch.Tensor:
                given = torch.cat([latents, condition], dim=1).expand(len(answers), -1, -1, -1, -1)
                times = torch.full((len(answers),), timestep, device=self.device)
                full, *others = self.predict(Example(given, times, None, conditions=conditions)).chunk(len(answers))
                if not others:
                    return full
                alone = others[1] if len(others) > 1 else None
                return guided(full, others[0], request.guidance_scale, rescale, alone, drawing.image_guidance_scale)

            latents = noise
            planned = steps(self.facts, request.num_inference_steps, drawing.eta)
            fresh = [f"step_{number}" for number in range(len(planned))]
            for found, _ in ddim(
                planned,
                self.facts.parameterization,
                noise,
                predict,
                lambda number: draws.normal(fresh[number], shape, self.device),
            ):
                latents = found
            clip = self._decode(latents)
        return clip[:-1] if drawing.loop else clip  # the last frame of a circle is its first

    def _pictures(self, request: SampleRequest) -> tuple[np.ndarray, np.ndarray | None]:
        """The request's pictures; ModelError where one lacks, or has no use."""
        source, loop = self._base.source, self._drawing.loop
        if request.image is None:
            raise ModelError(f"{source} turns an image into a video: name an image to begin from")
        if self.interp and request.end_image is None and not loop:
            raise ModelError(f"{source} draws what lies between two images: name the second in end_images, or set loop")
        if request.end_image is not None and not self.interp:
            raise ModelError(
                f"{source} draws what follows one image: leave end_images empty, or set interp_mode to true"
            )
        return request.image, request.end_image

    def _look(self, picture: np.ndarray, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the image tower sees of a picture, (1, 257, width), and the posterior's mean and logvar, each computed
        once; while training the encoders go at once."""
        key = (sha256_of_image(picture), *size)
        if key not in self._seen:
            resident = "vision" in self._towers
            pixels = _signed(fitted(picture, *size).to(self.device))
            self._seen[key] = (self._image_states(pixels), *self._posterior(pixels))
            self._grey_states()
            if self.stage == "train" and not resident:
                del self._towers["vision"]
        states, mean, logvar = self._seen[key]
        return states, mean, logvar

    def _latents(self, moments: Sequence[torch.Tensor], name: str, draws: Draws) -> torch.Tensor:
        mean, logvar = moments
        drawn = mean + torch.exp(0.5 * logvar) * draws.normal(name, mean.shape, self.device)
        return drawn * self.facts.scale_factor

    def _embed(self, texts: Sequence[str]) -> torch.Tensor:
        """States of texts (b, 77, width), each computed once; while training the tower goes at once."""
        resident = "text" in self._towers
        for text in texts:
            if text not in self._embedded:
                self._embedded[text] = self.encode_prompt([text])["prompt_embeds"]
        if self.stage == "train" and not resident:
            self._towers.pop("text", None)
        return torch.cat([self._embedded[text] for text in texts])

    def _decode(self, latents: torch.Tensor) -> np.ndarray:
        """Latents (1, c, f, h, w) as frames (f, H, W, 3) uint8."""
        vae = self._autoencoder()
        pictures = (latents[0].transpose(0, 1) / self.facts.scale_factor).to(self._encoder_dtype)  # (f, c, h, w)
        decoded = torch.cat([vae.decode(part).sample.float() for part in _parts(pictures)])
        frames = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        found: np.ndarray = frames.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return found

    # --- checkpoints ---

    def save(self, folder: Path) -> dict[str, Any]:
        if not isinstance(self.config, DynamiCrafterTrainConfig):
            raise ModelError("only a training run has weights of its own to save")
        config, dataset = self.config, self.config.dataset
        facts: dict[str, Any] = {
            "family": config.family,
            "method": self.method,
            "base_model": lasting(config.base_model),
            "variant": self.facts.variant,
            "interp_mode": self.interp,
        }
        if self.method == "lora":
            facts |= {"rank": config.adapter.rank, "alpha": self._alpha(config)}
            write_state(folder / lora.FILE_NAME, lora_state(lora.taken(self.network.unet)), facts)
        else:
            state = {in_reference(key): value.detach().cpu().contiguous() for key, value in self._state().items()}
            write_state(folder / WHOLE, state, facts)
        return {**facts, "num_frames": dataset.num_frames, "height": dataset.height, "width": dataset.width}

    def _state(self) -> dict[str, torch.Tensor]:
        return dict(self.network.state_dict())

    def load(self, takes: Sequence[TakeAt]) -> None:
        read = [(read_take(Path(path).expanduser()), strength) for path, strength in takes]
        if self.stage == "train":
            self._load_to_train(read)
            return
        lora.remove(self.network.unet)
        self._apply_weights([(take, strength) for take, strength in read if take.kind == "full"])
        sample_loras(
            self.network.unet, [(take.lora, strength, str(take.path)) for take, strength in read if take.kind == "lora"]
        )
        self._follow(read[0][0] if read else None)

    def _follow(self, take: Take | None) -> None:
        """Between two pictures or after one: as the config says, else as the take was trained, else as the base was."""
        recorded = take.meta.get("interp_mode") if take is not None else None
        for said in (self.config.interp_mode, recorded, self.facts.interp):
            if said is not None:
                self.interp = bool(said)
                break

    def _load_to_train(self, read: Sequence[tuple[Take, float]]) -> None:
        """Into the parameters that are trained, in place: the optimizer knows them by identity."""
        if self.method == "full":
            for take, _ in read:
                if take.kind == "lora":
                    raise ModelError(f"{take.path} is a LoRA and cannot be trained on with method full")
            self._apply_weights(read)
            return
        if not read:
            fill_trained_lora(self.network.unet, None, "")
            return
        take, strength = read[0]
        if len(read) > 1 or strength != 1 or take.kind != "lora":
            raise ModelError("training a LoRA goes on from one LoRA at strength 1")
        assert isinstance(self.config, DynamiCrafterTrainConfig)
        ranks = sorted({layer.rank for layer in take.lora.values()})
        if ranks != [self.config.adapter.rank]:
            raise ModelError(
                f"{take.path} has rank {' and '.join(map(str, ranks))}, but adapter.rank is "
                f"{self.config.adapter.rank}: set adapter.rank to that of the file, or give another LoRA"
            )
        fill_trained_lora(self.network.unet, take.lora, str(take.path))

    def _apply_weights(self, read: Sequence[tuple[Take, float]]) -> None:
        """Whole networks, with the resampler, in place of the base's."""
        current = self._state()
        for take, _ in read:
            check_fit(shapes_of(current), take.state, str(take.path))
        interpolate(current, self._untouched, [(take.state, strength) for take, strength in read])


def fitted(picture: np.ndarray, height: int, width: int) -> torch.Tensor:
    """(1, 3, height, width) uint8 of a picture (h, w, 3): resized until it covers the size, then cut from the middle,
    as training clips are."""
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    size, (top, left) = placed(pixels.shape[-2], pixels.shape[-1], height, width)
    if pixels.shape[-2:] != size:
        pixels = resize(pixels.contiguous(), size, mode="bilinear", antialias=True, align_corners=False)
    return pixels[..., top : top + height, left : left + width]


def _parts(pictures: torch.Tensor) -> Iterator[torch.Tensor]:
    """As many of the pictures as are computed at once."""
    for start in range(0, len(pictures), FRAMES_AT_ONCE):
        yield pictures[start : start + FRAMES_AT_ONCE]


def _signed(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 as float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def _kinds(paths: Sequence[str]) -> list[str]:
    """The names of layers, each once: to_q, to_out.0, net.2, ..."""
    return list(dict.fromkeys(re.search(r"[^.]*\D[^.]*(?:\.\d+)*$", path)[0] for path in paths))  # type: ignore[index]
