"""Captioned clips of one moving shape, with exact ground truth: what the demo's base learns from, and is measured by.

Everything is drawn from a `Scene`, and a scene from a seeded random generator: the same seed gives the same frames.
The base sees the motions of `KNOWN`; those of `NEW` are kept from it, so that fine-tuning has something to teach.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from trainers.data.clips import Dataset, DatasetError
from trainers.data.video import write_video

SIZE, NUM_FRAMES, FPS = 64, 8, 8
FINE = 4  # drawn this many times larger, then shrunk, for smooth edges

SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (222, 40, 38),
    "yellow": (244, 212, 44),
    "green": (44, 160, 62),
    "cyan": (50, 200, 216),
    "blue": (44, 76, 222),
    "pink": (236, 76, 190),
}
SIZES = {"small": 0.14, "big": 0.19}  # radius, as a share of the frame's side
BACKGROUNDS = {"day": (222, 222, 214), "night": (34, 36, 46)}
DEFAULT_BACKGROUND = "day"
VERBS = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "still": "stays still",
    "orbit": "orbits",
    "bounce": "bounces",
    "zigzag": "zigzags",
}
KNOWN = ("left", "right", "up", "down", "still")
NEW = ("orbit", "bounce", "zigzag")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # of x and y; y grows downwards

#: Every word of every caption; each is one token of the base's tokenizer.
WORDS = ("a", "by", *SIZES, *COLOURS, *SHAPES, *BACKGROUNDS, *dict.fromkeys(" ".join(VERBS.values()).split()))


@dataclass(frozen=True)
class Scene:
    """One clip. Places are shares of the frame's side, from the upper left corner.

    `travel`: how far it gets in all (left, right, up, down), or the radius of the orbit, the height of the bounce, the
    width of the zigzag. `x` and `y` are the middle of the path.
    """

    shape: str
    colour: str
    size: str
    background: str
    motion: str
    x: float
    y: float
    travel: float

    def place(self, time: float) -> tuple[float, float]:
        """The centre of the shape at a time from 0 (first frame) to 1 (last frame)."""
        x, y, travel = self.x, self.y, self.travel
        if self.motion in DIRECTIONS:
            along_x, along_y = DIRECTIONS[self.motion]
            return x + along_x * travel * (time - 0.5), y + along_y * travel * (time - 0.5)
        if self.motion == "orbit":  # once round, clockwise, from the top; the last frame is one step before the first
            angle = 2 * math.pi * time * (NUM_FRAMES - 1) / NUM_FRAMES
            return x + travel * math.sin(angle), y - travel * math.cos(angle)
        if self.motion == "bounce":  # two hops from the floor
            return x, y + travel / 2 - travel * abs(math.sin(2 * math.pi * time))
        if self.motion == "zigzag":  # to the right, four strokes up and down
            stroke = abs((4 * time) % 2 - 1)  # 1, 0, 1, 0, 1
            return x + 0.5 * (time - 0.5), y + travel * (stroke - 0.5)
        return x, y

    def path(self, num_frames: int = NUM_FRAMES) -> np.ndarray:
        """The centre of the shape in every frame, in pixels: (f, 2), x and y."""
        times = [number / max(1, num_frames - 1) for number in range(num_frames)]
        return np.array([self.place(time) for time in times]) * SIZE

    def draw(self, num_frames: int = NUM_FRAMES) -> np.ndarray:
        """The frames, (f, h, w, 3) uint8."""
        return np.stack([self.draw_at(number / max(1, num_frames - 1)) for number in range(num_frames)])

    def draw_at(self, time: float) -> np.ndarray:
        """One frame, (h, w, 3) uint8."""
        side = SIZE * FINE
        image = Image.new("RGB", (side, side), BACKGROUNDS[self.background])
        x, y = self.place(time)
        corners = [((x + dx) * side, (y + dy) * side) for dx, dy in outline(self.shape, SIZES[self.size])]
        ImageDraw.Draw(image).polygon(corners, fill=COLOURS[self.colour])
        return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))

    def caption(self, size: bool = True, background: bool = True) -> str:
        """The sentence for it, such as "a small red circle moves left by night".

        It is day unless the sentence says night: a frame that had to guess would now and then guess otherwise than the
        one before. So night is said even where `background` is False.
        """
        words = ["a", self.size if size else "", self.colour, self.shape, VERBS[self.motion]]
        words.append(f"by {self.background}" if background or self.background != DEFAULT_BACKGROUND else "")
        return " ".join(filter(None, words))


def outline(shape: str, radius: float) -> Sequence[tuple[float, float]]:
    """The corners of a shape around its centre of mass; the three shapes of one radius are about equally large."""
    if shape == "square":
        half = 0.86 * radius
        return [(-half, -half), (half, -half), (half, half), (-half, half)]
    count, reach = (3, 1.3 * radius) if shape == "triangle" else (48, radius)
    angles = [2 * math.pi * number / count for number in range(count)]
    return [(reach * math.sin(angle), -reach * math.cos(angle)) for angle in angles]


def random_scene(rng: random.Random, motion: str) -> Scene:
    """A scene of that motion with everything else drawn at random."""
    chosen = {"shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES), "background": tuple(BACKGROUNDS)}
    facts = {name: rng.choice(values) for name, values in chosen.items()}

    def around(middle: float, spread: float) -> float:
        return middle + rng.uniform(-spread, spread)

    if motion in DIRECTIONS:
        along, across, travel = around(0.5, 0.03), around(0.5, 0.22), around(0.52, 0.04)
        x, y = (along, across) if motion in ("left", "right") else (across, along)
    elif motion == "still":
        x, y, travel = around(0.5, 0.26), around(0.5, 0.26), 0.0
    elif motion == "orbit":
        x, y, travel = around(0.5, 0.03), around(0.5, 0.03), around(0.25, 0.02)
    elif motion == "bounce":
        x, y, travel = around(0.5, 0.22), around(0.5, 0.03), around(0.5, 0.03)
    else:
        x, y, travel = around(0.5, 0.02), around(0.5, 0.08), around(0.36, 0.03)
    return Scene(**facts, motion=motion, x=x, y=y, travel=travel)


def scenes(seed: int, count: int, motions: Sequence[str] = KNOWN) -> list[Scene]:
    """So many random scenes, the motions in turn."""
    rng = random.Random(seed)
    return [random_scene(rng, motions[number % len(motions)]) for number in range(count)]


def write(out: Path, chosen: Sequence[Scene], captions: Sequence[str], num_frames: int = NUM_FRAMES) -> None:
    """Make a dataset of these scenes in the folder `out`, which must not hold one yet (DatasetError).

    More frames are more of the same movement: a clip lasts as long.
    """
    import tempfile

    dataset = Dataset.create(out)
    with tempfile.TemporaryDirectory() as folder:
        for number, (scene, caption) in enumerate(zip(chosen, captions, strict=True)):
            file = Path(folder) / f"{number:02d}-{scene.colour}-{scene.shape}-{scene.motion}.mp4"
            write_video(file, scene.draw(num_frames), FPS * num_frames / NUM_FRAMES)
            dataset.add(file, caption)


def orbit_scenes() -> list[Scene]:
    """The twelve clips of the demo: every shape and every colour, each on a size and a ground drawn at random."""
    rng = random.Random("orbit")
    colours = [*COLOURS] * 2
    chosen = []
    for number, colour in enumerate(colours):
        shape = SHAPES[(number + number // len(COLOURS)) % len(SHAPES)]
        chosen.append(replace(random_scene(rng, "orbit"), shape=shape, colour=colour))
    return chosen


def write_demo(out: Path) -> None:
    """The demo's dataset: the twelve orbits, twice as many frames as the base draws at once."""
    chosen = orbit_scenes()
    write(out, chosen, [scene.caption(False, False) for scene in chosen], 2 * NUM_FRAMES)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when written, 1 when OUT already holds a dataset."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo.shapes", description="Write the demo's dataset.")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the new dataset")
    out = parser.parse_args(arguments).out
    try:
        write_demo(out)
    except DatasetError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {len(orbit_scenes())} clips to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
