"""Range that leaves out the rarest values at the ends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lowbit.exceptions import DataError, RecipeError
from lowbit.statistics.range import Range

if TYPE_CHECKING:
    from lowbit.statistics.histogram import Histogram

__all__ = ["percentile_range", "quantile"]


def percentile_range(histogram: Histogram, percentile: float = 99.99, *, symmetric: bool = False) -> Range:
    """Return the range that covers `percentile` percent of the values.

    Data of both signs lose half of the rest at either end; data of one sign lose all of it at the far end, because the
    other end is zero and must stay. The range never exceeds the smallest and largest value.

    Args:
        histogram: What calibration saw.
        percentile: Share of the values to cover, in percent, in (0, 100].
        symmetric: Widen the shorter side so that `low == -high`.

    Raises:
        DataError: The histogram is empty.
        RecipeError: `percentile` is not in (0, 100].
    """
    if not 0.0 < percentile <= 100.0:
        raise RecipeError(f"percentile {percentile} is not in (0, 100]", remedy="use e.g. 99.99")
    kept = percentile / 100.0
    if histogram.low >= 0.0:
        low, high = 0.0, quantile(histogram, kept)
    elif histogram.high <= 0.0:
        low, high = quantile(histogram, 1.0 - kept), 0.0
    else:
        low, high = quantile(histogram, (1.0 - kept) / 2.0), quantile(histogram, (1.0 + kept) / 2.0)
    return Range.covering(low, high, symmetric=symmetric)


def quantile(histogram: Histogram, fraction: float) -> float:
    """Return the value below which a fraction of the data lies, to within one bin width.

    The linear definition (R. J. Hyndman, Y. Fan, "Sample quantiles in statistical packages", 1996, type 7; the default
    of `numpy.quantile`): interpolated between the two neighbouring order statistics, each known to one bin width.

    Args:
        histogram: What calibration saw.
        fraction: In [0, 1].

    Raises:
        DataError: The histogram is empty.
    """
    count = histogram.count
    if count == 0:
        raise DataError("no values were observed", remedy="give at least one calibration batch")
    rank = min(max(fraction, 0.0), 1.0) * (count - 1)
    below = math.floor(rank)
    cumulative = np.cumsum(histogram.counts)
    lower = _order_statistic(histogram, cumulative, below)
    upper = _order_statistic(histogram, cumulative, min(below + 1, count - 1))
    return lower + (rank - below) * (upper - lower)


def _order_statistic(histogram: Histogram, cumulative: npt.NDArray[np.int64], rank: int) -> float:
    """Return the value of a rank (0 is the smallest), its bin's values being taken as evenly spread."""
    i = int(np.searchsorted(cumulative, rank, side="right"))
    members = int(histogram.counts[i])
    member = rank - (int(cumulative[i]) - members)
    index = histogram.start + i
    if index == 0 and histogram.zeros:
        # Exact zeros are the smallest values of their bin and must not be smeared over it.
        if member < histogram.zeros:
            return 0.0
        member -= histogram.zeros
        members -= histogram.zeros
    value = math.ldexp(index + (member + 0.5) / members, histogram.exponent)
    return min(max(value, histogram.low), histogram.high)
