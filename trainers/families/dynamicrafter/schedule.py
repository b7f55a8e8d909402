"""DynamiCrafter's noise: how much of a clip is left at each of 1000 timesteps, and which of them sampling visits.

Betas are linear in their square root from 0.00085 to 0.012. With zero terminal SNR (Lin et al., 2305.08891) they are
shifted so that nothing of the clip is left at the last one. Latents are scaled down as noise grows by all models but
the 256 one ("dynamic rescale"): x `base_scale` from timestep 399 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from trainers.families.base import ModelError
from trainers.families.dynamicrafter.facts import Facts

TIMESTEPS = 1000
BETAS = (0.00085, 0.012)
SCALED_TIMESTEPS = 400  # over which latents are scaled down
CLOSE = 1e-5  # how far a stored number may lie from ours


@dataclass(frozen=True)
class Schedule:
    """signal: the share of a clip's variance that is left at each timestep, (1000,). scale: of its latents, or None."""

    signal: torch.Tensor
    scale: torch.Tensor | None

    def noisy(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Latents (b, ...) at their timesteps (b,)."""
        keep, add = self._shares(timesteps, latents)
        return keep * latents + add * noise

    def velocity(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """v of Salimans and Ho (2202.00512)."""
        keep, add = self._shares(timesteps, latents)
        return keep * noise - add * latents

    def scaled(self, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Latents (b, ...) in the scale of their timesteps (b,)."""
        if self.scale is None:
            return latents
        return self.scale.to(latents.device)[timesteps].view(-1, *[1] * (latents.ndim - 1)) * latents

    def _shares(self, timesteps: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        signal = self.signal.to(like.device)[timesteps].double().view(-1, *[1] * (like.ndim - 1))
        return signal.sqrt().float(), (1 - signal).sqrt().float()


def schedule_of(facts: Facts) -> Schedule:
    """A model's schedule, float32."""
    signal = torch.cumprod(1 - betas(facts.zero_terminal_snr), 0).float()
    return Schedule(signal, None if facts.base_scale is None else scales(facts.base_scale)[:TIMESTEPS])


def betas(zero_terminal_snr: bool) -> torch.Tensor:
    """The variance of the noise that each timestep adds, (1000,) float64."""
    first, last = BETAS
    plain = torch.linspace(first**0.5, last**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    if not zero_terminal_snr:
        return plain
    root = torch.cumprod(1 - plain, 0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    signal = root**2
    return 1 - torch.cat([signal[:1], signal[1:] / signal[:-1]])


def scales(base_scale: float) -> torch.Tensor:
    """What latents are multiplied by at each timestep, (1400,) float32: as stored, longer than it is used."""
    falling = torch.linspace(1.0, base_scale, SCALED_TIMESTEPS, dtype=torch.float64)
    return torch.cat([falling, torch.full((TIMESTEPS,), base_scale, dtype=torch.float64)]).float()


# --- sampling --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One step of DDIM, from `timestep` to the one before it. signal: what is left of the clip at both ends; sigma: the
    deviation of the fresh noise; rescale: what the clip as seen now is multiplied by, for the scale that follows."""

    timestep: int
    signal: float
    next_signal: float
    sigma: float
    rescale: float


def timesteps(spacing: str, count: int) -> list[int]:
    """The timesteps that sampling in `count` steps visits, the lowest first.

    uniform (the 256 model): every (1000 // count)-th from 1 on, which may be one more than asked for. uniform_trailing:
    exactly `count`, evenly spaced back from 999. Where the reference asks for a timestep of 1000 or of -1, it fails;
    ours leaves that one out.
    """
    if spacing == "uniform":
        return [number + 1 for number in range(0, TIMESTEPS, TIMESTEPS // count) if number + 1 < TIMESTEPS]
    spaced = np.arange(TIMESTEPS, 0, -TIMESTEPS / count)[:count]  # numpy's own rounding of halves belongs to it
    return [int(number) - 1 for number in np.round(spaced)[::-1]]


def steps(facts: Facts, count: int, eta: float) -> list[Step]:
    """The steps of DDIM (Song et al., 2010.02502), noise first. eta: 0 adds no noise, 1 as much as was taken away."""
    schedule, visited = schedule_of(facts), timesteps(facts.spacing, count)
    signals = [float(schedule.signal[timestep]) for timestep in visited]
    following = [float(schedule.signal[0]), *signals[:-1]]  # the last step ends at timestep 0, not at the clip itself
    scale = [1.0] * len(visited) if schedule.scale is None else [float(schedule.scale[t]) for t in visited]
    found = []
    for number, (timestep, signal, after) in enumerate(zip(visited, signals, following, strict=True)):
        variance = (1 - after) / (1 - signal) * (1 - signal / after)
        rescale = scale[max(0, number - 1)] / scale[number]
        found.append(Step(timestep, signal, after, eta * max(0.0, variance) ** 0.5, rescale))
    return found[::-1]


# --- as files store it -----------------------------------------------------------------------------------------------


def buffers(facts: Facts) -> dict[str, torch.Tensor]:
    """The schedule as the reference's files store it, float32. Nothing reads it there but the reference."""
    own = betas(facts.zero_terminal_snr)
    kept = torch.cumprod(1 - own, 0)
    before = torch.cat([kept.new_ones(1), kept[:-1]])
    variance = own * (1 - before) / (1 - kept)
    recip, recipm1 = (1 / kept).sqrt(), (1 / kept - 1).sqrt()
    if facts.parameterization == "v":  # unused there, and infinite at the end
        recip, recipm1 = torch.zeros_like(kept), torch.zeros_like(kept)
    found = {
        "betas": own,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": kept.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - kept).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - kept).log(),
        "sqrt_recip_alphas_cumprod": recip,
        "sqrt_recipm1_alphas_cumprod": recipm1,
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": own * before.sqrt() / (1 - kept),
        "posterior_mean_coef2": (1 - before) * (1 - own).sqrt() / (1 - kept),
    }
    if facts.base_scale is not None:
        found["scale_arr"] = scales(facts.base_scale)
    return {name: value.float() for name, value in found.items()}


def check_stored(facts: Facts, stored: Mapping[str, torch.Tensor], source: str) -> None:
    """ModelError where the schedule in a file is not the one of these facts: it is another model then."""
    ours = buffers(facts)
    for name, whose in (("alphas_cumprod", "noise"), ("scale_arr", "scale of latents")):
        theirs = stored.get(name)
        if theirs is None or name not in ours:
            continue
        expected = ours[name]
        close = CLOSE if theirs.dtype == torch.float32 else 1e-2  # of a file in half precision
        if theirs.shape != expected.shape or not torch.allclose(theirs.float(), expected, rtol=0, atol=close):
            raise ModelError(
                f"{source} stores another {whose} ({name}) than that of the {facts.variant} model; set variant to the "
                "model that it is"
            )
