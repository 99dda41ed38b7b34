"""Which range of a weight the codes should cover: all of it, or less for finer steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from lowbit.exceptions import FormatError
from lowbit.formats import Format, PerBlock, PerChannel, PerTensor, choose_parameters, fake_quantize

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RANGE_METHODS", "RangeMethod", "weight_range"]

RangeMethod: TypeAlias = Literal["minmax", "percentile", "mse", "entropy"]
RANGE_METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)

_SHRINK = np.linspace(1.0, 0.3, 51)  # 1 first: a tie keeps the full range
_BINS = 2048
_THRESHOLDS = 64
_CACHED = 1 << 16  # float32 numbers that stay in a core's cache through all steps of one trial


def weight_range(
    weight: NDArray[Any], fmt: Format, method: RangeMethod = "minmax", *, percentile: float = 99.99
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Choose the range of a weight for `choose_parameters`, separately for each of its channels or blocks.

    Args:
        weight: Any shape, float32.
        fmt: The format; its granularity decides what shares a range.
        method: `minmax` keeps everything. `percentile` keeps the given part of the weights. `mse` shrinks the range by
            the factor, of 51 from 1 to 0.3, that minimises the true squared error of the quantized weights. `entropy`
            clips the magnitude where the histogram of at most 2048 bins loses least information in the format's levels,
            by the Kullback-Leibler divergence (S. Migacz, 8-bit inference with TensorRT, GTC 2017).
        percentile: Percentage of the weights to keep, in (0, 100], for that method.

    Returns:
        Lowest and highest value, each shaped like the scale; zero always lies between them.

    Raises:
        FormatError: The weight holds NaN or infinity, the method is unknown or does not exist for the format, or the
            percentile is out of its range.
    """
    if method not in RANGE_METHODS:
        raise FormatError(f"{method!r} is no way to choose a range", remedy=f"Use one of {', '.join(RANGE_METHODS)}")
    if not 0.0 < percentile <= 100.0:
        raise FormatError(f"A percentile of {percentile} is out of range", remedy="Use more than 0 and at most 100")
    if method == "entropy" and fmt.element.kind == "float":
        raise FormatError(f"Entropy is not defined for {fmt.element.name}", remedy="Use minmax, percentile or mse")
    weight = np.asarray(weight, dtype=np.float32)
    shape = fmt.granularity.scale_shape(weight.shape)
    match fmt.granularity:
        case PerBlock(axis=axis, size=size):
            # The last block may be shorter: its range is computed apart rather than from padding.
            whole = weight.shape[axis] // size * size
            parts = [part for part in np.split(weight, [whole], axis=axis) if part.size]
            found = [_blocks_range(part, axis, min(size, part.shape[axis]), fmt, method, percentile) for part in parts]
            low = np.concatenate([each[0] for each in found], axis=axis) if found else np.zeros(shape, np.float32)
            high = np.concatenate([each[1] for each in found], axis=axis) if found else np.zeros(shape, np.float32)
            return low, high
        case PerChannel(axis=axis):
            rows = np.moveaxis(weight, axis, 0).reshape(shape[0], -1)
        case PerTensor():
            rows = weight.reshape(1, -1)
    low, high = _rows_range(rows, fmt, method, percentile)
    return low.reshape(shape), high.reshape(shape)


