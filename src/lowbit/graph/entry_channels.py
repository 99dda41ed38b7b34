"""More channels for an image, so that an integer convolution reads them fast."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.graph.constants import constant_weight

if TYPE_CHECKING:
    from lowbit.graph.editor import Editor

__all__ = ["padded_channels", "read_padded"]


def padded_channels(shape: tuple[int, ...], multiple: int) -> int:
    """Return how many input channels a dense convolution should have.

    A convolution sums over channels and kernel positions; integer kernels read that sum in groups of `multiple` numbers
    and are slow where the last group is not full, as in most first layers (3 channels × 3 × 3 positions = 27 numbers).

    Args:
        shape: Shape of the weight, `[out, in, *kernel]`.
        multiple: Numbers that the engine reads at once.
    """
    channels, positions = shape[1], math.prod(shape[2:])
    while channels * positions % multiple:
        channels += 1
    return channels


def read_padded(editor: Editor, node: ir.Node, channels: int) -> ir.Value:
    """Let a convolution between codes read more channels than its input has, with weights of zero for the added ones.

    Args:
        editor: Editor of the model.
        node: A Conv whose first input is the output of a DequantizeLinear with a scale and a zero point.
        channels: Number of channels that it is to read.

    Returns:
        The decoded input that it reads now.
    """
    read, weight = node.inputs[0], node.inputs[1]
    decode = read.producer() if read is not None else None
    array = constant_weight(weight)
    assert decode is not None
    assert array is not None
    assert weight is not None
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    codes, scale, zero_point = decode.inputs[:3]
    assert codes is not None
    more = channels - array.shape[1]
    name = codes.name or "codes"
    filling = _filled(editor, graph, codes, zero_point, more, f"{name}_padded")
    decoded = editor.node(
        "DequantizeLinear",
        [filling[-1].outputs[0], scale, zero_point],
        name="DequantizeLinear",
        outputs=[f"{name}_padded_dequantized"],
        dtypes=[ir.DataType.FLOAT],
    )
    graph.insert_before(node, [*filling, decoded])
    node.replace_input_with(0, decoded.outputs[0])
    wider = np.concatenate([array, np.zeros((array.shape[0], more, *array.shape[2:]), array.dtype)], axis=1)
    node.replace_input_with(1, editor.constant(graph, f"{weight.name}_padded", wider))
    return decoded.outputs[0]


def _filled(
    editor: Editor, graph: ir.Graph, codes: ir.Value, zero_point: ir.Value | None, more: int, name: str
) -> list[ir.Node]:
    """Return the nodes that append `more` channels: zeros, or where those take longer copies of the first channel."""
    dtypes = [codes.dtype] if codes.dtype is not None else []
    quantize = codes.producer()
    source = quantize.inputs[0].producer() if quantize is not None and quantize.inputs[0] is not None else None
    if source is None or source.op_type != "Transpose":
        assert codes.shape is not None
        rank = len(codes.shape)
        pads = np.zeros(2 * rank, dtype=np.int64)
        pads[rank + 1] = more
        values = [codes, editor.constant(graph, f"{name}_pads", pads), zero_point]
        return [editor.node("Pad", values, name="Pad", outputs=[name], dtypes=dtypes)]
    # The image arrives with its channels last, where an engine takes the Transpose away and pads number by number.
    bounds = [
        editor.constant(graph, f"{name}_{label}", np.array([value], dtype=np.int64))
        for label, value in (("start", 0), ("end", 1), ("axis", 1))
    ]
    first = editor.node("Slice", [codes, *bounds], name="Slice", outputs=[f"{name}_first"], dtypes=dtypes)
    parts = [codes, *[first.outputs[0]] * more]
    joined = editor.node("Concat", parts, name="Concat", outputs=[name], attributes={"axis": 1}, dtypes=dtypes)
    return [first, joined]
