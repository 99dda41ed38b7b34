"""Blocks: together they are the graph, what belongs together stays together, and a cut is where little crosses."""

from __future__ import annotations

import numpy as np
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from lowbit.reconstruction import partition

CHAIN = """g (float[1,4,8,8] x, float[4,4,1,1] w) => (float[1,4,8,8] y) {
    a = Conv(x, w)
    b = Relu(a)
    c = Conv(b, w)
    d = Relu(c)
    e = Conv(d, w)
    y = Relu(e)
}"""
RESIDUAL = """g (float[1,4,8,8] x, float[4,4,1,1] w) => (float[1,4,8,8] y) {
    a = Conv(x, w)
    b = Conv(a, w)
    c = Conv(b, w)
    s = Add(a, c)
    d = Conv(s, w)
    e = Conv(d, w)
    t = Add(s, e)
    y = Sigmoid(t)
}"""
HEADS = """g (float[1,4,8,8] x, float[4,4,1,1] w) => (float[1,4,8,8] y, float[1,4,8,8] z) {
    a = Conv(x, w)
    y = Conv(a, w)
    b = Conv(a, w)
    z = Conv(b, w)
}"""


def graph_of(text: str) -> ir.Graph:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w"))
    return ir.from_proto(proto).graph


def groups_of(graph: ir.Graph) -> list[list[ir.Node]]:
    nodes = list(graph)
    groups = []
    for index, node in enumerate(nodes):
        if node.op_type == "Conv":
            follows = index + 1 < len(nodes) and nodes[index + 1].op_type == "Relu"
            groups.append([node, nodes[index + 1]] if follows else [node])
    return groups


@pytest.mark.parametrize("text", [CHAIN, RESIDUAL, HEADS], ids=["chain", "residual", "heads"])
@pytest.mark.parametrize(("fewest", "most"), [(1, 1), (1, 8), (2, 8), (3, 4), (99, 99)])
def test_blocks_are_the_whole_graph_in_order(text: str, fewest: int, most: int) -> None:
    graph = graph_of(text)
    blocks = partition(graph, groups_of(graph), fewest=fewest, most=most)
    assert [node for block in blocks for node in block.nodes] == list(graph)
    known = {"x"}
    for block in blocks:
        assert set(block.inputs) <= known
        known |= set(block.outputs)
    assert {value.name for value in graph.outputs} <= known
    for group in groups_of(graph):
        assert sum(bool(set(group) & set(block.nodes)) for block in blocks) == 1


def test_a_chain_is_cut_behind_activations() -> None:
    graph = graph_of(CHAIN)
    blocks = partition(graph, groups_of(graph), fewest=1)
    assert [(block.inputs, block.outputs) for block in blocks] == [
        (("x",), ("b",)),
        (("b",), ("d",)),
        (("d",), ("y",)),
    ]


def test_a_residual_block_is_not_cut_open() -> None:
    graph = graph_of(RESIDUAL)
    blocks = partition(graph, groups_of(graph), fewest=1)
    assert [block.inputs for block in blocks] == [("x",), ("a",), ("s",)]
    assert [block.outputs for block in blocks] == [("a",), ("s",), ("y",)]


def test_a_block_that_is_large_enough_is_cut_where_least_crosses() -> None:
    graph = graph_of(RESIDUAL)
    blocks = partition(graph, groups_of(graph), fewest=1, most=1)
    assert max(len(block.inputs) for block in blocks) == 2
    assert all(sum(node.op_type == "Conv" for node in block.nodes) <= 2 for block in blocks)
