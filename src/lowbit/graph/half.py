"""Computing in float16 or bfloat16: a region of a graph between casts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from lowbit.formats import Format, PerTensor, element
from lowbit.graph.constants import constant_array

if TYPE_CHECKING:
    from collections.abc import Collection

    from lowbit.graph.editor import Editor

__all__ = ["GUARDED", "convert_to_half"]

# Sums over many terms, exponentials and powers leave float16's range of ±65504 or lose its eleven bits.
GUARDED = frozenset(
    {
        "ArgMax", "ArgMin", "BatchNormalization", "Cast", "CumSum", "DequantizeLinear", "DynamicQuantizeLinear", "Exp",
        "GroupNormalization", "If", "InstanceNormalization", "LayerNormalization", "Log", "LogSoftmax", "Loop",
        "LpNormalization", "MeanVarianceNormalization", "NonMaxSuppression", "Pow", "QuantizeLinear", "Range",
        "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd",
        "ReduceSum", "ReduceSumSquare", "Resize", "RMSNormalization", "RoiAlign", "Scan", "Softmax", "Sqrt", "Sum",
        "TopK",
    }
)  # fmt: skip


def convert_to_half(editor: Editor, nodes: Collection[ir.Node], half: Literal["float16", "bfloat16"]) -> None:
    """Let `nodes` compute in a 16-bit float; every float32 tensor that crosses their border is cast once.

    Graph inputs and outputs stay float32.

    Args:
        editor: Editor of the model.
        nodes: Nodes of the main graph; none of `GUARDED`.
        half: The 16-bit type.
    """
    which = element(half)
    fmt = Format(which, PerTensor())
    inside = set(nodes)
    lowered: dict[ir.Value, ir.Value] = {}
    written = {value for node in inside for value in node.outputs if value.dtype in (ir.DataType.FLOAT, None)}
    for node in [node for node in editor.model.graph if node in inside]:
        for index, value in enumerate(node.inputs):
            if value is None or value in written or value.dtype != ir.DataType.FLOAT:
                continue
            if value not in lowered:
                lowered[value] = _lower(editor, value, node, fmt)
            node.replace_input_with(index, lowered[value])
    for value in sorted(written, key=lambda item: item.name or ""):
        outside = [(use.node, use.idx) for use in value.uses() if use.node not in inside]
        if not outside and not value.is_graph_output():
            value.type = ir.TensorType(which.storage)
            continue
        _raise(editor, value, outside, which.storage)


def _lower(editor: Editor, value: ir.Value, before: ir.Node, fmt: Format) -> ir.Value:
    """Return the 16-bit form of a float32 tensor: a stored constant, or a Cast."""
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    array = constant_array(value)
    name = f"{value.name}_{fmt.element.name}"
    if array is not None:
        return editor.constant(graph, name, np.asarray(array).astype(fmt.element.dtype), fmt)
    cast = editor.node(
        "Cast",
        [value],
        name=name,
        outputs=[name],
        attributes={"to": int(fmt.element.storage)},
        dtypes=[fmt.element.storage],
        shape=value.shape,
    )
    graph.insert_before(before, cast)
    return cast.outputs[0]


def _raise(editor: Editor, value: ir.Value, outside: list[tuple[ir.Node, int]], storage: ir.DataType) -> None:
    """Cast a 16-bit tensor back to float32 for readers outside, which find it under its old name."""
    producer = value.producer()
    assert producer is not None
    graph = producer.graph
    assert isinstance(graph, ir.Graph)
    name = value.name or "tensor"
    was_output = [index for index, output in enumerate(graph.outputs) if output is value]
    editor.rename(value, f"{name}_half")
    value.type = ir.TensorType(storage)
    cast = editor.node(
        "Cast",
        [value],
        name=f"{name}_Cast",
        outputs=[f"{name}_cast"],
        attributes={"to": int(ir.DataType.FLOAT)},
        dtypes=[ir.DataType.FLOAT],
        shape=value.shape,
    )
    editor.rename(cast.outputs[0], name)
    graph.insert_after(producer, cast)
    for node, position in outside:
        node.replace_input_with(position, cast.outputs[0])
    for index in was_output:
        graph.outputs[index] = cast.outputs[0]
