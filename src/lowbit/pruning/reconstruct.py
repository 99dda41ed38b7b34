"""Pruning input by input, each time changing the weights that are left to make up for it.

Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot (2023). Symbols are
those of `lowbit.rounding.gptq`: `H` are the second moments of the inputs, `U` the upper Cholesky factor of its inverse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.pruning.masks import Pattern, mask_of
from lowbit.rounding.code_grid import check_moments
from lowbit.rounding.inverse_factor import damped, inverse_factor

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["prune_and_reconstruct"]


def prune_and_reconstruct(
    weight: NDArray[np.float32],
    moments: NDArray[np.floating],
    amount: float,
    pattern: Pattern | None = None,
    *,
    damping: float = 0.01,
    lazy: int = 128,
) -> NDArray[np.float32]:
    """Prune a weight so that its outputs change as little as possible.

    Args:
        weight: `[K, N]` float32, inputs by outputs.
        moments: `[G, K, K]`, `H = E[x xᵀ]` of the inputs, for each of G groups of N / G outputs.
        amount: Fraction that is pruned, of every `lazy` inputs, as in the paper.
        pattern: Which weights go together.
        damping: What is added to the diagonal of `H`, as a fraction of its mean.
        lazy: Inputs whose mask is chosen together, and that are pruned before all inputs behind them learn of it.

    Returns:
        `[K, N]` float32, exactly 0 where pruned.

    Raises:
        FormatError: The shapes do not match.
        RecipeError: The amount or pattern is impossible.
    """
    check_moments(weight, weight, moments)
    pattern = pattern or Pattern()
    groups, depth, _ = moments.shape
    step = _step(lazy, pattern, depth)
    U = inverse_factor(damped(moments, damping))
    W = weight.astype(np.float64).reshape(depth, groups, -1).transpose(1, 0, 2).copy()  # [G, K, N / G]
    for start in range(0, depth, step):
        stop = min(start + step, depth)
        mask = _mask(W[:, start:stop], U, start, stop, amount, pattern)
        errors = np.zeros((groups, stop - start, W.shape[2]))
        for row in range(start, stop):
            lost = np.where(mask[:, row - start], 0.0, W[:, row])
            W[:, row] -= lost
            errors[:, row - start] = lost / U[:, row, row, None]
            W[:, row + 1 : stop] -= U[:, row, row + 1 : stop, None] * errors[:, row - start, None]
        W[:, stop:] -= U[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    return np.ascontiguousarray(W.transpose(1, 0, 2).reshape(weight.shape)).astype(np.float32)


def _step(lazy: int, pattern: Pattern, depth: int) -> int:
    """Return how many inputs are masked together: whole patterns."""
    unit = pattern.of or pattern.block[0]
    return min(max(lazy // unit, 1) * unit, max(depth, 1))


def _mask(
    W: NDArray[np.float64], U: NDArray[np.float64], start: int, stop: int, amount: float, pattern: Pattern
) -> NDArray[np.bool_]:
    """Return which of some inputs' weights are kept: those whose loss would cost most, `w² / [H⁻¹]`."""
    diagonal = np.diagonal(U, axis1=1, axis2=2)[:, start:stop, None]
    scores = (W / diagonal) ** 2
    return np.stack([mask_of(score, amount, pattern) for score in scores])
