"""Mean and variance per channel, for bias correction.

T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
1979.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lowbit.exceptions import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Moments",
    "moments_from_arrays",
    "moments_init",
    "moments_merge",
    "moments_to_arrays",
    "moments_update",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Count, mean and centred sum of squares of every channel; merging is associative to float64 rounding.

    Args:
        channel_axis: Axis of the observed tensors that numbers the channels; may be negative.
        count: Values seen per channel.
        mean: `[channels] float64`; empty while nothing was seen.
        squares: `[channels] float64`, `Σ (x - mean)**2`.
    """

    channel_axis: int = 1
    count: int = 0
    mean: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    squares: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @property
    def variance(self) -> npt.NDArray[np.float64]:
        """Population variance per channel, `[channels] float64`."""
        return self.squares / max(self.count, 1)


def moments_init(*, channel_axis: int = 1) -> Moments:
    """Return the state that has seen nothing."""
    return Moments(channel_axis=channel_axis)


def moments_update(state: Moments, values: npt.ArrayLike) -> Moments:
    """Return the state after one more tensor.

    Args:
        state: What was seen so far.
        values: Real tensor whose axis `state.channel_axis` has the same length at every update.

    Raises:
        DataError: The tensor has no such axis or another number of channels, or holds NaN or infinity.
    """
    array = np.asarray(values)
    axis = state.channel_axis
    if not -array.ndim <= axis < array.ndim:
        raise DataError(f"a tensor of shape {list(array.shape)} has no channel axis {axis}")
    if array.size == 0:
        return state
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
    bad = int(rows.size - np.count_nonzero(np.isfinite(rows)))
    if bad:
        raise DataError(f"{bad} of {rows.size} observed values are NaN or infinite")
    mean = rows.mean(axis=1)
    rows -= mean[:, np.newaxis]
    squares = np.square(rows, out=rows).sum(axis=1)
    return moments_merge(state, Moments(channel_axis=axis, count=rows.shape[1], mean=mean, squares=squares))


def moments_merge(a: Moments, b: Moments) -> Moments:
    """Return the state of one pass over what `a` and `b` saw.

    Raises:
        DataError: They observed different axes or different numbers of channels.
    """
    if a.channel_axis != b.channel_axis:
        raise DataError(f"moments over the axes {a.channel_axis} and {b.channel_axis} cannot be merged")
    if not b.count:
        return a
    if not a.count:
        return b
    if a.mean.size != b.mean.size:
        raise DataError(f"moments of {a.mean.size} and of {b.mean.size} channels cannot be merged")
    count = a.count + b.count
    delta = b.mean - a.mean
    return Moments(
        channel_axis=a.channel_axis,
        count=count,
        mean=a.mean + delta * (b.count / count),
        squares=a.squares + b.squares + np.square(delta) * (a.count * (b.count / count)),
    )


def moments_to_arrays(state: Moments) -> dict[str, npt.NDArray[Any]]:
    """Return the state as named arrays for a checkpoint."""
    return {
        "layout": np.array([state.channel_axis, state.count], np.int64),
        "mean": state.mean,
        "squares": state.squares,
    }


def moments_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Moments:
    """Return the state that `moments_to_arrays` stored."""
    channel_axis, count = arrays["layout"].tolist()
    return Moments(
        channel_axis=channel_axis,
        count=count,
        mean=np.array(arrays["mean"], np.float64),
        squares=np.array(arrays["squares"], np.float64),
    )
