"""One step of CogVideoX's stochastic sampler, with noise that is drawn by name."""

from __future__ import annotations

import torch
from diffusers import CogVideoXDPMScheduler

from trainers.noise import Draws


def dpm_step(
    scheduler: CogVideoXDPMScheduler,
    velocity: torch.Tensor,
    before: torch.Tensor | None,
    number: int,
    latents: torch.Tensor,
    draws: Draws,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents of the next step, clean latents as seen now) as `CogVideoXDPMScheduler.step` computes them: DPM-Solver++
    of second order as a stochastic equation (Lu et al. 2022), on the prediction of velocity.

    before: the clean latents as seen in the step before. number: of the step among the scheduler's timesteps.
    """
    timesteps: list[int] = scheduler.timesteps.tolist()
    timestep, signals = timesteps[number], scheduler.alphas_cumprod
    next_timestep = timestep - scheduler.config.num_train_timesteps // len(timesteps)
    signal = signals[timestep]
    next_signal = signals[next_timestep] if next_timestep >= 0 else scheduler.final_alpha_cumprod
    last_signal = signals[timesteps[number - 1]] if number else None

    clean = signal**0.5 * latents - (1 - signal) ** 0.5 * velocity
    h, r, _, _ = scheduler.get_variables(signal, next_signal, last_signal)
    keep, add, *extrapolate = scheduler.get_mult(h, r, signal, next_signal, last_signal)
    spread = (1 - next_signal) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5

    noise = draws.normal(f"step_{number}", latents.shape, latents.device)
    towards = clean
    if before is not None and next_timestep >= 0:
        towards = extrapolate[0] * clean - extrapolate[1] * before
        # The scheduler draws a second time here and leaves its first noise unused; so a seed gives what it gives there.
        noise = draws.normal(f"step_{number}_again", latents.shape, latents.device)
    return keep * latents - add * towards + spread * noise, clean
