"""Mochi's noise levels while sampling."""

from __future__ import annotations


def linear_quadratic(steps: int, threshold_noise: float, linear_steps: int | None = None) -> list[float]:
    """The noise level (1 is noise alone) at which each of the denoising steps begins; the last one ends at 0.

    A line takes away the share `threshold_noise` in `linear_steps` steps (None: half of them), then a parabola with
    the same slope there takes the rest. As Genmo and MochiPipeline have it, to the last bit.
    """
    linear = steps // 2 if linear_steps is None else linear_steps
    if steps == 1:
        return [1.0]
    gone = [number * threshold_noise / linear for number in range(linear)]
    excess, quadratic = linear - threshold_noise * steps, steps - linear
    square = excess / (linear * quadratic**2)
    slope = threshold_noise / linear - 2 * excess / quadratic**2
    constant = square * linear**2
    gone += [square * number**2 + slope * number + constant for number in range(linear, steps)]
    return [1.0 - share for share in gone]
