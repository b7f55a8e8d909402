"""Which frames of a clip a sample takes. Pure arithmetic: numbers in, numbers out.

Sample frame i lies i x stride frames after the first: of the clip's own frames, or of the clip resampled to
`dataset.fps`, whose frame k is the clip's frame nearest to k x clip_fps / fps.
"""

from __future__ import annotations

import random
from bisect import bisect_left

import numpy as np

from trainers.config import DatasetConfig


def choose_frames(
    num_frames_available: int, clip_fps: float, config: DatasetConfig, num_frames: int, rng: random.Random
) -> list[list[int]]:
    """The samples of `num_frames` frames that a clip gives, as frame numbers: one, or for windows all that fit.

    A clip that is too short gives none, or with `dataset.repeat_frames` one that is spread over all of it. Otherwise
    frames repeat only where `dataset.fps` is more than the clip has.
    """
    if not num_frames or num_frames_available < needed_frames(config, clip_fps, num_frames):
        return []
    if config.frame_selection == "uniform":
        return [_spread(num_frames_available, num_frames)]
    offsets = _offsets(config, clip_fps, num_frames)
    if config.frame_selection == "first":
        start = config.start_frame
    elif config.frame_selection == "random":
        reach = min(num_frames_available, offsets[-1] + 1)
        start = rng.randint(0, num_frames_available - reach)
        if reach <= offsets[-1]:  # too short, and let in by repeat_frames
            return [_stretched(reach, num_frames)]
    else:
        return _windows(num_frames_available, clip_fps, config, num_frames)
    return [[start + offset for offset in offsets]]


def span(num_frames: int, stride: int) -> int:
    """Frames from the first to the last of a sample, both counted."""
    return (num_frames - 1) * stride + 1


def full_frames(config: DatasetConfig, clip_fps: float, num_frames: int) -> int:
    """Frames that a clip must have to give a sample of `num_frames` as the stride and the rate ask for it."""
    if config.frame_selection == "uniform":
        return num_frames
    start = config.start_frame if config.frame_selection == "first" else 0
    return start + _clip_frame((num_frames - 1) * config.frame_stride, clip_fps, config) + 1


def needed_frames(config: DatasetConfig, clip_fps: float, num_frames: int) -> int:
    """Frames that a clip must have to give a sample of `num_frames` at all."""
    if config.repeat_frames and config.frame_selection == "random":
        return 1
    return full_frames(config, clip_fps, num_frames)


def most_frames(num_frames_available: int, clip_fps: float, config: DatasetConfig) -> int:
    """The longest sample, up to `dataset.num_frames`, that a clip can give; 0 if none."""
    lengths = range(1, config.num_frames + 1)
    return bisect_left(lengths, num_frames_available + 1, key=lambda n: needed_frames(config, clip_fps, n))


def most_stride(num_frames_available: int, clip_fps: float, config: DatasetConfig) -> int:
    """The largest stride, below the configured one, at which a clip gives `dataset.num_frames`; 0 if none."""
    strides = range(1, config.frame_stride)
    return bisect_left(
        strides,
        num_frames_available + 1,
        key=lambda s: needed_frames(config.model_copy(update={"frame_stride": s}), clip_fps, config.num_frames),
    )


def _windows(available: int, clip_fps: float, config: DatasetConfig, num_frames: int) -> list[list[int]]:
    """Every window of the clip, one behind the other; what is left at the end and fills none is not taken."""
    step = span(num_frames, config.frame_stride)
    found: list[list[int]] = []
    while True:
        first = len(found) * step
        window = [_clip_frame(first + i * config.frame_stride, clip_fps, config) for i in range(num_frames)]
        if window[-1] >= available:
            return found
        found.append(window)


def _offsets(config: DatasetConfig, clip_fps: float, num_frames: int) -> list[int]:
    return [_clip_frame(i * config.frame_stride, clip_fps, config) for i in range(num_frames)]


def _clip_frame(number: int, clip_fps: float, config: DatasetConfig) -> int:
    """The clip's frame for a number in the resampled clip. Halves go up: Python's round would make uneven steps."""
    return number if config.fps is None else int(number * clip_fps / config.fps + 0.5)


def _stretched(available: int, num_frames: int) -> list[int]:
    """Frames spread over a clip that is too short: the floor of evenly spaced points, as upstream's readers of WebVid
    take them. numpy's own rounding, which no exact arithmetic repeats, belongs to it."""
    return [int(number) for number in np.linspace(0, available - 1, num_frames, dtype=int)]


def _spread(available: int, num_frames: int) -> list[int]:
    """The floor of evenly spaced points from the first frame to the last."""
    return [i * (available - 1) // max(1, num_frames - 1) for i in range(num_frames)]
