"""Operators whose activations are quantized when the model runs: MatMul, Gemm, Conv and LSTM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lowbit.formats import Format, Parameters
    from lowbit.graph.editor import Editor

__all__ = ["dynamic_convolution", "dynamic_lstm", "dynamic_matmul"]


def _integer_product(
    editor: Editor,
    node: ir.Node,
    operator: str,
    codes: ir.Value,
    zero_point: ir.Value | None,
    scale: ir.Value,
    attributes: dict[str, object],
) -> tuple[list[ir.Node], ir.Value]:
    """Build DynamicQuantizeLinear → integer product → Cast → Mul by both scales, and return it with its result."""
    name = node.name or node.op_type
    float32, int32, uint8 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.UINT8
    quantize = editor.node(
        "DynamicQuantizeLinear",
        [node.inputs[0]],
        name=f"{name}_DynamicQuantizeLinear",
        outputs=[f"{name}_input_codes", f"{name}_input_scale", f"{name}_input_zero_point"],
        dtypes=[uint8, float32, uint8],
    )
    inputs = [quantize.outputs[0], codes, quantize.outputs[2], zero_point]
    if zero_point is None:
        inputs.pop()
    product = editor.node(
        operator, inputs, name=name, outputs=[f"{name}_product"], attributes=attributes, dtypes=[int32]
    )
    cast = editor.node(
        "Cast",
        [product.outputs[0]],
        name=f"{name}_Cast",
        outputs=[f"{name}_cast"],
        attributes={"to": 1},
        dtypes=[float32],
    )
    scales = editor.node(
        "Mul", [quantize.outputs[1], scale], name=f"{name}_scales", outputs=[f"{name}_scales"], dtypes=[float32]
    )
    result = editor.node(
        "Mul", [cast.outputs[0], scales.outputs[0]], name=f"{name}_Mul", outputs=[f"{name}_scaled"], dtypes=[float32]
    )
    return [quantize, product, cast, scales, result], result.outputs[0]


def dynamic_matmul(
    editor: Editor, node: ir.Node, name: str, codes: NDArray[np.int8], parameters: Parameters, fmt: Format
) -> None:
    """Replace a MatMul, or a Gemm without alpha, beta and transA, by integers with an input range found at run time.

    Args:
        editor: Editor of the model.
        node: The operator; a Gemm's bias is added behind.
        name: Name of its weight.
        codes: `[K, N]` int8; a Gemm's transB is already undone.
        parameters: Scale and zero point, `[N]` or `[]`.
        fmt: Format of the codes.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    nodes, result = _integer_product(
        editor,
        node,
        "MatMulInteger",
        editor.constant(graph, f"{name}_codes", codes, fmt),
        editor.constant(graph, f"{name}_zero_point", parameters.zero_point, fmt),
        editor.constant(graph, f"{name}_scale", parameters.scale),
        {},
    )
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    _replace(editor, node, nodes, result, bias)


def dynamic_convolution(
    editor: Editor, node: ir.Node, name: str, codes: NDArray[np.int8], parameters: Parameters, fmt: Format
) -> None:
    """Replace a Conv by ConvInteger with an input range found at run time.

    Args:
        editor: Editor of the model.
        node: The Conv.
        name: Name of its weight.
        codes: `[M, C/g, k1, …]` int8.
        parameters: Scale `[M]` or `[]`; the zero points are 0.
        fmt: Format of the codes, symmetric.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    trailing = (1,) * (codes.ndim - 2)
    scale = parameters.scale.reshape((-1, *trailing)) if parameters.scale.ndim else parameters.scale
    attributes = {key: attribute.value for key, attribute in node.attributes.items()}
    # ConvInteger's weight zero point may be left out when it is 0, which keeps it legal per channel.
    nodes, result = _integer_product(
        editor,
        node,
        "ConvInteger",
        editor.constant(graph, f"{name}_codes", codes, fmt),
        None,
        editor.constant(graph, f"{name}_scale", scale),
        attributes,
    )
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        assert bias.const_value is not None
        shaped = bias.const_value.numpy().reshape((-1, *trailing))
        bias = editor.constant(graph, f"{bias.name}_shaped", shaped)
    _replace(editor, node, nodes, result, bias)


def dynamic_lstm(
    editor: Editor,
    node: ir.Node,
    weights: tuple[NDArray[np.int8], Parameters],
    recurrent: tuple[NDArray[np.int8], Parameters],
    fmt: Format,
) -> None:
    """Replace an LSTM by the engine's LSTM with int8 weights and input ranges found at run time.

    Args:
        editor: Editor of the model.
        node: The LSTM, with layout 0.
        weights: Codes `[directions, input, 4 · hidden]` int8 of W, transposed as the engine wants, and parameters
            `[directions, 4 · hidden]`.
        recurrent: The same of R, codes `[directions, hidden, 4 · hidden]`.
        fmt: Format of the codes.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    name = node.name or "LSTM"
    constants = []
    for label, (codes, parameters) in (("W", weights), ("R", recurrent)):
        constants.append(
            (
                editor.constant(graph, f"{name}_{label}_codes", codes, fmt),
                editor.constant(graph, f"{name}_{label}_scale", parameters.scale),
                editor.constant(graph, f"{name}_{label}_zero_point", parameters.zero_point, fmt),
            )
        )
    (w, w_scale, w_zero), (r, r_scale, r_zero) = constants
    optional = [node.inputs[index] if index < len(node.inputs) else None for index in range(3, 8)]
    attributes = {key: attribute.value for key, attribute in node.attributes.items() if key != "layout"}
    replacement = editor.node(
        "DynamicQuantizeLSTM",
        [node.inputs[0], w, r, *optional, w_scale, w_zero, r_scale, r_zero],
        name=name,
        outputs=[f"{name}_{label}" for label in ("Y", "Y_h", "Y_c")[: len(node.outputs)]],
        attributes=attributes,
        domain="com.microsoft",
        dtypes=[ir.DataType.FLOAT] * len(node.outputs),
    )
    editor.use_domain("com.microsoft", 1)
    graph.insert_before(node, replacement)
    for old, new in zip(node.outputs, replacement.outputs, strict=True):
        editor.take_over(old, new)
    editor.drop(node)


def _replace(editor: Editor, node: ir.Node, nodes: list[ir.Node], result: ir.Value, bias: ir.Value | None) -> None:
    """Put `nodes` in the place of `node`, adding `bias` at the end."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    if bias is not None:
        add = editor.node(
            "Add",
            [result, bias],
            name=f"{node.name}_Add",
            outputs=[f"{node.name}_biased"],
            dtypes=[ir.DataType.FLOAT],
        )
        nodes = [*nodes, add]
        result = add.outputs[0]
    graph.insert_before(node, nodes)
    editor.take_over(node.outputs[0], result)
    editor.drop(node)
