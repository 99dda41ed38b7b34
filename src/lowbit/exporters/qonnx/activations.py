"""Q/DQ pairs of activations as `Quant` nodes, with what clips or moves the codes between the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.exporters.qonnx.node import quant_node
from lowbit.exporters.qonnx.quantizer import Quantizer, spanning
from lowbit.exporters.qonnx.stored import along_axis
from lowbit.graph.constants import constant_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.graph.editor import Editor

__all__ = ["CodesRefused", "decode_activations"]

# What these do to codes they do to the numbers that the codes stand for: scales are positive.
_MOVES = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_PAD_VALUE = 2


class CodesRefused(Exception):  # noqa: N818 - a reason, not a fault
    """Why a node cannot be said in QONNX."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Coded:
    """Codes and the numbers that they stand for.

    Attributes:
        decoded: The tensor of the numbers, which a `Quant` node wrote.
        quantize: The Q node that made the codes.
        scale: As the Q node has it.
        zero_point: Likewise, int64.
        fresh: Whether they come from the Q node directly.
    """

    decoded: ir.Value
    quantize: ir.Node
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    fresh: bool

    def constant(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return constant codes on the same grid as numbers."""
        if self.scale.size != 1:
            raise CodesRefused("joins constants to codes of more than one scale")
        shifted = codes.astype(np.int64) - self.zero_point.reshape(())
        return np.asarray(shifted.astype(np.float32) * self.scale.reshape(()), dtype=np.float32)


def decode_activations(editor: Editor) -> list[tuple[ir.Node, str]]:
    """Replace Q nodes, and what reads their codes, by `Quant` nodes and the same operators on float32.

    A Q node whose codes the model gives out stays.

    Args:
        editor: Editor of the model.

    Returns:
        The nodes that cannot be said in QONNX, with reasons; the graph is of no use if there are any.
    """
    coded: dict[ir.Value, _Coded] = {}
    lost: set[ir.Value] = set()
    refusals: list[tuple[ir.Node, str]] = []
    for node in list(editor.model.graph):
        inputs = [value for value in node.inputs if value is not None]
        if any(value in lost for value in inputs):
            lost.update(node.outputs)
            continue
        try:
            if node.op_type == "QuantizeLinear":
                if constant_array(node.inputs[0]) is None and not node.outputs[0].is_graph_output():
                    coded[node.outputs[0]] = _quantized(editor, node)
            elif any(value in coded for value in inputs):
                _read(editor, node, coded)
        except CodesRefused as refusal:
            refusals.append((node, str(refusal)))
            lost.update(node.outputs)
    return refusals


def _quantized(editor: Editor, node: ir.Node) -> _Coded:
    value, codes = node.inputs[0], node.outputs[0]
    assert value is not None
    scale, zero_point = _grid(node)
    assert codes.dtype is not None
    bits = codes.dtype.bitwidth
    limits = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if codes.dtype.is_signed() else (0, 2**bits - 1)
    decoded = _quant(editor, node, limits, scale, zero_point)
    return _Coded(decoded=decoded, quantize=node, scale=scale, zero_point=zero_point, fresh=True)


def _read(editor: Editor, node: ir.Node, coded: dict[ir.Value, _Coded]) -> None:
    """Let one node that reads codes read numbers."""
    given = [coded[value] for value in node.inputs if value in coded]
    first = given[0]
    if not all(_same(first, other.scale, other.zero_point) for other in given):
        raise CodesRefused("joins codes of different scales or zero points")
    if node.op_type == "DequantizeLinear":
        if node.inputs[0] not in coded or not _same(first, *_grid(node)):
            raise CodesRefused("decodes with another scale or zero point than its codes have")
        _take(editor, node, first.decoded)
        return
    if node.op_type == "Clip":
        coded[node.outputs[0]] = _clipped(editor, node, first)
        return
    if node.op_type not in _MOVES:
        raise CodesRefused("computes with codes, for which QONNX has float tensors behind Quant nodes")
    if any(output.is_graph_output() for output in node.outputs):
        raise CodesRefused("gives codes out")
    if first.scale.size != 1:
        raise CodesRefused("moves codes of more than one scale")
    _move(editor, node, first, coded)


def _move(editor: Editor, node: ir.Node, first: _Coded, coded: dict[ir.Value, _Coded]) -> None:
    """Put the same operator on numbers beside one that moves codes."""
    graph = editor.model.graph
    inputs = list(node.inputs)
    if node.op_type == "Pad":
        inputs += [None] * (_PAD_VALUE + 1 - len(inputs))
    for index, value in enumerate(inputs):
        if value in coded:
            inputs[index] = coded[value].decoded
        elif node.op_type == "Concat" or (node.op_type == "Pad" and index == _PAD_VALUE):
            array = np.zeros((), np.int64) if value is None else constant_array(value)
            if array is None:
                raise CodesRefused("joins codes with codes that no QuantizeLinear made")
            inputs[index] = editor.constant(graph, f"{node.name}_numbers", first.constant(array))
    outputs = node.outputs[:1] if node.op_type == "MaxPool" else node.outputs
    moved = editor.node(
        node.op_type,
        inputs,
        name=node.name or node.op_type,
        outputs=[f"{output.name}_numbers" for output in outputs],
        dtypes=[ir.DataType.FLOAT] * len(outputs),
    )
    moved.attributes.update(node.attributes)
    graph.insert_after(node, moved)
    for output, numbers in zip(outputs, moved.outputs, strict=True):
        numbers.shape = output.shape
        coded[output] = _Coded(
            decoded=numbers, quantize=first.quantize, scale=first.scale, zero_point=first.zero_point, fresh=False
        )


def _clipped(editor: Editor, node: ir.Node, first: _Coded) -> _Coded:
    if not first.fresh:
        raise CodesRefused("clips codes that were moved after QuantizeLinear made them")
    codes = node.inputs[0]
    assert codes is not None
    assert codes.dtype is not None
    bits = codes.dtype.bitwidth
    ends = [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if codes.dtype.is_signed() else [0, 2**bits - 1]
    for index, inner in ((0, max), (1, min)):
        given = node.inputs[1 + index] if len(node.inputs) > 1 + index else None
        if given is None:
            continue
        array = constant_array(given)
        if array is None:
            raise CodesRefused("has limits that are computed while the model runs")
        ends[index] = inner(ends[index], int(array.reshape(())))
    decoded = _quant(editor, first.quantize, (ends[0], ends[1]), first.scale, first.zero_point)
    return _Coded(decoded=decoded, quantize=first.quantize, scale=first.scale, zero_point=first.zero_point, fresh=False)


def _quant(
    editor: Editor,
    quantize: ir.Node,
    limits: tuple[int, int],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int64],
) -> ir.Value:
    """Insert a `Quant` node behind a Q node, which reads what that reads."""
    value = quantize.inputs[0]
    assert value is not None
    shape = tuple(int(size) for size in value.shape or ())  # type: ignore[arg-type]
    quantizer: Quantizer | None = spanning(
        *limits, along_axis(scale, quantize, shape), along_axis(zero_point, quantize, shape)
    )
    if quantizer is None:
        raise CodesRefused(f"makes codes from {limits[0]} to {limits[1]}, which are no range of whole bits")
    node = quant_node(editor, value, quantizer, f"{value.name}_quantized")
    editor.model.graph.insert_after(quantize, node)
    return node.outputs[0]


def _take(editor: Editor, decoder: ir.Node, decoded: ir.Value) -> None:
    """Let the readers of a DQ node read `decoded`, under its name if the model gives it out."""
    output = decoder.outputs[0]
    if not output.is_graph_output():
        output.replace_all_uses_with(decoded)
        return
    if not decoded.is_graph_output():
        editor.take_over(output, decoded)
        return
    same = editor.node(
        "Identity", [decoded], name="Identity", outputs=["same"], dtypes=[ir.DataType.FLOAT], shape=output.shape
    )
    editor.model.graph.insert_after(decoder, same)
    editor.take_over(output, same.outputs[0])


def _grid(node: ir.Node) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    scale = constant_array(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero_point = np.zeros((), np.int64) if given is None else constant_array(given)
    if scale is None or zero_point is None:
        raise CodesRefused("has a scale or zero point that is computed while the model runs")
    return scale, zero_point.astype(np.int64)


def _same(coded: _Coded, scale: NDArray[np.float32], zero_point: NDArray[np.int64]) -> bool:
    mine, theirs = (np.broadcast_to(array.reshape(-1), scale.size) for array in (coded.zero_point, zero_point))
    return bool(np.array_equal(coded.scale.reshape(-1), scale.reshape(-1)) and np.array_equal(mine, theirs))
