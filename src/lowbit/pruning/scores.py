"""How much single weights matter: scores of the weight's own shape, larger is more important."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["magnitude_scores", "movement_scores", "wanda_scores"]


def magnitude_scores(weight: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return `|w|`, in the weight's shape."""
    return np.abs(weight.astype(np.float64))


def movement_scores(
    accumulated: NDArray[np.floating], weight: NDArray[np.floating], gradient: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Add a training step to the scores of movement pruning (Sanh, Wolf and Rush, 2020): `S - w · dL/dw`.

    Weights that the training moves away from zero gain, those that it moves towards zero lose.

    Args:
        accumulated: The scores so far; zeros at the start.
        weight: The weights before the step.
        gradient: Gradient of the loss by them, in the same shape.
    """
    return accumulated.astype(np.float64) - weight.astype(np.float64) * gradient


def wanda_scores(weight: NDArray[np.floating], energy: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return `|w| · ‖x‖` (Sun, Liu, Bair and Kolter, A Simple and Effective Pruning Approach for LLMs, 2023).

    Args:
        weight: `[K, N]`, inputs by outputs.
        energy: `[K]` or `[K, N]`, mean square of the input that each weight is multiplied with.
    """
    root = np.sqrt(np.maximum(energy.astype(np.float64), 0.0))
    return np.abs(weight.astype(np.float64)) * (root[:, None] if root.ndim == 1 else root)
