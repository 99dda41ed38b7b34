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
    """Return the operator nearest to the outputs that a gradient enters and does not leave.

    Args:
        model: A float model; left unchanged.
        feed: Its inputs, by name.

    Returns:
        Name and operator; `None` if a gradient reaches some weight from some output.
    """
    watched = model.clone()
    nodes = list(watched.graph)
    outputs = [str(value.name) for value in watched.graph.outputs]
    inner = [value for node in nodes for value in node.outputs if value.name and value.name not in outputs]
    watched.graph.outputs.extend(inner)
    names = [str(value.name) for value in watched.graph.outputs]
    graph = Interpreter(watched)
    with torch.enable_grad():
        values = dict(zip(names, graph(**feed), strict=True))
    entered = _entered(graph, values, outputs)
    if any(name in entered for name, _ in graph.named_parameters()):
        return None
    for node in reversed(nodes):
        written = [str(value.name) for value in node.outputs]
        read = [str(value.name) for value in node.inputs if value is not None]
        if any(name in entered or name in outputs for name in written) and not any(name in entered for name in read):
            return str(node.name), node.op_type
    return None


def _entered(graph: Interpreter, values: dict[str, Any], outputs: list[str]) -> set[str]:
    """Return the tensors and parameters that a gradient of the outputs reaches."""
    learned = {name: one for name, one in values.items() if isinstance(one, torch.Tensor) and one.requires_grad}
    ends = [learned[name] for name in outputs if name in learned]
    if not ends:
        return set()
    # Random weights, because the outputs of a Softmax add up to 1 whatever the weights are.
    generator = torch.Generator().manual_seed(0)
    loss = sum((one * torch.rand(one.shape, generator=generator)).sum() for one in ends)
    sources = {**learned, **{name: one for name, one in graph.named_parameters() if one.requires_grad}}
    found = torch.autograd.grad(loss, list(sources.values()), allow_unused=True)
    return {name for name, one in zip(sources, found, strict=True) if one is not None and bool((one != 0).any())}
