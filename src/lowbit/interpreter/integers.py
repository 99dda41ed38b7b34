"""Integer arithmetic in floating point, exact: sums of products of codes, and their way back to codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from lowbit.interpreter.windows import padded

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.windows import Windows

__all__ = ["along", "bounds", "centred", "convolution", "product", "requantized"]

# Sums of up to 2^37 products of bytes are exact in float64, and its matrix products run at full speed on every
# processor; int32's do not.
_EXACT = torch.float64


def along(values: Tensor, rank: int, axis: int) -> Tensor:
    """Return per-axis values so that they broadcast against a tensor of some rank; scalars stay scalars.

    Args:
        values: `[]`, `[1]`, `[N]`, or of the tensor's own rank already.
        rank: Rank of the tensor.
        axis: The axis that has length N.
    """
    if values.numel() == 1:
        return values.reshape(())
    if values.ndim != 1:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def centred(codes: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    """Return codes less their zero point, float64.

    Args:
        codes: Codes of any type.
        zero_point: `[]`, `[N]` along `axis`, or broadcastable; 0 if left out.
        axis: Axis of the zero points.
    """
    wide = codes.to(_EXACT)
    return wide if zero_point is None else wide - along(zero_point, codes.ndim, axis).to(_EXACT)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two matrices of whole numbers in float64, exact."""
    return torch.matmul(a, b)


def convolution(x: Tensor, w: Tensor, place: Windows, groups: int) -> Tensor:
    """Return the convolution of whole numbers in float64, exact.

    Args:
        x: `[N, C, *space]`, zero point subtracted, so that padding is zero.
        w: `[M, C / groups, *kernel]`, likewise.
        place: The windows.
        groups: Number of groups of channels.
    """
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[w.ndim - 3]
    return function(padded(x, place, 0), w, None, place.strides, 0, place.dilations, groups)


def bounds(dtype: torch.dtype) -> tuple[int, int]:
    """Return the lowest and the highest code of an integer type."""
    info = torch.iinfo(dtype)
    return info.min, info.max


def requantized(sums: Tensor, multiplier: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return int32 sums as codes of another scale, as ONNX Runtime's kernels do: one float32 product, halves to even.

    Args:
        sums: Whole numbers, float64.
        multiplier: Their scale over that of the result, float32, broadcastable.
        zero_point: Of the result, `[]`; 0 if left out.
        dtype: Type of the codes.
    """
    low, high = bounds(dtype)
    zero = 0 if zero_point is None else int(zero_point)
    scaled = sums.to(torch.float32) * multiplier.to(torch.float32)
    return (torch.round(scaled.clamp(low - zero, high - zero)) + zero).to(dtype)
