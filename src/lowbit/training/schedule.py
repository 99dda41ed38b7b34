"""How a training changes over its steps: learning rate, strength of quantization, and which weights are pruned."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

__all__ = ["MaskSchedule", "rate_at", "strength_at"]


class MaskSchedule(Protocol):
    """Chooses which weights stay 0 while a model is trained, such as a gradually growing sparsity."""

    def __call__(self, step: int, steps: int, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """Return masks, 0 where a weight is pruned.

        Args:
            step: Number of the step that comes next, from 0.
            steps: Steps of the whole training.
            weights: The weights as they are now, before rounding, by name; not to be changed.

        Returns:
            Masks by the same names, for all or some of them; `None` leaves all as they are.
        """


def rate_at(step: int, steps: int, *, warmup: int) -> float:
    """Return the factor of the learning rate: rising linearly, then a half cosine to 0 (Loshchilov and Hutter, 2017).

    Args:
        step: From 0.
        steps: Of the whole training.
        warmup: Of them, those that the rate rises in.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def strength_at(step: int, steps: int, *, gradual: float) -> float:
    """Return how much of the rounding errors is added: from 0 to 1 over the first part of a training.

    Args:
        step: From 0.
        steps: Of the whole training.
        gradual: Fraction of them over which it grows; 0 adds all of it from the start.
    """
    ramp = gradual * steps
    return 1.0 if step >= ramp else step / max(ramp, 1.0)
