"""Reductions over axes: sums, means, extremes, norms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lowbit.interpreter.carriers import from_ordered, from_wide, to_ordered, to_wide
from lowbit.interpreter.operators.shapes import integers
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []


def _axes(call: Call, axes: Tensor | None, rank: int) -> list[int]:
    """Return the axes to reduce: those given, or all, or, where the node says so, none."""
    found = integers(axes if axes is not None else call.get("axes", ()))
    if not found and not call.get("noop_with_empty_axes", 0):
        return list(range(rank))
    return sorted({axis % rank for axis in found})


def _arithmetic(name: str, function: Callable[[Tensor, list[int]], Tensor]) -> None:
    """Register a reduction; its function keeps the reduced axes, with length 1."""

    @operator(name)
    def compute(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        along = _axes(call, axes, x.ndim)
        return from_wide(_shaped(call, function(to_wide(x), along), along), x.dtype)


def _shaped(call: Call, reduced: Tensor, axes: list[int]) -> Tensor:
    return reduced if call.get("keepdims", 1) or not axes else reduced.squeeze(axes)


def _sum(x: Tensor, axes: list[int]) -> Tensor:
    # PyTorch takes no axes for all of them.
    return torch.sum(x, axes, keepdim=True, dtype=x.dtype) if axes else x


def _mean(x: Tensor, axes: list[int]) -> Tensor:
    if not axes:
        return x
    if x.is_floating_point():
        return torch.mean(x, axes, keepdim=True)
    return torch.div(_sum(x, axes), math.prod(x.shape[axis] for axis in axes), rounding_mode="trunc")


def _product(x: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        x = torch.prod(x, axis, keepdim=True, dtype=x.dtype)
    return x


def _norm(x: Tensor, axes: list[int]) -> Tensor:
    if x.is_floating_point():
        return torch.linalg.vector_norm(x, dim=axes, keepdim=True) if axes else torch.abs(x)
    return torch.sqrt(_sum(x.to(torch.float64).square(), axes)).to(x.dtype)


def _real(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.float64)


_arithmetic("ReduceSum", _sum)
_arithmetic("ReduceMean", _mean)
_arithmetic("ReduceProd", _product)
_arithmetic("ReduceL1", lambda x, axes: _sum(torch.abs(x), axes))
_arithmetic("ReduceL2", _norm)
_arithmetic("ReduceSumSquare", lambda x, axes: _sum(x * x, axes))
_arithmetic("ReduceLogSum", lambda x, axes: torch.log(_sum(_real(x), axes)))
_arithmetic("ReduceLogSumExp", lambda x, axes: torch.logsumexp(_real(x), axes, keepdim=True) if axes else x)


def _extreme(x: Tensor, axes: list[int], function: Callable[..., Tensor], *, lowest: bool) -> Tensor:
    if not axes:
        return x
    if any(x.shape[axis] == 0 for axis in axes):
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        if x.is_floating_point():
            return x.new_full(shape, -math.inf if lowest else math.inf)
        if x.dtype == torch.bool:
            return x.new_full(shape, not lowest)
        bounds = torch.iinfo(x.dtype)
        return x.new_full(shape, bounds.min if lowest else bounds.max)
    return function(x, axes, keepdim=True)


@operator("ReduceMax")
def reduce_max(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Take the largest; of nothing, the lowest that the type has."""
    along = _axes(call, axes, x.ndim)
    largest = _extreme(to_ordered(x), along, torch.amax, lowest=True)
    return from_ordered(_shaped(call, largest, along), x.dtype)


@operator("ReduceMin")
def reduce_min(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Take the smallest; of nothing, the highest that the type has."""
    along = _axes(call, axes, x.ndim)
    smallest = _extreme(to_ordered(x), along, torch.amin, lowest=False)
    return from_ordered(_shaped(call, smallest, along), x.dtype)
