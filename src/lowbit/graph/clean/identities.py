"""Nodes that return their input unchanged."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.clean.values import all_nodes, constant, replace_value

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["remove_identities"]


def remove_identities(model: ir.Model) -> Counter[str]:
    """Remove `Identity`, inference `Dropout`, casts to the same type, empty `Pad`, `x * 1`, `x + 0` and their like.

    A node stays if it is the only link between a graph input, an initializer or an outer value and a graph output.
    """
    changes: Counter[str] = Counter()
    for graph, node in all_nodes(model):
        source = _unchanged_input(node)
        if source is None or any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            continue
        if replace_value(node.outputs[0], source):
            graph.remove(node, safe=True)
            changes[f"{{n}} {node.op_type} node{{s}} without effect removed"] += 1
    return changes


def _unchanged_input(node: ir.Node) -> ir.Value | None:
    """The input that a node passes on, or None if it may change it."""
    if node.domain not in {"", "ai.onnx"} or not node.inputs or node.inputs[0] is None:
        return None
    source = node.inputs[0]
    match node.op_type:
        case "Identity":
            return source
        case "Dropout":
            training = node.inputs[2] if len(node.inputs) > 2 else None
            off = constant(training)
            return source if training is None or (off is not None and not off.item()) else None
        case "Cast":
            target = node.attributes["to"].as_int() if "to" in node.attributes else None
            return source if source.dtype is not None and source.dtype.value == target else None
        case "CastLike":
            like = node.inputs[1]
            return source if like is not None and source.dtype is not None and source.dtype == like.dtype else None
        case "Concat" | "Sum" | "Max" | "Min" | "Mean":
            return source if len(node.inputs) == 1 else None
        case "Pad":
            pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
            return source if pads is not None and not pads.any() else None
        case "Transpose":
            perm = node.attributes.get("perm")
            return source if perm is not None and list(perm.as_ints()) == sorted(perm.as_ints()) else None
        case "Mul" | "Add":
            neutral = 1 if node.op_type == "Mul" else 0
            for value, operand in ((source, node.inputs[1]), (node.inputs[1], source)):
                if value is not None and _is_neutral(operand, value, neutral):
                    return value
            return None
        case "Div" | "Sub":
            return source if _is_neutral(node.inputs[1], source, 1 if node.op_type == "Div" else 0) else None
        case _:
            return None


def _is_neutral(operand: ir.Value | None, value: ir.Value, neutral: int) -> bool:
    """Whether a constant operand changes neither the numbers nor, by broadcasting, the shape."""
    array = constant(operand)
    if array is None or array.size == 0 or not np.all(array == neutral):
        return False
    if array.size == 1:
        return array.ndim == 0 or (value.shape is not None and array.ndim <= len(value.shape))
    if value.shape is None or array.ndim > len(value.shape):
        return False
    return all(length in (1, value.shape[i - array.ndim]) for i, length in enumerate(array.shape))
