"""Pools over windows and over whole images."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from lowbit.interpreter.operators.shapes import integers
from lowbit.interpreter.registry import operator
from lowbit.interpreter.windows import padded, windows

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call
    from lowbit.interpreter.windows import Windows

__all__ = ["average_pool"]

_MAXIMA = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVERAGES = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


@operator("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """Take the largest of every window, and where it lies."""
    place = windows(call, x.shape[2:], call.get("kernel_shape"))
    rank, dtype = len(place.kernel), x.dtype
    # Integers of up to 32 bits are exact in float64; pools of them do not exist on every device.
    wide = x if x.is_floating_point() else x.to(torch.float64)
    source = padded(wide, place, -math.inf, whole=True)
    pool: Any = _MAXIMA[rank - 1]
    if call.outputs < 2:
        found: Tensor = pool(source, place.kernel, place.strides, 0, place.dilations)
        return found.to(dtype)
    largest, flat = pool(source, place.kernel, place.strides, 0, place.dilations, return_indices=True)
    return largest.to(dtype), _positions(flat, x, source, place, columns_first=bool(call.get("storage_order", 0)))


def _positions(flat: Tensor, x: Tensor, source: Tensor, place: Windows, *, columns_first: bool) -> Tensor:
    """Return positions in the padded images as positions in the whole tensor without padding."""
    space = x.shape[2:]
    coordinates: list[Tensor] = []
    for axis in reversed(range(len(space))):
        coordinates.insert(0, flat % source.shape[axis + 2] - place.before[axis])
        flat = flat // source.shape[axis + 2]
    order = range(len(space)) if not columns_first else reversed(range(len(space)))
    position = torch.zeros_like(coordinates[0])
    for axis in order:
        position = position * space[axis] + coordinates[axis]
    images = torch.arange(x.shape[0] * x.shape[1], device=x.device) * math.prod(space)
    return position + images.reshape(x.shape[0], x.shape[1], *[1] * len(space))


@operator("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    """Average every window; padding counts only if asked for, and what a last window reaches beyond it never."""
    place = windows(call, x.shape[2:], call.get("kernel_shape"))
    source = padded(x, place, 0)
    total = _sums(padded(source, _rest(place), 0, whole=True), place)
    counted = source if call.get("count_include_pad", 0) else x
    if counted.shape[2:] == place.reach:
        return total / math.prod(place.kernel)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    ones = padded(ones, place, 1 if call.get("count_include_pad", 0) else 0)
    return total / _sums(padded(ones, _rest(place), 0, whole=True), place)


def _rest(place: Windows) -> Windows:
    """Return the same windows over a tensor whose padding is written out."""
    nothing = tuple(0 for _ in place.kernel)
    return replace(place, before=nothing, after=nothing)


def _sums(x: Tensor, place: Windows) -> Tensor:
    """Return the sum of every window of `[N, C, *space]`, whose size the windows cover exactly."""
    rank = len(place.kernel)
    if all(step == 1 for step in place.dilations) and rank <= 3:
        pool: Any = _AVERAGES[rank - 1]
        total: Tensor
        if rank == 1:
            total = pool(x, place.kernel, place.strides) * place.kernel[0]
        else:
            total = pool(x, place.kernel, place.strides, divisor_override=1)
        return total
    return _views(x, place).sum(dim=tuple(range(-rank, 0)))


def _views(x: Tensor, place: Windows) -> Tensor:
    """Return every window as a view: `[N, C, *windows, *kernel]`."""
    rank = len(place.kernel)
    for axis in range(rank):
        span = (place.kernel[axis] - 1) * place.dilations[axis] + 1
        x = x.unfold(axis + 2, span, place.strides[axis])
        x = x[..., :: place.dilations[axis]]
    return x


@operator("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    """Take the p-norm of every window."""
    place = windows(call, x.shape[2:], call.get("kernel_shape"))
    p = call.get("p", 2)
    return _sums(padded(x.abs() ** p, place, 0, whole=True), place) ** (1 / p)


def _space(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@operator("GlobalAveragePool")
def global_average_pool(_call: Call, x: Tensor) -> Tensor:
    """Average every channel."""
    return x.mean(dim=_space(x), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(_call: Call, x: Tensor) -> Tensor:
    """Take the largest of every channel."""
    return x.amax(dim=_space(x), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    """Take the p-norm of every channel."""
    p = call.get("p", 2)
    return (x.abs() ** p).sum(dim=_space(x), keepdim=True) ** (1 / p)


@operator("MaxUnpool")
def max_unpool(call: Call, x: Tensor, positions: Tensor, output_shape: Tensor | None = None) -> Tensor:
    """Put values back where a MaxPool took them from; zeros elsewhere."""
    kernel = call.get("kernel_shape")
    rank = len(kernel)
    strides, pads = call.get("strides") or [1] * rank, call.get("pads") or [0] * (2 * rank)
    space = [
        (x.shape[axis + 2] - 1) * strides[axis] - pads[axis] - pads[axis + rank] + kernel[axis] for axis in range(rank)
    ]
    shape = [*x.shape[:2], *space]
    flat = torch.zeros(math.prod(shape), dtype=x.dtype, device=x.device)
    result = flat.scatter(0, positions.reshape(-1), x.reshape(-1)).reshape(shape)
    if output_shape is None:
        return result
    # Positions count in the inferred shape; a larger one leaves zeros behind.
    more = [wanted - present for wanted, present in zip(integers(output_shape), shape, strict=True)]
    return functional.pad(result, [count for extra in reversed(more) for count in (0, extra)])
