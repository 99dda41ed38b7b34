"""The inverse of second moments, in the form that changing weights one after the other needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["damped", "inverse_factor"]


def damped(moments: NDArray[np.floating], damping: float) -> NDArray[np.float64]:
    """Return the moments with a diagonal that lets them be inverted."""
    H = moments.astype(np.float64)
    diagonal = np.einsum("gkk->gk", H)
    mean = diagonal.mean(axis=1, keepdims=True)
    diagonal += np.maximum(damping * mean, 1e-12 * mean)
    # An input that was always zero has nothing beside its diagonal: with any energy of its own it stands alone.
    diagonal[diagonal <= 0] = 1.0
    return H


def inverse_factor(H: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the upper Cholesky factor `U` of the inverse of `H`, `H⁻¹ = Uᵀ U`, `[G, K, K]`.

    NOTE: With the order of the inputs reversed, `H = L Lᵀ`; then `U` is `L⁻¹`, reversed back. This never forms the
    inverse of `H`, whose own factor would lose twice as many digits.
    """
    backwards = np.linalg.cholesky(H[:, ::-1, ::-1])
    inverse = np.linalg.solve(backwards, np.broadcast_to(np.eye(H.shape[1]), H.shape))
    return np.ascontiguousarray(inverse[:, ::-1, ::-1])
