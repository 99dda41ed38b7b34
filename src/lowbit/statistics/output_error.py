"""Ranges of activations by the error at the outputs of what reads them, not by that of the tensor itself.

A value weighs as much as the weights that read it: rounding and clipping errors `e` of a row of inputs make the error
`e W` of a row of outputs, in which errors of a layer's inputs also cancel or add up. Candidates are widely spaced
first, then close around the best; all are judged on the same rows, as they stream by (Hubara et al., Improving Post
Training Neural Quantization: Layer-wise Calibration and Integer Programming, 2021, choose scales by the same loss).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import FormatError
from lowbit.formats import Format, PerTensor, choose_parameters, dequantize, quantize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["close_ranges", "compact_weight", "squared_output_errors", "wide_ranges"]

_RATIO = 0.85
_ONE_END = 16
_BOTH_ENDS = 5
_FURTHER = 8


def wide_ranges(low: float, high: float, *, symmetric: bool = False) -> list[tuple[float, float]]:
    """Return widely spaced candidates within what was seen, the whole of it first.

    Args:
        low: Smallest value, at most 0.
        high: Largest value, at least 0.
        symmetric: Whether the format is, so that both ends are the same number.
    """
    fractions = [_RATIO**k for k in range(_ONE_END)]
    if symmetric or low == 0.0 or high == 0.0:
        return [(low * each, high * each) for each in fractions]
    few = [_RATIO ** (1.5 * k) for k in range(_BOTH_ENDS)]
    both = [(low * a, high * b) for a in few for b in few]
    further = [few[-1] * few[1] ** (k + 1) for k in range(_FURTHER)]
    return both + [(low * each, high * each) for each in further]


def close_ranges(
    best: tuple[float, float], low: float, high: float, step: float, *, symmetric: bool = False
) -> list[tuple[float, float]]:
    """Return candidates around one, within what was seen, itself left out.

    Args:
        best: The best of the widely spaced ones.
        low: Smallest value, at most 0.
        high: Largest value, at least 0.
        step: How close, as a fraction of the distance of widely spaced ones.
        symmetric: As for `wide_ranges`.
    """
    if symmetric or low == 0.0 or high == 0.0:
        factors = [(_RATIO ** (step * k),) * 2 for k in (-2, -1, 1, 2)]
    else:
        near = [_RATIO ** (step * k) for k in (-1.5, 0.0, 1.5)]
        factors = [(a, b) for a in near for b in near if (a, b) != (1.0, 1.0)]
    found = [(max(best[0] * a, low), min(best[1] * b, high)) for a, b in factors]
    return [each for each in dict.fromkeys(found) if each != best]


def compact_weight(weight: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return a matrix with no more columns than rows for which `|e W|` is the same of every `e`.

    Args:
        weight: `[G, K, N]`: for each of G groups, K inputs by N outputs.

    Returns:
        `[G, K, min(K, N)]` float32.
    """
    if weight.shape[2] <= weight.shape[1]:
        return np.ascontiguousarray(weight, dtype=np.float32)
    # W Wᵀ = Rᵀ R of Wᵀ = Q R.
    upper = np.asarray(np.linalg.qr(weight.astype(np.float64).transpose(0, 2, 1), mode="r"))
    return np.ascontiguousarray(upper.transpose(0, 2, 1), dtype=np.float32)


def squared_output_errors(
    rows: NDArray[np.float32],
    weight: NDArray[np.float32] | None,
    candidates: Sequence[tuple[float, float]],
    fmt: Format,
) -> NDArray[np.float64]:
    """Return the squared errors at the outputs, summed over rows and outputs, for every range.

    Args:
        rows: `[G, R, K]`: for each group, R rows of K inputs.
        weight: `[G, K, N]`; `None` judges the tensor itself.
        candidates: Ranges, each low and high around zero.
        fmt: Format of the codes; its granularity is taken to be one scale for all.

    Returns:
        `[candidates]` float64.

    Raises:
        FormatError: The weight does not fit the rows.
    """
    if weight is not None and (weight.shape[0], weight.shape[1]) != (rows.shape[0], rows.shape[2]):
        raise FormatError(
            f"A weight of shape {list(weight.shape)} does not read rows of shape {list(rows.shape)}",
            remedy="Pass [G, R, K] and [G, K, N]",
        )
    plain = dataclasses.replace(fmt, granularity=PerTensor())
    found = np.empty(len(candidates))
    for index, (low, high) in enumerate(candidates):
        parameters = choose_parameters(np.float32(low), np.float32(high), plain)
        error = dequantize(quantize(rows, parameters, plain), parameters, plain) - rows
        made = error if weight is None else error @ weight
        found[index] = np.square(made, dtype=np.float64).sum()
    return found
