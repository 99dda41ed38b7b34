"""Adjacent transposes that undo each other."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from lowbit.graph.clean.values import all_nodes, is_op, replace_value

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["cancel_transposes"]


def cancel_transposes(model: ir.Model) -> Counter[str]:
    """Let the readers of `Transpose(Transpose(x))` read `x` where the two permutations are inverse."""
    changes: Counter[str] = Counter()
    for graph, outer in all_nodes(model):
        inner = outer.inputs[0].producer() if is_op(outer, "Transpose") and outer.inputs[0] is not None else None
        if inner is None or not is_op(inner, "Transpose") or inner.inputs[0] is None:
            continue
        first, second = _permutation(inner), _permutation(outer)
        if first is None or second is None or [first[axis] for axis in second] != list(range(len(first))):
            continue
        if replace_value(outer.outputs[0], inner.inputs[0]):
            graph.remove(outer, safe=True)
            changes["{n} pair{s} of inverse Transpose nodes cancelled"] += 1
    return changes


def _permutation(node: ir.Node) -> list[int] | None:
    perm = node.attributes.get("perm")
    if perm is not None:
        return list(perm.as_ints())
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    return list(reversed(range(len(value.shape))))
