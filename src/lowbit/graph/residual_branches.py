"""Residual branches: what is computed from a tensor and added to it again, and graphs without some of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.graph.clean.dead_code import remove_dead_code
from lowbit.graph.constants import constant_array
from lowbit.graph.editor import Editor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["ResidualBranch", "residual_branches", "without_branches"]

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResidualBranch:
    """A branch that reads one tensor and is added to the same tensor.

    Attributes:
        add: Name of the Add that ends it.
        kept: Name of the tensor that the branch reads and is added to.
        output: Name of what the branch adds.
        operators: Names of its operators.
    """

    add: str
    kept: str
    output: str
    operators: tuple[str, ...]


def residual_branches(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> tuple[ResidualBranch, ...]:
    """Return the branches that a model still computes something without, in the graph's order.

    A branch reads nothing but one tensor and constants, nobody else reads inside of it, it has weights, and what it
    adds has the shape of that tensor.

    Args:
        model: A float model whose nodes have names; only its main graph is looked at.
        shapes: The shape of every tensor, for one sample.
    """
    found = []
    for node in model.graph:
        if node.op_type != "Add" or node.domain not in {"", "ai.onnx"} or None in node.inputs:
            continue
        first, second = node.inputs
        for kept, output in ((first, second), (second, first)):
            assert kept is not None
            assert output is not None
            if kept is output or constant_array(kept) is not None or constant_array(output) is not None:
                continue
            if shapes.get(str(kept.name)) != shapes.get(str(output.name)):
                continue
            inside = _between(kept, output, node)
            if inside is not None and any(one.op_type in _WEIGHTED for one in inside):
                names = tuple(str(one.name) for one in inside)
                found.append(
                    ResidualBranch(add=str(node.name), kept=str(kept.name), output=str(output.name), operators=names)
                )
                break
    return tuple(found)


def _between(kept: ir.Value, output: ir.Value, add: ir.Node) -> list[ir.Node] | None:
    """Return the nodes from one tensor to another, or `None` if they read or are read by anything else."""
    inside: dict[ir.Node, None] = {}
    waiting = [output]
    while waiting:
        value = waiting.pop()
        if value is kept or constant_array(value) is not None:
            continue
        node = value.producer()
        if node is None or node.graph is not add.graph or _has_subgraphs(node):
            return None
        if node not in inside:
            inside[node] = None
            waiting += [each for each in node.inputs if each is not None]
    for node in inside:
        for value in node.outputs:
            if value.is_graph_output() or any(user not in inside and user is not add for user, _ in value.uses()):
                return None
    return list(inside)


def _has_subgraphs(node: ir.Node) -> bool:
    return any(
        attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for attribute in node.attributes.values()
    )


def without_branches(model: ir.Model, branches: Mapping[ResidualBranch, NDArray[np.float32] | None]) -> ir.Model:
    """Return a copy of a model in which branches add a constant, or nothing at all.

    Args:
        model: The model; left unchanged.
        branches: What each branch adds instead, broadcast over its output; `None` adds nothing.
    """
    copy = model.clone()
    editor = Editor(copy)
    nodes = {str(node.name): node for node in copy.graph}
    for branch, constant in branches.items():
        add = nodes[branch.add]
        place = next(
            number for number, value in enumerate(add.inputs) if value is not None and value.name == branch.output
        )
        kept = add.inputs[1 - place]
        assert kept is not None
        (total,) = add.outputs
        if constant is None and not total.is_graph_output():
            total.replace_all_uses_with(kept)
            copy.graph.remove(add, safe=True)
            continue
        # The tensor of an output cannot become another one: it is made by adding nothing.
        array = np.zeros((1,), np.float32) if constant is None else constant
        add.replace_input_with(place, editor.constant(copy.graph, f"{branch.output}_mean", array))
    remove_dead_code(copy)
    return copy
