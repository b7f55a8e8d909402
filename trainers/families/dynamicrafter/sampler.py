"""DDIM as DynamiCrafter draws with it: guidance that is calmed afterwards, and latents in the scale of their noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from trainers.families.dynamicrafter.schedule import Step


def ddim(
    steps: Sequence[Step],
    parameterization: str,
    latents: torch.Tensor,
    predict: Callable[[torch.Tensor, int], torch.Tensor],
    noise: Callable[[int], torch.Tensor],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """After each step the latents, and the clean ones as seen then. The last latents are the clip's.

    predict: of latents and a timestep, the guided noise ("eps") or velocity ("v"). noise: the fresh one of a step.
    """
    for number, step in enumerate(steps):
        output = predict(latents, step.timestep)
        keep, add = step.signal**0.5, (1 - step.signal) ** 0.5
        if parameterization == "v":
            clean, seen = keep * latents - add * output, keep * output + add * latents
        else:
            clean, seen = (latents - add * output) / keep, output
        clean = clean * step.rescale
        # Without the bound, rounding makes this the root of a negative number at the first step of some counts.
        direction = max(0.0, 1 - step.next_signal - step.sigma**2) ** 0.5
        latents = step.next_signal**0.5 * clean + direction * seen + step.sigma * noise(number)
        yield latents, clean


def guided(
    conditional: torch.Tensor,
    unconditional: torch.Tensor,
    scale: float,
    rescale: float,
    image_only: torch.Tensor | None = None,
    image_scale: float | None = None,
) -> torch.Tensor:
    """Classifier-free guidance; with `image_only`, the answer to the image without the prompt, that of the image has a
    strength of its own.

    rescale: how far the result takes on the deviation of `conditional` (Lin et al., 2305.08891), each (b, ...).
    """
    if image_only is None or image_scale is None:
        found = unconditional + scale * (conditional - unconditional)
    else:
        found = unconditional + image_scale * (image_only - unconditional) + scale * (conditional - image_only)
    if rescale:
        each = tuple(range(1, found.ndim))
        narrowed = found * (conditional.std(dim=each, keepdim=True) / found.std(dim=each, keepdim=True))
        found = rescale * narrowed + (1 - rescale) * found
    return found
