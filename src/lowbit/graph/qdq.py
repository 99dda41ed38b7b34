"""QuantizeLinear/DequantizeLinear pairs in a graph: on activations, weights and biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.formats import Format, Parameters, PerBlock, PerChannel, element

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lowbit.graph.editor import Editor

__all__ = [
    "absorb_activations",
    "bias_codes",
    "carrier",
    "dequantized_bias",
    "dequantized_weight",
    "quantize_activation",
]

_INT32_LIMIT = 2**31 - 1
_BYTE = 8


def quantize_activation(
    editor: Editor,
    value: ir.Value,
    parameters: Parameters,
    fmt: Format,
    *,
    reads_codes: Callable[[ir.Node, int], bool],
) -> ir.Value:
    """Put a Q/DQ pair behind a tensor.

    Codes of fewer than 8 bits are uint8 or int8 codes that are clipped: engines have integer kernels for those alone.

    Args:
        editor: Editor of the model.
        value: The tensor; float32.
        parameters: Scale and zero point, shape `()`.
        fmt: Format of the codes.
        reads_codes: Of the inputs (a node and a position) that are the tensor, which read the decoded codes from now
            on. Graph outputs do if every use does.

    Returns:
        The decoded tensor.
    """
    name = value.name or "tensor"
    graph = value.graph if value.producer() is None else value.producer().graph  # type: ignore[union-attr]
    assert isinstance(graph, ir.Graph)
    uses = [use for use in value.uses() if reads_codes(use.node, use.idx)]
    everyone = len(uses) == len(value.uses())
    scale = editor.constant(graph, f"{name}_scale", parameters.scale)
    held = carrier(fmt)
    zero_point = editor.constant(graph, f"{name}_zero_point", parameters.zero_point.astype(held.element.dtype), held)
    quantize = editor.node(
        "QuantizeLinear",
        [value, scale, zero_point],
        name="QuantizeLinear",
        outputs=[f"{name}_codes"],
        dtypes=[held.element.storage],
        shape=value.shape,
    )
    nodes = [quantize]
    if held is not fmt:
        ends = [
            editor.constant(graph, f"{name}_{word}", np.asarray(end, dtype=held.element.dtype), held)
            for word, end in zip(("lowest", "highest"), fmt.code_range(), strict=True)
        ]
        clip = editor.node(
            "Clip",
            [quantize.outputs[0], *ends],
            name="Clip",
            outputs=[f"{name}_clipped"],
            dtypes=[held.element.storage],
            shape=value.shape,
        )
        nodes.append(clip)
    dequantize = editor.node(
        "DequantizeLinear",
        [nodes[-1].outputs[0], scale, zero_point],
        name="DequantizeLinear",
        outputs=[f"{name}_dequantized"],
        dtypes=[ir.DataType.FLOAT],
        shape=value.shape,
    )
    producer = value.producer()
    if producer is None:
        _insert_first(graph, [*nodes, dequantize])
    else:
        graph.insert_after(producer, [*nodes, dequantize])
    decoded = dequantize.outputs[0]
    for use in uses:
        use.node.replace_input_with(use.idx, decoded)
    if value.is_graph_output() and everyone and producer is not None:
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = decoded
        editor.rename(value, f"{name}_float")
        editor.rename(decoded, name)
    return decoded


def carrier(fmt: Format) -> Format:
    """Return the format of the codes that a graph holds for an activation: of 8 bits, if it has fewer."""
    element_ = fmt.element
    if element_.kind != "integer" or element_.bits > _BYTE or element_.code_count >= 1 << _BYTE:
        return fmt
    return Format(element("int8" if element_.signed else "uint8"), fmt.granularity, fmt.symmetric)


def _insert_first(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    """Insert nodes before every other node of a graph, as readers of graph inputs need it."""
    first = next(iter(graph), None)
    if first is None:
        graph.extend(nodes)
    else:
        graph.insert_before(first, nodes)


def dequantized_weight(
    editor: Editor,
    before: ir.Node,
    name: str,
    codes: NDArray[Any],
    parameters: Parameters,
    fmt: Format,
    *,
    widened: bool = False,
) -> ir.Value:
    """Store a weight as codes and return the tensor that decodes them.

    Engines fold a Cast of a constant when they load a model, but no DequantizeLinear. Codes of fewer than 8 bits, cast
    to int8 first, are small in the file and get the integer kernels of int8.

    Args:
        editor: Editor of the model.
        before: The node that reads the weight; the new node goes before it.
        name: Name of the float weight.
        codes: Codes in the weight's own shape.
        parameters: Scale and zero point, shaped as the format's granularity says.
        fmt: Format of the codes.
        widened: Whether signed codes of fewer than 8 bits are cast to int8 when the model loads.
    """
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    attributes: dict[str, Any] = {}
    match fmt.granularity:
        case PerChannel(axis=axis):
            attributes["axis"] = axis
        case PerBlock(axis=axis, size=size):
            attributes.update(axis=axis, block_size=size)
    stored = editor.constant(graph, f"{name}_codes", codes, fmt)
    zero_point = parameters.zero_point
    if widened and fmt.element.storage != ir.DataType.INT8:
        cast = editor.node(
            "Cast",
            [stored],
            name=f"{name}_Cast",
            outputs=[f"{name}_int8"],
            attributes={"to": int(ir.DataType.INT8)},
            dtypes=[ir.DataType.INT8],
            shape=ir.Shape(codes.shape),
        )
        graph.insert_before(before, cast)
        stored, zero_point = cast.outputs[0], zero_point.astype(np.int8)
        fmt = Format(element("int8"), fmt.granularity, fmt.symmetric)
    inputs = [stored, editor.constant(graph, f"{name}_scale", parameters.scale)]
    # NOTE: ONNX Runtime fuses a matrix product only if the zero point is spelled out; a convolution also without.
    if codes.ndim == 2 or np.asarray(zero_point).astype(np.float32).any():
        inputs.append(editor.constant(graph, f"{name}_zero_point", zero_point, fmt))
    node = editor.node(
        "DequantizeLinear",
        inputs,
        name="DequantizeLinear",
        outputs=[f"{name}_dequantized"],
        attributes=attributes,
        dtypes=[ir.DataType.FLOAT],
        shape=ir.Shape(codes.shape),
    )
    graph.insert_before(before, node)
    return node.outputs[0]


def bias_codes(
    bias: NDArray[np.float32], input_scale: NDArray[np.float32], weight_scale: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return a bias as int32 codes at the accumulator's scale `s_x · s_w`, and that scale, `[N]` each.

    Args:
        bias: `[N]` float32.
        input_scale: `[]` float32, scale of the operator's input.
        weight_scale: `[N]` or `[]` float32, scale of its weight.
    """
    scale = np.broadcast_to(np.float32(input_scale) * weight_scale, bias.shape).astype(np.float32)
    codes = np.clip(np.rint(bias.astype(np.float64) / scale), -_INT32_LIMIT, _INT32_LIMIT).astype(np.int32)
    return codes, scale


