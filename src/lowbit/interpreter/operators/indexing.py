"""Elements by their indices: gathering, scattering, choosing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowbit.interpreter.carriers import from_bits, from_ordered, from_wide, to_bits, to_ordered, to_wide
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Return indices as int64, negative ones counted from the end."""
    whole = indices.to(torch.int64)
    return torch.where(whole < 0, whole + size, whole)


@operator("Gather")
def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Take slices along an axis; the indices' axes take its place."""
    axis = call.get("axis", 0) % x.ndim
    where = _wrapped(indices, x.shape[axis])
    taken = to_bits(x).index_select(axis, where.reshape(-1))
    return from_bits(taken.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]]), x.dtype)


@operator("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Take one element for every index, along an axis."""
    axis = call.get("axis", 0)
    return from_bits(to_bits(x).gather(axis, _wrapped(indices, x.shape[axis])), x.dtype)


def _positions(indices: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(_wrapped(part, size) for part, size in zip(indices.unbind(-1), shape, strict=False))


@operator("GatherND")
def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Take one slice for every tuple of indices."""
    batch = call.get("batch_dims", 0)
    places = _positions(indices, tuple(x.shape[batch:]))
    rows = []
    for axis in range(batch):
        shape = [1] * (indices.ndim - 1)
        shape[axis] = -1
        rows.append(torch.arange(x.shape[axis], device=x.device).reshape(shape))
    return from_bits(to_bits(x)[(*rows, *places)], x.dtype)


@operator("Scatter", "ScatterElements")
def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Put one element at every index along an axis, or add, multiply or compare it with what is there."""
    axis, reduction = call.get("axis", 0), call.get("reduction", "none")
    where = _wrapped(indices, x.shape[axis])
    if reduction == "none":
        return from_bits(to_bits(x).scatter(axis, where, to_bits(updates)), x.dtype)
    if reduction in _ORDERED:
        kind = _ORDERED[reduction]
        return from_ordered(to_ordered(x).scatter_reduce(axis, where, to_ordered(updates), kind), x.dtype)
    kind = {"add": "sum", "mul": "prod"}[reduction]
    return from_wide(to_wide(x).scatter_reduce(axis, where, to_wide(updates), kind), x.dtype)


_ORDERED = {"max": "amax", "min": "amin"}


@operator("ScatterND")
def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Put one slice at every tuple of indices, or add, multiply or compare it with what is there."""
    reduction = call.get("reduction", "none")
    depth = indices.shape[-1]
    places = _positions(indices.reshape(-1, depth), tuple(x.shape))
    rest = tuple(x.shape[depth:])
    if reduction == "none":
        put = to_bits(updates).reshape(-1, *rest)
        return from_bits(to_bits(x).index_put(places, put), x.dtype)
    # Slices of equal index meet in one row: reduce over rows of the flattened tensor.
    row = torch.zeros_like(places[0])
    for place, size in zip(places, x.shape, strict=False):
        row = row * size + place
    prepare, back = (to_ordered, from_ordered) if reduction in _ORDERED else (to_wide, from_wide)
    kind = {"add": "sum", "mul": "prod", **_ORDERED}[reduction]
    values = prepare(updates).reshape(row.shape[0], -1)
    flat = prepare(x).reshape(-1, values.shape[1])
    merged = flat.scatter_reduce(0, row[:, None].expand_as(values), values, kind)
    return back(merged.reshape(x.shape), x.dtype)


@operator("TensorScatter")
def tensor_scatter(call: Call, past: Tensor, update: Tensor, first: Tensor | None = None) -> Tensor:
    """Write new steps into a cache, from every batch's own position on; `circular` starts over at the end."""
    axis = call.get("axis", -2) % past.ndim
    moved, new = past.movedim(axis, 1), update.movedim(axis, 1)
    start = past.new_zeros(past.shape[0], dtype=torch.int64) if first is None else first.to(torch.int64)
    steps = start[:, None] + torch.arange(new.shape[1], device=past.device)
    if call.get("mode", "linear") == "circular":
        steps = steps % moved.shape[1]
    batches = torch.arange(past.shape[0], device=past.device)[:, None].expand_as(steps)
    return from_bits(to_bits(moved).index_put((batches, steps), to_bits(new)).movedim(1, axis), past.dtype)


@operator("OneHot")
def one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """Put the second value at every index along a new axis and the first elsewhere; nowhere, if it is out of bounds."""
    count = int(depth)
    axis = call.get("axis", -1) % (indices.ndim + 1)
    where = _wrapped(indices, count).unsqueeze(axis)
    shape = [1] * (indices.ndim + 1)
    shape[axis] = count
    hot = torch.arange(count, device=indices.device).reshape(shape) == where
    return torch.where(hot, values[1], values[0])


@operator("NonZero")
def non_zero(_call: Call, x: Tensor) -> Tensor:
    """Return the indices of all elements that are not zero, one column each."""
    return torch.nonzero(to_wide(x).reshape(1) if x.ndim == 0 else to_wide(x)).T.contiguous()


@operator("Compress")
def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    """Keep the slices along an axis, or the elements, for which a condition holds."""
    axis = call.get("axis")
    values = to_bits(x.reshape(-1) if axis is None else x)
    return from_bits(values.index_select(axis or 0, torch.nonzero(condition)[:, 0]), x.dtype)


@operator("Trilu")
def triangle(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    """Keep what is above or below a diagonal, zero elsewhere."""
    part = torch.triu if call.get("upper", 1) else torch.tril
    return from_bits(part(to_bits(x), diagonal=0 if k is None else int(k)), x.dtype)
