"""Range that keeps the distribution of the values, measured by the Kullback–Leibler divergence.

S. Migacz, "8-bit inference with TensorRT", GTC 2017. P is the histogram clipped to a candidate range, the clipped
values counted in its outermost bins; Q is the same histogram without them, flattened over the bins that share a code.
The best range has the least KL(P || Q).

Deviations from the talk, which treats ReLU outputs or their absolute values only:

- A candidate is a threshold T on the magnitude, and its range is `[max(low, -T), min(high, T)]`: one end for data of
  one sign, and for skewed data no codes are spent beyond the shorter side.
- Bins share a code if the actual grid, with zero on it, rounds their centres to the same value.
- Exact zeros are left out (the talk overwrites their bin), because every grid represents them.
- Where all values of a code were clipped, Q counts one value, so that a lone outlier costs little instead of infinity.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lowbit.statistics.grid import Grid
from lowbit.statistics.histogram import Histogram, coarsened
from lowbit.statistics.minmax import minmax_range
from lowbit.statistics.range import Range

__all__ = ["entropy_divergences", "entropy_range"]

BINS = 2048
"""As in the talk: finer bins would show the noise of the sample rather than its distribution."""

CANDIDATES = 256
"""Thresholds compared; memory and time grow as this times the number of codes."""


def entropy_range(histogram: Histogram, codes: int, symmetric: bool = False) -> Range:
    """Return the range with the least KL divergence between the values and their quantized image.

    Args:
        histogram: What calibration saw.
        codes: Number of codes of the format, e.g. 256 for 8 bits.
        symmetric: Require the zero point in the middle, and return `low == -high`.

    Raises:
        DataError: The histogram is empty.
        FormatError: Too few codes.
    """
    everything = minmax_range(histogram, symmetric=symmetric)
    if histogram.zeros == histogram.count:
        return everything
    thresholds, divergences = entropy_divergences(histogram, codes, symmetric)
    # The largest of equally good thresholds: nothing is clipped without a gain.
    threshold = float(thresholds[::-1][np.argmin(divergences[::-1])])
    low, high = max(everything.low, -threshold), min(everything.high, threshold)
    return Range.covering(low, high, symmetric=symmetric)


def entropy_divergences(
    histogram: Histogram, codes: int, symmetric: bool = False
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the candidate thresholds on the magnitude and their divergences.

    Thresholds lie on bin edges and keep at least one bin a code; the last one clips nothing.

    Args:
        histogram: What calibration saw; some value must differ from zero.
        codes: Number of codes of the format.
        symmetric: Whether the grid has its zero point in the middle.

    Returns:
        `thresholds: [k] float64` in real units, ascending, and `divergences: [k] float64` in nats.

    Raises:
        FormatError: Too few codes.
    """
    counts, start, exponent = _resampled(histogram)
    stop = start + counts.size
    low, high = (math.ldexp(end, -exponent) for end in (min(histogram.low, 0.0), max(histogram.high, 0.0)))
    two_sided = symmetric or (low < 0.0 < high)
    widest = max(stop, -start)
    narrowest = min(max(codes // 2 if two_sided else codes, 2), widest)
    T = np.unique(np.rint(np.linspace(narrowest, widest, CANDIDATES)).astype(np.int64))
    left, right = np.maximum(start, -T), np.minimum(stop, T)
    usable = (right - left >= 2) | (widest == T)
    T, left, right = T[usable], left[usable] - start, right[usable] - start
    codes_start = np.stack([_code_boundaries(float(t), low, high, codes, symmetric) for t in T]) - start
    divergences = _divergences(counts, left, right, np.clip(codes_start, left[:, None], right[:, None]))
    return np.ldexp(T.astype(np.float64), exponent), divergences


def _resampled(histogram: Histogram) -> tuple[npt.NDArray[np.float64], int, int]:
    """Return counts without exact zeros, first index and exponent of an equal histogram of at most `BINS` bins."""
    exact = histogram.nonzero_counts()
    levels, counts, start = 0, exact, histogram.start
    while counts.size > BINS:
        levels += 1
        counts, start = coarsened(exact, histogram.start, levels)
    return counts.astype(np.float64), start, histogram.exponent + levels


def _code_boundaries(threshold: float, low: float, high: float, codes: int, symmetric: bool) -> npt.NDArray[np.int64]:
    """Return for the codes 1, 2, … the first bin whose centre they represent, `[codes - 1] int64`."""
    low, high = max(low, -threshold), min(high, threshold)
    grid = Grid.around_zero(max(-low, high), codes) if symmetric else Grid.spanning(low, high, codes)
    midpoints = (np.arange(grid.first, grid.last) + 0.5) * grid.scale
    boundaries: npt.NDArray[np.int64] = np.ceil(midpoints - 0.5).astype(np.int64)
    return boundaries


def _divergences(
    counts: npt.NDArray[np.float64],
    left: npt.NDArray[np.int64],
    right: npt.NDArray[np.int64],
    boundaries: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Return KL(P || Q) of every candidate, from prefix sums: `O(codes)` each instead of `O(bins)`.

    Q is constant over a code's occupied bins, so `Σ P log Q` needs one logarithm a code, and `Σ P log P` differs from a
    prefix sum only in the two outermost bins.

    Args:
        counts: `[bins]`.
        left: `[k]`, first bin of each candidate.
        right: `[k]`, bin after the last.
        boundaries: `[k, codes - 1]`, first bin of each code but the lowest.
    """
    rows = np.arange(left.size)
    last = right - 1
    sums, occupied, entropies = (_prefix_sums(x) for x in (counts, np.minimum(counts, 1.0), _x_log_x(counts)))
    below, above = sums[left], sums[-1] - sums[right]

    limits = np.concatenate([left[:, None], boundaries, right[:, None]], axis=1)
    code_sums = np.diff(sums[limits], axis=1)
    code_bins = np.diff(occupied[limits], axis=1)
    code_mass = code_sums.copy()
    p_log_p = entropies[right] - entropies[left]
    for edge, clipped in ((left, below), (last, above)):
        code = np.count_nonzero(boundaries <= edge[:, None], axis=1)
        code_mass[rows, code] += clipped
        code_bins[rows, code] += (counts[edge] == 0.0) & (clipped > 0.0)
        # Sums are whole numbers, so this changes only a code that lost all of its values.
        code_sums[rows, code] = np.maximum(code_sums[rows, code], np.minimum(clipped, 1.0))
        p_log_p += _x_log_x(counts[edge] + clipped) - _x_log_x(counts[edge])
    with np.errstate(divide="ignore"):
        log_q = np.log(code_sums / np.maximum(code_bins, 1.0))
    p_log_q = np.multiply(code_mass, log_q, where=code_mass > 0.0, out=np.zeros_like(code_mass)).sum(axis=1)
    divergences = (p_log_p - p_log_q) / sums[-1] + np.log(code_sums.sum(axis=1)) - math.log(sums[-1])
    # Rounding may leave a divergence of zero slightly below it.
    positive: npt.NDArray[np.float64] = np.maximum(divergences, 0.0)
    return positive


def _prefix_sums(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(values)])


def _x_log_x(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return x * np.log(np.maximum(x, 1.0))
