"""How a model lies in the processes of a run. Here: whole in each of them; in shards: sharding.py, zero.py."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import accelerate
import torch
from torch.nn.parallel import DistributedDataParallel

from trainers.config import TrainConfig
from trainers.families.base import VideoModel


class Layout:
    """The whole model in each process; gradients are averaged (DistributedDataParallel, where there are several).

    The loop calls it in this order: `share`, `prepare`, then for every step `micro_batch` around `backward`, and
    `clip`. All that it does is to be done by all processes at the same time.
    """

    def __init__(self, accelerator: accelerate.Accelerator, config: TrainConfig) -> None:
        self.accelerator = accelerator
        self.config = config
        self.accumulation = config.optimizer.gradient_accumulation_steps

    def share(self, model: VideoModel) -> None:
        """Leave this process its part of the weights, which are those to start from; parameters are taken after it."""

    def prepare(self, model: VideoModel, optimizer: torch.optim.Optimizer) -> Any:
        """Wrap the denoisers so that their gradients are averaged; give the optimizer, wrapped as accelerate does."""
        for name, module in model.denoiser.items():
            with warnings.catch_warnings():  # newer PyTorch has another word for broadcast_buffers
                warnings.simplefilter("ignore", FutureWarning)
                model.denoiser[name] = self.accelerator.prepare_model(module)
        return self.accelerator.prepare_optimizer(optimizer, device_placement=False)

    def micro_batch(self, network: torch.nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward pass: gradients are exchanged with the last micro-batch of a step."""
        return nullcontext() if last else self.accelerator.no_sync(network)  # type: ignore[no-any-return]

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """The gradients of one of the micro-batches of a step, added to those before."""
        self.accelerator.backward(loss / self.accumulation)

    def clip(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Shorten the gradient as the config says."""
        if self.config.optimizer.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(parameters, self.config.optimizer.max_grad_norm)

    @contextmanager
    def alone(self, model: VideoModel) -> Iterator[None]:
        """The denoisers as one process can call them without the others."""
        wrapped = dict(model.denoiser)
        for name, module in wrapped.items():
            model.denoiser[name] = self.unwrapped(module)
        try:
            yield
        finally:
            model.denoiser.update(wrapped)

    def unwrapped(self, module: torch.nn.Module) -> torch.nn.Module:
        return module.module if isinstance(module, DistributedDataParallel) else module

    def savable(self, model: VideoModel) -> AbstractContextManager[None]:
        """The denoisers with whole weights, to be read and written by the first process."""
        return self.alone(model)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The whole state of the optimizer for the first process, in the same format whatever the layout."""
        state: dict[str, Any] = optimizer.state_dict()
        return state

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Put back what `optimizer_state` gave in this layout or another. ValueError when it does not fit."""
        optimizer.load_state_dict(state)