def dequantized_bias(
    editor: Editor,
    before: ir.Node,
    name: str,
    bias: NDArray[np.float32],
    input_scale: NDArray[np.float32],
    weight_scale: NDArray[np.float32],
) -> ir.Value:
    """Store a bias as int32 codes at the accumulator's scale, `s_x · s_w`, and return the tensor that decodes them.

    Args:
        editor: Editor of the model.
        before: The node that reads the bias.
        name: Name of the float bias.
        bias: `[N]` float32.
        input_scale: `[]` float32, scale of the operator's input.
        weight_scale: `[N]` or `[]` float32, scale of its weight.
    """
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    codes, scale = bias_codes(bias, input_scale, weight_scale)
    inputs = [
        editor.constant(graph, f"{name}_codes", codes),
        editor.constant(graph, f"{name}_scale", scale),
    ]
    node = editor.node(
        "DequantizeLinear",
        inputs,
        name="DequantizeLinear",
        outputs=[f"{name}_dequantized"],
        attributes={"axis": 0},
        dtypes=[ir.DataType.FLOAT],
        shape=ir.Shape(bias.shape),
    )
    graph.insert_before(before, node)
    return node.outputs[0]


def absorb_activations(editor: Editor, fused: tuple[ir.Node, ...]) -> None:
    """Remove activation functions whose clipping the codes behind them do already.

    The caller has made sure that the range of the codes lies within what the functions let through.

    Args:
        editor: Editor of the model.
        fused: The chain of Relu and Clip nodes, in order; the last one's output keeps its name.
    """
    if not fused:
        return
    last = fused[-1].outputs[0]
    source = fused[0].inputs[0]
    assert source is not None
    name = last.name
    graph = fused[0].graph
    assert graph is not None
    for index, output in enumerate(graph.outputs):
        if output is last:
            graph.outputs[index] = source
    last.replace_all_uses_with(source)
    for node in reversed(fused):
        editor.drop(node)
    if name is not None:
        editor.rename(last, f"{name}_absorbed")
        editor.rename(source, name)
