"""Equalization of two layers: scales that give the channels between them ranges alike, and biases that move on.

Nagel, van Baalen, Blankevoort and Welling, Data-Free Quantization Through Weight Equalization and Bias Correction
(2019). Two layers with a positively homogeneous function between them compute the same if a channel is divided by `s`
in the first and multiplied by `s` in the second. One scale for a whole tensor then wastes fewer of its codes on
channels that are larger than the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["absorbable_bias", "equalizing_scales", "pair_noise", "shared_precision"]

# Beyond this a bias grows so large beside its weights that more is lost than won.
_MOST = 64.0


def equalizing_scales(
    first: NDArray[np.floating], second: NDArray[np.floating], *, most: float = _MOST
) -> NDArray[np.float64]:
    """Return the scales that make the ranges of both sides equal, `s = sqrt(r1 / r2)` (the paper's equation 11).

    Args:
        first: `[C]`, `r1`: largest magnitude of the first layer's weights of each output channel.
        second: `[C]`, `r2`: largest magnitude of the second layer's weights of each input channel.
        most: Scales are kept between this and its reciprocal.

    Returns:
        `[C]` float64, positive: what the first layer is to be divided by and the second multiplied by. 1 for channels
        of which one side is zero throughout.

    Raises:
        FormatError: The ranges differ in number, or one is negative or not finite.
    """
    _check(first, second)
    r1, r2 = first.astype(np.float64), second.astype(np.float64)
    scales = np.ones(r1.shape)
    both = (r1 > 0) & (r2 > 0)
    scales[both] = np.sqrt(r1[both] / r2[both])
    return np.clip(scales, 1 / most, most)


def shared_precision(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return how well one scale for each layer serves their channels, the mean of `p1 · p2` (the paper's section 4.1).

    The precision `p` of a channel is the share of the layer's range that it fills.

    Args:
        first: `[C]`, as for `equalizing_scales`.
        second: `[C]`, likewise.

    Returns:
        A fraction between 0 and 1; 1 if there is nothing to scale.

    Raises:
        FormatError: As `equalizing_scales`.
    """
    _check(first, second)
    most = float(first.max(initial=0.0)) * float(second.max(initial=0.0))
    if most == 0.0:
        return 1.0
    return float(np.mean(first.astype(np.float64) * second.astype(np.float64))) / most


def pair_noise(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    first_norms: NDArray[np.floating],
    second_norms: NDArray[np.floating],
    *,
    depth: int,
    readers: int,
) -> float:
    """Return the rounding noise that 8 bits with one scale a tensor leave at the output of a pair, without any data.

    Three roundings add up: of the first weights, of the activations between, of the second weights. Inputs are taken to
    be independent and of variance 1, so that a channel's activation has the norm of its weights as its deviation.

    Args:
        first: `[C]`, largest magnitude of the first layer's weights of each output channel.
        second: `[C]`, largest magnitude of the second layer's weights of each input channel.
        first_norms: `[C]`, root of the sum of squares of the same weights.
        second_norms: `[C]`, likewise.
        depth: How many weights of the first layer make one output.
        readers: How many weights of the second layer read one input channel.

    Returns:
        A power, in squared units of the output, summed over all outputs; good for comparisons only.
    """
    weights_step, activations_step = 2.0, 3.0  # of the largest magnitude, and of the largest deviation behind a Relu
    between = depth * (weights_step * first.max(initial=0.0)) ** 2
    between += (activations_step * first_norms.max(initial=0.0)) ** 2
    behind = readers * (weights_step * second.max(initial=0.0)) ** 2
    return float(between * np.sum(second_norms**2) + behind * np.sum(first_norms**2)) / (12 * 255**2)


def absorbable_bias(
    mean: NDArray[np.floating], deviation: NDArray[np.floating], *, sigmas: float = 3.0
) -> NDArray[np.float64]:
    """Return what can move from a layer's bias through a Relu into the next one's, `c = max(0, β - 3 γ)`.

    For nearly all inputs the Relu lets this much through unchanged: `relu(y) = relu(y - c) + c` where `y ≥ c`. The
    first bias loses `c`, the second gains its own weights' sum over what they read, `W2 c` (the paper's section 4.1.3).
    Large biases are what equalization leaves behind; without them the activations' range is smaller.

    Args:
        mean: `[C]`, `β`: mean of each channel before the Relu, in units of the tensor.
        deviation: `[C]`, `γ`: its standard deviation.
        sigmas: How many standard deviations stay above zero.

    Returns:
        `[C]` float64, not negative.

    Raises:
        FormatError: The numbers differ, or a deviation is negative.
    """
    _check(np.abs(mean), deviation)
    return np.maximum(mean.astype(np.float64) - sigmas * deviation.astype(np.float64), 0.0)


def _check(first: NDArray[np.floating], second: NDArray[np.floating]) -> None:
    fine = all(bool(np.isfinite(each).all() and (each >= 0).all()) for each in (first, second))
    if first.shape != second.shape or first.ndim != 1 or not fine:
        raise FormatError(
            f"Ranges of shape {first.shape} and {second.shape} are not those of the same channels",
            remedy="Pass [C] and [C], finite and not negative",
        )
