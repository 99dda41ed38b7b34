"""Pruning while a model learns: less and less is left, and the rest adapts."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from lowbit.exceptions import RecipeError
from lowbit.pruning import polynomial_sparsity

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GradualPruning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradualPruning:
    """Prunes what matters least, a few more every time (Zhu and Gupta, To prune, or not to prune, 2017).

    Attributes:
        amount: Fraction of the weights that is 0 in the end, from 0 to below 1.
        initial: Fraction at the first pruning.
        begin: Share of the steps before it.
        end: Share of the steps at which the last pruning is; the rest is for learning.
        power: How much faster it grows at first; 3 in the paper.
        every: Steps between prunings.
        across: Whether layers compete by their LAMP scores (Lee et al., 2021), so that each is pruned as far as it can
            bear; otherwise every layer loses the same fraction.
        exclude: Patterns of names of weights that are not pruned; vectors never are.
        criterion: `magnitude` prunes the smallest weights. `movement` prunes those that training moves towards zero,
            however large they are, by scores that add up from its first step on (Sanh et al., Movement Pruning, 2020):
            for fine-tuning on a task that is not the one of the weights, and for high amounts.
    """

    amount: float
    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.7
    power: float = 3.0
    every: int = 20
    across: bool = True
    exclude: tuple[str, ...] = ()
    criterion: Literal["magnitude", "movement"] = "magnitude"

    def __post_init__(self) -> None:
        """Refuse what is impossible.

        Raises:
            RecipeError: A fraction or a number of steps is impossible.
        """
        polynomial_sparsity(0, final=self.amount, initial=self.initial, begin=0, end=1, power=self.power)
        if not 0.0 <= self.begin <= self.end <= 1.0 or self.every < 1:
            raise RecipeError(
                f"pruning goes from {self.begin} to {self.end} of the steps, every {self.every}",
                remedy="give shares from 0 to 1 that do not fall, and 1 step or more",
            )
        if self.criterion not in {"magnitude", "movement"}:
            raise RecipeError(
                f"the criterion is {self.criterion!r}", remedy="while training, use magnitude or movement"
            )
        if self.criterion == "movement" and self.initial > 0 and self.begin == 0:
            raise RecipeError(
                f"the first step is to prune {self.initial} by movement",
                cause="before it, nothing has moved",
                remedy="let it begin later, e.g. begin=0.1, or start from initial=0",
            )

    def __call__(
        self,
        step: int,
        steps: int,
        weights: dict[str, torch.Tensor],
        *,
        scores: Callable[[], dict[str, torch.Tensor]] | None = None,
    ) -> dict[str, torch.Tensor] | None:
        """Return masks, 0 where a weight is pruned; see `MaskSchedule`.

        Args:
            step: Number of the step that comes next, from 0.
            steps: Steps of the whole training.
            weights: The weights as they are now, by name.
            scores: Returns what movement says of them, by name; lower goes first. lowbit's own loop has it.

        Raises:
            RecipeError: The criterion is movement, and there are no scores.
        """
        if self.criterion == "movement" and scores is None:
            raise RecipeError(
                "there are no movement scores",
                cause="they add up from the gradients of every step",
                remedy="train with lowbit.qat, or give scores= from lowbit.training.movement.Movement",
            )
        begin, end = round(self.begin * steps), round(self.end * steps)
        if not begin <= step <= end or ((step - begin) % self.every and step != end):
            return None
        sparsity = polynomial_sparsity(
            step, final=self.amount, initial=self.initial, begin=begin, end=end, power=self.power
        )
        chosen = {
            name: weight
            for name, weight in weights.items()
            if weight.ndim > 1 and not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude)
        }
        if not chosen or sparsity == 0.0:
            return None
        if scores is not None and self.criterion == "movement":
            moved = scores()
            ranked = {name: moved[name].flatten() for name in chosen}
        else:
            ranked = {name: _lamp(weight) if self.across else weight.abs().flatten() for name, weight in chosen.items()}
        if not self.across:
            return {name: _kept(ranked[name], sparsity).reshape(weight.shape) for name, weight in chosen.items()}
        if self.criterion == "movement":
            # Changes of the loss are comparable as they are, but unlike LAMP's scores may empty a layer.
            ranked = {name: _with_one_kept(one) for name, one in ranked.items()}
        kept = _kept(torch.cat(list(ranked.values())), sparsity)
        parts = kept.split([weight.numel() for weight in chosen.values()])
        return {name: part.reshape(weight.shape) for (name, weight), part in zip(chosen.items(), parts, strict=True)}


def _kept(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Return 1 for all but the lowest scores, float32."""
    mask = torch.ones_like(scores, dtype=torch.float32)
    count = round(sparsity * scores.numel())
    if count:
        mask[torch.argsort(scores, stable=True)[:count]] = 0.0
    return mask


def _with_one_kept(scores: torch.Tensor) -> torch.Tensor:
    """Let the highest score be one that is never pruned."""
    found = scores.clone()
    found[torch.argmax(found)] = torch.inf
    return found


def _lamp(weight: torch.Tensor) -> torch.Tensor:
    """Return the scores of `lowbit.pruning.lamp`, flat."""
    squares, order = weight.flatten().double().square().sort(stable=True)
    rest = squares.flip(0).cumsum(0).flip(0)
    scores = torch.zeros_like(squares)
    scores[order] = torch.where(rest > 0, squares / rest.clamp_min(1e-300), torch.zeros_like(rest))
    return scores
