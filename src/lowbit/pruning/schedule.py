"""How much is pruned at which step of a training."""

from __future__ import annotations

from lowbit.exceptions import RecipeError

__all__ = ["polynomial_sparsity"]


def polynomial_sparsity(
    step: int, *, final: float, begin: int, end: int, initial: float = 0.0, power: float = 3.0
) -> float:
    """Return the fraction that is pruned at a step (Zhu and Gupta, To prune, or not to prune, 2017).

    `final + (initial - final) · (1 - (step - begin) / (end - begin))^power` between `begin` and `end`: fast while
    there is much to prune, slow in the end.

    Args:
        step: From 0.
        final: Fraction from `end` on.
        begin: Step of the first pruning; nothing before it.
        end: Step of the last; the same as `begin` prunes all at once.
        initial: Fraction at `begin`.
        power: 3 in the paper; 1 is linear.

    Raises:
        RecipeError: The fractions or steps are impossible.
    """
    if not 0.0 <= initial <= final < 1.0:
        raise RecipeError(
            f"sparsity goes from {initial} to {final}", remedy="give fractions from 0 to below 1 that do not fall"
        )
    if not 0 <= begin <= end or power <= 0:
        raise RecipeError(f"sparsity grows from step {begin} to {end}", remedy="let it begin at 0, and end after that")
    if step < begin:
        return 0.0
    if step >= end:
        return final
    left = 1.0 - (step - begin) / (end - begin)
    return final + (initial - final) * float(left**power)
