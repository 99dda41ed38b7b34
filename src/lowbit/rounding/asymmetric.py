"""Rounding for what the layers before really give: inputs are in codes, and the outputs wanted are those of float.

The outputs wanted are `x W` of float inputs `x`; a rounded weight `Ŵ` reads `x̂`, which rounding the layers before has
changed. With `d = x - x̂`, the error `x W - x̂ Ŵ = d W + x̂ (W - Ŵ)` is least, over all weights, for
`W* = W + E[x̂ᵀ x̂]⁻¹ E[x̂ᵀ d] W`, and rounding `W*` by the moments of `x̂` is rounding for `x W`. Minimising over the same
two inputs is the asymmetric calibration of GPTAQ (Li et al., GPTAQ: Efficient Finetuning-Free Quantization for
Asymmetric Calibration, 2025) and the first step of Qronos (Zhang et al., 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import FormatError
from lowbit.rounding.inverse_factor import damped

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "InputPairs",
    "asymmetric_errors",
    "asymmetric_target",
    "mean_error",
    "pairs_init",
    "pairs_merge",
    "pairs_update",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InputPairs:
    """Sums over rows of coded inputs `x̂` and of what they lack, `d = x - x̂`, of G groups of K inputs and N/G outputs.

    Attributes:
        weight: `[G, K, N / G]` float64, the float weight.
        count: Rows.
        moments: `[G, K, K]` float64, `Σ x̂ᵀ x̂`.
        cross: `[G, K, K]`, `Σ x̂ᵀ d`.
        total: `[G, K]`, `Σ x̂`.
        lacking: `[G, K]`, `Σ d`.
        noise: `[G, N / G]`, `Σ (d W)²`.
        power: `[G, N / G]`, `Σ (x W)²`.
    """

    weight: NDArray[np.float64]
    count: int
    moments: NDArray[np.float64]
    cross: NDArray[np.float64]
    total: NDArray[np.float64]
    lacking: NDArray[np.float64]
    noise: NDArray[np.float64]
    power: NDArray[np.float64]


def pairs_init(weight: NDArray[np.floating], groups: int = 1) -> InputPairs:
    """Return the state that has seen nothing.

    Args:
        weight: `[K, N]`, in the kernel's order.
        groups: Groups of a convolution.

    Raises:
        FormatError: The groups do not divide the outputs.
    """
    depth, outputs = weight.shape
    if groups < 1 or outputs % groups:
        raise FormatError(f"{outputs} outputs are not {groups} groups", remedy="Pass a divisor of the outputs")
    by_group = weight.astype(np.float64).reshape(depth, groups, -1).transpose(1, 0, 2)
    square, row, column = (groups, depth, depth), (groups, depth), (groups, outputs // groups)
    return InputPairs(
        weight=by_group,
        count=0,
        moments=np.zeros(square),
        cross=np.zeros(square),
        total=np.zeros(row),
        lacking=np.zeros(row),
        noise=np.zeros(column),
        power=np.zeros(column),
    )


def pairs_update(state: InputPairs, exact: NDArray[np.floating], coded: NDArray[np.floating]) -> InputPairs:
    """Return the state after more rows.

    Args:
        state: What was seen so far.
        exact: `[R, G, K]`, inputs in float.
        coded: `[R, G, K]`, the same inputs as the coded layers before give them.

    Raises:
        FormatError: The shapes differ, or are not the weight's.
    """
    groups, depth, _ = state.weight.shape
    if exact.shape != coded.shape or exact.shape[1:] != (groups, depth):
        raise FormatError(
            f"Rows of shapes {exact.shape} and {coded.shape} do not fit {groups} groups of {depth} inputs",
            remedy="Pass [R, G, K] twice",
        )
    x, read = (np.ascontiguousarray(each.transpose(1, 0, 2), dtype=np.float64) for each in (exact, coded))
    d = x - read
    return InputPairs(
        weight=state.weight,
        count=state.count + len(exact),
        moments=state.moments + read.transpose(0, 2, 1) @ read,
        cross=state.cross + read.transpose(0, 2, 1) @ d,
        total=state.total + read.sum(axis=1),
        lacking=state.lacking + d.sum(axis=1),
        noise=state.noise + np.square(d @ state.weight).sum(axis=1),
        power=state.power + np.square(x @ state.weight).sum(axis=1),
    )


def pairs_merge(a: InputPairs, b: InputPairs) -> InputPairs:
    """Return the state of both; they have the same weight."""
    return InputPairs(
        weight=a.weight,
        count=a.count + b.count,
        moments=a.moments + b.moments,
        cross=a.cross + b.cross,
        total=a.total + b.total,
        lacking=a.lacking + b.lacking,
        noise=a.noise + b.noise,
        power=a.power + b.power,
    )


def asymmetric_target(
    state: InputPairs, *, centred: bool = False, damping: float = 0.01
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the weight that rounding should aim at, `W*`, and the moments to round it by.

    Args:
        state: What was seen.
        centred: Whether means are taken away, because a bias makes up for them.
        damping: What is added to the diagonal of the moments, as a fraction of its mean, which draws `W*` to `W`.

    Returns:
        `[K, N]` float32 and `[G, K, K]` float32.

    Raises:
        FormatError: Nothing was seen, or the damping is no fraction.
    """
    if state.count == 0 or not 0.0 <= damping <= 1.0:
        raise FormatError(f"{state.count} rows with a damping of {damping} give no target", remedy="Use 0.01")
    moments, cross = state.moments / state.count, state.cross / state.count
    if centred:
        mean, lacking = state.total / state.count, state.lacking / state.count
        moments = moments - mean[:, :, None] * mean[:, None, :]
        cross = cross - mean[:, :, None] * lacking[:, None, :]
    moved = state.weight + np.linalg.solve(damped(moments, damping), cross @ state.weight)
    depth = moved.shape[1]
    return moved.transpose(1, 0, 2).reshape(depth, -1).astype(np.float32), moments.astype(np.float32)


