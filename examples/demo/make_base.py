"""The demo's base, trained anew: python -m examples.demo.make_base OUT.

A tiny Stable Diffusion of a million weights that has only ever seen single frames of the demo's clips: it draws the
shapes, each frame by itself, and knows no movement. `examples/demo/base` is the committed result.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch.nn.functional import l1_loss, mse_loss
from transformers import CLIPTextModel, CLIPTokenizer

from examples import tiny
from examples.demo.make_clips import SCENES, draw

NUM_FRAMES = 64  # moments of each scene; the clips show 16 of them
VAE_CHANNELS = (8, 16, 32, 32)
VAE_STEPS, VAE_BATCH, VAE_RATE = 5000, 8, 3e-3
SHAPE_WEIGHT = 4
POLISH_STEPS, POLISH_RATE = 1500, 2e-3
POLISH_NOISE = 0.1  # latents from the denoiser are never exact
UNET_STEPS, UNET_BATCH = 2500, 32
KL_WEIGHT = 1e-6  # as for the autoencoder of latent diffusion
CAPTION_DROPOUT = 0.1


def write(out: Path, seed: int = 0) -> None:
    """Write the base into the folder `out`."""
    tiny.write("animatediff", out, seed)
    torch.manual_seed(seed)
    frames = torch.stack([torch.from_numpy(draw(scene, NUM_FRAMES)) for scene in SCENES])  # (scene, f, h, w, c)
    frames = frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1  # (scene, f, c, h, w)
    vae = train_vae(out, frames.flatten(0, 1))
    train_denoiser(out, frames, vae)
    forget_paths(out)


def train_vae(out: Path, frames: torch.Tensor) -> AutoencoderKL:
    """Teach an autoencoder to see the shapes: frames (n, c, h, w) in [-1, 1]."""
    settings = dict(AutoencoderKL.load_config(out / "vae")) | {"block_out_channels": VAE_CHANNELS}
    vae = AutoencoderKL.from_config(settings).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=VAE_RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, VAE_RATE, total_steps=VAE_STEPS)
    said = Progress("autoencoder", VAE_STEPS)
    for step in range(VAE_STEPS):
        pixels = frames[torch.randint(len(frames), (VAE_BATCH,))]
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        # The shape is a tenth of a frame: counted once, its colour would be learnt last.
        differs = (pixels - pixels[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.3
        weight = 1 + SHAPE_WEIGHT * differs
        loss = (weight * (decoded - pixels).abs()).mean() + KL_WEIGHT * posterior.kl().mean()
        descend(loss, optimizer, vae.parameters())
        schedule.step()
        said(step, loss)
    with torch.no_grad():
        means = torch.cat([vae.encode(part).latent_dist.mean for part in frames.split(64)])
    polish_decoder(vae, means, frames)
    vae.register_to_config(scaling_factor=round(1 / float(means.std()), 5))
    vae.save_pretrained(out / "vae")
    return vae.eval().requires_grad_(False)


def polish_decoder(vae: AutoencoderKL, means: torch.Tensor, frames: torch.Tensor) -> None:
    """Go on with the decoder alone, which clears the ghosts around the shapes: squares punish them most."""
    weights = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=POLISH_RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, POLISH_RATE, total_steps=POLISH_STEPS)
    said = Progress("decoder", POLISH_STEPS)
    for step in range(POLISH_STEPS):
        chosen = torch.randint(len(frames), (VAE_BATCH,))
        decoded = vae.decode(means[chosen] + POLISH_NOISE * torch.randn_like(means[chosen])).sample
        loss = l1_loss(decoded, frames[chosen]) + 2 * mse_loss(decoded, frames[chosen])
        descend(loss, optimizer, weights)
        schedule.step()
        said(step, loss)


def train_denoiser(out: Path, frames: torch.Tensor, vae: AutoencoderKL) -> None:
    """Teach the denoiser and the text encoder to draw single frames: frames (scene, f, c, h, w) in [-1, 1].

    On AnimateDiff's linear noise schedule, which the base's scheduler then names.
    """
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(out / "text_encoder").train()
    denoiser = UNet2DConditionModel.from_pretrained(out / "unet").train()
    scheduler = DDPMScheduler.from_pretrained(out / "scheduler", beta_schedule="linear")
    scheduler_file = out / "scheduler" / "scheduler_config.json"
    scheduler_file.write_text(scheduler_file.read_text().replace("scaled_linear", "linear"), encoding="utf-8")

    with torch.no_grad():
        latents = torch.stack([vae.encode(scene).latent_dist.mean for scene in frames]) * vae.config.scaling_factor
    texts = [scene.text for scene in SCENES] + [""]
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    weights = [*denoiser.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=UNET_STEPS)
    said = Progress("denoiser", UNET_STEPS)
    for step in range(UNET_STEPS):
        scene = torch.randint(len(SCENES), (UNET_BATCH,))
        clean = latents[scene, torch.randint(NUM_FRAMES, (UNET_BATCH,))]  # (b, c, h, w)
        caption = torch.where(torch.rand(UNET_BATCH) < CAPTION_DROPOUT, len(SCENES), scene)
        prompt_embeds = text_encoder(tokens)[0][caption]
        noise = torch.randn_like(clean)
        timesteps = torch.randint(1000, (UNET_BATCH,))
        predicted = denoiser(scheduler.add_noise(clean, noise, timesteps), timesteps, prompt_embeds).sample
        loss = mse_loss(predicted, noise)
        descend(loss, optimizer, weights)
        schedule.step()
        said(step, loss)
    denoiser.half().save_pretrained(out / "unet")  # half the size; it is read into the precision of the run
    text_encoder.save_pretrained(out / "text_encoder")


def forget_paths(out: Path) -> None:
    """Take out of the config files where on this machine they were last read from."""
    for file in out.glob("*/config.json"):
        settings = json.loads(file.read_text(encoding="utf-8"))
        settings.pop("_name_or_path", None)
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer, weights: object) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    optimizer.zero_grad()


class Progress:
    """Says every 250 steps how far a training is."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._losses: list[float] = []
        self._began = time.monotonic()

    def __call__(self, step: int, loss: torch.Tensor) -> None:
        self._losses.append(loss.item())
        if (step + 1) % 250 == 0:
            mean = sum(self._losses) / len(self._losses)
            seconds = time.monotonic() - self._began
            print(f"{self._name} {step + 1} of {self._total}: loss {mean:.4f}, {seconds:.0f} s", flush=True)
            self._losses.clear()


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 when written."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo.make_base", description=__doc__)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    given = parser.parse_args(arguments)
    write(given.out)
    print(f"wrote {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
