"""Every random number that a family uses, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch


class Draws:
    """Random tensors by name: from a generator, or from tensors given by name (validation, parity tests).

    Numbers are drawn on the CPU, in the order asked for, so that a seed means the same on every device.
    """

    def __init__(
        self, generator: torch.Generator | None = None, given: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        self._generator = generator
        self._given = dict(given or {})

    @classmethod
    def seeded(cls, *parts: int | str) -> Draws:
        """Draws that depend on `parts` alone: the seed and what the numbers are for (step, rank, clip, ...)."""
        digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
        return cls(torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))

    def normal(self, name: str, shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
        """Standard normal, float32."""
        return self._draw(name, shape, device, lambda g: torch.randn(tuple(shape), generator=g))

    def uniform(self, name: str, shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
        """Uniform in [0, 1), float32."""
        return self._draw(name, shape, device, lambda g: torch.rand(tuple(shape), generator=g))

    def integers(
        self, name: str, low: int, high: int, shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Integers in [low, high), int64."""
        return self._draw(name, shape, device, lambda g: torch.randint(low, high, tuple(shape), generator=g))

    def _draw(
        self,
        name: str,
        shape: Sequence[int],
        device: torch.device | str,
        draw: Callable[[torch.Generator], torch.Tensor],
    ) -> torch.Tensor:
        if name in self._given:
            value = self._given[name]
            if tuple(value.shape) != tuple(shape):
                raise ValueError(f"{name} was given as {tuple(value.shape)}, but {tuple(shape)} is needed")
        elif self._generator is None:
            raise KeyError(f"no random tensor named {name} was given; given: {sorted(self._given)}")
        else:
            value = draw(self._generator)
        return value.to(device, non_blocking=True)
