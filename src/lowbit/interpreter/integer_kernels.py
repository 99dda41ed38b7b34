"""Q/DQ graphs as the engine runs them: what stands between codes becomes one operator on integers.

An engine does not compute a DequantizeLinear, a Conv and a QuantizeLinear one after another. It adds up products of
codes in int32, adds the bias's codes, and rounds once. In real numbers that is the same; in floating point a sum that
lies half a step between two codes may fall to either side, and what follows carries that on. The rules here are those
of ONNX Runtime's CPU provider (`docs/engines.md`): 8 bits, one reader, one scale for an activation, and activation
functions only where the codes clip in the same way. Matrix products whose result stays in floating point are summed
up in integers too; other operators with such a result are left as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.graph import infer_shapes, load_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx

__all__ = ["with_integer_kernels"]

_BYTES = {ir.DataType.UINT8, ir.DataType.INT8}
_DOMAIN = "com.microsoft"
_UNARY = {
    "AveragePool": "QLinearAveragePool",
    "GlobalAveragePool": "QLinearGlobalAveragePool",
    "LeakyRelu": "QLinearLeakyRelu",
    "Sigmoid": "QLinearSigmoid",
    "Softmax": "QLinearSoftmax",
}


def with_integer_kernels(model: str | Path | onnx.ModelProto | ir.Model) -> ir.Model:
    """Return a Q/DQ model with the operators on integers that ONNX Runtime makes of it.

    For `to_torch`: the result computes what the engine's kernels compute, rounding included, without gradients.
    Products that saturate, where a processor has no instructions for them, are not imitated.

    Args:
        model: Path of an ONNX file, a `ModelProto` or an `onnx_ir.Model`; never changed.

    Raises:
        ModelError: The model cannot be read.
    """
    result = infer_shapes(load_model(model))
    version = result.opset_imports.get("", 1)
    for node in list(result.graph):
        if node.op_type == "QuantizeLinear" and node.domain == "":
            _rewrite(result.graph, node, version)
    for node in list(result.graph):
        if node.op_type in {"MatMul", "Gemm"} and node.domain == "":
            made = _real_product(result.graph, node)
            if made is not None:
                _replace(result.graph, node, made)
    for node in reversed(list(result.graph)):
        if node.op_type == "DequantizeLinear" and not _read(node.outputs[0]):
            result.graph.remove(node, safe=True)
    result.opset_imports.setdefault(_DOMAIN, 1)
    return result


def _rewrite(graph: ir.Graph, quantize: ir.Node, version: int) -> None:
    """Replace an operator and the QuantizeLinear behind it by one on integers, if the engine does."""
    scale, zero_point = quantize.inputs[1], _zero_point(graph, quantize)
    if scale is None or not _is_scalar(scale) or zero_point.dtype not in _BYTES:
        return
    chain = _chain(quantize, zero_point)
    if not chain:
        return
    node = chain[-1]
    match = _MATCHES.get(node.op_type)
    made = match(graph, node, (scale, zero_point), version) if match is not None else None
    if made is None:
        return
    _replace(graph, quantize, made)
    for dead in chain:
        if not _read(dead.outputs[0]):
            graph.remove(dead, safe=True)


def _replace(graph: ir.Graph, node: ir.Node, made: ir.Node) -> None:
    old, new = node.outputs[0], made.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(node, made)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _chain(quantize: ir.Node, zero_point: ir.Value) -> list[ir.Node]:
    """Return what stands in front of a QuantizeLinear: functions that its codes make needless, then an operator."""
    chain: list[ir.Node] = []
    value = quantize.inputs[0]
    while value is not None:
        node = value.producer()
        if node is None or node.domain or len(value.uses()) != 1 or value.is_graph_output():
            return []
        chain.append(node)
        if not _clips_like_codes(node, quantize, zero_point):
            return chain
        value = node.inputs[0]
    return []


def _clips_like_codes(node: ir.Node, quantize: ir.Node, zero_point: ir.Value) -> bool:
    """Return whether an activation function lets through all that the codes behind it can hold."""
    if node.op_type not in {"Relu", "Clip"}:
        return False
    assert quantize.inputs[1] is not None
    scale, zero = _constant(quantize.inputs[1]), _constant(zero_point)
    if scale is None or zero is None or zero_point.dtype is None:
        return False
    lowest, highest = (-128, 127) if zero_point.dtype == ir.DataType.INT8 else (0, 255)
    low, high = ((code - float(zero)) * float(scale) for code in (lowest, highest))
    bounds: list[float] = [0.0, np.inf]
    if node.op_type == "Clip":
        bounds = [-np.inf, np.inf]
        for index, value in enumerate(node.inputs[1:3]):
            if value is not None:
                bound = _constant(value)
                if bound is None:
                    return False
                bounds[index] = float(bound)
    return bounds[0] <= low and high <= bounds[1]


# ---- operators


def _convolution(graph: ir.Graph, node: ir.Node, result: tuple[ir.Value, ir.Value], _version: int) -> ir.Node | None:
    x, w = _codes(graph, node.inputs[0]), _codes(graph, node.inputs[1], scalar=False)
    if x is None or w is None or x[0].dtype != result[1].dtype:
        return None
    inputs: list[ir.Value | None] = [*x, *w, *result]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = _bias(node.inputs[2])
        if bias is None:
            return None
        inputs.append(bias)
    return ir.Node("", "QLinearConv", inputs, list(node.attributes.values()))


def _matrix_product(graph: ir.Graph, node: ir.Node, result: tuple[ir.Value, ir.Value], _version: int) -> ir.Node | None:
    a, b = _codes(graph, node.inputs[0]), _codes(graph, node.inputs[1], scalar=False)
    if a is None or b is None or a[0].dtype != result[1].dtype:
        return None
    return ir.Node("", "QLinearMatMul", [*a, *b, *result])


def _gemm(graph: ir.Graph, node: ir.Node, result: tuple[ir.Value, ir.Value], _version: int) -> ir.Node | None:
    a, b = _codes(graph, node.inputs[0]), _codes(graph, node.inputs[1], scalar=False)
    if a is None or b is None or a[0].dtype != result[1].dtype:
        return None
    bias = _bias(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
        return None
    beta = node.attributes.get("beta")
    if beta is not None and beta.as_float() != 1:
        return None
    attributes = [attribute for name, attribute in node.attributes.items() if name in {"alpha", "transA", "transB"}]
    return ir.Node(_DOMAIN, "QGemm", [*a, *b, bias, *result], attributes)


def _sum(graph: ir.Graph, node: ir.Node, result: tuple[ir.Value, ir.Value], version: int) -> ir.Node | None:
    for index in (0, 1):
        value, other = node.inputs[index], node.inputs[1 - index]
        source = value.producer() if value is not None else None
        if source is None or source.op_type != "MatMul" or other is None:
            continue
        bias = _bias(other)
        product = _matrix_product(graph, source, result, version)
        # The engine makes a Gemm of both only where it knows that they are matrices.
        if bias is None or product is None or value is None or len(value.uses()) != 1 or not _is_matrix(source):
            return None
        return ir.Node(_DOMAIN, "QGemm", [*product.inputs[:6], bias, *result])
    return _binary(graph, node, result, version)


def _real_product(graph: ir.Graph, node: ir.Node) -> ir.Node | None:
    """Return a product of matrices of codes whose result is real."""
    a, b = _codes(graph, node.inputs[0]), _codes(graph, node.inputs[1], scalar=False)
    if a is None or b is None:
        return None
    if node.op_type == "MatMul":
        return ir.Node(_DOMAIN, "MatMulIntegerToFloat", [a[0], b[0], a[1], b[1], a[2], b[2]])
    made = _gemm(graph, node, (a[1], a[2]), 0)
    return None if made is None else ir.Node(_DOMAIN, "QGemm", made.inputs[:7], list(made.attributes.values()))


def _binary(graph: ir.Graph, node: ir.Node, result: tuple[ir.Value, ir.Value], _version: int) -> ir.Node | None:
    a, b = _codes(graph, node.inputs[0]), _codes(graph, node.inputs[1])
    if a is None or b is None or not a[0].dtype == b[0].dtype == result[1].dtype:
        return None
    return ir.Node(_DOMAIN, f"QLinear{node.op_type}", [*a, *b, *result])


def _unary(graph: ir.Graph, node: ir.Node, result: tuple[ir.Value, ir.Value], version: int) -> ir.Node | None:
    x = _codes(graph, node.inputs[0])
    if x is None or x[0].dtype != result[1].dtype:
        return None
    attributes = list(node.attributes.values())
    if node.op_type == "Softmax":
        attributes.append(ir.AttrInt64("opset", version))
        if "axis" not in node.attributes:
            attributes.append(ir.AttrInt64("axis", -1 if version >= 13 else 1))
    return ir.Node(_DOMAIN, _UNARY[node.op_type], [*x, *result], attributes)


def _concatenation(graph: ir.Graph, node: ir.Node, result: tuple[ir.Value, ir.Value], _version: int) -> ir.Node | None:
    parts = [_codes(graph, value) for value in node.inputs]
    if any(part is None or part[0].dtype != result[1].dtype for part in parts):
        return None
    inputs = [*result, *(value for part in parts if part is not None for value in part)]
    return ir.Node(_DOMAIN, "QLinearConcat", inputs, list(node.attributes.values()))


_MATCHES: dict[str, Callable[[ir.Graph, ir.Node, tuple[ir.Value, ir.Value], int], ir.Node | None]] = {
    "Conv": _convolution,
    "MatMul": _matrix_product,
    "Gemm": _gemm,
    "Add": _sum,
    "Mul": _binary,
    "Concat": _concatenation,
    **dict.fromkeys(_UNARY, _unary),
}


# ---- what operators read


def _codes(
    graph: ir.Graph, value: ir.Value | None, *, scalar: bool = True
) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """Return codes of 8 bits, their scale and their zero point, if a tensor is decoded from such.

    Args:
        graph: The graph.
        value: The tensor.
        scalar: Whether the scale has to be one for the whole tensor; else it may differ along an axis.
    """
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.domain or "block_size" in node.attributes:
        return None
    codes, scale = node.inputs[0], node.inputs[1]
    if codes is None or scale is None or codes.dtype not in _BYTES or (scalar and not _is_scalar(scale)):
        return None
    return codes, scale, _zero_point(graph, node)


def _bias(value: ir.Value | None) -> ir.Value | None:
    """Return the int32 codes that a bias is decoded from, if it is; the engine takes their scale for granted."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    return node.inputs[0] if node.inputs[0].dtype == ir.DataType.INT32 else None


def _zero_point(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Return a node's zero point, a new constant where it is left out."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return node.inputs[2]
    kind = node.inputs[0].dtype if node.op_type == "DequantizeLinear" and node.inputs[0] is not None else None
    zero = np.zeros((), dtype=np.int8 if kind == ir.DataType.INT8 else np.uint8)
    name = f"{node.outputs[0].name}_no_zero_point"
    found = graph.initializers.get(name)
    if found is None:
        found = ir.Value(name=name, const_value=ir.tensor(zero, name=name), type=ir.TensorType(ir.DataType(kind or 2)))
        found.shape = ir.Shape(())
        graph.register_initializer(found)
    return found


def _constant(value: ir.Value) -> np.ndarray | None:
    return None if value.const_value is None else np.asarray(value.const_value.numpy())


def _is_scalar(value: ir.Value) -> bool:
    known = _constant(value)
    return known is not None and known.size == 1


def _is_matrix(node: ir.Node) -> bool:
    value = node.inputs[0]
    return value is not None and value.shape is not None and value.shape.rank() == 2


def _read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()
