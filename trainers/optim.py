"""Optimizers and learning-rate schedules, counted in optimizer steps."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from trainers.config import OptimizerConfig
from trainers.memory import OffloadedOptimizer


def make_optimizer(
    config: OptimizerConfig, parameters: Iterable[torch.nn.Parameter], offload: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters. offload: its states lie in main memory, and it steps there."""
    trained = list(parameters)
    if offload:
        return OffloadedOptimizer(trained, partial(_optimizer, config, fused=True))
    return _optimizer(config, trained, fused=trained[0].is_cuda)


def _optimizer(config: OptimizerConfig, trained: list[torch.nn.Parameter], fused: bool) -> torch.optim.Optimizer:
    """fused: PyTorch's own in one pass over the weights; on two CPU cores 3 s for a billion of them instead of 19."""
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "weight_decay": config.weight_decay,
        "eps": config.epsilon,
    }
    made: torch.optim.Optimizer
    match config.name:
        case "adamw8bit":
            from bitsandbytes.optim import AdamW8bit

            made = AdamW8bit(trained, **settings)
        case "adam8bit":
            from bitsandbytes.optim import Adam8bit

            made = Adam8bit(trained, **settings)
        case "prodigy":
            from prodigyopt import Prodigy

            made = Prodigy(
                trained,
                beta3=config.prodigy_beta3,
                decouple=config.prodigy_decouple,
                use_bias_correction=config.prodigy_use_bias_correction,
                safeguard_warmup=config.prodigy_safeguard_warmup,
                **settings,
            )
        case "adam":
            made = torch.optim.Adam(trained, fused=fused, **settings)
        case "adamw":
            made = torch.optim.AdamW(trained, fused=fused, **settings)
    return made


def make_schedule(
    config: OptimizerConfig, optimizer: torch.optim.Optimizer, max_train_steps: int, start_step: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate over the run; to be stepped once per optimizer step, whatever the accumulation.

    start_step: where in the run it begins.
    """
    from diffusers.optimization import get_scheduler

    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # what a schedule that begins later multiplies
    schedule: torch.optim.lr_scheduler.LambdaLR = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=max_train_steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
        last_epoch=start_step - 1,
    )
    return schedule
