"""Exponentially averaged extremes of the batches.

One update maps the sums affinely, `s -> decay * s + (1 - decay) * extreme`. Affine maps compose associatively, so the
state keeps the composed map itself, factor `decay**batches` and offset `s`, and two passes merge exactly like one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lowbit.exceptions import DataError, RecipeError
from lowbit.statistics.range import Range
from lowbit.statistics.values import finite_bounds, flat_float32

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MovingAverage",
    "moving_average_finalize",
    "moving_average_from_arrays",
    "moving_average_init",
    "moving_average_merge",
    "moving_average_to_arrays",
    "moving_average_update",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class MovingAverage:
    """Running average of per-batch extremes; later batches weigh more, so order matters and grouping does not.

    With the extremes `x_1 … x_n` of n batches, `sum = (1 - decay) * Σ decay**(n - i) * x_i` and the debiased average
    is `sum / (1 - decay**n)`, so that the first batches are not pulled towards zero (Kingma and Ba, Adam, 2015).

    Args:
        decay: Weight that the past keeps at every batch, a fraction in (0, 1).
        batches: Number of nonempty batches seen.
        low_sum: Un-debiased average of the batches' smallest values.
        high_sum: Un-debiased average of the batches' largest values.

    Raises:
        RecipeError: `decay` is not inside (0, 1).
    """

    decay: float = 0.9
    batches: int = 0
    low_sum: float = 0.0
    high_sum: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.decay < 1.0:
            raise RecipeError(f"decay {self.decay} is not between 0 and 1", remedy="use e.g. 0.9")


def moving_average_init(*, decay: float = 0.9) -> MovingAverage:
    """Return the state that has seen nothing.

    Raises:
        RecipeError: `decay` is not inside (0, 1).
    """
    return MovingAverage(decay=decay)


def moving_average_update(state: MovingAverage, values: npt.ArrayLike) -> MovingAverage:
    """Return the state after one more batch (any shape, real dtype); an empty batch counts as none.

    Raises:
        DataError: Some values are NaN or infinite, or the dtype is not real.
    """
    vector = flat_float32(values)
    if vector.size == 0:
        return state
    low, high = finite_bounds(vector)
    gain = 1.0 - state.decay
    batch = MovingAverage(decay=state.decay, batches=1, low_sum=gain * low, high_sum=gain * high)
    return moving_average_merge(state, batch)


def moving_average_merge(a: MovingAverage, b: MovingAverage) -> MovingAverage:
    """Return the state of one pass over the batches of `a`, then those of `b`.

    Raises:
        DataError: The two states average with different decays.
    """
    if a.decay != b.decay:
        raise DataError(f"moving averages with decays {a.decay} and {b.decay} cannot be merged")
    kept = a.decay**b.batches
    return MovingAverage(
        decay=a.decay,
        batches=a.batches + b.batches,
        low_sum=a.low_sum * kept + b.low_sum,
        high_sum=a.high_sum * kept + b.high_sum,
    )


def moving_average_finalize(state: MovingAverage, *, symmetric: bool = False) -> Range:
    """Return the debiased average range.

    Raises:
        DataError: Nothing was observed.
    """
    if state.batches == 0:
        raise DataError("no values were observed", remedy="give at least one calibration batch")
    weight = 1.0 - state.decay**state.batches
    return Range.covering(state.low_sum / weight, state.high_sum / weight, symmetric=symmetric)


def moving_average_to_arrays(state: MovingAverage) -> dict[str, npt.NDArray[Any]]:
    """Return the state as named arrays for a checkpoint."""
    return {
        "decay": np.array(state.decay, np.float64),
        "batches": np.array(state.batches, np.int64),
        "sums": np.array([state.low_sum, state.high_sum], np.float64),
    }


def moving_average_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> MovingAverage:
    """Return the state that `moving_average_to_arrays` stored."""
    low_sum, high_sum = arrays["sums"].tolist()
    return MovingAverage(
        decay=float(arrays["decay"]), batches=int(arrays["batches"]), low_sum=low_sum, high_sum=high_sum
    )
