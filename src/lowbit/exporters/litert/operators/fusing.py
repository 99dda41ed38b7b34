"""Activation functions that LiteRT's kernels compute while they write."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.exporters.litert.tensors import Grid

__all__ = ["fused", "written"]

_EVERYTHING = (float("-inf"), float("inf"))
# Numbers of `ActivationFunctionType` in the schema.
_NONE = 0
_FUNCTIONS = {(0.0, float("inf")): 1, (-1.0, 1.0): 2, (0.0, 6.0): 3}


def fused(grid: Grid, bounds: tuple[float, float]) -> tuple[int, tuple[float, float]]:
    """Return the activation function that cuts a result at bounds, and the bounds that are left to cut.

    Where the codes end within the bounds, they cut already.

    Args:
        grid: Grid of the result.
        bounds: What the functions behind the operator let through.
    """
    lowest, highest = grid.limits
    # Half a step: what lies nearer rounds to the same code.
    low = float("-inf") if bounds[0] <= lowest + grid.scale / 2 else bounds[0]
    high = float("inf") if bounds[1] >= highest - grid.scale / 2 else bounds[1]
    if (low, high) == _EVERYTHING:
        return _NONE, _EVERYTHING
    for (bottom, top), number in _FUNCTIONS.items():
        cut = (bottom if bottom > lowest else float("-inf"), top if top < highest else float("inf"))
        if (low, high) in {(bottom, top), cut}:
            return number, _EVERYTHING
    if low == 0.0:
        return _FUNCTIONS[0.0, float("inf")], (float("-inf"), high)
    return _NONE, (low, high)


def written(value: ir.Value) -> str:
    """Return a name for what an operator writes."""
    return value.name or "result"
