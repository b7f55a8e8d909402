"""Optimizers and learning-rate schedules, counted in optimizer steps."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from trainers.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; on CUDA the fused or the 8-bit one."""
    trained = list(parameters)
    settings = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "weight_decay": config.weight_decay,
        "eps": config.epsilon,
    }
    if config.name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        optimizer: torch.optim.Optimizer = AdamW8bit(trained, **settings)
        return optimizer
    return torch.optim.AdamW(trained, fused=trained[0].is_cuda, **settings)  # type: ignore[arg-type]


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
