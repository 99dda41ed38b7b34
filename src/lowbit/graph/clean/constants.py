"""Constants as initializers: weights in `Constant` nodes, and initializers that are also listed as graph inputs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from lowbit.graph.clean.values import all_nodes, is_op

__all__ = ["lift_constants", "own_initializers"]


def lift_constants(model: ir.Model) -> Counter[str]:
    """Turn `Constant` nodes into initializers of the graph they stand in, under the same name.

    A constant that a graph returns stays a node (a branch of `If` cannot return an initializer in every engine), and
    so does a sparse one.
    """
    changes: Counter[str] = Counter()
    for graph, node in all_nodes(model):
        if not is_op(node, "Constant") or node.outputs[0].is_graph_output() or len(node.attributes) != 1:
            continue
        old = node.outputs[0]
        tensor = _tensor(next(iter(node.attributes.values())), old.name or "")
        if tensor is None or not old.name or old.name in graph.initializers:
            continue
        value = ir.Value(
            name=old.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        old.replace_all_uses_with(value)
        graph.remove(node, safe=True)
        graph.register_initializer(value)
        changes["{n} Constant node{s} became initializers"] += 1
    return changes


def own_initializers(model: ir.Model) -> Counter[str]:
    """Drop initializers from the graph inputs where they stand there by habit and not as a choice for the caller.

    IR versions below 4 demand that each initializer is an input too, and some exporters keep doing so. A model of IR 4
    or later that lists only some of its initializers means it: those are optional inputs, and stay.
    """
    graph = model.graph
    listed = [value for value in graph.inputs if value.is_initializer()]
    forced = (model.ir_version or 0) < 4
    habit = len(listed) > 1 and len(listed) == len(graph.initializers)
    if not listed or not (forced or habit):
        return Counter()
    for value in listed:
        graph.inputs.remove(value)
    model.ir_version = max(model.ir_version or 0, 4)
    return Counter({"{n} initializer{s} no longer listed as graph inputs": len(listed)})


def _tensor(attribute: ir.Attr, name: str) -> ir.TensorProtocol | None:
    if attribute.is_ref():
        return None
    match attribute.name:
        case "value":
            return attribute.as_tensor()
        case "value_int":
            return ir.tensor(np.array(attribute.as_int(), dtype=np.int64), name=name)
        case "value_ints":
            return ir.tensor(np.array(attribute.as_ints(), dtype=np.int64), name=name)
        case "value_float":
            return ir.tensor(np.array(attribute.as_float(), dtype=np.float32), name=name)
        case "value_floats":
            return ir.tensor(np.array(attribute.as_floats(), dtype=np.float32), name=name)
        case "value_string":
            return ir.StringTensor(np.array(attribute.as_string().encode(), dtype=object), name=name)
        case "value_strings":
            return ir.StringTensor(np.array([s.encode() for s in attribute.as_strings()], dtype=object), name=name)
        case _:
            return None
