"""Rounding a weight so that its errors make up for each other at the output.

The error of one output is `e · x`, with the rounding errors `e` of a channel and the input `x`; its expected square is
`e H e` with `H = E[x x]`. Rounding every weight to nearest makes each `e_k` small; where inputs are correlated, some of
them rounded the other way cancel the others. This is the objective of Nagel et al., Up or Down? Adaptive Rounding for
Post-Training Quantization (2020, section 3.1), and of Frantar et al., GPTQ (2022), solved here by coordinate descent,
which can keep the limits of a saturating kernel at every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.rounding.code_grid import check_moments, on_grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CodeLimits", "compensated", "legal_pairs"]

# Added to the diagonal, as a share of its mean: what a few samples do not show.
_DAMPING = 0.01
# Rows whose changes are collected before the gradient of all others learns of them.
_BLOCK = 64
_SWEEPS = 3
# By how many steps a code moves at most.
_FARTHEST = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeLimits:
    """What codes may be.

    Attributes:
        low: Lowest code.
        high: Highest code.
        pair_low: Lowest sum of two negative codes in rows `2i` and `2i + 1`; `None` if they may be anything.
        pair_high: Highest sum of two positive ones.
        zeros: `[K, N]`, which weights stay exactly 0, as pruning left them; `None` if none do.
    """

    low: int = -128
    high: int = 127
    pair_low: int | None = None
    pair_high: int | None = None
    zeros: NDArray[np.bool_] | None = field(default=None, compare=False)


def legal_pairs(codes: NDArray[Any], legal: NDArray[Any], limits: CodeLimits) -> NDArray[Any]:
    """Take codes back to legal ones where a pair of them is beyond the limits.

    Args:
        codes: `[K, N]` integers, rounded without a look at pairs.
        legal: `[K, N]` integers of which all pairs keep the limits.
        limits: What codes may be.

    Returns:
        `[K, N]` of the type of `legal`; `codes` but for the pairs that are not allowed.
    """
    if limits.pair_low is None or limits.pair_high is None:
        return codes.astype(legal.dtype)
    even = len(codes) // 2 * 2
    first, second = codes[0:even:2].astype(np.int32), codes[1:even:2].astype(np.int32)
    high = (first > 0) & (second > 0) & (first + second > limits.pair_high)
    low = (first < 0) & (second < 0) & (first + second < limits.pair_low)
    back = np.zeros(codes.shape, dtype=bool)
    back[:even] = (high | low).repeat(2, axis=0)
    return np.where(back, legal, codes.astype(legal.dtype))


def compensated(
    weight: NDArray[np.float32],
    codes: NDArray[Any],
    scale: NDArray[np.float32],
    moments: NDArray[np.floating],
    limits: CodeLimits,
    *,
    zero_point: NDArray[Any] | float = 0.0,
) -> NDArray[Any]:
    """Change codes by as many steps as lessen the expected squared error of the outputs.

    Args:
        weight: `[K, N]` float32, in the kernel's order.
        codes: `[K, N]` integers within the limits, to start from; those of weights that stay 0 are the zero point.
        scale: `[]`, `[N]`, `[K, N]` or `[K / block, N]` float32.
        moments: `[G, K, K]`, `E[x x]` of the inputs in the same order, for each of G groups of N/G outputs; their
            covariance, where a bias makes up for the mean of the error.
        limits: What codes may be.
        zero_point: Shaped as the scale.

    Returns:
        `[K, N]` of the type of `codes`, never worse than `codes`.

    Raises:
        FormatError: The shapes do not match.
    """
    check_moments(weight, codes, moments)
    shape = (len(weight), weight.shape[1])
    descent = _Descent(weight, codes, on_grid(scale, shape), on_grid(zero_point, shape), moments, limits)
    for _ in range(_SWEEPS):
        if not descent.sweep():
            break
    return descent.codes.astype(codes.dtype)


class _Descent:
    """The codes of one weight on their way down, and the gradient of the error by every decoded weight."""

    def __init__(
        self,
        weight: NDArray[np.float32],
        codes: NDArray[Any],
        steps: NDArray[np.float64],
        zero_point: NDArray[np.float64],
        moments: NDArray[np.floating],
        limits: CodeLimits,
    ) -> None:
        groups, depth, _ = moments.shape
        trace = np.trace(moments, axis1=1, axis2=2)[:, None, None] / depth
        self.moments = moments.astype(np.float64) + _DAMPING * np.maximum(trace, 1e-30) * np.eye(depth)
        self.groups = groups
        self.limits = limits
        self.codes = codes.astype(np.int32)
        self.start = self.codes.copy()
        self.steps = steps
        # [K, N]: how the error grows with every weight, and how steeply.
        self.gradient = self._spread((self.codes - zero_point) * steps - weight, slice(0, depth))
        diagonal = np.diagonal(self.moments, axis1=1, axis2=2)
        self.curvature = np.repeat(diagonal.T, codes.shape[1] // groups, axis=1)

    def _spread(self, change: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
        """Return what changes of some rows `[R, N]` add to the gradient of all rows, `[K, N]`."""
        per_group = change.reshape(len(change), self.groups, -1).transpose(1, 0, 2)
        spread: NDArray[np.float64] = (self.moments[:, :, rows] @ per_group).transpose(1, 0, 2)
        return spread.reshape(self.moments.shape[1], -1)

    def sweep(self) -> bool:
        """Take every row to its best codes, given all others; return whether anything changed."""
        depth = len(self.codes)
        changed = False
        for start in range(0, depth, _BLOCK):
            rows = slice(start, min(start + _BLOCK, depth))
            moved = self._block(rows)
            if moved is not None:
                self.gradient += self._spread(moved, rows)
                changed = True
        return changed

    def _block(self, rows: slice) -> NDArray[np.float64] | None:
        """Take a block of rows to its best codes; return by how much the decoded weights changed, `[R, N]`."""
        within = self.gradient[rows].copy()
        moved = np.zeros_like(within)
        local = self.moments[:, rows, rows]
        for row in range(rows.start, rows.stop):
            index = row - rows.start
            best = self.codes[row] - within[index] / (self.curvature[row] * self.steps[row])
            low, high = self._room(row)
            delta = np.clip(np.rint(best), low, high).astype(np.int32) - self.codes[row]
            # A step beyond twice the way to the minimum would make the error grow.
            delta[np.abs(delta * self.steps[row] * self.curvature[row]) > 2 * np.abs(within[index])] = 0
            if delta.any():
                self.codes[row] += delta
                moved[index] = delta * self.steps[row]
                by_group = moved[index].reshape(self.groups, 1, -1)
                within += (local[:, :, index, None] * by_group).transpose(1, 0, 2).reshape(within.shape)
        return moved if moved.any() else None

    def _room(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the lowest and highest code of a row, given its partner's."""
        limits = self.limits
        low = np.maximum(self.start[row] - _FARTHEST, limits.low)
        high = np.minimum(self.start[row] + _FARTHEST, limits.high)
        if limits.zeros is not None:
            kept = limits.zeros[row]
            low, high = (np.where(kept, self.start[row], end) for end in (low, high))
        partner = row ^ 1
        if limits.pair_low is None or limits.pair_high is None or partner >= len(self.codes):
            return low, high
        other = self.codes[partner]
        high = np.where(other > 0, np.minimum(high, limits.pair_high - other), high)
        low = np.where(other < 0, np.maximum(low, limits.pair_low - other), low)
        return low, high
