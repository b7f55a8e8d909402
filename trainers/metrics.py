"""How much motion and how much style a clip has moved, from pixels alone: no model is asked, nothing is downloaded.

Clips are (f, h, w, 3) uint8. What is measured of one is a `Portrait`; numbers compare two portraits of clips that were
drawn with the same prompt and the same seed. One frame has no motion: what depends on it is None then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from trainers.data.video import VideoError, probe, read_frames, read_metadata
from trainers.errors import why
from trainers.events import EventLog

#: Training clips that a run's new motion is measured against; they are spread over the data set.
TRAINING_CLIPS = 8

#: Long side in pixels at which movement and colours are measured, and at which texture is.
_SMALL, _FINE = 128, 256
#: Pairs of neighbouring frames, spread over a clip, whose movement is measured. Longer clips cost no more.
_PAIRS = 16
#: Directions into which movements are projected: v and -v tell the same, so half a circle of them.
_ANGLES = np.arange(8) * np.pi / 8
_QUANTILES = 256
#: Mean movement, as a share of the diagonal, under which a clip counts as still: a tenth of a pixel at 128 x 128.
_STILL = 0.1 / (_SMALL * 2**0.5)
#: Energy of the brightness gradient, in a clip whose brightness has a spread of 1, under which there is nothing to see
#: a movement by. Grain of 5 grey levels lies below it.
_FLAT = 0.008
#: Units of CIE Lab at which the colours have drifted half way, and the mean gradient under which a picture counts as
#: smooth; a gradient of 1 is black to white from one pixel to the next.
_HALF_WAY, _SMOOTH = 25.0, 2 / 255

_NO_MANNERS = np.zeros((0, 3 * len(_ANGLES), _QUANTILES), np.float32)

#: What can fail while a clip is measured: its file, a library that is not there, memory, pictures too small for a flow.
_CAN_FAIL = (VideoError, OSError, ImportError, ValueError, KeyError, MemoryError, BadZipFile)


@dataclass(frozen=True)
class Portrait:
    """What is measured of one clip.

    flow: (p, 2, h, w) movement down and to the right between neighbouring frames, as a share of the frame's diagonal; 0
    where there is nothing to see it by. manner: (24, 256) how things move, not where: see `manner_of`. colours:
    (3, 256) quantiles of L, a and b. texture: (256,) quantiles of the brightness gradient's length.
    """

    flow: np.ndarray | None
    manner: np.ndarray | None
    colours: np.ndarray
    texture: np.ndarray


def portrait(frames: np.ndarray) -> Portrait:
    """Measure a clip, (f, h, w, 3) uint8."""
    from skimage.color import rgb2lab

    small = _shrunk(frames, _SMALL)
    flow, manner = None, None
    if len(frames) > 1:
        pairs = _pairs(len(frames))
        flow = movement(small, pairs)
        manner = manner_of(flow, pairs)
    fine = _shrunk(frames[spread(len(frames), _PAIRS)], _FINE)
    gradient = np.hypot(*np.gradient(_brightness(fine), axis=(1, 2)))
    lab = rgb2lab(small[spread(len(small), _PAIRS)].astype(np.float32) / 255)
    return Portrait(flow, manner, _quantiles(lab.reshape(-1, 3).T), _quantiles(gradient.reshape(1, -1))[0])


# --- motion -----------------------------------------------------------------------------------------------------------


def movement(frames: np.ndarray, pairs: Sequence[int]) -> np.ndarray:
    """(p, 2, h, w): optical flow (down, right) from each frame of `pairs` to the next one, as a share of the diagonal.

    TV-L1 (Zach, Pock and Bischof 2007) on brightness brought to one spread over the clip, so that contrast does not
    count. It lets a moving thing's flow run out over a flat ground; there, where the gradient's energy e is small,
    flow is faded by e^2 / (e^2 + flat^2).
    """
    from skimage.filters import gaussian
    from skimage.registration import optical_flow_tvl1

    light = _brightness(frames)
    light = gaussian((light - light.mean()) / max(float(light.std()), 0.04), sigma=(0, 1, 1))
    down, right = np.gradient(light, axis=(1, 2))
    energy = gaussian(down**2 + right**2, sigma=(0, 2, 2))
    seen = energy**2 / (energy**2 + _FLAT**2)
    found = [optical_flow_tvl1(light[k], light[k + 1], attachment=2, num_warp=3, num_iter=8) * seen[k] for k in pairs]
    flow: np.ndarray = np.stack(found) / np.float32(np.hypot(*frames.shape[1:3]))
    return flow


def manner_of(flow: np.ndarray, pairs: Sequence[int]) -> np.ndarray:
    """(24, 256): quantiles over all pixels and times of three things in each of 8 directions: velocity; its change
    along the way from one frame to the next; and the whole picture's expansion and rotation.

    Velocity alone would not tell a zoom from its reverse, nor a steady movement from flicker.
    """
    following = [k for k in range(len(pairs) - 1) if pairs[k + 1] == pairs[k] + 1]
    changes = [_carried(flow[k + 1], flow[k]) - flow[k] for k in following]
    parts = flow, np.stack(changes) if changes else np.zeros_like(flow[:1]), _swelling(flow)
    return np.concatenate([_directions(part) for part in parts])


def _carried(values: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Values (2, h, w) at the places to which each pixel moves."""
    from skimage.transform import warp

    _, height, width = flow.shape
    places = np.mgrid[:height, :width] + flow * np.hypot(height, width)
    return np.stack([warp(value, places, mode="edge") for value in values])


