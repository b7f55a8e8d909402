"""Which frames of a clip a sample takes. Pure arithmetic: numbers in, numbers out.

Sample frame i lies i x stride frames after the first: of the clip's own frames, or of the clip resampled to
`dataset.fps`, whose frame k is the clip's frame nearest to k x clip_fps / fps, or the one before it in time (see
`dataset.fps_rounding`). Frames that are skipped at the ends of a clip are as if they were not there.

Strides that are drawn, lowered or rounded to whole ones are those of the WebVid reader that the lvdm codebase has.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from trainers.config import DatasetConfig


def choose_frames(
    num_frames_available: int, clip_fps: float, config: DatasetConfig, num_frames: int, rng: random.Random
) -> list[list[int]]:
    """The samples of `num_frames` frames that a clip gives, as frame numbers: one, or for windows all that fit.

    A clip that is too short gives none, or with `dataset.repeat_frames` one that is spread over all of it (random) or
    filled up with its last frame (strided). Otherwise frames repeat only where `dataset.fps` is more than the clip has.
    """
    if not num_frames or num_frames_available < needed_frames(config, clip_fps, num_frames):
        return []
    begin, end = usable_frames(num_frames_available, config)
    if config.frame_selection == "random" and config.frame_stride_min is not None:
        config = _at_stride(config, rng.randint(config.frame_stride_min, config.frame_stride))
    samples = _samples(end - begin, clip_fps, config, num_frames, rng)
    return [[begin + number for number in sample] for sample in samples]


def usable_frames(num_frames_available: int, config: DatasetConfig) -> tuple[int, int]:
    """(first, one behind the last) of a clip's frames that are not skipped; of strided ones never fewer than the one
    at which they would begin, as long as the clip has it."""
    begin = min(config.skip_frames_start, num_frames_available)
    least = 1 if config.frame_selection == "strided" and begin < num_frames_available else 0
    return begin, max(begin + least, num_frames_available - config.skip_frames_end)


def span(num_frames: int, stride: int) -> int:
    """Frames from the first to the last of a sample, both counted."""
    return (num_frames - 1) * stride + 1


def full_frames(config: DatasetConfig, clip_fps: float, num_frames: int) -> int:
    """Frames that a clip must have to give a sample of `num_frames` as the stride and the rate ask for it."""
    if config.frame_selection == "strided" and num_frames == 1:
        return config.skip_frames_start + 1
    skipped = config.skip_frames_start + config.skip_frames_end
    if config.frame_selection in ("uniform", "strided"):
        return skipped + num_frames
    start = config.start_frame if config.frame_selection == "first" else 0
    return skipped + start + _offsets(config, clip_fps, num_frames)[-1] + 1


def needed_frames(config: DatasetConfig, clip_fps: float, num_frames: int) -> int:
    """Frames that a clip must have to give a sample of `num_frames` at all, at whichever stride is drawn."""
    if config.repeat_frames and config.frame_selection in ("random", "strided"):
        return full_frames(config, clip_fps, 1)
    if not lowers_stride(config):
        return full_frames(config, clip_fps, num_frames)
    skipped = config.skip_frames_start + config.skip_frames_end
    least = _at_stride(config, config.frame_stride_min or config.frame_stride)
    half = -(-(full_frames(least, clip_fps, num_frames) - skipped) // 2) if config.fps is not None else 0
    return skipped + max(num_frames, half)


def lowers_stride(config: DatasetConfig) -> bool:
    """Whether a clip that is too short for the stride trains at a smaller one."""
    return config.lower_stride and config.frame_selection == "random"


def lowered_stride(available: int, num_frames: int) -> int:
    """The stride at which a clip trains that is too short for the one that was asked for. Not the largest that it has
    frames for: that of the reference."""
    return available // num_frames


def _at_stride(config: DatasetConfig, stride: int) -> DatasetConfig:
    return config.model_copy(update={"frame_stride": stride, "frame_stride_min": None})


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


def _samples(
    available: int, clip_fps: float, config: DatasetConfig, num_frames: int, rng: random.Random
) -> list[list[int]]:
    """The samples of a clip of which nothing is skipped, and which has enough frames."""
    if config.frame_selection == "uniform":
        return [_spread(available, num_frames)]
    if config.frame_selection == "strided":
        return [_strided(available, config, num_frames)]
    offsets = _offsets(config, clip_fps, num_frames)
    if config.frame_selection == "first":
        start = config.start_frame
    elif config.frame_selection == "random":
        if offsets[-1] >= available >= num_frames and lowers_stride(config):
            stride = lowered_stride(available, num_frames)
            offsets = [i * stride for i in range(num_frames)]
        reach = min(available, offsets[-1] + 1)
        start = rng.randint(0, available - reach)
        if reach <= offsets[-1]:  # too short, and let in by repeat_frames
            return [_stretched(reach, num_frames)]
    else:
        return _windows(available, clip_fps, config, num_frames)
    return [[start + offset for offset in offsets]]


def _windows(available: int, clip_fps: float, config: DatasetConfig, num_frames: int) -> list[list[int]]:
    """Every window of the clip, one behind the other; what is left at the end and fills none is not taken."""
    config = _in_own_frames(config, clip_fps)
    step = span(num_frames, config.frame_stride)
    found: list[list[int]] = []
    while True:
        first = len(found) * step
        window = [_clip_frame(first + i * config.frame_stride, clip_fps, config) for i in range(num_frames)]
        if window[-1] >= available:
            return found
        found.append(window)


def _offsets(config: DatasetConfig, clip_fps: float, num_frames: int) -> list[int]:
    config = _in_own_frames(config, clip_fps)
    return [_clip_frame(i * config.frame_stride, clip_fps, config) for i in range(num_frames)]


def _in_own_frames(config: DatasetConfig, clip_fps: float) -> DatasetConfig:
    """The same in frames of the clip itself, where its rate only chooses a whole stride."""
    if config.fps is None or config.fps_rounding != "stride":
        return config
    stride = max(1, int(config.frame_stride * (1.0 * clip_fps / config.fps)))
    return config.model_copy(update={"frame_stride": stride, "fps": None})


def _clip_frame(number: int, clip_fps: float, config: DatasetConfig) -> int:
    """The clip's frame for a number in the resampled clip. Of the nearest, halves go up: Python's round would make
    uneven steps. Earlier ones are MoviePy's: int(clip_fps * t + 0.00001), which lets 29.97 frames per second show
    their first frame twice at 30."""
    if config.fps is None:
        return number
    return int(number * clip_fps / config.fps + (0.5 if config.fps_rounding == "nearest" else 1e-5))


def stride_over(available: int, config: DatasetConfig) -> int:
    """The stride of strided frames: it goes by `dataset.num_frames`, also where a sample takes fewer of them."""
    return max(1, available // config.num_frames)


def _strided(available: int, config: DatasetConfig, num_frames: int) -> list[int]:
    """From the first frame on; a clip that is too short is filled up with its last frame."""
    taken = list(range(0, available, stride_over(available, config)))[:num_frames]
    return taken + taken[-1:] * (num_frames - len(taken))


def _stretched(available: int, num_frames: int) -> list[int]:
    """Frames spread over a clip that is too short: the floor of evenly spaced points, as upstream's readers of WebVid
    take them. numpy's own rounding, which no exact arithmetic repeats, belongs to it."""
    return [int(number) for number in np.linspace(0, available - 1, num_frames, dtype=int)]


