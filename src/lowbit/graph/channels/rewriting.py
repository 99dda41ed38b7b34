"""Giving one node an input of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["replace_constant"]


def replace_constant(model: ir.Model, node: ir.Node, index: int, array: NDArray[np.int64]) -> None:
    """Make an input of a node an initializer that no other node reads.

    Args:
        model: Changed in place.
        node: A node of its main graph.
        index: Which input; one behind the last is added.
        array: Its new value.
    """
    name = f"{node.name}__{node.op_type.lower()}_{index}"
    if name in model.graph.initializers:
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
        return
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.INT64))
    value.const_value = ir.tensor(array, name=name)
    model.graph.register_initializer(value)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
