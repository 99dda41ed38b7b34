"""Cutting a graph into blocks that can be learned one after the other.

A block is a run of nodes in topological order. Where a single tensor crosses from one node to the next, as at the end
of a residual block, a cut separates what is behind it completely (Li et al., BRECQ: Pushing the Limit of Post-Training
Quantization by Block Reconstruction, 2021).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Block", "partition"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """A run of nodes.

    Attributes:
        nodes: The nodes, in order.
        inputs: Names of the tensors that it reads from before, constants left out.
        outputs: Names of the tensors that it writes and that are read behind it, or leave the graph.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def partition(
    graph: ir.Graph, groups: Sequence[Sequence[ir.Node]], *, fewest: int = 3, most: int = 8
) -> tuple[Block, ...]:
    """Cut a graph into blocks.

    Args:
        graph: A graph whose nodes are in topological order.
        groups: Nodes that belong together and are never cut apart: an operator with a weight, its bias and activation.
        fewest: A block has so many groups, unless the graph ends.
        most: From so many groups on, a block also ends where several tensors cross.

    Returns:
        The blocks in order; together they are the whole graph.
    """
    nodes = list(graph)
    position = {node: index for index, node in enumerate(nodes)}
    within: set[int] = set()
    starts: set[int] = set()
    ends: dict[int, int] = {}
    for group in groups:
        places = [position[node] for node in group if node in position]
        if not places:
            continue
        within.update(range(min(places) + 1, max(places) + 1))
        starts.add(min(places))
        ends[max(places) + 1] = ends.get(max(places) + 1, 0) + 1
    crossing = _crossing(graph, nodes)
    cuts = [0]
    count = 0
    narrowest: int | None = None
    for index in range(1, len(nodes)):
        count += ends.get(index, 0)
        if index not in within and count >= fewest and (narrowest is None or crossing[index] <= crossing[narrowest]):
            narrowest = index
        # Before the next group begins, so that what follows a group without weights of its own stays with it.
        if narrowest is not None and index in starts and (crossing[narrowest] == 1 or count >= most):
            cuts.append(narrowest)
            count = sum(number for end, number in ends.items() if narrowest < end <= index)
            narrowest = None
    cuts.append(len(nodes))
    blocks = [_block(graph, nodes[start:stop]) for start, stop in itertools.pairwise(cuts) if stop > start]
    return tuple(blocks)


def read_names(node: ir.Node) -> list[str]:
    """Return the names of all tensors that a node reads, those that its subgraphs take from outside included."""
    names = [value.name for value in node.inputs if value is not None and value.name]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inner = attribute.as_graph()
            for child in inner:
                names += read_names(child)
            names += [value.name for value in inner.outputs if value.name]
    return [str(name) for name in names]


def _crossing(graph: ir.Graph, nodes: Sequence[ir.Node]) -> list[int]:
    """Return how many tensors that depend on the inputs cross each position; position i is before node i."""
    born = {str(value.name): 0 for value in graph.inputs if value.name not in graph.initializers}
    for index, node in enumerate(nodes):
        for value in node.outputs:
            if value.name:
                born[value.name] = index + 1
    dies = dict.fromkeys(born, 0)
    for index, node in enumerate(nodes):
        for name in read_names(node):
            if name in dies:
                dies[name] = index
    for value in graph.outputs:
        if value.name in dies:
            dies[value.name] = len(nodes)
    crossing = [0] * (len(nodes) + 1)
    for name, start in born.items():
        for place in range(start, dies[name] + 1):
            crossing[place] += 1
    return crossing


def _block(graph: ir.Graph, nodes: Sequence[ir.Node]) -> Block:
    own = {value.name for node in nodes for value in node.outputs}
    known = {str(value.name) for value in graph.inputs if value.name not in graph.initializers}
    known |= {str(value.name) for node in graph for value in node.outputs}
    read = dict.fromkeys(name for node in nodes for name in read_names(node) if name not in own and name in known)
    inside = set(nodes)
    leaving = {value.name for value in graph.outputs}
    behind = {name for node in graph if node not in inside for name in read_names(node)}
    written = [
        str(value.name)
        for node in nodes
        for value in node.outputs
        if value.name and (value.name in leaving or value.name in behind)
    ]
    return Block(nodes=tuple(nodes), inputs=tuple(read), outputs=tuple(written))
