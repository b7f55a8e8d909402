"""Clips for the tests: one moving shape each, 64 x 64, 8 frames per second. The same code draws the same frames."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from trainers.data.clips import Dataset
from trainers.data.video import write_video

SIZE, NUM_FRAMES, FPS = 64, 16, 8
FINE = 4  # drawn this many times larger, then shrunk, for smooth edges

COLOURS = {
    "red": (214, 69, 58),
    "blue": (64, 110, 205),
    "green": (74, 160, 92),
    "yellow": (236, 190, 64),
    "orange": (232, 134, 52),
    "purple": (136, 88, 180),
    "pink": (232, 138, 168),
    "white": (240, 238, 232),
    "black": (34, 32, 36),
}
DAY = ((196, 204, 206), (156, 164, 160))  # top and bottom of the background
NIGHT = ((44, 50, 72), (72, 74, 92))


@dataclass(frozen=True)
class Pose:
    """Where the shape is: centre and radius as shares of the frame's side, angle in radians."""

    x: float = 0.5
    y: float = 0.5
    radius: float = 0.2
    angle: float = 0.0


@dataclass(frozen=True)
class Scene:
    """One clip: `pose` takes the time from 0 (first frame) to 1 (last frame)."""

    name: str
    text: str
    corners: int | None  # of the shape; None is a disc, 5 a star
    colour: str
    background: tuple[tuple[int, int, int], tuple[int, int, int]]
    pose: Callable[[float], Pose]


TURN = 2 * math.pi
SCENES = [
    Scene("ball-bounces", "a red ball bounces up and down", None, "red", DAY,
          lambda t: Pose(y=0.76 - 0.48 * abs(math.sin(TURN * t)))),
    Scene("square-slides-right", "a blue square slides to the right", 4, "blue", DAY,
          lambda t: Pose(x=0.2 + 0.6 * t, angle=TURN / 8)),
    Scene("triangle-spins", "a green triangle spins", 3, "green", DAY,
          lambda t: Pose(radius=0.3, angle=TURN * t / 3 * 2)),
    Scene("star-grows", "a yellow star grows in the night", 5, "yellow", NIGHT,
          lambda t: Pose(radius=0.1 + 0.3 * t)),
    Scene("circle-shrinks", "a white circle shrinks in the night", None, "white", NIGHT,
          lambda t: Pose(radius=0.38 - 0.28 * t)),
    Scene("ball-rolls-left", "an orange ball rolls to the left", None, "orange", DAY,
          lambda t: Pose(x=0.8 - 0.6 * t, y=0.7)),
    Scene("square-falls", "a purple square falls down", 4, "purple", DAY,
          lambda t: Pose(y=0.2 + 0.6 * t * t, angle=TURN / 8)),
    Scene("triangle-rises", "a pink triangle rises", 3, "pink", NIGHT,
          lambda t: Pose(y=0.78 - 0.55 * t)),
    Scene("square-turns", "a black square turns round", 4, "black", DAY,
          lambda t: Pose(radius=0.3, angle=TURN * t / 4)),
    Scene("sun-rises", "a yellow sun rises from the sea", None, "yellow", NIGHT,
          lambda t: Pose(y=0.85 - 0.5 * t, radius=0.24)),
    Scene("star-swings", "a red star swings left and right", 5, "red", NIGHT,
          lambda t: Pose(x=0.5 + 0.28 * math.sin(TURN * t), radius=0.22, angle=0.5 * math.sin(TURN * t))),
    Scene("ball-circles", "a blue ball moves in a circle", None, "blue", DAY,
          lambda t: Pose(x=0.5 + 0.26 * math.cos(TURN * t), y=0.5 + 0.26 * math.sin(TURN * t), radius=0.15)),
]  # fmt: skip


def write(out: Path, clips: int = len(SCENES), num_frames: int = NUM_FRAMES) -> None:
    """Make a dataset of the first `clips` scenes in the folder `out`, which must not hold one yet."""
    dataset = Dataset.create(out)
    with tempfile.TemporaryDirectory() as folder:
        for scene in SCENES[:clips]:
            file = Path(folder) / f"{scene.name}.mp4"
            write_video(file, draw(scene, num_frames), FPS)
            dataset.add(file, scene.text)


def draw(scene: Scene, num_frames: int) -> np.ndarray:
    """The frames of a scene, (f, h, w, 3) uint8."""
    return np.stack([draw_frame(scene, number / max(1, num_frames - 1)) for number in range(num_frames)])


def draw_frame(scene: Scene, time: float) -> np.ndarray:
    side = SIZE * FINE
    top, bottom = (np.array(colour, dtype=np.float64) for colour in scene.background)
    share = np.linspace(0, 1, side)[:, None, None]
    image = Image.fromarray(np.broadcast_to(top + (bottom - top) * share, (side, side, 3)).round().astype(np.uint8))
    pose = scene.pose(time)
    outline = [(x * side, y * side) for x, y in shape(scene.corners, pose)]
    ImageDraw.Draw(image).polygon(outline, fill=COLOURS[scene.colour])
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def shape(corners: int | None, pose: Pose) -> Sequence[tuple[float, float]]:
    """The outline of a shape, its first corner at the top."""
    count = 64 if corners is None else 10 if corners == 5 else corners
    points = []
    for number in range(count):
        radius = pose.radius * (0.45 if corners == 5 and number % 2 else 1)
        angle = pose.angle + TURN * number / count
        points.append((pose.x + radius * math.sin(angle), pose.y - radius * math.cos(angle)))
    return points
