"""Range with the least expected squared error: what clipping loses against what finer steps win.

The density is taken as constant within a bin, and the error of rounding such a density is integrated exactly. With
`q(u)` the nearest value of the grid in units of its scale, the squared error `(u - q(u))**2` has the continuous
antiderivative `F(u) = (u - q)**3 / 3 + q / 12`, inside the grid and in both clipped tails. So no step is too fine for
the bins, and one candidate costs one evaluation of F at the bin edges.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lowbit.statistics.grid import Grid
from lowbit.statistics.histogram import Histogram, coarsened
from lowbit.statistics.minmax import minmax_range
from lowbit.statistics.range import Range

__all__ = ["mse_range", "rounding_error"]

COARSE_BINS = 2048
"""The joint search compares its first, widely spaced candidates on a histogram of at most this many bins."""

RATIO = 0.8
"""Ratio of neighbouring candidates in the first search."""

DEPTH = 24
"""Candidates per end in the first search; the last one clips to 0.8**23 = 0.6 % of the extreme."""


def mse_range(histogram: Histogram, codes: int, symmetric: bool = False) -> Range:
    """Return the range whose grid has the least mean squared rounding and clipping error, in about 10 ms.

    The grid holds zero: `real = (code - zero_point) * scale` with an integer zero point, and the returned ends lie on
    it. Data of both signs are searched over both ends jointly, data of one sign over their far end.

    Args:
        histogram: What calibration saw.
        codes: Number of codes of the format, e.g. 256 for 8 bits.
        symmetric: Require the zero point in the middle, and return `low == -high`.

    Returns:
        A range that is never worse than that of the smallest and largest value, by `rounding_error`.

    Raises:
        DataError: The histogram is empty.
        FormatError: Too few codes.
    """
    everything = minmax_range(histogram, symmetric=symmetric)
    error = _Error(histogram.nonzero_counts(), histogram.start)
    # From here on the unit is one bin: indices are small integers, whatever the magnitude of the data.
    low, high = (math.ldexp(end, -histogram.exponent) for end in (everything.low, everything.high))
    if symmetric:
        best = _best_scale(error, Grid.around_zero(high or 1.0, codes))
    elif low == 0.0 or high == 0.0:
        best = _best_scale(error, Grid.spanning(low, high if high > low else 1.0, codes))
    else:
        best = _best_ends(error, low, high, codes)
    if not error.total:
        return everything
    scale = math.ldexp(best.scale, histogram.exponent)
    return Range.covering(best.first * scale, best.last * scale) if not symmetric else _mirrored(best.last * scale)


def rounding_error(histogram: Histogram, grid: Grid) -> float:
    """Return the mean squared error of rounding and clipping the observed values to a grid (0 if there are none)."""
    error = _Error(histogram.nonzero_counts(), histogram.start)
    scale = math.ldexp(grid.scale, -histogram.exponent)
    in_bins = Grid(codes=grid.codes, scale=scale, zero_point=grid.zero_point)
    return math.ldexp(error(in_bins), 2 * histogram.exponent) / max(histogram.count, 1)


class _Error:
    """Sum of the squared errors of a histogram, in squared bins, as a function of the grid.

    `Σ_i counts[i] * (F(i+1) - F(i))` is regrouped by edges, `Σ_k F(k) * (counts[k-1] - counts[k])`, so that edges
    between equal counts (most of an empty tail) drop out.
    """

    def __init__(self, counts: npt.NDArray[np.int64], start: int) -> None:
        self.counts = counts
        self.start = start
        self.total = int(counts.sum())
        jumps = -np.diff(counts, prepend=0, append=0)
        kept = np.flatnonzero(jumps)
        self._jumps = jumps[kept].astype(np.float64)
        self._edges = (start + kept).astype(np.float64)
        self._u, self._q, self._r = (np.empty(kept.size) for _ in range(3))

    def __call__(self, grid: Grid) -> float:
        u, q, r = self._u, self._q, self._r
        np.multiply(self._edges, 1.0 / grid.scale, out=u)
        np.rint(u, out=q)
        np.maximum(q, grid.first, out=q)
        np.minimum(q, grid.last, out=q)
        np.subtract(u, q, out=r)
        np.multiply(r, r, out=u)
        np.multiply(u, r, out=r)
        r *= 4.0
        r += q
        r *= self._jumps
        # F * 12, scaled back once: the three powers of the scale are two of the error and one of the substitution.
        return float(r.sum()) * grid.scale**3 / 12.0

    def coarse(self, bins: int) -> tuple[_Error, int]:
        """Return the same for at most `bins` wider bins, and the base-2 logarithm of their width in bins."""
        levels, counts, start = 0, self.counts, self.start
        while counts.size > bins:
            levels += 1
            counts, start = coarsened(self.counts, self.start, levels)
        return _Error(counts, start), levels


def _best_scale(error: _Error, widest: Grid) -> Grid:
    """Return the grid with the zero point of `widest` and the best scale not above that of `widest`."""
    step = math.sqrt(RATIO)
    candidates = [_scaled(widest, step**k) for k in range(2 * DEPTH)]
    best = min(candidates, key=error)
    spread = step
    while spread < 0.999:
        near = [_scaled(best, spread ** (k / 4)) for k in range(-4, 5)]
        best = min([best, *(grid for grid in near if grid.scale <= widest.scale)], key=error)
        spread **= 0.25
    return best


def _best_ends(error: _Error, low: float, high: float, codes: int) -> Grid:
    """Return the best grid within `low < 0 < high`, all in bins: a wide search, then ever closer neighbours."""
    coarse, levels = error.coarse(COARSE_BINS)
    unit = math.ldexp(1.0, -levels)
    fractions = [RATIO**k for k in range(DEPTH)]
    _, a, b = min(
        (coarse(Grid.spanning(low * a * unit, high * b * unit, codes)), a, b) for a in fractions for b in fractions
    )
    ends = (low * a, high * b)
    ratio = RATIO
    while ratio < 0.995:
        ratio = math.sqrt(ratio)
        steps = (1.0, ratio, 1.0 / ratio)
        near = [(max(ends[0] * i, low), min(ends[1] * j, high)) for i in steps for j in steps]
        ends = min(near, key=lambda pair: error(Grid.spanning(pair[0], pair[1], codes)))
    found = Grid.spanning(ends[0], ends[1], codes)
    widest = Grid.spanning(low, high, codes)
    # Activations that the network itself clips (ReLU6, HardSwish, HardTanh) pile up on an end. A grid that hits the
    # pile wins by a narrow margin of scales, which the search over both ends passes by.
    aligned = (
        Grid(codes=codes, scale=scale, zero_point=zero_point)
        for zero_point in range(max(found.zero_point - 8, 1), min(found.zero_point + 9, codes - 1))
        for scale in (-low / zero_point, high / (codes - 1 - zero_point))
        if scale <= widest.scale
    )
    return min([widest, found, *aligned], key=error)


def _scaled(grid: Grid, factor: float) -> Grid:
    return Grid(codes=grid.codes, scale=grid.scale * factor, zero_point=grid.zero_point)


def _mirrored(high: float) -> Range:
    return Range.covering(-high, high)