def _blocks_range(
    weight: NDArray[np.float32], axis: int, size: int, fmt: Format, method: RangeMethod, percentile: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    moved = np.moveaxis(weight, axis, -1)
    low, high = _rows_range(moved.reshape(-1, size), fmt, method, percentile)
    blocks = (*moved.shape[:-1], moved.shape[-1] // size)
    return np.moveaxis(low.reshape(blocks), -1, axis), np.moveaxis(high.reshape(blocks), -1, axis)


def _rows_range(
    rows: NDArray[np.float32], fmt: Format, method: RangeMethod, percentile: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Choose the range of each row of `[G, n]`; both results `[G]`."""
    low = rows.min(axis=1, initial=0.0)
    high = rows.max(axis=1, initial=0.0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise FormatError("The weight holds NaN or infinity", remedy="Check the model: it was not trained to the end")
    if not rows.size or method == "minmax":
        return low, high
    if method == "percentile":
        return _percentile(rows, low, high, fmt, percentile)
    row_format = Format(fmt.element, PerChannel(0), fmt.symmetric, fmt.narrow)
    step = max(1, _CACHED // rows.shape[1])
    method_of_rows = _least_squares if method == "mse" else _least_divergence
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        low[part], high[part] = method_of_rows(rows[part], low[part], high[part], row_format)
    return low, high


def _percentile(
    rows: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32], fmt: Format, percentile: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if fmt.symmetric:
        reach = np.percentile(np.abs(rows), percentile, axis=1)
        bottom, top = -reach, reach
    else:
        outside = (100.0 - percentile) / 2.0
        bottom, top = np.percentile(rows, [outside, 100.0 - outside], axis=1)
    bottom, top = np.minimum(bottom, 0.0).astype(np.float32), np.maximum(top, 0.0).astype(np.float32)
    return np.maximum(low, bottom), np.minimum(high, top)


def _least_squares(
    rows: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32], fmt: Format
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    best_error = np.full(len(rows), np.inf)
    best_factor = np.ones(len(rows), dtype=np.float32)
    for factor in _SHRINK.astype(np.float32):
        parameters = choose_parameters(low * factor, high * factor, fmt)
        error = np.zeros(len(rows))
        for start in range(0, rows.shape[1], _CACHED):
            part = rows[:, start : start + _CACHED]
            difference = fake_quantize(part, parameters, fmt)
            difference -= part
            # Beyond 1e19 the square overflows: then no candidate is better, and the full range stays.
            with np.errstate(over="ignore", under="ignore"):
                error += np.square(difference, out=difference).sum(axis=1, dtype=np.float64)
        better = error < best_error
        best_error[better] = error[better]
        best_factor[better] = factor
    return low * best_factor, high * best_factor


def _least_divergence(
    rows: NDArray[np.float32], low: NDArray[np.float32], high: NDArray[np.float32], fmt: Format
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    levels = fmt.element.code_count // 2  # of one sign: the histogram is of magnitudes
    if levels >= _BINS:
        return low, high
    reach = np.maximum(-low, high)
    # Fewer weights than bins say nothing about a distribution: the paper's histograms are of whole activations.
    bins = min(_BINS, max(4 * levels, rows.shape[1]))
    histogram = _magnitudes(rows, reach, bins)
    total = histogram.sum(axis=1, keepdims=True)
    best_divergence = np.full(len(rows), np.inf)
    best_bins = np.full(len(rows), bins)
    # From the full range downwards, so that a tie keeps more of it.
    for kept in np.unique(np.linspace(levels, bins, _THRESHOLDS).astype(int))[::-1]:
        inside = histogram[:, :kept]
        reference = inside.copy()
        reference[:, -1] += total[:, 0] - inside.sum(axis=1)
        edges = np.arange(levels) * kept // levels
        widths = np.diff(edges, append=kept)
        occupied = np.add.reduceat(inside > 0, edges, axis=1, dtype=np.float64)
        spread = np.add.reduceat(inside, edges, axis=1) / np.maximum(occupied, 1.0)
        candidate = np.repeat(spread, widths, axis=1) * (inside > 0)
        mass = np.maximum(candidate.sum(axis=1, keepdims=True), 1.0)
        # A level that is empty but for what was clipped into it would cost infinitely much: floor it instead.
        p, q = reference / np.maximum(total, 1.0), np.maximum(candidate / mass, 1e-9)
        divergence = np.sum(p * np.log(np.maximum(p, 1e-30) / q), axis=1)
        better = divergence < best_divergence
        best_divergence[better] = divergence[better]
        best_bins[better] = kept
    limit = (reach * (best_bins / bins)).astype(np.float32)
    return np.maximum(low, -limit), np.minimum(high, limit)


def _magnitudes(rows: NDArray[np.float32], reach: NDArray[np.float32], bins: int) -> NDArray[np.float64]:
    """Count the magnitudes of each row of `[G, n]` in bins up to its reach `[G]`; `[G, bins]`."""
    # Divided first, so that neither a tiny nor a huge reach overflows.
    unit = np.abs(rows) / np.maximum(reach, np.finfo(np.float32).tiny)[:, None]
    index = np.minimum((unit * np.float32(bins)).astype(np.int64), bins - 1)
    index += np.arange(len(rows))[:, None] * bins
    counts = np.bincount(index.ravel(), minlength=len(rows) * bins)
    return counts.reshape(len(rows), bins).astype(np.float64)
