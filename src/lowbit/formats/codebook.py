"""Codebooks: codes that are indices of levels, the element's own ones or those that a tensor has learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import FormatError
from lowbit.formats.granularity import PerChannel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.formats.format import Format

__all__ = ["level_values", "levels_of", "nearest_levels"]


def levels_of(fmt: Format, learned: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Return what the codes of a format stand for before the scale, `[k]`, or `[C, k]` of each channel's own.

    Args:
        fmt: Format of a codebook.
        learned: Levels that a tensor has learned; `None` takes the element's.

    Raises:
        FormatError: The learned levels do not fit the format.
    """
    element = fmt.element
    if learned is None:
        return np.array(element.levels, dtype=np.float32)
    per_channel = learned.ndim == 2 and isinstance(fmt.granularity, PerChannel)
    if not element.learned or learned.shape[-1] != len(element.levels) or not (learned.ndim == 1 or per_channel):
        raise FormatError(
            f"Levels of shape {learned.shape} do not fit {fmt}",
            cause=f"It has {len(element.levels)} {'' if element.learned else 'fixed '}levels",
            remedy="Pass [k], or [C, k] to a learned codebook per channel",
        )
    return learned


def nearest_levels(values: NDArray[np.float32], fmt: Format, learned: NDArray[np.float32] | None) -> NDArray[Any]:
    """Return the code of the level nearest to each value, the lower one of two that are equally near.

    Args:
        values: Any shape, divided by the scale.
        fmt: Format of a codebook.
        learned: See `levels_of`.

    Returns:
        Codes of the same shape, of `fmt.element.dtype`.

    Raises:
        FormatError: A value is NaN, or the levels do not fit.
    """
    levels = levels_of(fmt, learned)
    if values.size and np.isnan(values.max()):
        raise FormatError(
            f"{fmt.element.name} cannot hold NaN",
            cause="The tensor holds NaN",
            remedy="Look for the operator that produces it, and check the data",
        )
    # Halved before they are added, so that no sum overflows.
    middles = levels[..., :-1] * np.float32(0.5) + levels[..., 1:] * np.float32(0.5)
    if levels.ndim == 1:
        return np.searchsorted(middles, values).astype(np.uint8).astype(fmt.element.dtype)
    moved = np.moveaxis(values, _channel_axis(fmt), 0)
    codes = np.empty(moved.shape, dtype=np.uint8)
    for channel, (row, own) in enumerate(zip(moved, _fitting(middles, moved), strict=True)):
        codes[channel] = np.searchsorted(own, row)
    return np.ascontiguousarray(np.moveaxis(codes, 0, _channel_axis(fmt))).astype(fmt.element.dtype)


def level_values(codes: NDArray[Any], fmt: Format, learned: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Return what codes stand for before the scale, a new array of the same shape.

    Args:
        codes: Any shape, of `fmt.element.dtype`.
        fmt: Format of a codebook.
        learned: See `levels_of`.

    Raises:
        FormatError: A code has no level, or the levels do not fit.
    """
    levels = levels_of(fmt, learned)
    indices = codes.astype(np.intp)
    if indices.size and indices.max() >= levels.shape[-1]:
        raise FormatError(
            f"The code {indices.max()} does not exist in {fmt.element.name}",
            cause=f"It has {levels.shape[-1]} levels",
            remedy="Encode with this format",
        )
    if levels.ndim == 1:
        return np.asarray(levels[indices], dtype=np.float32)
    moved = np.moveaxis(indices, _channel_axis(fmt), 0)
    rows = np.take_along_axis(_fitting(levels, moved), moved.reshape(len(moved), -1), axis=1)
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved.shape), 0, _channel_axis(fmt)))


def _channel_axis(fmt: Format) -> int:
    assert isinstance(fmt.granularity, PerChannel)
    return fmt.granularity.axis


def _fitting(levels: NDArray[np.float32], channels: NDArray[Any]) -> NDArray[np.float32]:
    if len(levels) != len(channels):
        raise FormatError(
            f"Levels of {len(levels)} channels do not fit a tensor of {len(channels)}",
            remedy="Learn them from this tensor",
        )
    return levels
