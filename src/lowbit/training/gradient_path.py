"""Where the way of a gradient ends: the operator that cuts the weights off from the outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowbit.interpreter import Interpreter

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

__all__ = ["cutting_operator"]


def cutting_operator(model: ir.Model, feed: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the operator nearest to the outputs that reads what depends on weights and writes what has no gradient.

    Args:
        model: A float model; left unchanged.
        feed: Its inputs, by name.

    Returns:
        Name and operator; `None` if a gradient reaches some weight from some output.
    """
    watched = model.clone()
    nodes = list(watched.graph)
    known = {value.name for value in watched.graph.outputs}
    if any(_reaches(Interpreter(watched), feed, [str(value.name) for value in watched.graph.outputs])):
        return None
    extra = [value for node in nodes for value in node.outputs if value.name and value.name not in known]
    watched.graph.outputs.extend(extra)
    names = [str(value.name) for value in watched.graph.outputs]
    learned = dict(zip(names, _reaches(Interpreter(watched), feed, names), strict=True))
    learned.update({name: True for name, value in watched.graph.initializers.items() if _is_float(value)})
    for node in reversed(nodes):
        reads = [learned.get(str(value.name), False) for value in node.inputs if value is not None]
        writes = [learned.get(str(value.name), False) for value in node.outputs]
        data = [value for value in node.inputs if value is not None and value.producer() is not None]
        depends = any(learned.get(str(value.name), False) for value in data) or (not data and any(reads))
        if depends and not any(writes):
            return str(node.name), node.op_type
    return None


def _reaches(graph: Interpreter, feed: Mapping[str, Any], _names: list[str]) -> list[bool]:
    with torch.enable_grad():
        found = graph(**feed)
    return [isinstance(one, torch.Tensor) and one.requires_grad for one in found]


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()
