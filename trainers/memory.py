"""What trades time for memory: activations computed again, and an optimizer that lives in main memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

#: What of a block is computed again in the backward pass: nothing, everything, everything but attention.
Policy = Literal["none", "full", "sac"]

#: Attention as one operation, by PyTorch's names; a name that this version lacks never comes. Its fallback of several
#: plain operations (_scaled_dot_product_attention_math) is not among them: its backward needs the matrix of all pairs,
#: so that keeping the result would spare next to nothing.
ATTENTION = {
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "aten::_flash_attention_forward",
    "aten::_efficient_attention_forward",
    "aten::_cudnn_attention_forward",
    "xformers_flash::flash_fwd",
    "xformers_flash3::flash_fwd",
    "xformers::efficient_attention_forward_cutlass",
}

COMPILED_VARIANTS = 64


# --- activations ------------------------------------------------------------------------------------------------------


def checkpoint_blocks(blocks: Iterable[torch.nn.Module], policy: Policy, keep_random_state: bool) -> None:
    """Let each block keep only its inputs, and compute the rest again in the backward pass.

    sac (selective activation checkpointing) keeps the results of attention as well: it is the dearest part of a block
    to compute and among the smallest to keep. keep_random_state: draw the same numbers again, which a block with
    dropout needs; it makes a GPU wait. Blocks must not lie within each other.
    """
    if policy == "none":
        return
    for block in blocks:
        block.forward = partial(_checkpointed, block.forward, policy, keep_random_state)


def compile_blocks(blocks: Iterable[torch.nn.Module]) -> None:
    """Let each block run as compiled code, all of them the same where they are alike; after `checkpoint_blocks`.

    A block is compiled anew for what differs: with gradients or without, training or not, as the first or the last one,
    for inputs of changing lengths, of one token, of none. PyTorch gives up after 8 of these unless told otherwise."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VARIANTS)
    for block in blocks:
        block.compile(fullgraph=True)


def _checkpointed(
    forward: Callable[..., Any], policy: Policy, keep_random_state: bool, *args: Any, **kwargs: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    # A plain call: torch.compile understands no context_fn that it has to look up, not even the one that does nothing.
    if policy == "full":
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=keep_random_state, **kwargs)
    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        preserve_rng_state=keep_random_state,
        context_fn=partial(create_selective_checkpoint_contexts, _keep_attention),
        **kwargs,
    )


def _keep_attention(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operation.name().partition(".")[0] in ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


# --- the optimizer ----------------------------------------------------------------------------------------------------


class OffloadedOptimizer(torch.optim.Optimizer):
    """An optimizer whose states, and 32-bit copies of the weights, lie in main memory, and which steps on the CPU.

    `make` gives the optimizer of the copies. Gradients are copied over before a step, weights back after it. To others
    it looks like an optimizer of the weights themselves: its parameter groups hold them, so that gradients are scaled,
    clipped and cleared where they are, and its `state_dict` is that of the inner optimizer on the same weights.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    ) -> None:
        weights = list(parameters)
        self._copies = [_in_main_memory(weight) for weight in weights]
        self._inner = make(self._copies)
        super().__init__(weights, self._inner.defaults)
        self._take_over_settings()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("an optimizer in main memory takes no closure")
        weights = self._weights()
        for weight, copy in zip(weights, self._copies, strict=True):
            if weight.grad is None:
                copy.grad = None
                continue
            if copy.grad is None:
                copy.grad = torch.empty_like(copy, pin_memory=weight.is_cuda)
            copy.grad.copy_(weight.grad, non_blocking=True)
        if weights[0].is_cuda:
            torch.cuda.synchronize(weights[0].device)  # the gradients must have arrived
        self._hand_over_settings()
        self._inner.step()
        self._take_over_settings()  # some optimizers keep what they have found out in their groups
        for weight, copy in zip(weights, self._copies, strict=True):
            if copy.grad is not None:
                weight.copy_(copy, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, and the 32-bit copies of weights that are kept in fewer bits."""
        self._hand_over_settings()
        state = self._inner.state_dict()
        copies = {
            number: copy.detach()
            for number, (weight, copy) in enumerate(zip(self._weights(), self._copies, strict=True))
            if weight.dtype != copy.dtype
        }
        return {**state, "copies": copies} if copies else state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A state of this optimizer, or of the inner one on the device. The weights must be in place already."""
        given = dict(state_dict)
        copies = given.pop("copies", {})
        for number, (weight, copy) in enumerate(zip(self._weights(), self._copies, strict=True)):
            copy.copy_(copies.get(number, weight))
        self._inner.load_state_dict(given)
        self._take_over_settings()

    def _weights(self) -> list[torch.nn.Parameter]:
        return [weight for group in self.param_groups for weight in group["params"]]

    def _hand_over_settings(self) -> None:
        """What was set from outside, such as the learning rate, to the inner optimizer."""
        for inner, outer in zip(self._inner.param_groups, self.param_groups, strict=True):
            inner.update({name: value for name, value in outer.items() if name != "params"})

    def _take_over_settings(self) -> None:
        for inner, outer in zip(self._inner.param_groups, self.param_groups, strict=True):
            outer.update({name: value for name, value in inner.items() if name != "params"})


def _in_main_memory(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    """A copy in 32 bits; pinned where the weight is on a GPU, so that copying does not make it wait."""
    copy = torch.empty(weight.shape, dtype=torch.float32, pin_memory=weight.is_cuda)
    copy.copy_(weight.detach())
    return torch.nn.Parameter(copy)
