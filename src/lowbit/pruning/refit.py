"""Least squares: what a layer's weights have to be once some of its inputs are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["output_error", "refit"]


def refit(
    weight: NDArray[np.floating], moments: NDArray[np.floating], kept: NDArray[np.bool_], *, damping: float = 1e-3
) -> NDArray[np.float64]:
    """Return the weights of the inputs that are kept, such that the outputs change least.

    He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks (2017), in closed form. A bias is an
    input that is always one.

    Args:
        weight: `[K, N]`, inputs by outputs.
        moments: `[K, K]`, `E[x x]` of all inputs.
        kept: `[K]`, True for the inputs that stay.
        damping: Pulls towards the weights as they were, as a share of the inputs' mean energy.

    Returns:
        `[kept, N]` float64.
    """
    H = moments.astype(np.float64)
    W = weight.astype(np.float64)
    inner = H[np.ix_(kept, kept)].copy()
    inner[np.diag_indices_from(inner)] += max(damping * float(np.diagonal(inner).mean()), 1e-12)
    return W[kept] + np.linalg.solve(inner, H[np.ix_(kept, ~kept)] @ W[~kept])


def output_error(difference: NDArray[np.floating], moments: NDArray[np.floating]) -> float:
    """Return the mean square of `x · difference`, summed over the outputs; `difference` is `[K, N]`."""
    D = difference.astype(np.float64)
    return float(np.sum(D * (moments.astype(np.float64) @ D)))
