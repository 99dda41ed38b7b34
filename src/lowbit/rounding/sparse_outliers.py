"""The few weights that would stretch everybody's scale: kept apart, at full precision.

Dettmers et al., SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression, 2023, and Kim et al.,
SqueezeLLM: Dense-and-Sparse Quantization, 2023, section 4.2, keep under one percent of the weights like this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import FormatError
from lowbit.rounding.group_sums import group_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.formats import Granularity

__all__ = ["outliers"]


def outliers(
    weight: NDArray[np.float32],
    fraction: float,
    granularity: Granularity,
    importance: NDArray[np.floating] | None = None,
) -> NDArray[np.int32]:
    """Return which weights stand out most from those that they share a scale with.

    Args:
        weight: Any shape.
        fraction: How many, as a fraction of all, rounded to at least one.
        granularity: Which weights share a scale.
        importance: Weights of the squared errors, of a shape that broadcasts; `None` is 1 for all.

    Returns:
        Their positions in row-major order, ascending; zeros are never among them.

    Raises:
        FormatError: The fraction is not between 0 and 1.
    """
    if not 0.0 < fraction < 1.0:
        raise FormatError(f"A fraction of {fraction} is out of range", remedy="Use more than 0 and less than 1")
    square = np.square(weight.astype(np.float64))
    if importance is not None:
        square = square * importance
    usual = granularity.broadcast(
        group_sums(square, granularity) / group_sums(np.ones(weight.shape), granularity), weight.shape
    )
    standing_out = np.divide(square, usual, out=np.zeros_like(square), where=usual > 0).reshape(-1)
    count = min(max(round(fraction * weight.size), 1), int(np.count_nonzero(standing_out)))
    # Stable, so that equal ones are the same everywhere.
    chosen = np.argsort(-standing_out, kind="stable")[:count]
    return np.sort(chosen).astype(np.int32)
