"""What two tensors have in common channel by channel: means, variances and covariance, streaming.

One of them is what a layer gives in float, the other what it gives in codes; the error of any affine correction of the
second follows from these five numbers per channel without another pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PairedMoments", "affine_error", "paired_init", "paired_merge", "paired_update"]


def _none() -> NDArray[np.float64]:
    return np.zeros(0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairedMoments:
    """Moments of `y` and `z`, `[channels] float64` each; merging is associative to float64 rounding.

    Args:
        channel_axis: Axis of the observed tensors that numbers the channels; may be negative.
        count: Values seen per channel.
        mean: Mean of `y`; empty while nothing was seen.
        other_mean: Mean of `z`.
        squares: `Σ (y - mean)²`.
        other_squares: `Σ (z - other_mean)²`.
        products: `Σ (y - mean) (z - other_mean)`.
    """

    channel_axis: int = 1
    count: int = 0
    mean: NDArray[np.float64] = field(default_factory=_none)
    other_mean: NDArray[np.float64] = field(default_factory=_none)
    squares: NDArray[np.float64] = field(default_factory=_none)
    other_squares: NDArray[np.float64] = field(default_factory=_none)
    products: NDArray[np.float64] = field(default_factory=_none)

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Standard deviation of `y`, `[channels]`."""
        return np.sqrt(self.squares / max(self.count, 1))

    @property
    def other_deviation(self) -> NDArray[np.float64]:
        """Standard deviation of `z`, `[channels]`."""
        return np.sqrt(self.other_squares / max(self.count, 1))


def paired_init(*, channel_axis: int = 1) -> PairedMoments:
    """Return the state that has seen nothing."""
    return PairedMoments(channel_axis=channel_axis)


def paired_update(state: PairedMoments, y: NDArray[np.floating], z: NDArray[np.floating]) -> PairedMoments:
    """Return the state after one more pair of tensors of the same shape.

    Raises:
        DataError: The shapes differ, there is no such axis, or values are NaN or infinite.
    """
    axis = state.channel_axis
    if y.shape != z.shape or not -y.ndim <= axis < y.ndim:
        raise DataError(f"tensors of shapes {list(y.shape)} and {list(z.shape)} have no channels {axis} to compare")
    if y.size == 0:
        return state
    rows, others = (np.moveaxis(each, axis, 0).reshape(each.shape[axis], -1).astype(np.float64) for each in (y, z))
    if not (np.isfinite(rows).all() and np.isfinite(others).all()):
        raise DataError("observed values are NaN or infinite")
    means = rows.mean(axis=1), others.mean(axis=1)
    rows -= means[0][:, None]
    others -= means[1][:, None]
    return paired_merge(
        state,
        PairedMoments(
            channel_axis=axis,
            count=rows.shape[1],
            mean=means[0],
            other_mean=means[1],
            squares=np.square(rows).sum(axis=1),
            other_squares=np.square(others).sum(axis=1),
            products=(rows * others).sum(axis=1),
        ),
    )


def paired_merge(a: PairedMoments, b: PairedMoments) -> PairedMoments:
    """Return the state of one pass over what `a` and `b` saw.

    Raises:
        DataError: They have other channels.
    """
    if not a.count or not b.count:
        return b if b.count else a
    if a.mean.shape != b.mean.shape:
        raise DataError(f"moments of {a.mean.size} and {b.mean.size} channels cannot be merged")
    count = a.count + b.count
    between, share = a.count * b.count / count, b.count / count
    steps = b.mean - a.mean, b.other_mean - a.other_mean
    return PairedMoments(
        channel_axis=a.channel_axis,
        count=count,
        mean=a.mean + share * steps[0],
        other_mean=a.other_mean + share * steps[1],
        squares=a.squares + b.squares + between * steps[0] ** 2,
        other_squares=a.other_squares + b.other_squares + between * steps[1] ** 2,
        products=a.products + b.products + between * steps[0] * steps[1],
    )


def affine_error(
    state: PairedMoments, factor: NDArray[np.floating] | float = 1.0, shift: NDArray[np.floating] | float = 0.0
) -> NDArray[np.float64]:
    """Return the mean of `(y - factor · z - shift)²` of every channel, `[channels]`.

    Args:
        state: What was seen.
        factor: `[channels]`, or one for all.
        shift: Likewise.
    """
    f, s = np.asarray(factor, dtype=np.float64), np.asarray(shift, dtype=np.float64)
    spread = state.squares - 2 * f * state.products + f**2 * state.other_squares
    mean = state.mean - f * state.other_mean - s
    return np.asarray(np.maximum(spread, 0.0) / max(state.count, 1) + mean**2)