def _swelling(flow: np.ndarray) -> np.ndarray:
    """(p, 2, 1, 1): expansion and clockwise rotation of the whole picture, as speeds at its corner.

    The least squares fit about its centre, times the share of the flow (without its mean) that the fit explains: a
    thing that moves on a still ground does not turn the picture.
    """
    _, _, height, width = flow.shape
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    size = float((y**2 + x**2).sum())
    down, right = flow[:, 0], flow[:, 1]
    fit = np.stack([(down * y + right * x).sum((1, 2)), (down * x - right * y).sum((1, 2))], axis=1) / size  # (p, 2)
    energy = ((flow - flow.mean(axis=(2, 3), keepdims=True)) ** 2).sum(axis=(1, 2, 3))
    share = (fit**2).sum(axis=1) * size / np.maximum(energy, 1e-12)
    at_corner: np.ndarray = fit * share[:, None] * np.hypot(height, width) / 2
    return at_corner[:, :, None, None]


def _directions(vectors: np.ndarray) -> np.ndarray:
    """(8, 256): quantiles of vectors (p, 2, h, w) projected into each direction."""
    down, right = vectors[:, 0].ravel(), vectors[:, 1].ravel()
    return _quantiles(np.stack([np.sin(angle) * down + np.cos(angle) * right for angle in _ANGLES]))


def motion(clip: Portrait) -> float | None:
    """How far a pixel moves from frame to frame on average, as a share of the diagonal. 0: still."""
    return None if clip.flow is None else _length(clip.flow)


def motion_change(take: Portrait, base: Portrait) -> float | None:
    """How much of the movement is not the base's. 0: each pixel moves as in the base. 1: nothing in common, as where
    only one of the two moves, or all goes the other way.

    The mean end-point difference of the two flows over the sum of their mean lengths. None where the clips' sizes
    differ as well.
    """
    if take.flow is None or base.flow is None or take.flow.shape != base.flow.shape:
        return None
    between = _length(take.flow - base.flow)
    return between / max(_length(take.flow) + _length(base.flow), _STILL)


def motion_likeness(manner: np.ndarray | None, clips: np.ndarray) -> float | None:
    """How much a clip moves like one of `clips`, (n, 24, 256), wherever in the picture. 1: just like one of them. 0:
    nothing in common with any, as a still clip has with moving ones.

    One minus the sliced Wasserstein distance between their manners (see `manner_of`) over the sum of both from
    stillness; of the nearest clip.
    """
    if manner is None or not len(clips):
        return None
    size = float(np.abs(manner).mean())
    # A steady movement has no change and turns nothing: of the three parts of its manner only one is there, projected.
    sizes = np.maximum(size + np.abs(clips).mean(axis=(1, 2)), _STILL / 4)
    return 1.0 - float((np.abs(clips - manner).mean(axis=(1, 2)) / sizes).min())


def _length(flow: np.ndarray) -> float:
    return float(np.hypot(flow[:, 0], flow[:, 1]).mean())


