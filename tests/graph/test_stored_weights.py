"""Weights stored small under float operators: exact to the last bit, and folded by the engine where promised."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from lowbit.formats import Parameters, choose_parameters, dequantize, parse_format, quantize
from lowbit.graph import load_model, raise_opset, serialize
from lowbit.graph.clean import infer_shapes
from lowbit.graph.editor import Editor
from lowbit.graph.qdq import dequantized_weight
from lowbit.graph.stored_weights import cast_weight, decoded_at_load, decoded_rows
from lowbit.rounding import weight_range
from lowbit.runtime.kernels import read_kernels
from lowbit.runtime.session import open_session

SHAPE = (32, 24)
FORMATS = [
    "int8",
    "int8:per-channel",
    "int8:per-channel:asymmetric",
    "uint8",
    "uint8:per-channel:symmetric",
    "int8:block=8",
    "int4",
    "int4:per-channel",
    "int4:block=8",
    "int4:block=32",
    "uint4:block=16",
    "uint4:per-channel",
    "int2:block=16",
    "uint2:block=8",
    "int16:per-channel",
    "float8_e4m3",
    "float8_e5m2:per-channel",
]


def product(weight: np.ndarray | None = None, opset: int = 21) -> tuple[ir.Model, ir.Node]:
    """Return a MatMul of `[4, 32]` with a weight that is still missing."""
    text = "g (float[4,32] x, float[32,24] w) => (float[4,24] y) { y = MatMul(x, w) }"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    del proto.graph.input[1]
    array = np.zeros(SHAPE, np.float32) if weight is None else weight
    proto.graph.initializer.append(onnx.numpy_helper.from_array(array, "w"))
    model = infer_shapes(load_model(proto))
    if opset > 21:
        model = raise_opset(model, opset)
    return model, next(node for node in model.graph if node.op_type == "MatMul")


def encoded(text: str, axis: int = 1) -> tuple[np.ndarray, np.ndarray, Parameters, object]:
    fmt = parse_format(text, channel_axis=axis, block_axis=1 - axis)
    weight = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    parameters = choose_parameters(*weight_range(weight, fmt), fmt)
    return weight, quantize(weight, parameters, fmt), parameters, fmt


def decoded_by(model: ir.Model, value: ir.Value, *, optimized: bool = False) -> np.ndarray:
    """Return what the engine makes of a stored weight."""
    value.shape, value.type = ir.Shape(SHAPE), ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(value)
    session = open_session(serialize(model), threads=1, optimized=optimized)
    return session.run({"x": np.zeros((4, 32), np.float32)}, [value.name])[0]


@pytest.mark.parametrize("text", FORMATS)
def test_decoded_at_load_is_a_dequantize_linear(text: str) -> None:
    _, codes, parameters, fmt = encoded(text)
    model, node = product(opset=25 if "int2" in text else 21)
    value = decoded_at_load(Editor(model), node, "w", codes, parameters, fmt)
    node.replace_input_with(1, value)
    got = decoded_by(model, value)
    assert np.array_equal(got, dequantize(codes, parameters, fmt))
    if "int2" in text:
        return  # the engine's own DequantizeLinear is compared below for the types that it has
    other, node = product()
    value = dequantized_weight(Editor(other), node, "w", codes, parameters, fmt)
    node.replace_input_with(1, value)
    assert np.array_equal(got, decoded_by(other, value))


@pytest.mark.parametrize("text", FORMATS)
def test_the_engine_folds_what_is_decoded_at_load(text: str) -> None:
    _, codes, parameters, fmt = encoded(text)
    model, node = product(opset=25 if "int2" in text else 21)
    node.replace_input_with(1, decoded_at_load(Editor(model), node, "w", codes, parameters, fmt))
    data = serialize(model)
    assert set(read_kernels(data).counts()) == {"MatMul"}
    x = np.random.default_rng(1).standard_normal((4, 32)).astype(np.float32)
    (got,) = open_session(data, threads=1).run({"x": x})
    assert np.allclose(got, x @ dequantize(codes, parameters, fmt), atol=1e-4)


def test_a_dequantize_linear_would_stay() -> None:
    """The reason for storing weights otherwise: the engine decodes this one at every run."""
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1,24,5] x, float[32,24] w) => (float[1,32,5] y)'
        " <int64[3] s = {32, 24, 1}> { k = Reshape(w, s)\n y = Conv(x, k) }"
    )
    del proto.graph.input[1]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(SHAPE, np.float32), "w"))
    _, codes, parameters, fmt = encoded("int8:per-channel", axis=0)
    stayed = {}
    for store in (dequantized_weight, decoded_at_load):
        model = load_model(proto)
        node = next(iter(model.graph))
        node.replace_input_with(0, store(Editor(model), node, "w", codes, parameters, fmt))
        stayed[store] = "DequantizeLinear" in read_kernels(serialize(model)).counts()
    assert stayed == {dequantized_weight: True, decoded_at_load: False}


def test_a_shape_that_the_reader_expects() -> None:
    _, codes, parameters, fmt = encoded("int8:per-channel", axis=0)
    model, node = product()
    value = decoded_at_load(Editor(model), node, "w", codes, parameters, fmt, shape=(1, *SHAPE))
    model.graph.outputs.append(value)
    value.shape, value.type = ir.Shape((1, *SHAPE)), ir.TensorType(ir.DataType.FLOAT)
    got = open_session(serialize(model), threads=1).run({"x": np.zeros((4, 32), np.float32)}, [value.name])[0]
    assert np.array_equal(got, dequantize(codes, parameters, fmt)[None])


@pytest.mark.parametrize(("text", "bits"), [("int8", 8), ("int4:block=8", 4), ("uint4", 4), ("int2:block=16", 2)])
def test_codes_are_packed(text: str, bits: int) -> None:
    _, codes, parameters, fmt = encoded(text)
    model, node = product(opset=25 if "int2" in text else 21)
    decoded_at_load(Editor(model), node, "w", codes, parameters, fmt)
    assert model.graph.initializers["w_codes"].const_value.nbytes == codes.size * bits // 8


@pytest.mark.parametrize("text", ["int4:block=16", "int4:block=32", "uint4:block=16", "int8:block=16"])
def test_blocks_become_the_engines_blockwise_kernel(text: str) -> None:
    _, codes, parameters, fmt = encoded(text)
    model, node = product()
    node.replace_input_with(1, dequantized_weight(Editor(model), node, "w", codes, parameters, fmt))
    data = serialize(model)
    kernels = read_kernels(data).counts()
    assert kernels == {"MatMulNBits": 1}
    x = np.random.default_rng(1).standard_normal((4, 32)).astype(np.float32)
    exact = x @ dequantize(codes, parameters, fmt)
    (got,) = open_session(data, threads=1).run({"x": x})
    assert 10 * np.log10(np.square(exact).sum() / np.square(got - exact).sum()) > 35


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_storage_is_cast_once(name: str) -> None:
    weight = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    fmt = parse_format(name)
    half = weight.astype(fmt.element.dtype)
    model, node = product()
    node.replace_input_with(1, cast_weight(Editor(model), node, "w", half, fmt))
    del model.graph.initializers["w"]
    data = serialize(model)
    assert set(read_kernels(data).counts()) == {"MatMul"}
    assert model.graph.initializers[f"w_{name}"].const_value.nbytes == weight.nbytes // 2
    x = np.random.default_rng(1).standard_normal((4, 32)).astype(np.float32)
    (got,) = open_session(data, threads=1).run({"x": x})
    assert np.allclose(got, x @ half.astype(np.float32), atol=1e-5)


@pytest.mark.parametrize("shape", [(50, 8), (50, 3, 4), (50,)])
@pytest.mark.parametrize("indices", ["int64[2,3] i", "int64 i", "int32[N] i"])
def test_rows_are_decoded_after_the_lookup(shape: tuple[int, ...], indices: str) -> None:
    rank = len(shape) - 1 + {"int64[2,3] i": 2, "int64 i": 0, "int32[N] i": 1}[indices]
    output = "float" if rank == 0 else f"float[{','.join(f'd{axis}' for axis in range(rank))}]"
    table = ",".join(map(str, shape))
    text = f"g ({indices}, float[{table}] w) => ({output} y) {{ y = Gather(w, i) }}"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    del proto.graph.input[1]
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model = load_model(proto)
    (node,) = model.graph
    fmt = parse_format("int8:per-channel")
    parameters = choose_parameters(*weight_range(weight, fmt), fmt)
    codes = quantize(weight, parameters, fmt)
    decoded_rows(Editor(model), node, "w", codes, parameters.scale, fmt)
    data = serialize(model)
    assert "DequantizeLinear" not in read_kernels(data).counts()
    feed = {
        "int64[2,3] i": np.array([[0, 49, 3], [-1, 7, 7]]),
        "int64 i": np.array(12),
        "int32[N] i": np.array([4, 4, 1, 0], np.int32),
    }[indices]
    (got,) = open_session(data, threads=1).run({"i": feed})
    assert np.array_equal(got, dequantize(codes, parameters, fmt)[feed])
    assert [value.name for value in model.graph.outputs] == ["y"]
