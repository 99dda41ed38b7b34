"""Migration of scale between activations and weights: what is hard to round on one side becomes easy on the other.

`x W = (x / s) (s W)` for any positive `s` of each input channel. SmoothQuant (Xiao, Lin, Seznec, Wu, Demouth and Han,
2022) takes outliers out of activations that get codes. AWQ (Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan and Han,
2023) makes those weights larger, and so relatively more exact, that meet large activations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["activation_aware_scales", "search_scales", "smoothing_scales"]

# Scales stay between this and its reciprocal: what is nearly never active would get any.
_MOST = 1e2
_GRID = 20


def smoothing_scales(
    activations: NDArray[np.floating], weights: NDArray[np.floating], alpha: float = 0.5
) -> NDArray[np.float32]:
    """Return `s = max|x|^α / max|W|^(1 - α)` of every input channel (SmoothQuant, equation 4).

    Args:
        activations: `[K]`, largest magnitude of each channel.
        weights: `[K]`, largest magnitude of the weights that read it.
        alpha: How much of the difficulty moves to the weights, a fraction; at 0.5 both ranges become equal.

    Returns:
        `[K]` float32: what activations are to be divided by and weights multiplied by. 1 where either side is zero.

    Raises:
        FormatError: The shapes differ, a magnitude is negative or not finite, or `alpha` is no fraction.
    """
    if activations.shape != weights.shape or not 0.0 <= alpha <= 1.0:
        raise FormatError(
            f"Activations of shape {activations.shape} do not fit weights of shape {weights.shape} at alpha {alpha}",
            remedy="Pass [K], [K] and a fraction",
        )
    _check(activations)
    _check(weights)
    x, w = activations.astype(np.float64), weights.astype(np.float64)
    scales = np.ones(x.shape)
    both = (x > 0) & (w > 0)
    scales[both] = x[both] ** alpha / w[both] ** (1 - alpha)
    return np.clip(scales, 1 / _MOST, _MOST).astype(np.float32)


def activation_aware_scales(magnitudes: NDArray[np.floating], alpha: float) -> NDArray[np.float32]:
    """Return `s = E|x|^α` of every input channel, in the middle of 1 (AWQ, equation 5).

    Args:
        magnitudes: `[K]`, mean magnitude of each channel.
        alpha: A fraction; 0 changes nothing.

    Returns:
        `[K]` float32, as `smoothing_scales`. 1 for channels that are always zero.

    Raises:
        FormatError: A magnitude is negative or not finite.
    """
    _check(magnitudes)
    scales = np.ones(magnitudes.shape)
    active = magnitudes > 0
    scales[active] = magnitudes[active].astype(np.float64) ** alpha
    if active.any():
        scales[active] /= np.sqrt(scales[active].max() * scales[active].min())
    return np.clip(scales, 1 / _MOST, _MOST).astype(np.float32)


def search_scales(
    magnitudes: NDArray[np.floating], error: Callable[[NDArray[np.float32]], float], *, grid: int = _GRID
) -> tuple[NDArray[np.float32], float]:
    """Return the activation-aware scales whose error is least, over a grid of `α` from 0 to 1 (AWQ, equation 5).

    Args:
        magnitudes: `[K]`, as for `activation_aware_scales`.
        error: Error of the outputs, weighted by the activations, if weights are rounded with these scales, `[K]`.
        grid: How many steps there are from 0 to 1.

    Returns:
        `[K]` float32, and `α`; all ones and 0 where nothing is better.

    Raises:
        FormatError: A magnitude is negative or not finite.
    """
    candidates = [step / grid for step in range(grid)]
    scales = [activation_aware_scales(magnitudes, alpha) for alpha in candidates]
    errors = [error(each) for each in scales]
    best = int(np.argmin(errors))  # the first of equals, so that nothing is changed in vain
    return scales[best], candidates[best]


def _check(magnitudes: NDArray[np.floating]) -> None:
    if magnitudes.ndim != 1 or not np.isfinite(magnitudes).all() or (magnitudes < 0).any():
        raise FormatError(
            f"Magnitudes of shape {magnitudes.shape} are none of channels", remedy="Pass [K], finite and not negative"
        )
