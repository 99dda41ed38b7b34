"""GPTQ: rounding weights one input after the other, each time changing the others to make up for the error.

Frantar, Ashkboos, Hoefler and Alistarh, GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers (2022). Symbols are the paper's where there are any: `H` for the second moments of the inputs, `U` for the
upper Cholesky factor of its inverse, `W` for the weights that have yet to be rounded. A weight here is `[K, N]`, inputs
by outputs, so that the paper's columns are our rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import FormatError
from lowbit.rounding.code_grid import check_moments, on_grid
from lowbit.rounding.inverse_factor import damped, inverse_factor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.rounding.compensate import CodeLimits

__all__ = ["gptq"]


def gptq(
    weight: NDArray[np.float32],
    scale: NDArray[np.float32],
    moments: NDArray[np.floating],
    limits: CodeLimits,
    *,
    zero_point: NDArray[Any] | float = 0.0,
    damping: float = 0.01,
    activation_order: bool = True,
    lazy: int = 128,
) -> NDArray[np.int16]:
    """Round a weight so that its outputs change as little as possible, input by input.

    Scales stay as they are, also those of blocks, and are those of a weight's own place whatever the order is.

    Args:
        weight: `[K, N]` float32, in the kernel's order.
        scale: `[]`, `[N]`, `[K, N]` or `[K / block, N]` float32.
        moments: `[G, K, K]`, `H = E[x x]` of the inputs in the same order, for each of G groups of N/G outputs.
        limits: What codes may be. Pairs of codes are not looked at: a rounding of one cannot know its partner.
        zero_point: Shaped as the scale.
        damping: What is added to the diagonal of `H`, as a fraction of its mean: inputs that the samples do not show.
        activation_order: Whether the inputs with most energy come first, while there are most others to make up for.
        lazy: Rows that are rounded before all rows behind them learn of it, for speed alone.

    Returns:
        `[K, N]` int16, within the limits. Weights of inputs that were always zero are rounded to nearest.

    Raises:
        FormatError: The shapes do not match, or the damping is no fraction.
    """
    check_moments(weight, weight, moments)
    if not 0.0 <= damping <= 1.0 or lazy < 1:
        raise FormatError(f"A damping of {damping} with {lazy} rows at a time is impossible", remedy="Use 0.01 and 128")
    groups, depth, _ = moments.shape
    H = damped(moments, damping)
    energy = np.diagonal(H, axis1=1, axis2=2)
    order = np.argsort(-energy, axis=1, kind="stable") if activation_order else np.tile(np.arange(depth), (groups, 1))
    H = np.take_along_axis(np.take_along_axis(H, order[:, :, None], axis=1), order[:, None, :], axis=2)

    def in_order(matrix: NDArray[Any]) -> NDArray[np.float64]:
        """Return `[K, N]` as `[G, K, N / G]`, rows in the order in which they are rounded."""
        by_group = matrix.reshape(depth, groups, -1).transpose(1, 0, 2)
        return np.take_along_axis(by_group.astype(np.float64), order[:, :, None], axis=1)

    shape = (depth, weight.shape[1])
    found = _rounded(
        in_order(weight),
        in_order(on_grid(scale, shape)),
        in_order(on_grid(zero_point, shape)),
        inverse_factor(H),
        limits,
        lazy,
        None if limits.zeros is None else in_order(limits.zeros) > 0,
    )
    codes = np.empty_like(found)
    np.put_along_axis(codes, order[:, :, None], found, axis=1)
    return np.ascontiguousarray(codes.transpose(1, 0, 2).reshape(shape))


def _rounded(
    W: NDArray[np.float64],
    scale: NDArray[np.float64],
    zero_point: NDArray[np.float64],
    U: NDArray[np.float64],
    limits: CodeLimits,
    lazy: int,
    zeros: NDArray[np.bool_] | None,
) -> NDArray[np.int16]:
    """Round rows in their order; all arguments `[G, K, …]`, `W` is used up."""
    codes = np.zeros(W.shape, dtype=np.int16)
    depth = W.shape[1]
    for start in range(0, depth, lazy):
        stop = min(start + lazy, depth)
        errors = np.zeros((len(W), stop - start, W.shape[2]))
        for row in range(start, stop):
            code = np.clip(np.rint(W[:, row] / scale[:, row] + zero_point[:, row]), limits.low, limits.high)
            if zeros is not None:
                code = np.where(zeros[:, row], zero_point[:, row], code)
            codes[:, row] = code
            left = W[:, row] - (code - zero_point[:, row]) * scale[:, row]
            errors[:, row - start] = left / U[:, row, row, None]
            W[:, row + 1 : stop] -= U[:, row, row + 1 : stop, None] * errors[:, row - start, None]
        W[:, stop:] -= U[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    return codes
