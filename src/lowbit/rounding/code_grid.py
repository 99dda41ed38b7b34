"""The grid that codes stand for: the scale and zero point of every single weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["check_moments", "on_grid", "output_errors"]


def on_grid(parameter: NDArray[Any] | float, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Give every weight its own scale or zero point.

    Args:
        parameter: `[]`, `[N]`, `[1, N]` or `[K, N]`; or `[K / block, N]`, one for every block of rows.
        shape: `(K, N)`.

    Returns:
        `[K, N]` float64; a view where nothing has to be repeated.

    Raises:
        FormatError: The parameter does not fit.
    """
    depth, channels = shape
    found = np.asarray(parameter).astype(np.float64)
    if found.ndim == len(shape) and 1 < len(found) < depth and depth % len(found) == 0:
        found = found.repeat(depth // len(found), axis=0)
    try:
        return np.broadcast_to(found, shape)
    except ValueError as error:
        raise FormatError(
            f"Scales or zero points of shape {np.shape(parameter)} do not fit a weight of shape {shape}",
            remedy=f"Pass [], [{channels}], [{depth}, {channels}], or one row for every block of rows",
        ) from error


def output_errors(
    weight: NDArray[np.floating],
    codes: NDArray[Any],
    scale: NDArray[np.float32],
    moments: NDArray[np.floating],
    zero_point: NDArray[Any] | float = 0.0,
) -> NDArray[np.float64]:
    """Return the expected squared error of every output, `e H e` with the rounding errors `e` of its weights.

    Args:
        weight: `[K, N]`, in the kernel's order.
        codes: `[K, N]`, integers.
        scale: As `on_grid` takes it.
        moments: `[G, K, K]`, `H = E[x x]` of the inputs of each of G groups of N/G outputs.
        zero_point: As the scale.

    Returns:
        `[N]` float64, in squared units of the output.

    Raises:
        FormatError: The shapes do not match.
    """
    check_moments(weight, codes, moments)
    shape = (len(weight), weight.shape[1])
    wrong = (codes.astype(np.float64) - on_grid(zero_point, shape)) * on_grid(scale, shape) - weight
    by_group = wrong.reshape(len(wrong), len(moments), -1).transpose(1, 0, 2)
    errors: NDArray[np.float64] = (by_group * (moments.astype(np.float64) @ by_group)).sum(axis=1)
    return errors.reshape(-1)


def check_moments(weight: NDArray[Any], codes: NDArray[Any], moments: NDArray[Any]) -> None:
    """Check that codes and second moments belong to a weight.

    Raises:
        FormatError: The shapes do not match.
    """
    depth, channels = weight.shape
    groups = len(moments)
    if codes.shape != weight.shape or moments.shape != (groups, depth, depth) or not groups or channels % groups:
        raise FormatError(
            f"Weights of shape {weight.shape} do not fit codes of shape {codes.shape} and second moments of shape "
            f"{moments.shape}",
            remedy="Pass [K, N], [K, N] and [G, K, K], where G divides N",
        )
