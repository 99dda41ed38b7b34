"""SparseGPT: weights that go are made up for by those that stay.

Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot (2023). `H` and `U` are
the paper's: second moments of the inputs, and the upper Cholesky factor of their inverse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import RecipeError
from lowbit.pruning.masks import largest_mask, n_of_m_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["sparse_gpt"]


def sparse_gpt(
    weight: NDArray[np.floating],
    moments: NDArray[np.floating],
    amount: float,
    *,
    pattern: tuple[int, int] | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Prune a weight input by input, each time changing the inputs behind so that the outputs change least.

    Args:
        weight: `[K, N]`, inputs by outputs.
        moments: `[K, K]`, `E[x x]` of the inputs.
        amount: Share of weights that go, in [0, 1), in every block of inputs.
        pattern: `(n, m)` keeps n of every m inputs instead, whatever the amount is.
        damping: Added to the diagonal of `H`, as a fraction of its mean.
        block: Inputs whose mask is chosen together.

    Returns:
        `[K, N]` float32 with zeros, and the mask, True where a weight stays.

    Raises:
        RecipeError: The shapes do not match, or the amount or pattern is impossible.
    """
    depth = weight.shape[0]
    if moments.shape != (depth, depth):
        raise RecipeError(f"moments of shape {moments.shape} were given for a weight of shape {weight.shape}")
    H = moments.astype(np.float64)
    diagonal = np.einsum("kk->k", H)
    diagonal += max(damping * diagonal.mean(), 1e-12)
    backwards = np.linalg.cholesky(H[::-1, ::-1])
    U = np.linalg.solve(backwards, np.eye(depth))[::-1, ::-1]
    W = weight.astype(np.float64)
    mask = np.ones(W.shape, dtype=bool)
    step = block if pattern is None else max(block // pattern[1], 1) * pattern[1]
    for start in range(0, depth, step):
        stop = min(start + step, depth)
        if pattern is None:
            scores = (W[start:stop] / np.diagonal(U)[start:stop, None]) ** 2
            mask[start:stop] = largest_mask(scores, amount)
        for row in range(start, stop):
            if pattern is not None and (row - start) % pattern[1] == 0:
                end = min(row + pattern[1], stop)
                scores = (W[row:end] / np.diagonal(U)[row:end, None]) ** 2
                mask[row:end] = n_of_m_mask(scores, *pattern)
            error = np.where(mask[row], 0.0, W[row]) / U[row, row]
            W[row + 1 :] -= U[row, row + 1 :, None] * error
            W[row][~mask[row]] = 0.0
    return W.astype(np.float32), mask
