"""The demo's base, trained from nothing: python -m examples.demo.build_base [--work DIR] [--out DIR] [--resume].

An AnimateDiff in small, built in AnimateDiff's own two stages on the clips of `examples.demo.shapes`:

vae      an AutoencoderKL of factor 8, by the loop below
decoder  its decoder alone, on slightly wrong latents
text     a CLIP text model that knows the words of the captions, by the loop below
image    the image model, by the product's trainer: method full, one frame
motion   fresh motion modules in it, by the product's trainer: method motion_module, eight frames

Every stage is seeded and is skipped when it is done, so that a build that was stopped goes on with --resume. A longer
training goes on from a finished one: --resume --again motion --set max_train_steps=9000.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from examples import tiny
from examples.demo import shapes
from trainers.data.video import write_video
from trainers.runs import RunFolder
from trainers.train import is_finished
from trainers.train import main as train

VAE_CHANNELS = (8, 16, 32, 64)
VAE_IMAGES, VAE_STEPS, VAE_BATCH, VAE_RATE = 12000, 2000, 8, 2e-3
DECODER_STEPS, DECODER_RATE = 1600, 1.5e-3
DECODER_NOISE = 0.1  # of the latents' own size: what a denoiser gives is never exact
SHAPE_WEIGHT = 4  # a shape is a tenth of a frame: counted once, its outline would be learnt last
KL_WEIGHT = 3e-6

MAX_TOKENS, TEXT_WIDTH = 16, 64  # a caption has at most ten tokens with its two marks
TEXT_STEPS, TEXT_BATCH, TEXT_RATE = 800, 64, 2e-3
UNKNOWN_VERB = 0.2  # share of captions with a word in the verb's place that says nothing
#: What a caption may tell: attribute -> its values. A head for each reads them from the text model while it is trained.
TOLD: dict[str, tuple[str, ...]] = {
    "shape": shapes.SHAPES,
    "colour": tuple(shapes.COLOURS),
    "size": tuple(shapes.SIZES),
    "background": tuple(shapes.BACKGROUNDS),
    "motion": shapes.KNOWN,
}

CHANNELS = (64, 96)
HEADS, GROUPS = 4, 8
PICTURE_CLIPS, IMAGE_STEPS, IMAGE_BATCH = 480, 3000, 32  # eight pictures each
CLIPS, MOTION_STEPS, MOTION_BATCH = 1200, 2000, 8
WARMUP_STEPS = 50
KEPT_EVERY, KEPT = 250, 4  # checkpoints; a stage gives the mean of the last four


def build_vae(work: Path, seed: int, settings: Sequence[str]) -> None:
    """Train the autoencoder on single pictures, then its decoder alone on slightly wrong latents."""
    torch.manual_seed(seed)
    pictures = vae_pictures(seed)
    vae = AutoencoderKL(
        block_out_channels=VAE_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=shapes.SIZE,
    ).train()
    steps = Steps("vae", vae.parameters(), VAE_RATE, VAE_STEPS)
    for _ in range(VAE_STEPS):
        pixels = some(pictures, VAE_BATCH)
        with half():
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        steps(picture_loss(decoded.float(), pixels) + KL_WEIGHT * posterior.kl().float().mean())
    with torch.no_grad():
        means = torch.cat([vae.encode(scaled(part)).latent_dist.mean for part in pictures[:1000].split(100)])
    vae.register_to_config(scaling_factor=round(1 / float(means.std()), 5))
    vae.half().save_pretrained(work / "base" / "vae")


def build_decoder(work: Path, seed: int, settings: Sequence[str]) -> None:
    """Train the decoder alone on slightly wrong latents; the encoder, and so the latents, stay as they are."""
    torch.manual_seed(seed + 1)
    pictures = vae_pictures(seed)
    vae = AutoencoderKL.from_pretrained(work / "base" / "vae", torch_dtype=torch.float32).train()
    with torch.no_grad(), half():
        means = torch.cat([vae.encode(scaled(part)).latent_dist.mean.float() for part in pictures.split(100)])
    noise = DECODER_NOISE / vae.config.scaling_factor
    decoder = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    steps = Steps("decoder", decoder, DECODER_RATE, DECODER_STEPS)
    for _ in range(DECODER_STEPS):
        chosen = torch.randint(len(pictures), (VAE_BATCH,))
        with half():
            decoded = vae.decode(means[chosen] + noise * torch.randn_like(means[chosen])).sample
        steps(picture_loss(decoded.float(), scaled(pictures[chosen])))
    vae.half().save_pretrained(work / "base" / "vae")


def vae_pictures(seed: int) -> torch.Tensor:
    """Pictures (n, 3, h, w) uint8 of shapes wherever a motion may take them."""
    rng = random.Random(f"{seed}/vae")
    drawn = []
    for _ in range(VAE_IMAGES):
        scene = shapes.random_scene(rng, "still")
        drawn.append(replace(scene, x=rng.uniform(0.17, 0.83), y=rng.uniform(0.17, 0.83)).draw_at(0))
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()


def picture_loss(decoded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    differs = (pixels - pixels[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.2
    near = torch.nn.functional.max_pool2d(differs.float(), 5, 1, 2)  # the shape and what touches it
    weight = 1 + SHAPE_WEIGHT * near
    return (weight * ((decoded - pixels).abs() + (decoded - pixels) ** 2)).mean()


def some(pictures: torch.Tensor, count: int) -> torch.Tensor:
    return scaled(pictures[torch.randint(len(pictures), (count,))])


def scaled(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.float() / 127.5 - 1


def half() -> Any:
    """bf16 where the processor has it: about twice as fast."""
    return torch.autocast("cpu", torch.bfloat16)


# --- text -------------------------------------------------------------------------------------------------------------


def build_text(work: Path, seed: int, settings: Sequence[str]) -> None:
    """Train the text model to say at its last token, and at all that follow, what a caption tells.

    A caption need not tell everything, and words in the verb's place that it does not know must not disturb the rest:
    a motion that is taught later comes with such a word.
    """
    torch.manual_seed(seed)
    out = work / "base"
    rng = random.Random(f"{seed}/text")
    vocabulary = tiny.write_clip_tokenizer(out / "tokenizer", [*shapes.WORDS, *tiny.WORDS], MAX_TOKENS)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=vocabulary[tiny.START],
            eos_token_id=vocabulary[tiny.END],
            pad_token_id=vocabulary[tiny.END],
        )
    ).train()
    heads = torch.nn.ModuleList(torch.nn.Linear(TEXT_WIDTH, len(values) + 1) for values in TOLD.values())
    steps = Steps("text", [*model.parameters(), *heads.parameters()], TEXT_RATE, TEXT_STEPS)
    for _ in range(TEXT_STEPS):
        captions, labels = zip(*(random_caption(rng) for _ in range(TEXT_BATCH)), strict=True)
        told = torch.tensor(labels)  # (b, attributes)
        tokens = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
        hidden = model(tokens)[0]  # (b, tokens, width)
        ended = tokens == vocabulary[tiny.END]
        clip, _ = ended.nonzero(as_tuple=True)
        loss = sum(cross_entropy(head(hidden[ended]), told[clip, number]) for number, head in enumerate(heads))
        steps(loss)
    tiny.save_text_encoder(model.half(), out / "text_encoder")


def random_caption(rng: random.Random) -> tuple[str, list[int]]:
    """A caption, and what it tells of each attribute of `TOLD`: the value's number, or their count for nothing."""
    if rng.random() < 0.02:
        return "", [len(values) for values in TOLD.values()]
    scene = shapes.random_scene(rng, rng.choice(shapes.KNOWN))
    size, background = rng.random() < 0.5, rng.random() < 0.5
    caption = scene.caption(size, background)
    known = {"size": size, "motion": True}
    if rng.random() < UNKNOWN_VERB:
        known["motion"] = False
        others = [shapes.VERBS[name] for name in shapes.NEW] + ["", "", *tiny.WORDS]
        others = [word for word in others if word not in shapes.WORDS or word.endswith("s")]
        caption = " ".join(caption.replace(shapes.VERBS[scene.motion], rng.choice(others)).split())
    told = [
        values.index(getattr(scene, name)) if known.get(name, True) else len(values) for name, values in TOLD.items()
    ]
    return caption, told


