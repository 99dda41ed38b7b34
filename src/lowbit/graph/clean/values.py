"""Questions and edits about single values of a graph that every pass needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "all_nodes",
    "channel_vector",
    "constant",
    "fresh_name",
    "is_op",
    "new_initializer",
    "only_consumer",
    "replace_value",
    "set_constant",
]


def all_nodes(model: ir.Model) -> Iterator[tuple[ir.Graph, ir.Node]]:
    """Yield (graph, node) in order, subgraphs included; the node just yielded may be removed."""
    for graph in list(model.graphs()):
        for node in list(graph):
            if node.graph is graph:
                yield graph, node


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether a node is one of these operators of the standard domain."""
    return node is not None and node.domain in {"", "ai.onnx"} and node.op_type in op_types


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the array of an initializer that nobody outside can override, or None.

    NOTE: `Value.const_value` alone does not say that a value is constant: graph inputs may carry a default there.
    """
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return None
    if value.const_value.dtype == ir.DataType.STRING:
        return None
    return value.const_value.numpy()


def only_consumer(value: ir.Value) -> ir.Node | None:
    """Return the node that alone reads a value, or None if there are more, or if the graph returns the value."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    return uses[0].node


def fresh_name(model: ir.Model, wish: str) -> str:
    """Return `wish`, or `wish_1`, `wish_2`, … if a value of the model, in whatever graph, has that name already."""
    taken: set[str | None] = set()
    for graph in model.graphs():
        taken |= {value.name for value in graph.inputs} | set(graph.initializers)
        taken |= {output.name for node in graph for output in node.outputs}
    name, index = wish, 0
    while name in taken:
        index += 1
        name = f"{wish}_{index}"
    return name


def new_initializer(model: ir.Model, graph: ir.Graph, wish: str, array: np.ndarray) -> ir.Value:
    """Add a constant to a graph of the model, under `wish` or the next free name."""
    name = fresh_name(model, wish)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def set_constant(value: ir.Value, array: np.ndarray) -> None:
    """Give an initializer other numbers; its name stays, and the tensor that other graphs may share is not touched."""
    value.const_value = ir.tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)


def replace_value(old: ir.Value, new: ir.Value) -> bool:
    """Let everybody read `new` instead of `old`, keeping the names of graph outputs.

    Returns:
        False, and nothing is changed, if `old` is a graph output whose name `new` cannot take: because `new` belongs
        to another graph, is a graph input or an initializer, or is returned itself.
    """
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return True
    producer = new.producer()
    if producer is None or old.graph is not producer.graph or new.is_graph_output():
        return False
    name = old.name
    if old.shape is not None:
        new.shape = old.shape  # the names of the model's own output dimensions
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    # The caller removes the producer of `old`, so that the borrowed name is free again at once.
    old.name = f"{name}/replaced"
    new.name = name
    return True


def channel_vector(array: np.ndarray, channels: int, rank: int, axis: int = 1) -> np.ndarray | None:
    """Read a constant operand as one number per channel.

    Args:
        array: Operand that is broadcast against a tensor of `rank` dimensions.
        channels: Length of that tensor's channel axis.
        rank: Its number of dimensions.
        axis: Its channel axis.

    Returns:
        [channels] float64, or None if the operand varies along another axis or would change the shape.
    """
    if array.ndim > rank:
        return None
    shape: Sequence[int] = (1,) * (rank - array.ndim) + array.shape
    if any(length != 1 for index, length in enumerate(shape) if index != axis) or shape[axis] not in {1, channels}:
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,)).copy()
