"""Remove what no graph output needs."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

__all__ = ["remove_dead_code"]


def remove_dead_code(model: ir.Model) -> Counter[str]:
    """Remove nodes and initializers that nothing reads, in subgraphs too; graph inputs stay."""
    changes: Counter[str] = Counter()
    before = sum(1 for graph in model.graphs() for _ in graph)
    ir_passes.RemoveUnusedNodesPass()(model)
    if removed := before - sum(1 for graph in model.graphs() for _ in graph):
        changes["{n} node{s} without a reader removed"] += removed
    for graph in model.graphs():
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                graph.initializers.pop(name)
    return changes