def _pairs(num_frames: int) -> list[int]:
    """First frames of the pairs whose movement is measured: all, or twos of neighbours spread over the clip."""
    count = num_frames - 1
    if count <= _PAIRS:
        return list(range(count))
    return [first + k for first in spread(count - 1, _PAIRS // 2) for k in (0, 1)]


# --- style ------------------------------------------------------------------------------------------------------------


def style_change(take: Portrait, base: Portrait) -> float:
    """How far the look is from the base's, wherever things are: the larger of colour_change and texture_change."""
    return max(colour_change(take, base), texture_change(take, base))


def colour_change(take: Portrait, base: Portrait) -> float:
    """0: the same colours in the same shares. 0.5: they lie 25 units of CIE Lab apart, as grey from a plain tint. 1 is
    never reached.

    d / (d + 25), where d joins the Wasserstein distances of L, a and b as lengths.
    """
    apart = float(np.hypot.reduce(np.abs(take.colours - base.colours).mean(axis=1)))
    return apart / (apart + _HALF_WAY)


def texture_change(take: Portrait, base: Portrait) -> float:
    """0: as rough as the base in the same shares. 1/3: twice or half as rough everywhere. 1: one is smooth, the other
    is not.

    The Wasserstein distance of the brightness gradient's lengths over the sum of their means.
    """
    between = float(np.abs(take.texture - base.texture).mean())
    return between / (float(take.texture.mean() + base.texture.mean()) + _SMOOTH)


# --- of a run's clips -------------------------------------------------------------------------------------------------


class Measures:
    """Measures a run's clips as they are drawn and writes a `measure` event for each.

    No run ends by it: what a file or a library lacks gives a message, each one once.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._bases: dict[Path, Portrait] = {}
        self._told: set[str] = set()

    def keep_training_motion(self, clips: Iterable[tuple[str, np.ndarray]], file: Path) -> None:
        """Measure how training clips (caption, frames) move, into a file that `write` reads, in this run or in a
        comparison."""
        try:
            found = [(text, manner) for text, frames in clips if (manner := portrait(frames).manner) is not None]
            manners = np.stack([manner for _, manner in found]) if found else _NO_MANNERS
            beside = file.with_name(f".{file.name}")
            with beside.open("wb") as writing:
                np.savez(writing, texts=np.array([text for text, _ in found], dtype=np.str_), manners=manners)
            beside.replace(file)
        except _CAN_FAIL as error:
            self._tell(f"the motion of the training clips could not be measured: {why(error)}")

    def write(self, file: Path, base: Path | None, training: Path | None, **event: Any) -> None:
        """Measure one clip against the base's, where there is one that was asked for alike, and against what
        `keep_training_motion` left."""
        try:
            take = portrait(_all_frames(file))
            before = take if base == file else self._base(base, file)
            found = measured(take, before, _kept(training, event["prompt"]))
        except _CAN_FAIL as error:
            self._tell(f"{file.parent.name}/{file.name} could not be measured: {why(error)}")
            return
        if base == file:
            self._bases[file] = take
        self._log.write("measure", **event, **found)

    def _base(self, base: Path | None, file: Path) -> Portrait | None:
        if base is None or not base.exists() or not _asked_alike(base, file):
            return None
        if base not in self._bases:
            self._bases[base] = portrait(_all_frames(base))
        return self._bases[base]

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._log.write("message", level="warning", text=text)


def measured(take: Portrait, base: Portrait | None, manners: np.ndarray) -> dict[str, float | None]:
    """The numbers of a `measure` event. None: not to be known, for want of a base, of motion or of training clips."""
    return {
        "motion": motion(take),
        "motion_change": motion_change(take, base) if base else None,
        "new_motion": motion_likeness(take.manner, manners),
        "style": style_change(take, base) if base else None,
    }


def _all_frames(file: Path) -> np.ndarray:
    return read_frames(file, range(probe(file).num_frames))


def _asked_alike(one: Path, other: Path) -> bool:
    """Whether two clips say that they were drawn with the same prompt, image, seed, size and settings."""
    mine, yours = read_metadata(one), read_metadata(other)
    facts = (mine.keys() & yours.keys()) - {"take", "strength"}
    return mine.get("image") == yours.get("image") and all(mine[key] == yours[key] for key in facts)


def _kept(training: Path | None, prompt: str) -> np.ndarray:
    """(n, 24, 256): the manners of the training clips that have the prompt as their caption, of all if none has; n = 0
    where nothing was kept."""
    if training is None or not training.exists():
        return _NO_MANNERS
    with np.load(training, allow_pickle=False) as kept:
        manners: np.ndarray = kept["manners"]
        same = kept["texts"] == prompt
    return manners[same] if same.any() else manners


# --- pixels -----------------------------------------------------------------------------------------------------------


def _shrunk(frames: np.ndarray, side: int) -> np.ndarray:
    """The clip with its long side at most `side`; each pixel is the mean of what it covers."""
    height, width = frames.shape[1:3]
    scale = side / max(height, width)
    if scale >= 1:
        return frames
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames])


def _brightness(frames: np.ndarray) -> np.ndarray:
    """(f, h, w) float32, luma (BT.601) from 0 to 1."""
    return frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count` at even distances, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / max(1, most - 1)) for index in range(most)]


def _quantiles(values: np.ndarray) -> np.ndarray:
    """(k, n) -> (k, 256): the middles of 256 equal shares. Their mean difference is a Wasserstein distance."""
    ordered = np.sort(values.astype(np.float32), axis=1)
    at = ((np.arange(_QUANTILES) + 0.5) / _QUANTILES * ordered.shape[1]).astype(int)
    return ordered[:, at]
