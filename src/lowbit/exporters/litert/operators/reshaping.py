"""Operators that only change the shape or the order of axes: most of them vanish."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.exporters.litert.constants import plain_constant
from lowbit.exporters.litert.lowering import static_shape
from lowbit.exporters.litert.operators.attributes import attribute
from lowbit.exporters.litert.placement import Placed, identity, moved, reshaped_order

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from lowbit.exporters.litert.lowering import Lowering

__all__ = ["RULES"]

_MATRIX = 2


def _reshape(low: Lowering, node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    if plain_constant(source) is not None:
        return
    placed = low.placed(source)
    target = static_shape(output)
    order = reshaped_order(placed.shape, placed.order, target)
    if order is not None:
        stored = [target[axis] for axis in order]
        low.put(output, low.reshape(placed.tensor, stored, placed.grid), order, placed.grid)
        return
    plain = identity(len(target))
    if len(target) == _MATRIX and target[0] == placed.shape[0] == 1 and _only_products(output):
        # A weight's columns are put in order once, here, instead of every input while the model runs.
        elements = np.arange(int(np.prod(placed.shape))).reshape(placed.shape)
        shuffle = elements.transpose(placed.order).reshape(-1)
        tensor = low.reshape(placed.tensor, target, placed.grid)
        low.values[output] = Placed(tensor=tensor, order=plain, grid=placed.grid, shuffle=shuffle)
        return
    tensor = low.ordered(placed, identity(len(placed.order)))
    low.put(output, low.reshape(tensor, target, placed.grid), plain, placed.grid)


def _only_products(value: ir.Value) -> bool:
    """Whether all that reads a matrix, behind Q/DQ pairs, are products with constant weights."""
    if value.is_graph_output():
        return False
    for use in value.uses():
        if use.node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            if not _only_products(use.node.outputs[0]):
                return False
        elif use.node.op_type not in {"Gemm", "MatMul"} or use.idx != 0 or plain_constant(use.node.inputs[1]) is None:
            return False
    return True


def _transpose(low: Lowering, node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    if plain_constant(source) is not None:
        return
    placed = low.placed(source)
    permutation = attribute(node, "perm", list(reversed(range(len(placed.order)))))
    low.put(output, placed.tensor, moved(placed.order, permutation), placed.grid)


RULES: dict[str, Callable[[Lowering, ir.Node], None]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
}