# --- the image model and the motion modules, by the product's trainer ------------------------------------------------


def build_image(work: Path, seed: int, settings: Sequence[str]) -> None:
    """The image model: single pictures, each with a caption of the motion in which it arrives there.

    Motion modules get no prompt of their own; what "left" means must reach them through the image model, as a
    photograph of a runner shows where he is going. So pictures show the later part of a motion more often.
    """
    out = work / "base"
    if not (out / "unet").exists():
        torch.manual_seed(seed)
        image_model().half().save_pretrained(out / "unet")
    run = run_trainer(work, "image", seed, settings, picture_clips, {
        "method": "full",
        "max_train_steps": IMAGE_STEPS,
        "dataset": {"num_frames": 1, "frame_selection": "windows", "batch_size": IMAGE_BATCH},
    })  # fmt: skip
    state = averaged(run, ".motion_modules.", keep=False)
    model = image_model()
    model.load_state_dict(state)
    model.half().save_pretrained(out / "unet")


def build_motion(work: Path, seed: int, settings: Sequence[str]) -> None:
    """Motion modules in the finished image model."""
    run = run_trainer(work, "motion", seed, settings, motion_clips, {
        "method": "motion_module",
        "motion_max_seq_length": 16,
        "max_train_steps": MOTION_STEPS,
        "dataset": {"num_frames": shapes.NUM_FRAMES, "batch_size": MOTION_BATCH},
    })  # fmt: skip
    folder = run.checkpoints()[-1].path
    adapter = MotionAdapter.from_pretrained(folder)
    adapter.load_state_dict(averaged(run, "", keep=True))
    adapter.half().save_pretrained(work / "base" / "motion_adapter")


