"""What a clip of one moving shape shows, from its pixels alone: which shape, which colour, where it goes. No torch.

Clips are (f, h, w, 3) uint8: one flat shape on a plain ground. A shape is told apart by its outline (templates of the
same area), a colour by the nearest of a palette, a direction by how far the centre gets, a path by fits to its curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Palette = Mapping[str, tuple[int, int, int]]

LEAST_CONTRAST = 40  # of 255, in the channel that differs most: below it there is no shape
LEAST_AREA = 0.008  # of the frame
MOVED = 0.15  # of the frame's side: a centre that stays within has not moved
EXPLAINED = 0.85  # share of a path's variance that its curve must account for
FINE = 4  # templates are drawn this many times finer, then averaged


@dataclass(frozen=True)
class Track:
    """A shape in the frames where it was found. Lengths are in pixels, x to the right and y down.

    centres: (f, 2), NaN in frames without a shape. colour: the mean of its inside. fit: shape -> how well the outline
    fits, intersection over union from 0 to 1, mean over frames. found: share of the frames with a shape.
    """

    centres: np.ndarray
    areas: np.ndarray
    colour: tuple[float, float, float]
    fit: dict[str, float]
    found: float
    side: int

    @property
    def shape(self) -> str | None:
        """circle, square or triangle; None where nothing was found in half of the frames."""
        return max(self.fit, key=lambda name: self.fit[name]) if self.found >= 0.5 else None

    def named_colour(self, palette: Palette) -> str | None:
        """The nearest colour of a palette."""
        if self.found < 0.5:
            return None
        return min(palette, key=lambda name: float(np.sum((np.array(palette[name]) - np.array(self.colour)) ** 2)))

    @property
    def direction(self) -> str | None:
        """left, right, up or down by the net displacement, still where the centre stays, None for anything else."""
        path = self.filled()
        if path is None:
            return None
        ends = max(1, len(path) // 4)
        x, y = (path[-ends:].mean(axis=0) - path[:ends].mean(axis=0)) / self.side
        if max(abs(x), abs(y)) < MOVED:
            return "still" if np.ptp(path, axis=0).max() / self.side < 1.5 * MOVED else None
        if abs(x) >= abs(y):
            return "right" if x > 0 else "left"
        return "down" if y > 0 else "up"

    @property
    def path(self) -> str | None:
        """still, line, orbit, bounce or zigzag: the curve that the centre follows; None for any other."""
        path = self.filled()
        if path is None or len(path) < 4:
            return None
        path = path / self.side
        extent = np.ptp(path, axis=0)
        if extent.max() < MOVED:
            return "still"
        if orbits(path):
            return "orbit"
        time = np.linspace(0, 1, len(path))
        ones = np.ones_like(time)
        if explained(path, np.stack([ones, time], axis=1)) > EXPLAINED:
            return "line"
        hops = np.stack([ones, -np.abs(np.sin(2 * np.pi * time))], axis=1)
        if extent[0] < 1.5 * MOVED and explained(path[:, 1:], hops) > EXPLAINED:
            return "bounce"
        strokes = np.stack([ones, time, np.abs((4 * time) % 2 - 1)], axis=1)
        straight = np.stack([ones, time], axis=1)
        if (
            explained(path[:, :1], straight) > EXPLAINED
            and extent[0] > MOVED
            and explained(path[:, 1:], strokes) > EXPLAINED
            and extent[1] > MOVED
        ):
            return "zigzag"
        return None

    def filled(self) -> np.ndarray | None:
        """The centres with gaps filled from their neighbours; None where half of the frames or more show no shape."""
        seen = ~np.isnan(self.centres[:, 0])
        if seen.mean() <= 0.5:
            return None
        frames = np.arange(len(self.centres))
        return np.stack([np.interp(frames, frames[seen], self.centres[seen, axis]) for axis in (0, 1)], axis=1)


def track(clip: np.ndarray) -> Track:
    """Follow the shape through a clip (f, h, w, 3) uint8. ValueError for anything else."""
    if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8 or not len(clip):
        raise ValueError(f"a clip is (f, h, w, 3) uint8 with at least one frame, not {clip.shape} {clip.dtype}")
    height, width = clip.shape[1:3]
    centres, areas, colours = np.full((len(clip), 2), np.nan), np.zeros(len(clip)), []
    fits: list[dict[str, float]] = []
    for number, frame in enumerate(clip):
        cover = segment(frame)
        area = float(cover.sum())
        if area < LEAST_AREA * height * width:
            continue
        rows, columns = np.mgrid[:height, :width] + 0.5
        centre = np.array([(columns * cover).sum(), (rows * cover).sum()]) / area
        centres[number], areas[number] = centre, area
        inside = cover > 0.9
        colours.append(frame[inside if inside.any() else cover > 0.5].mean(axis=0))
        fits.append({name: overlap(cover, template(name, centre, area, height, width)) for name in OUTLINES})
    colour = np.median(colours, axis=0) if colours else np.zeros(3)
    fit = {name: float(np.mean([found[name] for found in fits])) if fits else 0.0 for name in OUTLINES}
    r, g, b = (float(value) for value in colour)
    return Track(centres, areas, (r, g, b), fit, len(fits) / len(clip), min(height, width))


# --- one frame --------------------------------------------------------------------------------------------------------


def segment(frame: np.ndarray) -> np.ndarray:
    """How much of each pixel the shape covers, (h, w) from 0 to 1; all zero where there is none.

    The ground is the frame's median colour. Of several patches, the one around the densest place counts.
    """
    pixels = frame.astype(np.float64)
    distance = np.abs(pixels - np.median(pixels, axis=(0, 1))).max(axis=-1)
    smooth = box_mean(distance)
    peak = np.unravel_index(np.argmax(box_mean(smooth)), smooth.shape)
    if smooth[peak] < LEAST_CONTRAST:
        return np.zeros(distance.shape)
    inner = distance[max(0, peak[0] - 1) : peak[0] + 2, max(0, peak[1] - 1) : peak[1] + 2]
    cover = np.clip(distance / np.median(inner), 0, 1)
    patch = connected((cover > 0.5) & (box_mean(cover) > 0.4), peak)
    return np.asarray(np.where(grown(patch), cover, 0) * (cover > 0.15))


def connected(mask: np.ndarray, start: tuple[np.intp, ...]) -> np.ndarray:
    """The part of a mask (h, w) that hangs together with one of its pixels."""
    patch = np.zeros_like(mask)
    patch[start] = True
    while True:
        wider = grown(patch) & mask
        wider[start] = True
        if (wider == patch).all():
            return patch
        patch = wider


def grown(mask: np.ndarray) -> np.ndarray:
    """A mask and its neighbours above, below, left and right."""
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


def box_mean(values: np.ndarray) -> np.ndarray:
    """Means over 3 x 3 pixels, the edges repeated."""
    padded = np.pad(values, 1, mode="edge")
    height, width = values.shape
    total = sum(padded[row : row + height, column : column + width] for row in range(3) for column in range(3))
    return np.asarray(total / 9)


def circle(x: np.ndarray, y: np.ndarray, area: float) -> np.ndarray:
    return np.asarray(x**2 + y**2 <= area / np.pi)


def square(x: np.ndarray, y: np.ndarray, area: float) -> np.ndarray:
    return np.asarray(np.maximum(np.abs(x), np.abs(y)) <= np.sqrt(area) / 2)


def triangle(x: np.ndarray, y: np.ndarray, area: float) -> np.ndarray:
    """Equilateral, one corner up, around its centre of mass."""
    reach = np.sqrt(area * 4 / (3 * np.sqrt(3)))  # from the centre to a corner
    return np.asarray((y <= reach / 2) & (np.abs(x) * np.sqrt(3) <= y + reach))


OUTLINES = {"circle": circle, "square": square, "triangle": triangle}


def template(name: str, centre: np.ndarray, area: float, height: int, width: int) -> np.ndarray:
    """A shape of that area around a centre, (h, w) from 0 to 1."""
    reach = 1.5 * np.sqrt(area)  # no outline goes farther
    left, top = (max(0, int(value - reach)) for value in centre)
    right, bottom = min(width, int(centre[0] + reach) + 1), min(height, int(centre[1] + reach) + 1)
    y, x = (np.mgrid[: (bottom - top) * FINE, : (right - left) * FINE] + 0.5) / FINE
    inside = OUTLINES[name](x + left - centre[0], y + top - centre[1], area)
    cover = np.zeros((height, width))
    cover[top:bottom, left:right] = inside.reshape(bottom - top, FINE, right - left, FINE).mean(axis=(1, 3))
    return cover


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two covers."""
    return float(np.minimum(one, other).sum() / np.maximum(one, other).sum())


