"""The graph as a protobuf without its large weights: what ONNX's C++ tools can take at any model size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    import onnx

__all__ = ["restore_weights", "weightless_proto"]

# Shape computations need the values of small integer constants; weights above this size never matter to them.
_KEPT_BYTES = 1024


def weightless_proto(model: ir.Model) -> onnx.ModelProto:
    """Serialize a graph with its large initializers turned into extra graph inputs, at the end of the list.

    Args:
        model: Left unchanged.

    Returns:
        A protobuf far below the limit of 2 GB; only tensors up to 1 KiB have values.
    """
    slim = model.clone()
    graph = slim.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _KEPT_BYTES:
            continue
        value.shape = ir.Shape(tensor.shape.numpy())
        value.type = ir.TensorType(tensor.dtype)
        graph.initializers.pop(value.name or "")
        if not value.is_graph_input():
            graph.inputs.append(value)
    return ir.to_proto(slim)


def restore_weights(slim: ir.Model, model: ir.Model) -> None:
    """Give a graph that came from `weightless_proto` the weights of the graph that it was made from.

    Args:
        slim: Changed in place: the extra inputs become initializers again.
        model: The graph with the weights, left unchanged.
    """
    inputs = {value.name for value in model.graph.inputs}
    for value in list(slim.graph.inputs):
        original = model.graph.initializers.get(value.name or "")
        if original is None or original.const_value is None:
            continue
        if value.name not in inputs:
            slim.graph.inputs.remove(value)
        value.const_value = original.const_value
        slim.graph.register_initializer(value)
