"""Node names that are there, unique and stable, so that a plan can refer to them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["name_nodes"]


def name_nodes(model: ir.Model) -> Counter[str]:
    """Name nodes that have no name, or one that an earlier node has, `<op_type>_<index>`; other names stay."""
    nodes = [node for graph in model.graphs() for node in graph]
    taken = {node.name for node in nodes if node.name}
    seen: set[str] = set()
    numbers: Counter[str] = Counter()
    changes: Counter[str] = Counter()
    for node in nodes:
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        while (name := f"{node.op_type}_{numbers[node.op_type]}") in taken:
            numbers[node.op_type] += 1
        node.name = name
        taken.add(name)
        seen.add(name)
        changes["{n} node{s} named"] += 1
    return changes
