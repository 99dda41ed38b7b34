"""Smallest and largest value seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lowbit.exceptions import DataError
from lowbit.statistics.range import Range
from lowbit.statistics.values import finite_bounds, flat_float32

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowbit.statistics.histogram import Histogram

__all__ = [
    "MinMax",
    "minmax_finalize",
    "minmax_from_arrays",
    "minmax_init",
    "minmax_merge",
    "minmax_range",
    "minmax_to_arrays",
    "minmax_update",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class MinMax:
    """Extremes of a tensor over all batches; `merge` is associative, commutative and exact.

    Args:
        low: Smallest value, `+inf` while nothing was seen.
        high: Largest value, `-inf` while nothing was seen.
        count: Number of values seen.
    """

    low: float = math.inf
    high: float = -math.inf
    count: int = 0


def minmax_init() -> MinMax:
    """Return the state that has seen nothing."""
    return MinMax()


def minmax_update(state: MinMax, values: npt.ArrayLike) -> MinMax:
    """Return the state after one more tensor (any shape, real dtype).

    Raises:
        DataError: Some values are NaN or infinite, or the dtype is not real.
    """
    vector = flat_float32(values)
    if vector.size == 0:
        return state
    low, high = finite_bounds(vector)
    return minmax_merge(state, MinMax(low=low, high=high, count=vector.size))


def minmax_merge(a: MinMax, b: MinMax) -> MinMax:
    """Return the state of one pass over what `a` and `b` saw."""
    return MinMax(low=min(a.low, b.low), high=max(a.high, b.high), count=a.count + b.count)


def minmax_finalize(state: MinMax, *, symmetric: bool = False) -> Range:
    """Return the range that clips nothing.

    Raises:
        DataError: Nothing was observed.
    """
    if state.count == 0:
        raise DataError("no values were observed", remedy="give at least one calibration batch")
    return Range.covering(state.low, state.high, symmetric=symmetric)


def minmax_to_arrays(state: MinMax) -> dict[str, npt.NDArray[Any]]:
    """Return the state as named arrays for a checkpoint."""
    return {"bounds": np.array([state.low, state.high], np.float64), "count": np.array(state.count, np.int64)}


def minmax_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> MinMax:
    """Return the state that `minmax_to_arrays` stored."""
    low, high = arrays["bounds"].tolist()
    return MinMax(low=low, high=high, count=int(arrays["count"]))


def minmax_range(histogram: Histogram, *, symmetric: bool = False) -> Range:
    """Return the range of all values in a histogram, clipping nothing.

    Raises:
        DataError: The histogram is empty.
    """
    state = MinMax(low=histogram.low, high=histogram.high, count=histogram.count)
    return minmax_finalize(state, symmetric=symmetric)
