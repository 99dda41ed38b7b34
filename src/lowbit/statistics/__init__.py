"""Statistics: what calibration saw of one tensor, and the range that is chosen from it.

Every statistic is an immutable state with `init / update / merge` functions, streaming and of bounded memory, so that
calibration can be cut, distributed, checkpointed and resumed without changing its result. Imports `lowbit.formats` at
most; knows arrays, not graphs.
"""

from __future__ import annotations

from lowbit.statistics.entropy import entropy_range
from lowbit.statistics.grid import Grid
from lowbit.statistics.histogram import (
    Histogram,
    histogram_from_arrays,
    histogram_init,
    histogram_merge,
    histogram_to_arrays,
    histogram_update,
)
from lowbit.statistics.minmax import (
    MinMax,
    minmax_finalize,
    minmax_from_arrays,
    minmax_init,
    minmax_merge,
    minmax_range,
    minmax_to_arrays,
    minmax_update,
)
from lowbit.statistics.moments import (
    Moments,
    moments_from_arrays,
    moments_init,
    moments_merge,
    moments_to_arrays,
    moments_update,
)
from lowbit.statistics.moving_average import (
    MovingAverage,
    moving_average_finalize,
    moving_average_from_arrays,
    moving_average_init,
    moving_average_merge,
    moving_average_to_arrays,
    moving_average_update,
)
from lowbit.statistics.mse import mse_range, rounding_error
from lowbit.statistics.observer import RANGE_METHODS, Observer, RangeMethod, histogram_range, observer
from lowbit.statistics.percentile import percentile_range, quantile
from lowbit.statistics.range import Range

__all__ = [
    "RANGE_METHODS",
    "Grid",
    "Histogram",
    "MinMax",
    "Moments",
    "MovingAverage",
    "Observer",
    "Range",
    "RangeMethod",
    "entropy_range",
    "histogram_from_arrays",
    "histogram_init",
    "histogram_merge",
    "histogram_range",
    "histogram_to_arrays",
    "histogram_update",
    "minmax_finalize",
    "minmax_from_arrays",
    "minmax_init",
    "minmax_merge",
    "minmax_range",
    "minmax_to_arrays",
    "minmax_update",
    "moments_from_arrays",
    "moments_init",
    "moments_merge",
    "moments_to_arrays",
    "moments_update",
    "moving_average_finalize",
    "moving_average_from_arrays",
    "moving_average_init",
    "moving_average_merge",
    "moving_average_to_arrays",
    "moving_average_update",
    "mse_range",
    "observer",
    "percentile_range",
    "quantile",
    "rounding_error",
]
