"""Operators that change shapes and move elements about."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__ = ["integers"]


def integers(value: Any) -> list[int]:
    """Return a tensor or a list of integers as a list."""
    known = getattr(value, "known_numbers", None)  # of a tensor that torch.export traces, which has no values itself
    if known is not None:
        return list(known)
    return [int(item) for item in (value.reshape(-1).tolist() if isinstance(value, torch.Tensor) else value)]


def _axes(call: Call, axes: Tensor | None, name: str = "axes") -> list[int] | None:
    if axes is not None:
        return integers(axes)
    own = call.get(name)
    return None if own is None else integers(own)


@operator("Reshape")
def reshape(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """Give another shape; 0 keeps a dimension, unless `allowzero`."""
    wanted = integers(shape if shape is not None else call.get("shape"))
    if not call.get("allowzero", 0):
        wanted = [x.shape[index] if size == 0 else size for index, size in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """Make a matrix."""
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return (
        x.reshape(math.prod(x.shape[:axis]), -1)
        if x.numel()
        else x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    )


@operator("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    """Permute the axes."""
    return x.permute(call.get("perm") or list(range(x.ndim))[::-1])


@operator("Squeeze")
def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Remove axes of size 1."""
    wanted = _axes(call, axes)
    if wanted is None:
        return x.reshape([size for size in x.shape if size != 1])
    gone = {axis % x.ndim for axis in wanted}
    return x.reshape([size for index, size in enumerate(x.shape) if index not in gone])


@operator("Unsqueeze")
def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Insert axes of size 1."""
    wanted = _axes(call, axes) or []
    rank = x.ndim + len(wanted)
    new = {axis % rank for axis in wanted}
    sizes = iter(x.shape)
    return x.reshape([1 if index in new else next(sizes) for index in range(rank)])


@operator("Concat")
def concat(call: Call, *inputs: Tensor) -> Tensor:
    """Join along an axis."""
    return torch.cat(inputs, dim=call.get("axis", 1))


@operator("Split")
def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Cut along an axis."""
    axis = call.get("axis", 0)
    wanted = _axes(call, sizes, "split")
    if wanted is None:
        parts = call.get("num_outputs", call.outputs)
        each = -(-x.shape[axis] // parts)
        wanted = [min(each, max(x.shape[axis] - each * index, 0)) for index in range(parts)]
    return tuple(torch.split(x, wanted, dim=axis))


@operator("Slice")
def slice_(
    call: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Take parts along axes."""
    first, last = _axes(call, starts, "starts") or [], _axes(call, ends, "ends") or []
    along = _axes(call, axes) or list(range(len(first)))
    stride = integers(steps) if steps is not None else [1] * len(first)
    for start, end, axis, step in zip(first, last, along, stride, strict=True):
        chosen = range(x.shape[axis])[slice(start, end, step)]
        size = x.shape[axis]
        if step < 0:
            begin = min(start + size if start < 0 else start, size - 1)
            stop = max(end + size, -1) if -size <= end < 0 else (-1 if end < -size else end)
            chosen = range(begin, stop, step)
        if step == 1:
            x = x.narrow(axis, chosen.start if chosen else 0, len(chosen))
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
    return x


@operator("Expand")
def expand(_call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast to a shape, in both directions."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(integers(shape))))


@operator("Tile")
def tile(_call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    """Repeat along every axis."""
    return x.repeat(integers(repeats))


@operator("Shape")
def shape(call: Call, x: Tensor) -> Tensor:
    """Return the shape, or a part of it."""
    return torch.tensor(list(x.shape)[slice(call.get("start", 0), call.get("end"))], dtype=torch.int64, device=x.device)


@operator("Size")
def size(_call: Call, x: Tensor) -> Tensor:
    """Return the number of elements."""
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


@operator("Pad")
def pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Add elements at the ends of axes: a constant, the edge, a reflection or the other end; negative ones cut."""
    sizes = _axes(call, pads, "pads") or []
    along = [axis % x.ndim for axis in integers(axes)] if axes is not None else list(range(x.ndim))
    mode = call.get("mode", "constant")
    filling = value.reshape(()).to(x.dtype) if value is not None else torch.tensor(call.get("value", 0), dtype=x.dtype)
    for index, axis in enumerate(along):
        before, after = sizes[index], sizes[index + len(along)]
        length = x.shape[axis]
        if before < 0 or after < 0:
            start = max(-before, 0)
            x = x.narrow(axis, start, max(length - start - max(-after, 0), 0))
            before, after, length = max(before, 0), max(after, 0), x.shape[axis]
        if not before and not after:
            continue
        if mode == "constant":
            ends = []
            for count in (before, after):
                shaped = [*x.shape]
                shaped[axis] = count
                ends.append(filling.to(x.device).expand(shaped))
            x = torch.cat([ends[0], x, ends[1]], dim=axis)
            continue
        positions = torch.arange(-before, length + after, device=x.device)
        if mode == "edge":
            positions = positions.clamp(0, length - 1)
        elif mode == "wrap":
            positions = positions % length
        else:
            period = max(2 * (length - 1), 1)
            positions = positions % period
            positions = torch.where(positions >= length, period - positions, positions)
        x = x.index_select(axis, positions)
    return x


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Move channels into blocks of pixels."""
    block = call.get("blocksize")
    n, c, h, w = x.shape
    if call.get("mode", "DCR") == "DCR":
        split_up = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        split_up = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return split_up.reshape(n, c // block**2, h * block, w * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Move blocks of pixels into channels."""
    block = call.get("blocksize")
    n, c, h, w = x.shape
    order = (0, 3, 5, 1, 2, 4) if call.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return (
        x.reshape(n, c, h // block, block, w // block, block)
        .permute(order)
        .reshape(n, c * block**2, h // block, w // block)
    )


@operator("CenterCropPad")
def center_crop_pad(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Cut or pad around the middle."""
    along = [axis % x.ndim for axis in call.get("axes") or range(x.ndim)]
    for axis, wanted in zip(along, integers(shape), strict=True):
        present = x.shape[axis]
        if wanted <= present:
            x = x.narrow(axis, (present - wanted) // 2, wanted)
            continue
        before = (wanted - present) // 2
        ends = []
        for count in (before, wanted - present - before):
            shaped = [*x.shape]
            shaped[axis] = count
            ends.append(torch.zeros(shaped, dtype=x.dtype, device=x.device))
        x = torch.cat([ends[0], x, ends[1]], dim=axis)
    return x