def _spread(available: int, num_frames: int) -> list[int]:
    """The floor of evenly spaced points from the first frame to the last."""
    return [i * (available - 1) // max(1, num_frames - 1) for i in range(num_frames)]


# --- the reference's own way -----------------------------------------------------------------------------------------


def drawn_as_reference(
    clips: Sequence[tuple[int, float]], number: int, config: DatasetConfig, num_frames: int, rng: random.Random
) -> tuple[int, list[int]] | None:
    """(number of the clip that is taken, its frames) where clip `number` is asked for, with the mistakes of lvdm's
    WebVid reader: a clip that is too short shows the next one in its place, and there the stride of `dataset.fps`
    multiplies what it was for the clips before. None where no clip will do, where the reference goes on for ever.

    clips: (frames, frames per second) of each, no frames where it cannot be read."""
    stride = config.frame_stride
    if config.frame_stride_min is not None:
        stride = rng.randint(config.frame_stride_min, config.frame_stride)
    for step in range(len(clips)):
        taken = (number + step) % len(clips)
        available, clip_fps = clips[taken]
        if available < num_frames:
            continue
        if config.fps is not None:
            stride = int(stride * (1.0 * clip_fps / config.fps))
        stride = max(stride, 1)
        if available < span(num_frames, stride):
            if config.fps is not None and available < span(num_frames, stride) * 0.5:
                continue
            stride = lowered_stride(available, num_frames)
        spare = available - span(num_frames, stride)
        start = rng.randint(0, spare) if spare > 0 else 0
        return taken, [start + i * stride for i in range(num_frames)]
    return None
