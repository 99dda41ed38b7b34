"""Observers: what calibration runs over a tensor to choose its range.

An `Observer` is four plain functions (and two for checkpoints) over an immutable state, like an optax
`GradientTransformation`: `state = init()`, `state = update(state, batch)` for every batch, `merge(a, b)` for what two
workers saw, and `finalize(state)` for the range.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, get_args

from lowbit.exceptions import RecipeError
from lowbit.statistics.entropy import entropy_range
from lowbit.statistics.histogram import (
    Histogram,
    histogram_from_arrays,
    histogram_init,
    histogram_merge,
    histogram_to_arrays,
    histogram_update,
)
from lowbit.statistics.minmax import (
    minmax_finalize,
    minmax_from_arrays,
    minmax_init,
    minmax_merge,
    minmax_range,
    minmax_to_arrays,
    minmax_update,
)
from lowbit.statistics.moving_average import (
    moving_average_finalize,
    moving_average_from_arrays,
    moving_average_init,
    moving_average_merge,
    moving_average_to_arrays,
    moving_average_update,
)
from lowbit.statistics.mse import mse_range
from lowbit.statistics.percentile import percentile_range

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from lowbit.statistics.range import Range

__all__ = ["RANGE_METHODS", "Observer", "RangeMethod", "histogram_range", "observer"]

RangeMethod: TypeAlias = Literal["minmax", "moving-average", "percentile", "mse", "entropy"]
"""How a range is chosen from what was observed."""

RANGE_METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)
"""The names of all range methods."""

State = TypeVar("State")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observer(Generic[State]):
    """How one tensor is observed, as functions of an immutable state.

    Laws: `merge(a, b)` is the state of one pass over what `a`, then `b` saw; `merge` is associative and `init()` its
    neutral element; the memory of a state is bounded whatever was observed; nothing is random.

    Args:
        init: State that has seen nothing.
        update: State after one more tensor of any shape; raises `DataError` on NaN and infinity.
        merge: State of one pass over what two states saw, in this order.
        finalize: The range; raises `DataError` if nothing was observed.
        to_arrays: State as named arrays, for an `.npz` checkpoint.
        from_arrays: The state that `to_arrays` stored.
    """

    init: Callable[[], State]
    update: Callable[[State, npt.ArrayLike], State]
    merge: Callable[[State, State], State]
    finalize: Callable[[State], Range]
    to_arrays: Callable[[State], dict[str, npt.NDArray[Any]]]
    from_arrays: Callable[[Mapping[str, npt.NDArray[Any]]], State]


def observer(
    method: RangeMethod,
    *,
    codes: int = 256,
    symmetric: bool = False,
    percentile: float = 99.99,
    decay: float = 0.9,
    bins: int = 8192,
) -> Observer[Any]:
    """Return the observer of a range method.

    Args:
        method: `minmax` and `moving-average` keep two numbers; `percentile`, `mse` and `entropy` share one histogram
            state (at most `bins` counts) and differ only in `finalize`.
        codes: Number of codes of the format, e.g. 256 for 8 bits; `mse` and `entropy` depend on it.
        symmetric: Return `low == -high`; `mse` and `entropy` then search such ranges only.
        percentile: Share of the values to cover, in percent; `percentile` only.
        decay: Weight that the past keeps at every batch, a fraction; `moving-average` only.
        bins: Largest number of histogram bins.

    Raises:
        RecipeError: The method does not exist, or `decay` or `bins` makes no sense.
    """
    if method == "minmax":
        return Observer(
            init=minmax_init,
            update=minmax_update,
            merge=minmax_merge,
            finalize=partial(minmax_finalize, symmetric=symmetric),
            to_arrays=minmax_to_arrays,
            from_arrays=minmax_from_arrays,
        )
    if method == "moving-average":
        moving_average_init(decay=decay)
        return Observer(
            init=partial(moving_average_init, decay=decay),
            update=moving_average_update,
            merge=moving_average_merge,
            finalize=partial(moving_average_finalize, symmetric=symmetric),
            to_arrays=moving_average_to_arrays,
            from_arrays=moving_average_from_arrays,
        )
    if method not in RANGE_METHODS:
        raise RecipeError(f"range method {method!r} does not exist", remedy=f"use one of {', '.join(RANGE_METHODS)}")
    histogram_init(bins=bins)
    return Observer(
        init=partial(histogram_init, bins=bins),
        update=histogram_update,
        merge=histogram_merge,
        finalize=partial(histogram_range, method=method, codes=codes, symmetric=symmetric, percentile=percentile),
        to_arrays=histogram_to_arrays,
        from_arrays=histogram_from_arrays,
    )


def histogram_range(
    histogram: Histogram,
    method: RangeMethod,
    *,
    codes: int = 256,
    symmetric: bool = False,
    percentile: float = 99.99,
) -> Range:
    """Return the range that a method chooses from a histogram, so that one pass serves several methods.

    Args:
        histogram: What calibration saw.
        method: Any but `moving-average`, which needs the batches one by one.
        codes: Number of codes of the format.
        symmetric: Return `low == -high`.
        percentile: Share of the values to cover, in percent; `percentile` only.

    Raises:
        DataError: The histogram is empty.
        FormatError: Too few codes.
        RecipeError: The method does not exist or does not work on histograms, or `percentile` is not in (0, 100].
    """
    match method:
        case "minmax":
            return minmax_range(histogram, symmetric=symmetric)
        case "percentile":
            return percentile_range(histogram, percentile, symmetric=symmetric)
        case "mse":
            return mse_range(histogram, codes, symmetric)
        case "entropy":
            return entropy_range(histogram, codes, symmetric)
        case _:
            raise RecipeError(
                f"range method {method!r} does not work on a histogram",
                remedy="use minmax, percentile, mse or entropy",
            )
