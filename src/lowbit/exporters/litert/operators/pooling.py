"""Pools and means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.exporters.litert.lowering import static_shape
from lowbit.exporters.litert.operators.attributes import attribute, constant_input
from lowbit.exporters.litert.operators.convolution import padding_pairs
from lowbit.exporters.litert.operators.fusing import written
from lowbit.exporters.litert.operators.windows import SAME, VALID, Window, fitted
from lowbit.exporters.litert.placement import NHWC, Placed, without_axes
from lowbit.exporters.litert.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from lowbit.exporters.litert.lowering import Lowering

__all__ = ["RULES"]

_LOWEST = -128


def _pool(low: Lowering, node: ir.Node) -> None:
    average = node.op_type == "AveragePool"
    placed = low.placed(node.inputs[0])
    rank = len(placed.order)
    if rank not in {3, 4}:
        raise Refusal(f"LiteRT has integer pools of one and two axes, this has {rank - 2}")
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise Refusal("LiteRT's pool gives no indices")
    kernel = attribute(node, "kernel_shape", [])
    strides = attribute(node, "strides", [1] * len(kernel))
    if any(value != 1 for value in attribute(node, "dilations", [1])):
        raise Refusal("LiteRT has no pool with dilations")
    sizes, outs = list(placed.stored[2:]), list(static_shape(node.outputs[0])[2:])
    given = padding_pairs(node, sizes, kernel)
    windows = tuple(
        Window(size=size, kernel=taps, stride=stride, dilation=1, low=pair[0], out=out)
        for size, taps, stride, pair, out in zip(sizes, kernel, strides, given, outs, strict=True)
    )
    padding, pads = fitted(windows)
    counted = bool(attribute(node, "count_include_pad", 0))
    if average and any(pair != (0, 0) for pair in given):
        # Zeros that count are written out; LiteRT's own padding does not count.
        if any(window.high > pair[1] for window, pair in zip(windows, given, strict=True)):
            raise Refusal("its last window reaches beyond the padding")
        if counted:
            padding, pads = VALID, [(window.low, window.high) for window in windows]
        elif padding != SAME:
            raise Refusal("LiteRT averages over padded windows only where the padding is SAME")
    elif average and padding == VALID and any(pair != (0, 0) for pair in pads):
        raise Refusal("its last window reaches beyond the input")
    order = NHWC if rank == len(NHWC) else (0, 2, 1)
    x = low.ordered(placed, order)
    if any(pair != (0, 0) for pair in pads):
        bare = Placed(tensor=x, order=order, grid=placed.grid)
        x = low.pad(bare, [(0, 0), (0, 0), *pads], None if average else _LOWEST).tensor
    if rank == len(NHWC) - 1:
        x = low.reshape(x, (x.shape[0], 1, *x.shape[1:]), placed.grid)
        kernel, strides, outs = [1, *kernel], [1, *strides], [1, *outs]
    y = low.emit(
        "AVERAGE_POOL_2D" if average else "MAX_POOL_2D",
        [x],
        (x.shape[0], *outs, x.shape[3]),
        grid=placed.grid,
        options={
            "padding": padding,
            "strideH": strides[0],
            "strideW": strides[1],
            "filterHeight": kernel[0],
            "filterWidth": kernel[1],
            "fusedActivationFunction": 0,
        },
        name=written(node.outputs[0]),
    )
    if rank == len(NHWC) - 1:
        y = low.reshape(y, (y.shape[0], *y.shape[2:]), placed.grid)
    low.put(node.outputs[0], y, order, placed.grid)


def _global(low: Lowering, node: ir.Node) -> None:
    placed = low.placed(node.inputs[0])
    _reduced(low, node, placed, tuple(range(2, len(placed.order))), keep=True)


def _reduce(low: Lowering, node: ir.Node) -> None:
    placed = low.placed(node.inputs[0])
    rank = len(placed.order)
    axes = attribute(node, "axes", None)
    if axes is None:
        axes = constant_input(node, 1)
        if axes is None and attribute(node, "noop_with_empty_axes", 0):
            raise Refusal("it reduces over nothing")
    chosen = range(rank) if axes is None else sorted(int(axis) % rank for axis in np.asarray(axes).reshape(-1))
    _reduced(low, node, placed, tuple(chosen), keep=bool(attribute(node, "keepdims", 1)))


def _reduced(low: Lowering, node: ir.Node, placed: Placed, axes: tuple[int, ...], *, keep: bool) -> None:
    output = node.outputs[0]
    mean = node.op_type in {"GlobalAveragePool", "ReduceMean"}
    if mean:
        end, grid, bounds = low.result_grid(output)
    else:
        assert placed.grid is not None
        end, grid, bounds = output, placed.grid, (-np.inf, np.inf)
    stored = sorted(placed.order.index(axis) for axis in axes)
    shape = [1 if axis in stored else size for axis, size in enumerate(placed.tensor.shape)]
    order = placed.order
    if not keep:
        shape = [size for axis, size in enumerate(shape) if axis not in stored]
        order = without_axes(order, axes)
    y = low.emit(
        "MEAN" if mean else "REDUCE_MAX",
        [placed.tensor, low.integers("axes", stored)],
        shape,
        grid=grid,
        options={"keepDims": keep},
        name=written(end),
    )
    low.put(end, low.clamp(y, grid, bounds), order, grid)


RULES: dict[str, Callable[[Lowering, ir.Node], None]] = {
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global,
    "GlobalMaxPool": _global,
    "ReduceMean": _reduce,
    "ReduceMax": _reduce,
}
