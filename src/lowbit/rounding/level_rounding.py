"""Rounding to levels that are not evenly spaced so that errors cancel at the output: GPTQ and descent for codebooks.

What `gptq` and `compensated` do on a grid, for codes that are indices of levels. GPTQ (Frantar et al., 2022) asks of a
format only which level is nearest; coordinate descent has its optimum there too, because the error is a parabola in
every single weight. Symbols are those of `lowbit.rounding.gptq`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit.exceptions import FormatError
from lowbit.rounding.code_grid import on_grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["decode_levels", "level_errors", "round_to_levels"]

_DAMPING = 0.01
_SWEEPS = 3
# Rows that are rounded before all rows behind them learn of it, for speed alone.
_LAZY = 128


def round_to_levels(
    weight: NDArray[np.float32],
    levels: NDArray[np.floating],
    scale: NDArray[np.floating],
    moments: NDArray[np.floating],
    *,
    kind: Literal["compensated", "gptq"] = "gptq",
    damping: float = _DAMPING,
) -> NDArray[np.int16]:
    """Choose the levels of a weight so that its outputs change as little as possible.

    Args:
        weight: `[K, N]` float32, in the kernel's order.
        levels: `[k]`, or `[N, k]` for outputs with levels of their own; in any order.
        scale: `[]`, `[N]`, `[K, N]` or `[K / block, N]`, positive: what levels are multiplied with.
        moments: `[G, K, K]`, `H = E[x x]` of the inputs in the same order, for each of G groups of N/G outputs.
        kind: `gptq` rounds input by input, those of most energy first, then descends; `compensated` descends from
            rounding to nearest.
        damping: What is added to the diagonal of `H`, as a fraction of its mean.

    Returns:
        `[K, N]` int16, indices of levels.

    Raises:
        FormatError: The shapes do not match, or the damping is no fraction.
    """
    if not 0.0 <= damping <= 1.0:
        raise FormatError(f"A damping of {damping} is no fraction", remedy="Use 0.01")
    steps = _checked(weight, levels, scale, moments)
    groups, depth, _ = moments.shape
    table = np.broadcast_to(levels, (weight.shape[1], levels.shape[-1])).astype(np.float64)
    codes = np.empty(weight.shape, dtype=np.int16)
    width = weight.shape[1] // groups
    for group in range(groups):
        columns = slice(group * width, (group + 1) * width)
        H = moments[group].astype(np.float64)
        mean = max(float(np.trace(H)) / depth, 1e-30)
        # An input that was always zero still has some energy of its own, so that it can be divided by.
        H[np.diag_indices(depth)] += max(damping, 1e-12) * mean
        own = weight[:, columns].astype(np.float64), steps[:, columns], table[columns]
        found = _nearest(own[0] / own[1], own[2])
        if kind == "gptq":
            other = _gptq(*own, H)
            better = _errors(*own, other, H) < _errors(*own, found, H)
            found = np.where(better, other, found)
        codes[:, columns] = _descended(*own, found, H)
    return codes


def decode_levels(
    codes: NDArray[Any], levels: NDArray[np.floating], scale: NDArray[np.floating] | float
) -> NDArray[np.float64]:
    """Return the weight `[K, N]` that indices `[K, N]` stand for; levels and scale as `round_to_levels` takes them."""
    table = np.broadcast_to(levels, (codes.shape[1], levels.shape[-1])).astype(np.float64)
    return _looked_up(table, codes) * on_grid(scale, (len(codes), codes.shape[1]))


def level_errors(
    weight: NDArray[np.floating],
    codes: NDArray[Any],
    levels: NDArray[np.floating],
    scale: NDArray[np.floating],
    moments: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Return the expected squared error of every output, `[N]`, as `output_errors` does for grids.

    Raises:
        FormatError: The shapes do not match.
    """
    _checked(weight, levels, scale, moments)
    wrong = decode_levels(codes, levels, scale) - weight
    by_group = wrong.reshape(len(wrong), len(moments), -1).transpose(1, 0, 2)
    errors: NDArray[np.float64] = (by_group * (moments.astype(np.float64) @ by_group)).sum(axis=1)
    return errors.reshape(-1)


