"""The numbers behind the charts, as plain values for JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.report.units import number_text, percent_text
from lowbit.report.verdict import layer_db, worst_layer_db

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowbit.plan.verification import LayerQuality, TensorHistogram

__all__ = ["clipped", "histogram_data", "layers_data"]

_MAX_BINS = 384
"""Bins that a chart shows at most: more are narrower than two pixels, and hundreds of tensors must stay small."""


def layers_data(layers: Sequence[LayerQuality]) -> dict[str, Any]:
    """Return the SQNR per layer: a number in decibel, `exact`, `undefined`, or null where fusion hides the tensor."""
    worst_db = worst_layer_db(layers)
    worst = next((index for index, layer in enumerate(layers) if layer_db(layer) == worst_db), None)
    return {
        "node": [layer.node for layer in layers],
        "op": [layer.op_type for layer in layers],
        "real": [_decibel(layer.sqnr_real_db) for layer in layers],
        "simulated": [_decibel(layer.sqnr_simulated_db) for layer in layers],
        "worst": worst,
    }


def histogram_data(histogram: TensorHistogram) -> dict[str, Any]:
    """Return one histogram with its grid: counts, uniform bins as start and width, and the texts beside the chart."""
    edges, counts = _merge_bins(histogram.edges, histogram.counts)
    below, above = clipped(histogram)
    data: dict[str, Any] = {
        "kind": histogram.kind,
        "counts": counts.tolist(),
        "total": int(counts.sum()),
        "low": _finite(histogram.low),
        "high": _finite(histogram.high),
        "step": _finite(histogram.step) or 0.0,
        "texts": {
            "tensor": histogram.tensor,
            "format": histogram.format,
            "range": f"{number_text(histogram.low)} to {number_text(histogram.high)}",
            "step": number_text(histogram.step),
            "below": percent_text(below),
            "above": percent_text(above),
        },
    }
    widths = np.diff(edges)
    if widths.size and np.allclose(widths, widths[0], rtol=1e-6, atol=0):
        data["start"], data["width"] = _short(edges[0]), _short((edges[-1] - edges[0]) / widths.size, digits=12)
    else:
        data["edges"] = [_short(edge) for edge in edges]
    return data


def clipped(histogram: TensorHistogram) -> tuple[float, float]:
    """Return which fractions of the values lie below and above the grid.

    Counted are bins that lie outside as a whole: a bin that the limit cuts may hold all its values on the safe side, as
    the zeros of a ReLU do.
    """
    total = int(histogram.counts.sum())
    if not total:
        return 0.0, 0.0
    slack = 1e-9 * float(histogram.edges[-1] - histogram.edges[0])
    below = int(histogram.counts[histogram.edges[1:] <= histogram.low + slack].sum())
    above = int(histogram.counts[histogram.edges[:-1] >= histogram.high - slack].sum())
    return below / total, above / total


def _merge_bins(edges: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Merge neighbouring bins until at most `_MAX_BINS` are left; no count is lost."""
    factor = math.ceil(counts.size / _MAX_BINS)
    if factor <= 1:
        return edges, counts
    starts = np.arange(0, counts.size, factor)
    return np.append(edges[starts], edges[-1]), np.add.reduceat(counts, starts)


def _decibel(value: float | None) -> float | str | None:
    if value is None:
        return None
    if value == math.inf:
        return "exact"
    return round(value, 2) if math.isfinite(value) else "undefined"


def _finite(value: float) -> float | None:
    return _short(value, digits=9) if math.isfinite(value) else None


def _short(value: float, *, digits: int = 7) -> float:
    return float(f"{value:.{digits}g}")
