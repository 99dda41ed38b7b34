"""Compressed weights under float operators: decoded block by block in the kernel, at load time, or after a lookup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.formats import Format, Parameters, PerBlock, PerTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.graph.editor import Editor

__all__ = ["cast_weight", "decoded_at_load", "decoded_rows"]


def cast_weight(editor: Editor, before: ir.Node, name: str, half: NDArray[Any], fmt: Format) -> ir.Value:
    """Store a weight in a 16-bit float and return its float32 form, which engines compute once, at load time.

    Args:
        editor: Editor of the model.
        before: The node that reads the weight.
        name: Name of the float32 weight.
        half: The weight as float16 or bfloat16.
        fmt: Its format.
    """
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    stored = editor.constant(graph, f"{name}_{fmt.element.name}", half, fmt)
    cast = _cast(editor, name, stored)
    graph.insert_before(before, cast)
    return cast.outputs[0]


def decoded_at_load(
    editor: Editor,
    before: ir.Node,
    name: str,
    codes: NDArray[Any],
    parameters: Parameters,
    fmt: Format,
    *,
    shape: tuple[int, ...] | None = None,
) -> ir.Value:
    """Store a weight as codes that engines decode once, at load time: `(Cast(codes) - zero_point) · scale`.

    Engines fold these operators like any constant, whereas they keep a DequantizeLinear and compute it at every run.

    Args:
        editor: Editor of the model.
        before: The node that reads the weight.
        name: Name of the float weight.
        codes: Codes in the weight's shape. Cut into blocks, the axis must be a multiple of the block.
        parameters: Scale and zero point, shaped as the format's granularity says.
        fmt: Format of the codes.
        shape: Shape that the reader expects, if it is not the codes' own.
    """
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    own = codes.shape
    scale, zero_point = parameters.scale, parameters.zero_point
    stored_shape = own
    match fmt.granularity:
        case PerTensor():
            pass
        case PerBlock(axis=axis, size=size):
            axis %= len(own)
            stored_shape = (*own[:axis], own[axis] // size, size, *own[axis + 1 :])
            scale, zero_point = np.expand_dims(scale, axis + 1), np.expand_dims(zero_point, axis + 1)
        case _:
            scale = fmt.granularity.broadcast(scale, own)
            zero_point = fmt.granularity.broadcast(zero_point, own)
    stored = editor.constant(graph, f"{name}_codes", codes.reshape(stored_shape), fmt)
    nodes = [_cast(editor, name, stored)]
    if np.asarray(zero_point).astype(np.float32).any():
        shift = editor.constant(graph, f"{name}_zero_point", zero_point.astype(np.float32))
        nodes.append(_binary(editor, "Sub", name, nodes[-1].outputs[0], shift))
    nodes.append(_binary(editor, "Mul", name, nodes[-1].outputs[0], editor.constant(graph, f"{name}_scale", scale)))
    if stored_shape != (shape or own):
        target = editor.constant(graph, f"{name}_shape", np.asarray(shape or own, dtype=np.int64))
        nodes.append(_binary(editor, "Reshape", name, nodes[-1].outputs[0], target))
    graph.insert_before(before, nodes)
    return nodes[-1].outputs[0]


def decoded_rows(
    editor: Editor, node: ir.Node, name: str, codes: NDArray[np.int8], scale: NDArray[np.float32], fmt: Format
) -> None:
    """Look rows up as codes and decode only those: `Cast(Gather(codes)) · Gather(scale)`.

    Args:
        editor: Editor of the model.
        node: A Gather along axis 0 from a table.
        name: Name of the table.
        codes: `[rows, …]` int8, symmetric.
        scale: `[rows]` float32.
        fmt: Format of the codes.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    indices = node.inputs[1]
    table = editor.constant(graph, f"{name}_codes", codes, fmt)
    scales = editor.constant(graph, f"{name}_scale", scale.reshape(-1, *(1,) * (codes.ndim - 1)))
    label = node.name or "Gather"
    rows = editor.node(
        "Gather",
        [table, indices],
        name=f"{label}_codes",
        outputs=[f"{label}_codes"],
        attributes={"axis": 0},
        dtypes=[fmt.element.storage],
    )
    picked = editor.node(
        "Gather",
        [scales, indices],
        name=f"{label}_scale",
        outputs=[f"{label}_scale"],
        attributes={"axis": 0},
        dtypes=[ir.DataType.FLOAT],
    )
    cast = _cast(editor, label, rows.outputs[0])
    result = _binary(editor, "Mul", label, cast.outputs[0], picked.outputs[0])
    graph.insert_before(node, [rows, picked, cast, result])
    editor.take_over(node.outputs[0], result.outputs[0])
    editor.drop(node)


def _cast(editor: Editor, name: str, value: ir.Value) -> ir.Node:
    return editor.node(
        "Cast",
        [value],
        name=f"{name}_Cast",
        outputs=[f"{name}_cast"],
        attributes={"to": int(ir.DataType.FLOAT)},
        dtypes=[ir.DataType.FLOAT],
        shape=value.shape,
    )


def _binary(editor: Editor, op_type: str, name: str, left: ir.Value, right: ir.Value) -> ir.Node:
    return editor.node(
        op_type, [left, right], name=f"{name}_{op_type}", outputs=[f"{name}_{op_type}"], dtypes=[ir.DataType.FLOAT]
    )