def _checked(
    weight: NDArray[Any], levels: NDArray[Any], scale: NDArray[Any], moments: NDArray[Any]
) -> NDArray[np.float64]:
    """Return the scale of every weight, `[K, N]`, once all shapes match."""
    depth, channels = weight.shape
    groups = len(moments)
    own = levels.ndim == 1 or (levels.ndim == weight.ndim and levels.shape[0] in {1, channels})
    if not own or moments.shape != (groups, depth, depth) or not groups or channels % groups:
        raise FormatError(
            f"Weights of shape {weight.shape} do not fit levels of shape {levels.shape} and second moments of shape "
            f"{moments.shape}",
            remedy="Pass [K, N], [k] or [N, k], and [G, K, K], where G divides N",
        )
    return on_grid(scale, (depth, channels))


def _nearest(unit: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.int16]:
    """Return the index of the nearest level of every weight `[R, N]`, the lower one of two that are as near."""
    order = np.argsort(table, axis=1, kind="stable")
    ascending = np.take_along_axis(table, order, axis=1)
    edges = (ascending[:, 1:] + ascending[:, :-1]) / 2
    place = np.zeros(unit.shape, dtype=np.intp)
    for edge in edges.T:  # at most 255 of them, and no array of weights times levels
        place += unit > edge
    return np.take_along_axis(order, place.T, axis=1).T.astype(np.int16)


def _looked_up(table: NDArray[np.float64], codes: NDArray[Any]) -> NDArray[np.float64]:
    return np.take_along_axis(table, codes.T.astype(np.intp), axis=1).T


def _gptq(
    weight: NDArray[np.float64], scale: NDArray[np.float64], table: NDArray[np.float64], H: NDArray[np.float64]
) -> NDArray[np.int16]:
    depth = len(weight)
    order = np.argsort(-np.diagonal(H), kind="stable")
    W, s = weight[order].copy(), scale[order]
    # H⁻¹ = Uᵀ U without forming the inverse, see `lowbit.rounding.gptq`.
    backwards = np.linalg.cholesky(H[np.ix_(order, order)][::-1, ::-1])
    U = np.ascontiguousarray(np.linalg.solve(backwards, np.eye(depth))[::-1, ::-1])
    found = np.empty(W.shape, dtype=np.int16)
    for start in range(0, depth, _LAZY):
        stop = min(start + _LAZY, depth)
        errors = np.zeros((stop - start, W.shape[1]))
        for row in range(start, stop):
            code = _nearest((W[row] / s[row])[None], table)
            found[row] = code[0]
            errors[row - start] = (W[row] - _looked_up(table, code)[0] * s[row]) / U[row, row]
            W[row + 1 : stop] -= U[row, row + 1 : stop, None] * errors[row - start]
        W[stop:] -= U[start:stop, stop:].T @ errors
    codes = np.empty_like(found)
    codes[order] = found
    return codes


def _descended(
    weight: NDArray[np.float64],
    scale: NDArray[np.float64],
    table: NDArray[np.float64],
    codes: NDArray[np.int16],
    H: NDArray[np.float64],
) -> NDArray[np.int16]:
    """Take every row to its best levels, given all others, until none moves."""
    codes = codes.copy()
    decoded = _looked_up(table, codes) * scale
    wrong = decoded - weight
    for _ in range(_SWEEPS):
        moved = False
        for row in range(len(weight)):
            wish = decoded[row] - H[row] @ wrong / H[row, row]
            code = _nearest((wish / scale[row])[None], table)
            if (code[0] == codes[row]).all():
                continue
            fresh = _looked_up(table, code)[0] * scale[row]
            # Of two levels that are as near, the present one stays: nothing would be won, and nothing would end.
            won = np.abs(fresh - wish) < np.abs(decoded[row] - wish)
            moved |= bool(won.any())
            codes[row] = np.where(won, code[0], codes[row])
            decoded[row] = np.where(won, fresh, decoded[row])
            wrong[row] = decoded[row] - weight[row]
        if not moved:
            break
    return codes


def _errors(
    weight: NDArray[np.float64],
    scale: NDArray[np.float64],
    table: NDArray[np.float64],
    codes: NDArray[np.int16],
    H: NDArray[np.float64],
) -> NDArray[np.float64]:
    wrong = _looked_up(table, codes) * scale - weight
    errors: NDArray[np.float64] = np.einsum("kn,kn->n", wrong, H @ wrong)
    return errors
