"""Folding of whole constant subexpressions, whose parts one by one would have to grow the file first.

PyTorch's LSTM export cuts each weight into gates and joins them in ONNX's order: every Slice alone is a copy, but
together they only rearrange.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import onnx_ir as ir

from lowbit.graph.clean.folding import constant_inputs, evaluate_constant, may_be_folded, replace_by_constant
from lowbit.graph.clean.opset import opset_of
from lowbit.graph.clean.values import all_nodes

if TYPE_CHECKING:
    import numpy as np

__all__ = ["fold_cones"]


# Operators whose result is never larger than all their inputs together, so that a cone is cheap to compute.
_REARRANGING = {
    "Cast",
    "Concat",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}


def fold_cones(model: ir.Model) -> Counter[str]:
    """Replace the nodes that compute a tensor from constants alone by their result, if the file does not grow.

    That is so if the constants that die with the nodes are at least as large as the result.
    """
    changes: Counter[str] = Counter()
    opset = opset_of(model)
    for _, node in list(all_nodes(model)):
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if value is None or producer is None or value.is_graph_output():
                continue
            cone = _cone(value)
            if cone is not None and _fold(cone, opset):
                changes["{n} constant node{s} folded"] += len(cone)
    return changes


def _cone(value: ir.Value) -> list[ir.Node] | None:
    """Return the nodes that compute `value` from constants alone, in order; None if it depends on anything else."""
    order: list[ir.Node] = []
    seen: set[ir.Node] = set()

    def visit(current: ir.Value) -> bool:
        producer = current.producer()
        if producer is None:
            return current.const_value is not None and not current.is_graph_input()
        if producer in seen:
            return True
        if producer.op_type not in _REARRANGING or not may_be_folded(producer):
            return False
        seen.add(producer)
        if not all(visit(source) for source in producer.inputs if source is not None):
            return False
        order.append(producer)
        return True

    return order if visit(value) else None


def _fold(cone: list[ir.Node], opset: int) -> bool:
    """Compute the cone and put its result in its place; False, and nothing changed, if that fails or grows the file."""
    budget = _freed_bytes(cone)
    results: dict[ir.Value, np.ndarray] = {}
    for node in cone:
        arrays = constant_inputs(node, results)
        found = evaluate_constant(node, arrays, opset) if arrays is not None else None
        if found is None:
            return False
        results.update(zip(node.outputs, found, strict=True))
    last = cone[-1]
    if sum(results[output].nbytes for output in last.outputs) > budget:
        return False
    graph = last.graph
    assert isinstance(graph, ir.Graph)
    replace_by_constant(graph, last, [results[output] for output in last.outputs])
    for node in reversed(cone[:-1]):
        if node.graph is not None and not any(output.uses() for output in node.outputs):
            node.graph.remove(node, safe=True)
    return True


def _freed_bytes(cone: list[ir.Node]) -> int:
    """Return the size of the constants that nobody reads once the cone is gone."""
    inside = set(cone)
    if any(use.node not in inside for node in cone[:-1] for output in node.outputs for use in output.uses()):
        return 0
    roots = {
        source: source.const_value.nbytes
        for node in cone
        for source in node.inputs
        if source is not None and source.const_value is not None and all(use.node in inside for use in source.uses())
    }
    return sum(roots.values())
