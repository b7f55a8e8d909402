"""A few steps of training, as the tests of every family take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trainers.families.base import VideoModel
from trainers.loop import loss_of
from trainers.noise import Draws


def take_steps(model: VideoModel, batch: Mapping[str, Any], count: int, learning_rate: float = 3e-3) -> list[float]:
    """Steps on one example; the losses."""
    example = model.example(batch, Draws.seeded(1))
    optimizer = torch.optim.AdamW(model.trained_parameters(), learning_rate)
    losses = []
    for _ in range(count):
        loss = loss_of(model.predict(example), example)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
