"""How much is pruned at which step of a training."""

from __future__ import annotations

from lowbit.exceptions import RecipeError
from lowbit.pruning.masks import check_amount

__all__ = ["constant_amount", "polynomial_amount"]


def constant_amount(step: int, *, amount: float, start: int = 0) -> float:
    """Return 0 before `start` and `amount` from then on."""
    check_amount(amount)
    return amount if step >= start else 0.0


def polynomial_amount(
    step: int, *, start: int, end: int, final: float, initial: float = 0.0, power: float = 3.0
) -> float:
    """Return `final + (initial - final) (1 - (step - start) / (end - start))^power`, clamped to the ends.

    Zhu and Gupta, To prune, or not to prune (2017): fast at first, when there is most to spare, then ever slower.

    Args:
        step: Of the training.
        start: First step that prunes.
        end: Step from which `final` holds.
        final: Share of weights that are pruned in the end.
        initial: Share at `start`; before it nothing is pruned.
        power: 3 in the paper.

    Raises:
        RecipeError: An amount is not in [0, 1), or the end is not behind the start.
    """
    check_amount(final)
    check_amount(initial)
    if end <= start:
        raise RecipeError(f"pruning from step {start} to {end} was asked for", remedy="let it end after it starts")
    if step < start:
        return 0.0
    done = min((step - start) / (end - start), 1.0)
    return final + (initial - final) * (1.0 - done) ** power