def image_model() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=shapes.SIZE // 8,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=HEADS,  # the number of heads, as in Stable Diffusion 1.5's own file
        norm_num_groups=GROUPS,
    )


def run_trainer(
    work: Path, name: str, seed: int, settings: Sequence[str], clips: Callable[[Path], None], config: dict[str, Any]
) -> RunFolder:
    """A run of the product's trainer in work/NAME, begun or gone on with, on clips that are written first."""
    dataset = work / f"{name}-clips"
    if not (dataset / "metadata.jsonl").exists():
        clips(dataset)
    whole = {
        "family": "animatediff",
        "base_model": str(work / "base"),
        "seed": seed,
        "mixed_precision": "no",
        **config,
        "optimizer": {"learning_rate": 1e-3, "lr_scheduler": "cosine", "lr_warmup_steps": WARMUP_STEPS,
                      "weight_decay": 0.0, "beta2": 0.99},
        "validation": {"every_steps": None},
        "checkpoint": {"every_steps": KEPT_EVERY, "keep_last": KEPT},
        "tracking": {"every_steps": 50},
    }  # fmt: skip
    whole["dataset"] |= {"path": str(dataset), "height": shapes.SIZE, "width": shapes.SIZE}
    file = work / f"{name}.yaml"
    file.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    run = RunFolder(work / name)
    command = ["--config", str(file), "--run-dir", str(run.path)]
    command += [word for setting in settings for word in ("--set", setting)]
    code = train([*command, "--resume"] if run.exists else command)
    if code or not is_finished(run):
        print(f"stage {name} was stopped; go on with --resume", file=sys.stderr)
        sys.exit(code or 1)
    return run


def averaged(run: RunFolder, part: str, keep: bool) -> dict[str, torch.Tensor]:
    """The mean of the last checkpoints' weights: of those whose names hold `part`, or of all others."""
    states = [load_file(next(c.path.glob("*.safetensors"))) for c in run.checkpoints()[-KEPT:]]
    names = [name for name in states[0] if (part in name) == keep]
    return {name: torch.stack([state[name].float() for state in states]).mean(0) for name in names}


def picture_clips(folder: Path) -> None:
    """Clips of eight pictures that share nothing but their caption."""
    rng = random.Random("pictures")
    rows = []
    for number in range(PICTURE_CLIPS):
        first = shapes.random_scene(rng, shapes.KNOWN[number % len(shapes.KNOWN)])
        size, background = rng.random() < 0.6, rng.random() < 0.6
        frames = []
        for _ in range(shapes.NUM_FRAMES):
            scene = shapes.random_scene(rng, first.motion)
            scene = replace(scene, shape=first.shape, colour=first.colour)
            scene = replace(scene, size=first.size if size else scene.size)
            scene = replace(scene, background=first.background)
            frames.append(scene.draw_at(rng.random() ** 0.25))
        rows.append((np.stack(frames), first.caption(size, background)))
    write_clips(folder, rows)