def asymmetric_errors(
    state: InputPairs, decoded: NDArray[np.floating], shift: NDArray[np.floating] | float = 0.0
) -> NDArray[np.float64]:
    """Return the mean of `(x W - x̂ Ŵ - shift)²` of every output.

    Args:
        state: What was seen.
        decoded: `[K, N]`, `Ŵ`.
        shift: `[N]`, what a bias adds to the coded outputs beyond the float ones'.

    Returns:
        `[N]` float64, in squared units of the output.
    """
    count = max(state.count, 1)
    lost = _lost(state, decoded)
    squares = state.noise + 2 * (lost * (state.cross @ state.weight)).sum(axis=1)
    squares = squares + (lost * (state.moments @ lost)).sum(axis=1)
    mean = mean_error(state, decoded)
    moved = np.broadcast_to(np.asarray(shift, dtype=np.float64), mean.shape)
    errors: NDArray[np.float64] = squares.reshape(-1) / count - 2 * moved * mean + moved**2
    return np.maximum(errors, 0.0)


def mean_error(state: InputPairs, decoded: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean of `x W - x̂ Ŵ` of every output, `[N]` float64: what a bias has to add."""
    found = (state.lacking[:, None] @ state.weight)[:, 0] + (state.total[:, None] @ _lost(state, decoded))[:, 0]
    mean: NDArray[np.float64] = found.reshape(-1) / max(state.count, 1)
    return mean


def _lost(state: InputPairs, decoded: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return `W - Ŵ` as `[G, K, N / G]`."""
    groups, depth, _ = state.weight.shape
    if decoded.shape != (depth, state.weight.size // depth):
        raise FormatError(
            f"A weight of shape {decoded.shape} is not the one of {depth} inputs that was seen", remedy="Pass [K, N]"
        )
    lost: NDArray[np.float64] = state.weight - decoded.astype(np.float64).reshape(depth, groups, -1).transpose(1, 0, 2)
    return lost
