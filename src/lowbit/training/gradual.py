"""Pruning that grows while a model is trained: the smallest weights go first, and what is left learns to do without."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

import torch

from lowbit.exceptions import RecipeError

__all__ = ["GradualPruning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradualPruning:
    """A `MaskSchedule`: magnitude pruning whose share grows as a polynomial.

    Zhu and Gupta, To Prune, or Not to Prune, 2017:

    `amount · (1 - (1 - (t - begin) / (end - begin))^power)` of every weight is 0 at the fraction `t` of all steps.

    Attributes:
        amount: Fraction of every weight that is 0 in the end, from 0 to below 1.
        begin: Fraction of the steps at which it starts.
        end: Fraction of the steps from which masks stay as they are.
        power: How much faster it grows at first; 3 in the paper.
        every: Steps between new masks.
        exclude: Patterns of the names in `module.weights` that are not pruned.

    Raises:
        RecipeError: A fraction is out of its range.
    """

    amount: float
    begin: float = 0.0
    end: float = 0.7
    power: float = 3.0
    every: int = 10
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.amount < 1.0:
            raise RecipeError(f"the amount to prune is {self.amount}", remedy="give a fraction from 0 to below 1")
        if not 0.0 <= self.begin < self.end <= 1.0:
            raise RecipeError(
                f"pruning begins at {self.begin} and ends at {self.end}",
                remedy="give fractions of the training, in order",
            )
        if self.every < 1:
            raise RecipeError(f"masks are made every {self.every} steps", remedy="give at least 1")

    def share(self, step: int, steps: int) -> float:
        """Return the fraction that is pruned at a step."""
        done = (step / max(steps, 1) - self.begin) / (self.end - self.begin)
        return float(self.amount * (1.0 - (1.0 - min(max(done, 0.0), 1.0)) ** self.power))

    def __call__(self, step: int, steps: int, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """Return masks by name; `None` where they stay as they are."""
        last = int(-(-self.end * steps // 1))
        if step > last or (step % self.every and step != last):
            return None
        share = self.share(step, steps)
        found = {}
        for name, weight in weights.items():
            count = round(share * weight.numel())
            if not count or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude):
                continue
            order = weight.abs().reshape(-1).argsort(stable=True)
            mask = torch.ones(weight.numel(), dtype=weight.dtype, device=weight.device)
            mask[order[:count]] = 0.0
            found[name] = mask.reshape(weight.shape)
        return found
