"""Chains of `Relu` and `Clip` in which one of the two is redundant."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.clean.values import all_nodes, constant, is_op, new_initializer, only_consumer, replace_value

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["simplify_activations"]


def simplify_activations(model: ir.Model) -> Counter[str]:
    """Remove `Relu` after `Relu`, `Relu` before or after a `Clip` from 0, and a `Clip` inside wider bounds.

    Engines fuse one activation into a convolution, not two. A `Relu` before a `Clip` that has only an upper bound
    becomes that clip's lower bound.
    """
    changes: Counter[str] = Counter()
    for graph, node in all_nodes(model):
        previous = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if previous is None or previous.inputs[0] is None or not is_op(previous, "Relu", "Clip"):
            continue
        if is_op(node, "Relu", "Clip") and _contains(_range(node), _range(previous)):
            if replace_value(node.outputs[0], previous.outputs[0]):
                graph.remove(node, safe=True)
                changes[f"{{n}} {node.op_type} node{{s}} without effect removed"] += 1
        elif is_op(node, "Clip") and is_op(previous, "Relu") and only_consumer(previous.outputs[0]) is node:
            bounds = _range(node)
            if bounds is None or bounds[1] < 0:
                continue
            if bounds[0] < 0:
                dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
                if dtype is None:
                    continue
                if len(node.inputs) < 2:
                    node.resize_inputs(2)
                zero = new_initializer(model, graph, f"{node.outputs[0].name}_min", np.zeros((), dtype.numpy()))
                node.replace_input_with(1, zero)
            node.replace_input_with(0, previous.inputs[0])
            changes["{n} Relu node{s} merged into Clip"] += 1
    return changes


def _range(node: ir.Node) -> tuple[float, float] | None:
    """The interval that an activation maps into, or None if it is not constant."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    bounds = [-np.inf, np.inf]
    if "min" in node.attributes or "max" in node.attributes:
        return None
    for index in (1, 2):
        if len(node.inputs) > index and node.inputs[index] is not None:
            array = constant(node.inputs[index])
            if array is None or array.size != 1:
                return None
            bounds[index - 1] = float(array.reshape(-1)[0])
    return bounds[0], bounds[1]


def _contains(outer: tuple[float, float] | None, inner: tuple[float, float] | None) -> bool:
    return outer is not None and inner is not None and outer[0] <= inner[0] <= inner[1] <= outer[1]
