"""How much every weight matters: higher is kept longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["lamp", "magnitude", "movement", "wanda"]


def magnitude(weight: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return `|w|` (Han et al., Learning both Weights and Connections, 2015), in the weight's shape."""
    return np.abs(weight.astype(np.float64))


def wanda(weight: NDArray[np.floating], energy: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return `|w| · ‖x‖` (Sun et al., A Simple and Effective Pruning Approach for Large Language Models, 2023).

    Args:
        weight: `[K, N]`.
        energy: `[K]` or `[G, K]` for G groups of N / G outputs: `E[x²]` of every input, not negative.

    Returns:
        `[K, N]` float64; to be compared within one output.
    """
    groups = np.atleast_2d(energy)
    norms = np.sqrt(groups.astype(np.float64)).T  # [K, G]
    spread: NDArray[np.float64] = np.repeat(norms, weight.shape[1] // len(groups), axis=1)
    return spread * np.abs(weight.astype(np.float64))


def movement(weight: NDArray[np.floating], gradient: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return what a step of training adds to movement scores, `-w · ∂L/∂w` (Sanh et al., Movement Pruning, 2020).

    Sums over the steps are positive where weights move away from zero.

    Args:
        weight: Any shape.
        gradient: Of the loss, in the same shape.
    """
    return -weight.astype(np.float64) * gradient.astype(np.float64)


def lamp(weight: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return magnitudes that can be compared across layers (Lee et al., Layer-adaptive Sparsity, 2021).

    `w² / Σ w'²` over all weights of the layer that are not smaller: the largest weight of every layer has 1, so that no
    layer is pruned to nothing.

    Args:
        weight: Any shape.
    """
    flat = weight.astype(np.float64).ravel() ** 2
    order = np.argsort(flat, kind="stable")
    rest = np.cumsum(flat[order][::-1])[::-1]
    scores = np.zeros_like(flat)
    np.divide(flat[order], rest, out=rest, where=rest > 0)
    scores[order] = rest
    return scores.reshape(weight.shape)