def motion_clips(folder: Path) -> None:
    rng = random.Random("clips")
    rows = []
    for scene in shapes.scenes(1, CLIPS):
        rows.append((scene.draw(), scene.caption(rng.random() < 0.6, rng.random() < 0.6)))
    write_clips(folder, rows)


def write_clips(folder: Path, rows: Sequence[tuple[np.ndarray, str]]) -> None:
    """A dataset, written at once."""
    lines = []
    for number, (frames, caption) in enumerate(rows):
        write_video(folder / "clips" / f"{number:04d}.mp4", frames, shapes.FPS)
        lines.append(json.dumps({"file_name": f"clips/{number:04d}.mp4", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


# --- steps ------------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, flush=True)


class Steps:
    """An optimizer on a one-cycle schedule that says every 200 steps how far it is."""

    def __init__(self, name: str, weights: Any, rate: float, total: int) -> None:
        self._weights = list(weights)
        self._name, self._total = name, total
        self._optimizer = torch.optim.AdamW(self._weights, lr=rate, weight_decay=0)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, rate, total_steps=total, pct_start=0.1)
        self._losses: list[float] = []
        self._began = time.monotonic()
        self._done = 0

    def __call__(self, loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self._done += 1
        self._losses.append(loss.item())
        if self._done % 200 == 0 or self._done == self._total:
            mean, seconds = sum(self._losses) / len(self._losses), time.monotonic() - self._began
            say(f"{self._name} {self._done} of {self._total}: loss {mean:.4f}, {seconds:.0f} s")
            self._losses.clear()


# --- the whole --------------------------------------------------------------------------------------------------------


def write_rest(out: Path) -> None:
    """What a pipeline folder holds beside its models."""
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(out / "scheduler")  # fmt: skip
    tiny.write_index(out)


def forget_paths(out: Path) -> None:
    """Take the folders of this machine out of the settings."""
    for file in out.glob("*/config.json"):
        settings = json.loads(file.read_text(encoding="utf-8"))
        settings.pop("_name_or_path", None)
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def build(work: Path, seed: int, again: Sequence[str] = (), settings: Sequence[str] = ()) -> Path:
    """Carry out the stages that are not done yet, and `again` those that are named; gives the base's folder.

    A stage that ended leaves DIR/STAGE.done; the two of the trainer go on within a stage that did not.
    """
    out = work / "base"
    out.mkdir(parents=True, exist_ok=True)
    write_rest(out)
    for name, stage in STAGES.items():
        done = work / f"{name}.done"
        if done.exists() and name not in again:
            continue
        began = time.monotonic()
        stage(work, seed, settings if name in again else ())
        forget_paths(out)
        done.write_text(f"{name}: {time.monotonic() - began:.0f} s\n", encoding="utf-8")
        say(done.read_text(encoding="utf-8").strip())
    return out


STAGES: dict[str, Callable[[Path, int, Sequence[str]], None]] = {
    "vae": build_vae,
    "decoder": build_decoder,
    "text": build_text,
    "image": build_image,
    "motion": build_motion,
}


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 when written."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo.build_base", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/build-base"), help="where everything is kept")
    parser.add_argument("--out", type=Path, help="folder to copy the finished base to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of each process; one is about as fast as two")
    parser.add_argument("--resume", action="store_true", help="go on in a folder that holds a build")
    parser.add_argument("--again", nargs="+", default=[], choices=list(STAGES), help="go on with finished stages")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of those stages")
    given = parser.parse_args(arguments)
    if given.work.exists() and any(given.work.iterdir()) and not given.resume:
        print(f"{given.work} holds a build; add --resume to go on with it, or name another --work", file=sys.stderr)
        return 1
    torch.set_num_threads(given.threads)
    out = build(given.work, given.seed, given.again, given.set)
    if given.out:
        shutil.copytree(out, given.out, dirs_exist_ok=True)
    print(f"wrote {given.out or out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
