"""What a quantized weight lacks, as a product of two thin matrices.

The error of the outputs is `E|x (R - A B)|² = tr((R - A B)ᵀ H (R - A B))` with the residual `R` and `H = E[xᵀ x]`. With
`H = S Sᵀ` it is the squared distance of `Sᵀ R` to `Sᵀ A B`, and the best product of rank r is the truncated singular
value decomposition of `Sᵀ R` (Zhang et al., LQER: Low-Rank Quantization Error Reconstruction for LLMs, 2024, take the
diagonal of H; Saha et al., Compressing Large Language Models using Low Rank and Low Precision Decomposition, 2024, all
of it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["low_rank"]

# Added to the diagonal, as a share of its mean: what a few samples do not show.
_DAMPING = 0.01


def low_rank(
    residual: NDArray[np.floating], rank: int, moments: NDArray[np.floating] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the product of rank r that takes most of a residual's error out of the outputs.

    Args:
        residual: `[K, N]`, the weight less what its codes stand for.
        rank: r; more than `min(K, N)` is as many.
        moments: `[K, K]` second moments of the inputs, or `[K]` their diagonal; `None` is 1 for all.

    Returns:
        `[K, r]` and `[r, N]` float32, both of about the same magnitude.

    Raises:
        FormatError: The moments do not fit the residual, or the rank is not positive.
    """
    depth = len(residual)
    if rank < 1 or (moments is not None and moments.shape not in {(depth,), (depth, depth)}):
        raise FormatError(
            f"A rank of {rank} and moments of shape {None if moments is None else moments.shape} do not fit a residual "
            f"of shape {residual.shape}",
            remedy="Pass a positive rank, and [K] or [K, K] moments",
        )
    root = _root(moments, depth)
    weighted = residual.astype(np.float64)
    weighted = root[:, None] * weighted if root.ndim == 1 else root.T @ weighted
    left, right = _truncated(weighted, min(rank, *residual.shape))
    unweighted = left / root[:, None] if root.ndim == 1 else np.linalg.solve(root.T, left)
    # The same largest number on both sides, so that neither is lost in a float of few bits.
    sizes = np.abs(unweighted).max(axis=0), np.abs(right).max(axis=1)
    balance = np.sqrt(np.divide(sizes[1], sizes[0], out=np.ones_like(sizes[0]), where=(sizes[0] > 0) & (sizes[1] > 0)))
    return (unweighted * balance).astype(np.float32), (right / balance[:, None]).astype(np.float32)


def _root(moments: NDArray[np.floating] | None, depth: int) -> NDArray[np.float64]:
    """Return S, or its diagonal, with `S Sᵀ = H`."""
    if moments is None:
        return np.ones(depth)
    diagonal = (moments if moments.ndim == 1 else np.diagonal(moments)).astype(np.float64)
    damping = _DAMPING * max(float(diagonal.mean()), 1e-30)
    if moments.ndim == 1:
        return np.sqrt(diagonal + damping)
    return np.asarray(np.linalg.cholesky(moments.astype(np.float64) + damping * np.eye(depth)), dtype=np.float64)


def _truncated(matrix: NDArray[np.float64], rank: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the product of `[K, r]` and `[r, N]` that is nearest to a matrix, from the smaller of its two squares."""
    if matrix.shape[0] > matrix.shape[1]:
        right, left = _truncated(matrix.T, rank)
        return left.T, right.T
    _, vectors = np.linalg.eigh(matrix @ matrix.T)
    leading = vectors[:, ::-1][:, :rank]
    # The sign of an eigenvector is the library's whim; the largest entry positive makes it the same everywhere.
    largest = np.take_along_axis(leading, np.abs(leading).argmax(axis=0)[None, :], axis=0)
    leading = leading * np.where(largest < 0, -1.0, 1.0)
    return leading, leading.T @ matrix
