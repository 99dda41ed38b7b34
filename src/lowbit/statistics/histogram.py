"""Histograms whose bins are multiples of a power of two, so that they coarsen and merge without any loss.

Bin k covers `[k * 2**e, (k + 1) * 2**e)`. Doubling the width joins the bins 2k and 2k+1, hence
`floor(floor(x / 2**e) / 2) == floor(x / 2**(e+1))`: the histogram of a tensor does not depend on how the tensor was cut
into batches, nor on the order in which they came.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lowbit.exceptions import DataError, RecipeError
from lowbit.statistics.values import finite_bounds, flat_float32

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Histogram",
    "histogram_from_arrays",
    "histogram_init",
    "histogram_merge",
    "histogram_to_arrays",
    "histogram_update",
]

MIN_EXPONENT = -149
"""Exponent of the smallest float32 denormal: no two float32 values are ever closer."""

SIGNIFICANT_BITS = 24
"""Bins finer than the spacing of float32 at the largest magnitude would stay empty."""

CHUNK = 32768
"""Values binned at a time: the scratch buffers (3 x 256 KiB) stay in the second-level cache."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histogram:
    """Exact counts of a tensor's values in at most `bins` bins of width `2**exponent`, anchored at zero.

    `counts[i]` values `x` obey `(start + i) * 2**exponent <= x < (start + i + 1) * 2**exponent`; the first and the last
    bin hold `low` and `high`. `exponent` is the smallest that lets these fit into `bins` bins (no finer than float32
    itself), so it depends on `low` and `high` alone, and merging is exact in any order and grouping.

    Args:
        bins: Largest number of bins; a range that is not tiny uses at least half of them.
        exponent: Base-2 logarithm of the bin width.
        start: Index of the first bin.
        counts: `[n <= bins] int64`, read-only.
        low: Smallest value seen, `+inf` while there is none.
        high: Largest value seen, `-inf` while there is none.
        zeros: How many values were exactly zero; `counts` holds them too.
        total: Sum of the values, accurate to float64 rounding.
        total_squares: Sum of the squared values, accurate to float64 rounding.
    """

    bins: int = 8192
    exponent: int = MIN_EXPONENT
    start: int = 0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    low: float = math.inf
    high: float = -math.inf
    zeros: int = 0
    total: float = 0.0
    total_squares: float = 0.0

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise RecipeError(f"a histogram of {self.bins} bins is too small", remedy="use at least 2 bins")
        self.counts.flags.writeable = False

    @property
    def width(self) -> float:
        """Width of one bin, `2**exponent`."""
        return math.ldexp(1.0, self.exponent)

    @property
    def count(self) -> int:
        """Number of values seen."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean of the values; 0 while there is none."""
        return self.total / max(self.count, 1)

    @property
    def second_moment(self) -> float:
        """Mean of the squared values; 0 while there is none."""
        return self.total_squares / max(self.count, 1)

    def edges(self) -> npt.NDArray[np.float64]:
        """Return the bin edges, `[n + 1] float64`, exact."""
        return np.ldexp(self.start + np.arange(self.counts.size + 1, dtype=np.float64), self.exponent)

    def nonzero_counts(self) -> npt.NDArray[np.int64]:
        """Return the counts without the exact zeros, which every grid represents without error. `[n] int64`."""
        counts = self.counts.copy()
        if self.zeros:
            counts[-self.start] -= self.zeros
        return counts


def histogram_init(*, bins: int = 8192) -> Histogram:
    """Return the state that has seen nothing.

    Raises:
        RecipeError: Fewer than 2 bins.
    """
    return Histogram(bins=bins)


def histogram_update(state: Histogram, values: npt.ArrayLike) -> Histogram:
    """Return the state after one more tensor (any shape, real dtype), at about 5 ns a value.

    Raises:
        DataError: Some values are NaN or infinite, or the dtype is not real.
    """
    vector = flat_float32(values)
    if vector.size == 0:
        return state
    low, high = finite_bounds(vector)
    low, high = min(low, state.low), max(high, state.high)
    exponent = canonical_exponent(low, high, state.bins)
    start, stop = _bin_of(low, exponent), _bin_of(high, exponent) + 1
    counts = _widened(state, exponent, start, stop)

    chunk = min(CHUNK, vector.size)
    # float64 holds every float32 times every width exactly; in float32 tiny negative values would underflow to bin 0.
    scaled_buffer, square_buffer, index_buffer = np.empty(chunk), np.empty(chunk), np.empty(chunk, np.int64)
    is_zero_buffer = np.empty(chunk, np.bool_)
    per_width = math.ldexp(1.0, -exponent)
    zeros, total, total_squares = state.zeros, state.total, state.total_squares
    for begin in range(0, vector.size, chunk):
        part = vector[begin : begin + chunk]
        n = part.size
        scaled, square, index = scaled_buffer[:n], square_buffer[:n], index_buffer[:n]
        zeros += int(np.count_nonzero(np.equal(part, 0.0, out=is_zero_buffer[:n])))
        np.copyto(scaled, part)
        total += float(scaled.sum())
        # NumPy's pairwise sum, because the result of a BLAS dot product depends on its number of threads.
        total_squares += float(np.multiply(scaled, scaled, out=square).sum())
        np.multiply(scaled, per_width, out=scaled)
        np.floor(scaled, out=scaled)
        np.subtract(scaled, start, out=scaled)
        np.copyto(index, scaled, casting="unsafe")
        counts += np.bincount(index, minlength=counts.size)
    return Histogram(
        bins=state.bins,
        exponent=exponent,
        start=start,
        counts=counts,
        low=low,
        high=high,
        zeros=zeros,
        total=total,
        total_squares=total_squares,
    )


