"""Walk over all operators of a model, at whatever depth they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["operators"]


def operators(model: ir.Model) -> Iterator[tuple[str, ir.Node]]:
    """Yield every node of a model with its path, nodes of subgraphs right after the node that holds them.

    Args:
        model: Left unchanged.

    Yields:
        The path, `name` in the main graph, `if_0/then_branch/name` in a subgraph and `domain::function/name` in a
        model-local function; and the node.
    """
    yield from _walk(model.graph, "")
    for function in model.functions.values():
        yield from _walk(function, f"{function.domain}::{function.name}/")


def _walk(graph: ir.Graph | ir.Function, prefix: str) -> Iterator[tuple[str, ir.Node]]:
    for index, node in enumerate(graph):
        path = f"{prefix}{node.name or f'{node.op_type}_{index}'}"
        yield path, node
        for name, attribute in node.attributes.items():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _walk(attribute.as_graph(), f"{path}/{name}/")
            elif attribute.type == ir.AttributeType.GRAPHS:
                for number, child in enumerate(attribute.as_graphs()):
                    yield from _walk(child, f"{path}/{name}[{number}]/")
