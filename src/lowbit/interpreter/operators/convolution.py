"""Convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from lowbit.interpreter.integers import centred, convolution
from lowbit.interpreter.registry import operator
from lowbit.interpreter.windows import extent, padded, windows

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__ = ["conv"]

_FORWARD = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)


@operator("Conv")
def conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Convolve over one to three axes."""
    place = windows(call, x.shape[2:], w.shape[2:])
    function, groups = _FORWARD[w.ndim - 3], call.get("group", 1)
    if place.before == place.after:
        return function(x, w, b, place.strides, place.before, place.dilations, groups)
    return function(padded(x, place, 0), w, b, place.strides, 0, place.dilations, groups)


@operator("ConvInteger")
def conv_integer(
    call: Call, x: Tensor, w: Tensor, x_zero_point: Tensor | None = None, w_zero_point: Tensor | None = None
) -> Tensor:
    """Convolve codes; int32 sums. The padding holds the zero point."""
    place = windows(call, x.shape[2:], w.shape[2:])
    sums = convolution(centred(x, x_zero_point, 1), centred(w, w_zero_point, 0), place, call.get("group", 1))
    return sums.to(torch.int32)


@operator("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Convolve the other way: every element of the input adds a kernel to the output."""
    rank = w.ndim - 2
    strides = call.get("strides") or [1] * rank
    dilations = call.get("dilations") or [1] * rank
    extra = call.get("output_padding") or [0] * rank
    pads = call.get("pads") or [0] * (2 * rank)
    mode = call.get("auto_pad", "NOTSET")
    wanted = call.get("output_shape")
    whole = _TRANSPOSED[rank - 1](x, w, None, strides, 0, 0, call.get("group", 1), dilations)
    cuts = []
    for axis in range(rank):
        span = extent(w.shape[axis + 2], dilations[axis])
        full = strides[axis] * (x.shape[axis + 2] - 1) + extra[axis] + span
        if wanted is not None or mode.startswith("SAME"):
            size = wanted[axis - rank] if wanted is not None else x.shape[axis + 2] * strides[axis]
            total = max(full - size, 0)
            first = total // 2 if mode == "SAME_UPPER" else total - total // 2
        else:
            first, last = (pads[axis], pads[axis + rank]) if mode == "NOTSET" else (0, 0)
            size = full - first - last
        # Negative padding cuts; positive adds elements that no kernel reaches.
        cuts.append((-first, size + first - whole.shape[axis + 2]))
    if any(first or last for first, last in cuts):
        whole = functional.pad(whole, [count for pair in reversed(cuts) for count in pair])
    return whole if b is None else whole + b.reshape(-1, *[1] * rank)


@operator("DeformConv")
def deform_conv(
    call: Call, x: Tensor, w: Tensor, offset: Tensor, b: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Convolve with every tap moved by its own offset, and weighted by a mask (Dai et al. 2017; Zhu et al. 2019)."""
    place = windows(call, x.shape[2:], w.shape[2:])
    n, c, height, width = x.shape
    taps = w.shape[2] * w.shape[3]
    groups, parts = call.get("group", 1), call.get("offset_group", 1)
    rows, columns = place.sizes
    moved = offset.reshape(n, parts, taps, 2, rows, columns)
    weight = torch.ones_like(moved[:, :, :, 0]) if mask is None else mask.reshape(n, parts, taps, rows, columns)

    def positions(axis: int) -> Tensor:
        start = torch.arange(place.sizes[axis], device=x.device) * place.strides[axis] - place.before[axis]
        tap = torch.arange(place.kernel[axis], device=x.device) * place.dilations[axis]
        return (tap[:, None] + start[None]).to(x.dtype)  # [taps of the axis, windows of the axis]

    y = positions(0).reshape(-1, 1, rows, 1).expand(-1, w.shape[3], rows, columns).reshape(taps, rows, columns)
    z = positions(1).reshape(1, -1, 1, columns).expand(w.shape[2], -1, rows, columns).reshape(taps, rows, columns)
    y, z = y + moved[:, :, :, 0], z + moved[:, :, :, 1]  # [N, parts, taps, rows, columns]
    source = x.reshape(n, parts, c // parts, height * width)
    columns_of = torch.zeros((), dtype=x.dtype, device=x.device)
    top, left = torch.floor(y), torch.floor(z)
    for down in (0, 1):
        for right in (0, 1):
            row, column = top + down, left + right
            share = (1 - (y - row).abs()) * (1 - (z - column).abs()) * weight
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).to(torch.int64)
            picked = source.gather(3, index.reshape(n, parts, 1, -1).expand(-1, -1, c // parts, -1))
            picked = picked.reshape(n, parts, c // parts, taps, rows, columns)
            columns_of = columns_of + picked * torch.where(inside, share, torch.zeros_like(share))[:, :, None]
    grouped = columns_of.reshape(n, groups, c // groups * taps, rows * columns)
    kernels = w.reshape(groups, w.shape[0] // groups, -1)
    result = torch.einsum("gmk,ngkp->ngmp", kernels, grouped).reshape(n, w.shape[0], rows, columns)
    return result if b is None else result + b.reshape(-1, 1, 1)


@operator("CausalConvWithState")
def causal_conv(
    call: Call, x: Tensor, w: Tensor, b: Tensor | None = None, past: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Convolve every channel over the present and the past only; the last inputs are carried on."""
    carried = w.shape[2] - 1
    before = x.new_zeros(x.shape[0], x.shape[1], carried) if past is None else past
    joined = torch.cat([before, x], dim=2)
    y = functional.conv1d(joined, w, b, groups=x.shape[1])
    y = functional.silu(y) if call.get("activation", "none") in {"silu", "swish"} else y
    return y, joined[:, :, joined.shape[2] - carried :]
