"""One codebook for a whole weight under scales of its channels or blocks, each fitted to the other.

Levels, codes and scales are chosen in turn, each the best given the other two: `Σ h (w - s · l[c])²` never rises.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.formats import Format, Parameters, PerChannel, PerTensor, choose_parameters, dequantize, quantize
from lowbit.rounding.codebook import learn_codebook
from lowbit.rounding.group_sums import group_sums
from lowbit.rounding.weight_range import RangeMethod, weight_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["fitted_parameters", "learned_parameters", "own_levels"]

_ROUNDS = 3
# A channel with fewer weights for each of its levels shares them with all others: its own would add more than two bits
# to every weight.
_WEIGHTS_PER_LEVEL = 16


def fitted_parameters(
    weight: NDArray[np.float32],
    fmt: Format,
    method: RangeMethod = "minmax",
    importance: NDArray[np.floating] | None = None,
) -> Parameters:
    """Choose what decodes a weight's codes: levels and scales of a learned codebook, or what follows from the range.

    Args:
        weight: Any shape, float32.
        fmt: The format, on the axes of this weight.
        method: How the range is chosen where levels are not learned; see `weight_range`.
        importance: Weights of the squared errors that levels are learned by; `None` is 1 for all.

    Raises:
        FormatError: The weight holds NaN or infinity, or the importance is negative.
    """
    if fmt.element.learned:
        return learned_parameters(weight, fmt, importance)
    return choose_parameters(*weight_range(weight, fmt, method), fmt)


def learned_parameters(
    weight: NDArray[np.float32], fmt: Format, importance: NDArray[np.floating] | None = None
) -> Parameters:
    """Learn the levels of a weight, and its scales where it needs some.

    Per channel, each channel of enough weights gets levels of its own and no scale; otherwise all share their levels,
    and each has its scale. Per tensor there is one set of levels, and per block one under a scale for every block.

    Args:
        weight: Any shape, float32.
        fmt: Format of a learned codebook, on the axes of this weight.
        importance: Weights of the squared errors, of a shape that broadcasts; `None` is 1 for all.

    Raises:
        FormatError: The weight holds NaN or infinity, or the importance is negative.
    """
    entries = len(fmt.element.levels)
    shape = fmt.granularity.scale_shape(weight.shape)
    zero_point = np.zeros(shape, dtype=fmt.element.dtype)
    if own_levels(weight.shape, fmt):
        h = None if importance is None else _rows(np.broadcast_to(importance, weight.shape), fmt)
        levels = learn_codebook(_rows(weight, fmt), entries, h)
        own = levels if isinstance(fmt.granularity, PerChannel) else levels[0]
        return Parameters(np.ones(shape, dtype=np.float32), zero_point, own)
    return _shared(weight, fmt, importance)


def own_levels(shape: tuple[int, ...], fmt: Format) -> bool:
    """Whether what shares a scale has learned levels of its own, so that it needs no scale.

    Those are whole tensors, and channels along the first or last axis with enough weights.
    """
    if isinstance(fmt.granularity, PerTensor):
        return True
    if not isinstance(fmt.granularity, PerChannel) or fmt.granularity.axis % len(shape) not in {0, len(shape) - 1}:
        return False
    weights = math.prod(shape) // max(shape[fmt.granularity.axis], 1)
    return weights >= _WEIGHTS_PER_LEVEL * len(fmt.element.levels)


def _rows(array: NDArray[Any], fmt: Format) -> NDArray[Any]:
    """Return a row for every channel, or one for the whole tensor."""
    if not isinstance(fmt.granularity, PerChannel):
        return array.reshape(1, -1)
    return np.moveaxis(array, fmt.granularity.axis, 0).reshape(array.shape[fmt.granularity.axis], -1)


def _shared(weight: NDArray[np.float32], fmt: Format, importance: NDArray[np.floating] | None) -> Parameters:
    h = np.ones(weight.shape) if importance is None else np.broadcast_to(importance, weight.shape).astype(np.float64)
    parameters = choose_parameters(*weight_range(weight, fmt), fmt)
    levels = None
    for _ in range(_ROUNDS):
        scale = fmt.granularity.broadcast(parameters.scale.astype(np.float64), weight.shape)
        # In units of the scale, an error counts with its square.
        unit = (weight / scale).reshape(1, -1)
        weights = (h * np.square(scale)).reshape(1, -1)
        levels = learn_codebook(unit, len(fmt.element.levels), weights, start="best" if levels is None else levels)
        parameters = Parameters(parameters.scale, parameters.zero_point, levels[0])
        parameters = _rescaled(weight, fmt, h, parameters)
    return parameters


def _rescaled(weight: NDArray[np.float32], fmt: Format, h: NDArray[np.float64], parameters: Parameters) -> Parameters:
    """Return the scales of least squared error for the codes of the present ones: `s' = s · Σ h w ŵ / Σ h ŵ²`."""
    decoded = dequantize(quantize(weight, parameters, fmt), parameters, fmt).astype(np.float64)
    along = group_sums(h * weight * decoded, fmt.granularity)
    power = group_sums(h * np.square(decoded), fmt.granularity)
    factor = np.divide(along, power, out=np.ones_like(along), where=(power > 0) & (along > 0))
    scale = np.maximum(parameters.scale * factor, np.finfo(np.float32).tiny).astype(np.float32)
    return Parameters(scale, parameters.zero_point, parameters.levels)
