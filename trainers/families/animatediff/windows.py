"""Sliding windows over the frames of a long clip, so that a motion module draws more frames than it has positions.

The frames form a ring. At every denoising step the windows lie elsewhere, so that no seam stays in one place.
"""

from __future__ import annotations

import math


def windows(step: int, num_frames: int, length: int, stride: int, overlap: int) -> list[list[int]]:
    """The windows of denoising step `step` (from 0): lists of frame numbers, `length` each.

    One window of all frames when they are no more than `length`. Else windows of neighbouring frames, and up to
    `stride` - 1 more layers whose frames lie 2, 4, ... apart, as long as the clip is long enough to need them.
    Neighbouring windows of a layer share `overlap` frames. As AnimateDiff's own pipeline has them (its `strides` and
    `overlap`).
    """
    if num_frames <= length:
        return [list(range(num_frames))]
    layers = min(stride, math.ceil(math.log2(num_frames / length)) + 1)
    shift = _bit_reversed(step)
    found = []
    for spacing in (1 << layer for layer in range(layers)):
        first = round(num_frames * shift)
        advance = max(1, length * spacing - overlap)
        for start in range(int(shift * spacing) + first, num_frames + first, advance):
            found.append([(start + place * spacing) % num_frames for place in range(length)])
    return found


def _bit_reversed(number: int) -> float:
    """0, 1/2, 1/4, 3/4, 1/8, ...: every step lies far from those before it (van der Corput's sequence)."""
    fraction, half = 0.0, 0.5
    while number:
        fraction += half * (number & 1)
        number >>= 1
        half /= 2
    return fraction