def histogram_merge(a: Histogram, b: Histogram) -> Histogram:
    """Return the histogram of one pass over what `a` and `b` saw: counts exactly, sums to float64 rounding.

    Raises:
        DataError: The two were made with different numbers of bins.
    """
    if a.bins != b.bins:
        raise DataError(f"histograms of {a.bins} and {b.bins} bins cannot be merged")
    if not b.counts.size:
        return a
    if not a.counts.size:
        return b
    low, high = min(a.low, b.low), max(a.high, b.high)
    exponent = canonical_exponent(low, high, a.bins)
    start, stop = _bin_of(low, exponent), _bin_of(high, exponent) + 1
    return Histogram(
        bins=a.bins,
        exponent=exponent,
        start=start,
        counts=_widened(a, exponent, start, stop) + _widened(b, exponent, start, stop),
        low=low,
        high=high,
        zeros=a.zeros + b.zeros,
        total=a.total + b.total,
        total_squares=a.total_squares + b.total_squares,
    )


def canonical_exponent(low: float, high: float, bins: int) -> int:
    """Return the smallest exponent whose bins from that of `low` to that of `high` are at most `bins`."""
    magnitude = max(abs(low), abs(high))
    floor = max(MIN_EXPONENT, math.frexp(magnitude)[1] - SIGNIFICANT_BITS) if magnitude else MIN_EXPONENT
    # A span in [2**(s-1), 2**s) needs more than `bins` bins of any width below 2**(s-1) / bins, so the search starts
    # there and takes at most a few steps.
    exponent = max(floor, math.frexp(high - low)[1] - 1 - bins.bit_length()) if high > low else floor
    while _bin_of(high, exponent) - _bin_of(low, exponent) >= bins:
        exponent += 1
    return exponent


def coarsened(counts: npt.NDArray[np.int64], start: int, levels: int) -> tuple[npt.NDArray[np.int64], int]:
    """Return counts and first index after joining `2**levels` neighbouring bins. `[n] int64 -> [m <= n] int64`."""
    if not levels or not counts.size:
        return counts, start
    # Every index is below 2**62, so larger shifts change nothing, and int64 could not make them.
    index = (start + np.arange(counts.size, dtype=np.int64)) >> min(levels, 62)
    joints = np.flatnonzero(np.diff(index, prepend=index[0] - 1))
    return np.add.reduceat(counts, joints), int(index[0])


def histogram_to_arrays(state: Histogram) -> dict[str, npt.NDArray[Any]]:
    """Return the state as named arrays for a checkpoint."""
    return {
        "layout": np.array([state.bins, state.exponent, state.start, state.zeros], np.int64),
        "counts": state.counts,
        "moments": np.array([state.low, state.high, state.total, state.total_squares], np.float64),
    }


def histogram_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Histogram:
    """Return the state that `histogram_to_arrays` stored."""
    bins, exponent, start, zeros = arrays["layout"].tolist()
    low, high, total, total_squares = arrays["moments"].tolist()
    return Histogram(
        bins=bins,
        exponent=exponent,
        start=start,
        counts=np.array(arrays["counts"], np.int64),
        low=low,
        high=high,
        zeros=zeros,
        total=total,
        total_squares=total_squares,
    )


def _bin_of(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _widened(state: Histogram, exponent: int, start: int, stop: int) -> npt.NDArray[np.int64]:
    """Return the counts in the bins `start … stop - 1` of width `2**exponent`, as a new array."""
    counts = np.zeros(stop - start, np.int64)
    if state.counts.size:
        coarse, coarse_start = coarsened(state.counts, state.start, exponent - state.exponent)
        counts[coarse_start - start : coarse_start - start + coarse.size] = coarse
    return counts
