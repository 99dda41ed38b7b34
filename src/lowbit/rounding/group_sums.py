"""Sums over the elements of a tensor that share a scale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.formats import Granularity

__all__ = ["group_sums"]


def group_sums(values: NDArray[np.float64], granularity: Granularity) -> NDArray[np.float64]:
    """Return the sum of the elements that share a scale, in the shape of the scale.

    Args:
        values: Any shape.
        granularity: Which elements share a scale.

    Raises:
        FormatError: The tensor has no such axis.
    """
    shape = granularity.scale_shape(values.shape)
    groups = math.prod(shape)
    # A scale's own number at each of its elements says what to add where, whatever the granularity.
    numbers = granularity.broadcast(np.arange(groups).reshape(shape), values.shape)
    belongs = np.broadcast_to(numbers, values.shape).reshape(-1)
    sums = np.bincount(belongs, weights=values.reshape(-1), minlength=groups)
    return np.asarray(sums.reshape(shape), dtype=np.float64)
