"""The weights that are left, changed so that outputs are what they were, for a mask that is decided.

Boža, Fast and Effective Weight Update for Pruned Large Language Models (2024): the alternating direction method of
multipliers with one factorization for all outputs, on inputs brought to equal energy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.rounding.code_grid import check_moments
from lowbit.rounding.inverse_factor import damped

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["refit", "refit_inputs", "refit_residual"]


def refit(
    weight: NDArray[np.float32],
    moments: NDArray[np.floating],
    kept: NDArray[np.bool_],
    *,
    damping: float = 0.01,
    steps: int = 60,
) -> NDArray[np.float32]:
    """Change kept weights so that the outputs change as little as possible.

    Args:
        weight: `[K, N]` float32, inputs by outputs, before pruning.
        moments: `[G, K, K]`, `H = E[x xᵀ]` of the inputs, for each of G groups of N / G outputs.
        kept: `[K, N]`, which weights are kept.
        damping: What is added to the diagonal of `H`, as a fraction of its mean.
        steps: Steps of the method; it has nearly converged after 30.

    Returns:
        `[K, N]` float32, exactly 0 where nothing is kept.

    Raises:
        FormatError: The shapes do not match.
    """
    check_moments(weight, weight, moments)
    groups, depth, _ = moments.shape
    H = damped(moments, damping)
    size = np.sqrt(np.einsum("gkk->gk", H))
    H /= size[:, :, None] * size[:, None, :]

    def split(matrix: NDArray[np.generic]) -> NDArray[np.generic]:
        return matrix.reshape(depth, groups, -1).transpose(1, 0, 2)

    W = split(weight.astype(np.float64)) * size[:, :, None]
    mask = split(kept)
    wanted = H @ W
    inverse = np.linalg.inv(H + np.eye(depth))  # the penalty is 1: inputs have energy 1
    Z = np.where(mask, W, 0.0)
    U = np.zeros_like(W)
    for _ in range(steps):
        X = inverse @ (wanted + Z - U)
        Z = np.where(mask, X + U, 0.0)
        U += X - Z
    found = np.where(mask, Z / size[:, :, None], 0.0)
    return np.ascontiguousarray(found.transpose(1, 0, 2).reshape(weight.shape)).astype(np.float32)


def refit_inputs(
    weight: NDArray[np.floating], moments: NDArray[np.floating], kept: NDArray[np.bool_], *, damping: float = 1e-3
) -> NDArray[np.float64]:
    """Change the weights of kept inputs so that the outputs change least, where whole inputs go.

    He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks (2017): all outputs keep the same
    inputs, so that one system of equations is the exact solution. A bias is an input that is always one.

    Args:
        weight: `[K, N]`, inputs by outputs, before pruning.
        moments: `[K, K]`, `H = E[x xᵀ]` of all inputs.
        kept: `[K]`, which inputs are kept.
        damping: Pulls towards the weights as they were, as a fraction of the mean energy of the kept inputs.

    Returns:
        `[K, N]` float64, exactly 0 for the inputs that go.
    """
    W = weight.astype(np.float64)
    found = np.where(kept[:, None], W, 0.0)
    if kept.any():
        H = moments.astype(np.float64)
        inner = damped(H[np.ix_(kept, kept)][None], damping)[0]
        found[kept] += np.linalg.solve(inner, H[np.ix_(kept, ~kept)] @ W[~kept])
    return found


def refit_residual(
    moments: NDArray[np.floating], residual: NDArray[np.floating], *, damping: float = 1e-3
) -> NDArray[np.float64]:
    """Return what has to be added to a weight so that its outputs lack least of what is wanted.

    `argmin E|r - xᵀ D|² + λ |D|²`, where `r` is what is lacking: wanted outputs less those of the weight as it is.

    Args:
        moments: `[K, K]`, `E[x xᵀ]` of the inputs as they are now.
        residual: `[K, N]`, `E[x rᵀ]`.
        damping: λ, as a fraction of the mean energy of the inputs; pulls towards the weight as it is.

    Returns:
        `[K, N]` float64.
    """
    found: NDArray[np.float64] = np.linalg.solve(damped(moments[None], damping)[0], residual.astype(np.float64))
    return found