# --- paths ------------------------------------------------------------------------------------------------------------


def explained(path: np.ndarray, curves: np.ndarray) -> float:
    """Share of the variance of `path` (f, axes) that the best mixture of `curves` (f, n) accounts for, at most 1."""
    mixture, *_ = np.linalg.lstsq(curves, path, rcond=None)
    return 1 - float(np.sum((path - curves @ mixture) ** 2) / max(np.sum((path - path.mean(axis=0)) ** 2), 1e-12))


def orbits(path: np.ndarray) -> bool:
    """Whether the centre goes round a circle: at an even distance from its middle, on and on, most of the way."""
    design = np.concatenate([2 * path, np.ones((len(path), 1))], axis=1)  # x^2 + y^2 = 2ax + 2by + c (Kasa 1976)
    (a, b, _), *_ = np.linalg.lstsq(design, (path**2).sum(axis=1), rcond=None)
    spokes = path - (a, b)
    lengths = np.sqrt((spokes**2).sum(axis=1))
    radius = lengths.mean()
    if not 0.08 < radius < 0.5 or lengths.std() > 0.25 * radius:
        return False
    angles = np.unwrap(np.arctan2(spokes[:, 1], spokes[:, 0]))
    steps = np.diff(angles)
    turned = abs(angles[-1] - angles[0])
    return bool(turned > np.radians(225) and max((steps > 0).mean(), (steps < 0).mean()) > 0.8)
