"""Operators between codes that have to stay in float, although their engine would quantize them by itself.

ONNX Runtime takes a Conv, ConvTranspose or Gemm with float weights that reads decoded codes and whose output, behind
any chain of Relu and Clip, is only encoded: it rounds the weights to int8 per tensor and computes in integers, where
pairs of products may saturate. An activation function that it does not look through keeps it from doing so, and is
computed within the float kernel, at no cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from lowbit.graph.editor import Editor

__all__ = ["QUANTIZED_UNASKED", "keep_in_float"]

QUANTIZED_UNASKED = ("Conv", "ConvTranspose", "Gemm")
"""Operators that ONNX Runtime quantizes without being asked."""

_LOOKED_THROUGH = ("Relu", "Clip")


def keep_in_float(editor: Editor, node: ir.Node) -> bool:
    """Change what stands behind a float operator so that ONNX Runtime leaves it in float; the numbers stay the same.

    Args:
        editor: Editor of the model.
        node: A Conv, ConvTranspose or Gemm.

    Returns:
        Whether anything had to be changed.
    """
    read, weight = (value.producer() if value is not None else None for value in node.inputs[:2])
    if read is None or read.op_type != "DequantizeLinear":
        return False
    if weight is not None and weight.op_type == "DequantizeLinear":
        return False  # somebody else has quantized it already
    first: ir.Node | None = None
    last = node
    while True:
        value = last.outputs[0]
        readers = [use.node for use in value.uses()]
        if len(readers) != 1 or value.is_graph_output():
            return False
        if readers[0].op_type == "QuantizeLinear":
            break
        if readers[0].op_type not in _LOOKED_THROUGH:
            return False
        last = readers[0]
        first = first or last
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    value = node.outputs[0]
    if first is not None and first.op_type == "Relu":
        # The same function by another name.
        output = first.outputs[0]
        leaky = editor.node(
            "LeakyRelu",
            [value],
            name=f"{first.name}_in_float",
            outputs=[f"{output.name}_in_float"],
            attributes={"alpha": 0.0},
            dtypes=[ir.DataType.FLOAT],
        )
        graph.insert_after(first, leaky)
        output.replace_all_uses_with(leaky.outputs[0])
        editor.drop(first)
        return True
    same = editor.node(
        "LeakyRelu",
        [value],
        name=f"{node.name}_in_float",
        outputs=[f"{value.name}_in_float"],
        attributes={"alpha": 1.0},
        dtypes=[ir.DataType.FLOAT],
    )
    for use in list(value.uses()):
        if use.node is not same:
            use.node.replace_input_with(use.idx, same.outputs[0])
    graph.insert_after(node, same)
    return True
