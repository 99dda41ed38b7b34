"""Order and running totals along an axis: where extremes are, the k largest, unique values, cumulative sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowbit.interpreter.carriers import from_bits, from_ordered, from_wide, to_bits, to_ordered, to_wide
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []


def _place(call: Call, x: Tensor, function: Callable[..., Tensor]) -> Tensor:
    axis, keep = call.get("axis", 0), bool(call.get("keepdims", 1))
    ordered = to_ordered(x)
    if not call.get("select_last_index", 0):
        return function(ordered, dim=axis, keepdim=keep)
    return x.shape[axis] - 1 - function(ordered.flip(axis), dim=axis, keepdim=keep)


@operator("ArgMax")
def arg_max(call: Call, x: Tensor) -> Tensor:
    """Return where the first (or last) of the largest elements is."""
    return _place(call, x, torch.argmax)


@operator("ArgMin")
def arg_min(call: Call, x: Tensor) -> Tensor:
    """Return where the first (or last) of the smallest elements is."""
    return _place(call, x, torch.argmin)


@operator("TopK")
def top_k(call: Call, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the k largest or smallest and where they are; of equal ones the first."""
    axis = call.get("axis", -1)
    count = call.get("k") if k is None else int(k)
    order = torch.sort(to_ordered(x), dim=axis, descending=bool(call.get("largest", 1)), stable=True).indices
    chosen = order.narrow(axis, 0, count)
    return from_bits(to_bits(x).gather(axis, chosen), x.dtype), chosen


def _running(call: Call, x: Tensor, axis: int, function: Callable[..., Tensor], start: int) -> Tensor:
    values = to_wide(x)
    if call.get("reverse", 0):
        values = values.flip(axis)
    if call.get("exclusive", 0):
        first = torch.full_like(values.narrow(axis, 0, 1), start)
        values = torch.cat([first, values.narrow(axis, 0, x.shape[axis] - 1)], dim=axis)
    total = function(values, axis, dtype=values.dtype)
    return from_wide(total.flip(axis) if call.get("reverse", 0) else total, x.dtype)


@operator("CumSum")
def cumulative_sum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """Add up along an axis; `exclusive` leaves out each element itself, `reverse` starts at the end."""
    return _running(call, x, int(axis), torch.cumsum, 0)


@operator("CumProd")
def cumulative_product(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """Multiply up along an axis; `exclusive` leaves out each element itself, `reverse` starts at the end."""
    return _running(call, x, int(axis), torch.cumprod, 1)


@operator("Unique")
def unique(call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each value once, where it is first, which one every element is, and how many there are of each."""
    axis = call.get("axis")
    values = to_ordered(x.reshape(-1) if axis is None else x)
    along = 0 if axis is None else axis
    found, which, counts = torch.unique(values, return_inverse=True, return_counts=True, dim=along)
    positions = torch.arange(which.numel(), device=x.device)
    first = torch.full_like(counts, which.numel()).scatter_reduce(0, which, positions, "amin")
    if not call.get("sorted", 1):
        order = torch.argsort(first)
        rank = torch.empty_like(order).scatter(0, order, torch.arange(order.numel(), device=x.device))
        found, first, counts, which = found.index_select(along, order), first[order], counts[order], rank[which]
    return from_ordered(found, x.dtype), first, which, counts
