"""How well a model draws what it is asked for: python -m examples.demo.score [--model DIR] [--checkpoint DIR ...].

Samples a clip for every shape, colour and motion at every seed through the product's own sampler, and reads from the
pixels alone which shape, which colour and which motion it shows. The last line holds the totals over the motions that
the base was trained on; the exit code is 1 where the base's are below the figures of its model card.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from examples.demo import shapes
from trainers.families import get_family
from trainers.families.base import ModelError, SampleRequest, VideoModel
from trainers.sample import sample_clip
from trainers.shape_tracking import track

BASE = Path("examples/demo/base")
STEPS, GUIDANCE = 16, 3.0
MEASURES = ("shape", "colour", "direction", "path")


@dataclass(frozen=True)
class Asked:
    """One clip: what its prompt asks for."""

    shape: str
    colour: str
    motion: str
    seed: int

    @property
    def prompt(self) -> str:
        return f"a {self.colour} {self.shape} {shapes.VERBS[self.motion]}"


@dataclass(frozen=True)
class Shown:
    """What a clip shows. direction and path: None where neither is anything known."""

    shape: str | None
    colour: str | None
    direction: str | None
    path: str | None

    def right(self, asked: Asked) -> dict[str, bool]:
        """Which measures are as asked; direction for the known motions, path for the new ones."""
        found = {"shape": self.shape == asked.shape, "colour": self.colour == asked.colour}
        if asked.motion in shapes.KNOWN:
            return found | {"direction": self.direction == asked.motion}
        return found | {"path": self.path == asked.motion}


def seen(clip: np.ndarray) -> Shown:
    """What a clip (f, h, w, 3) uint8 shows."""
    found = track(clip)
    return Shown(found.shape, found.named_colour(shapes.COLOURS), found.direction, found.path)


def questions(seeds: Sequence[int], motions: Sequence[str]) -> list[Asked]:
    """Every shape, colour and motion at every seed; no two clips begin from the same noise."""
    all_of_them = [(s, c, m) for m in motions for s in shapes.SHAPES for c in shapes.COLOURS]
    return [Asked(*what, 1000 * seed + n) for seed in seeds for n, what in enumerate(all_of_them)]


def request(prompt: str) -> SampleRequest:
    return SampleRequest(
        prompt=prompt,
        negative_prompt="",
        height=shapes.SIZE,
        width=shapes.SIZE,
        num_frames=shapes.NUM_FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
    )


@lru_cache(maxsize=1)
def load(model: Path, checkpoint: Path | None) -> VideoModel:
    """A base, with the weights of a checkpoint where there is one. ModelError says what is wrong with them."""
    family = get_family("animatediff")
    config = family.sample_config(
        base_model=str(model), motion_adapter=str(model / "motion_adapter"), prompts=["a"], mixed_precision="no"
    )
    loaded = family.load(config, "sample")
    loaded.load([(checkpoint, 1.0)] if checkpoint else [])
    return loaded


def ask(model: Path, checkpoint: Path | None, asked: Asked) -> Shown:
    return seen(sample_clip(load(model, checkpoint), request(asked.prompt), asked.seed))


def single_threaded() -> None:
    """One thread in each process: the model is too small to gain from more."""
    import torch

    from trainers.terminal import hush_libraries

    torch.set_num_threads(1)
    hush_libraries()


def table(results: Sequence[tuple[Asked, Shown]]) -> Iterator[str]:
    """Lines: each shape, colour and motion with the share of its clips that are right, then the totals."""
    yield f"{'':10}{'clips':>7}" + "".join(f"{name:>11}" for name in MEASURES)
    motions = dict.fromkeys(asked.motion for asked, _ in results)
    for kind, values in (("shape", shapes.SHAPES), ("colour", shapes.COLOURS), ("motion", motions)):
        for value in values:
            rows = [(a, s) for a, s in results if getattr(a, kind) == value]
            if kind != "motion":  # a new motion is counted in its own row alone
                rows = [(a, s) for a, s in rows if a.motion in shapes.KNOWN]
            if not rows:
                continue
            found = shares(rows)
            cells = "".join(f"{found[name]:>11.2f}" if name in found else f"{'-':>11}" for name in MEASURES)
            yield f"{value:10}{len(rows):>7}{cells}"
    found = shares([(a, s) for a, s in results if a.motion in shapes.KNOWN])
    if found:
        yield "totals " + " ".join(f"{name}={value:.2f}" for name, value in found.items())


def shares(results: Sequence[tuple[Asked, Shown]]) -> dict[str, float]:
    """measure -> share of the clips that are right."""
    marks: dict[str, list[bool]] = {}
    for asked, shown in results:
        for name, right in shown.right(asked).items():
            marks.setdefault(name, []).append(right)
    return {name: sum(found) / len(found) for name, found in marks.items()}


def promised(model: Path) -> dict[str, float]:
    """The figures of the model card: its line "at least shape=0.90 colour=0.90 direction=0.85"; none without one."""
    card = model / "README.md"
    line = re.search(r"at least ((?:\w+=[\d.]+ ?)+)", card.read_text(encoding="utf-8")) if card.is_file() else None
    return {name: float(value) for name, value in re.findall(r"(\w+)=(\d+\.\d+)", line[1])} if line else {}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the base is as good as its card says, 1 when not, or when something cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo.score", description=__doc__)
    parser.add_argument("--model", type=Path, default=BASE, help="a base; default examples/demo/base")
    parser.add_argument("--checkpoint", type=Path, nargs="*", default=[], help="takes to score after the base")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--motions", nargs="+", choices=list(shapes.VERBS), default=[*shapes.KNOWN, "orbit"])
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--no-base", action="store_true", help="score the checkpoints alone")
    given = parser.parse_args(arguments)
    asked = questions(given.seeds, given.motions)
    below = False
    for checkpoint in [*([] if given.no_base else [None]), *given.checkpoint]:
        began = time.monotonic()
        try:
            with ProcessPoolExecutor(given.workers, initializer=single_threaded) as pool:
                shown = list(pool.map(partial(ask, given.model, checkpoint), asked, chunksize=4))
        except ModelError as error:
            print(error, file=sys.stderr)
            return 1
        print(f"{checkpoint or given.model}: {len(asked)} clips in {time.monotonic() - began:.0f} s")
        results = list(zip(asked, shown, strict=True))
        lines = list(table(results))
        print("\n".join(lines), flush=True)
        if checkpoint is None:
            found = shares([(a, s) for a, s in results if a.motion in shapes.KNOWN])
            below = any(found.get(name, 1.0) < least for name, least in promised(given.model).items())
    return int(below)


if __name__ == "__main__":
    sys.exit(main())
