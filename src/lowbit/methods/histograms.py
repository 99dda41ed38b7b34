"""Distributions of weights and activations with their quantization grids, for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.formats import parse_format
from lowbit.plan.verification import TensorHistogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowbit.methods.apply import Applied
    from lowbit.statistics import Histogram

__all__ = ["report_histograms"]

_BINS = 256


def report_histograms(applied: Applied, activations: Mapping[str, Histogram]) -> tuple[TensorHistogram, ...]:
    """Return one histogram per encoded weight and per calibrated activation, at most 256 bins each.

    Args:
        applied: The artifact with its weights.
        activations: What calibration saw, by tensor.
    """
    result = []
    for weight in applied.weights.values():
        array = weight.original
        low, high = float(array.min(initial=0.0)), float(array.max(initial=0.0))
        if low == high:
            high = low + 1.0
        counts, edges = np.histogram(array, bins=_BINS, range=(low, high))
        fmt, levels = weight.encoded.fmt, weight.encoded.parameters.levels
        lowest, highest = fmt.code_range() if levels is None else (float(levels.min()), float(levels.max()))
        scale = weight.encoded.parameters.scale.astype(np.float64)
        zero = weight.encoded.parameters.zero_point.astype(np.float64)
        result.append(
            TensorHistogram(
                tensor=weight.name,
                kind="weight",
                edges=edges,
                counts=counts.astype(np.int64),
                low=float(((lowest - zero) * scale).min()),
                high=float(((highest - zero) * scale).max()),
                # Levels of a codebook are no grid.
                step=0.0 if fmt.element.kind == "codebook" else float(scale.max()),
                format=str(weight.encoded.fmt),
            )
        )
    for tensor in applied.plan.activations:
        histogram = activations.get(tensor.tensor)
        if histogram is None or histogram.count == 0:
            continue
        counts, edges = _coarser(histogram)
        lowest, highest = parse_format(tensor.format).code_range()
        result.append(
            TensorHistogram(
                tensor=tensor.tensor,
                kind="activation",
                edges=edges,
                counts=counts,
                low=(lowest - tensor.zero_point) * tensor.scale,
                high=(highest - tensor.zero_point) * tensor.scale,
                step=tensor.scale,
                format=tensor.format,
            )
        )
    return tuple(result)


def _coarser(histogram: Histogram) -> tuple[np.ndarray, np.ndarray]:
    """Join neighbouring bins until at most 256 are left."""
    counts, edges = np.asarray(histogram.counts), histogram.edges()
    step = max(1, -(-len(counts) // _BINS))
    if len(counts) % step:
        missing = step - len(counts) % step
        width = edges[1] - edges[0]
        counts = np.concatenate([counts, np.zeros(missing, dtype=counts.dtype)])
        edges = np.concatenate([edges, edges[-1] + width * np.arange(1, missing + 1)])
    return counts.reshape(-1, step).sum(axis=1).astype(np.int64), edges[::step]
