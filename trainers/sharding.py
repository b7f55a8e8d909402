"""A model in shards (PyTorch's fully_shard, known as FSDP2): each process keeps a part of every weight, of its gradient
and of the optimizer's states, and gets the rest from the others when a block is computed.

Not accelerate's way of it, which exists on GPUs only: this one runs, and is tested, on CPUs as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trainers.families.base import VideoModel
from trainers.layouts import Layout
from trainers.terminal import Mendable


class Sharded(Layout):
    """Weights, gradients and states in shards, block by block. Gradients are averaged as they are cut."""

    @staticmethod
    def check() -> None:
        """Mendable when what the launcher's configuration file asks for is not to be had here."""
        plugin = FullyShardedDataParallelPlugin()
        if plugin.fsdp_version != 2:
            raise Mendable(f"FSDP version {plugin.fsdp_version} is not supported; set fsdp_version to 2")
        if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
            raise Mendable("fsdp_offload_params is not supported; set it to false")
        if tuple(map(int, torch.__version__.split(".")[:2])) < (
            2,
            8,
        ):  # before, the weights of a block must have one type
            raise Mendable(f"FSDP2 needs PyTorch 2.8, this is {torch.__version__}")

    def share(self, model: VideoModel) -> None:
        reshard = bool(FullyShardedDataParallelPlugin().reshard_after_forward)
        for module in model.denoiser.values():
            shard(module, self.accelerator.device, self.accelerator.num_processes, reshard)

    def prepare(self, model: VideoModel, optimizer: torch.optim.Optimizer) -> Any:
        return self.accelerator.prepare_optimizer(optimizer, device_placement=False)

    def micro_batch(self, network: torch.nn.Module, *, last: bool) -> AbstractContextManager[None]:
        network.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()

    @contextmanager
    def alone(self, model: VideoModel) -> Iterator[None]:
        parts = [p for module in model.denoiser.values() for p in module.modules() if isinstance(p, FSDPModule)]
        before = [_reshards(part) for part in parts]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part, reshards in zip(parts, before, strict=True):
                part.reshard()
                part.set_reshard_after_forward(reshards, recurse=False)

    def savable(self, model: VideoModel) -> AbstractContextManager[None]:
        return gathered(model.denoiser.values(), keep=self.accelerator.is_main_process)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        state, keep = optimizer.state_dict(), self.accelerator.is_main_process
        whole = {
            index: {name: _full(value, keep) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        return {**state, "state": whole}

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if sum(len(group["params"]) for group in state["param_groups"]) != len(parameters):
            raise ValueError("the state is of another number of weights")
        own = {
            index: {name: _part(value, parameters[index]) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": own})


def shard(module: torch.nn.Module, device: torch.device, processes: int, reshard_after_forward: bool) -> None:
    """Leave this process its part of a model, in place: block by block, then the rest as one.

    Blocks are the members of the module's own lists. reshard_after_forward: give up the others' parts of a block after
    the forward pass already, and get them once more for the backward pass.
    """
    # It warns of changing a network's prediction in place, which nobody does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (processes,))
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            for block in child:
                fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward)


@contextmanager
def gathered(modules: Iterable[torch.nn.Module], keep: bool) -> Iterator[None]:
    """The modules hold plain whole weights in main memory, to be read and written but not called, in processes that
    `keep` them; in the others nothing changes. One weight at a time passes through the device."""
    modules = list(modules)
    kinds = [type(module) for module in modules]
    own: list[tuple[torch.nn.Module, str, torch.nn.Parameter]] = []
    for part in (part for module in modules for part in module.modules()):
        for name, parameter in list(part.named_parameters(recurse=False)):
            full = _full(parameter.detach(), keep)
            if keep:
                own.append((part, name, parameter))
                part._parameters[name] = torch.nn.Parameter(full, requires_grad=parameter.requires_grad)
    if keep:  # its name is written into files: fully_shard has put FSDP before it
        for module, kind in zip(modules, kinds, strict=True):
            module.__class__ = kind.__bases__[-1]
    try:
        yield
    finally:
        for module, kind in zip(modules, kinds, strict=True):
            module.__class__ = kind
        for part, name, parameter in own:
            part._parameters[name] = parameter


def _full(value: Any, keep: bool) -> Any:
    """A sharded tensor as a whole one in main memory, where it is kept; anything else as it is."""
    if not isinstance(value, DTensor):
        return value
    full = value.full_tensor()
    return full.cpu() if keep else None


def _part(value: Any, parameter: torch.nn.Parameter) -> Any:
    """What of a whole tensor belongs to this process, which has its part of `parameter`."""
    own = parameter.detach()
    if not isinstance(own, DTensor) or not torch.is_tensor(value) or value.shape != own.shape:
        return value
    value = value.to(own.device)
    return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)


def _reshards(part: FSDPModule) -> bool:
    return all(group._reshard_after_forward for group in part._get_fsdp_state()._fsdp_param_groups)
