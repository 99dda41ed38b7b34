"""Operators with ranges found at run time: close to float, exact in their integers, the same interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest

from lowbit.formats import Format, Parameters, choose_parameters, parse_format, quantize
from lowbit.graph import load_model, serialize
from lowbit.graph.editor import Editor
from lowbit.graph.run_time_quantization import dynamic_convolution, dynamic_lstm, dynamic_matmul
from lowbit.rounding import weight_range
from lowbit.runtime.kernels import read_kernels
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    import onnx_ir as ir


def parse(text: str, seed: int = 0) -> onnx.ModelProto:
    """Return the model of a graph text; inputs called `w…` and `b…` become random weights and biases."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    generator = np.random.default_rng(seed)
    for value in [value for value in proto.graph.input if value.name[0] in "wb"]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = generator.standard_normal(shape).astype(np.float32) * np.float32(0.3)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        proto.graph.input.remove(value)
    onnx.checker.check_model(proto)
    return proto


def coded(weight: np.ndarray, fmt: Format) -> tuple[np.ndarray, Parameters]:
    # Seven bits: without VNNI full-range codes could saturate, which is not what is tested here.
    parameters = choose_parameters(*weight_range(weight, fmt), fmt)
    parameters = Parameters(parameters.scale * np.float32(2), parameters.zero_point)
    return quantize(weight, parameters, fmt), parameters


def sqnr(exact: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(exact).sum() / np.square(got - exact).sum()))


def agreement(proto: onnx.ModelProto, model: ir.Model, *, kernel: str, seed: int = 1) -> list[float]:
    """Return the SQNR of every output, after checking the artifact and what the engine made of it."""
    data = serialize(model)
    artifact = onnx.load_from_string(data)
    onnx.checker.check_model(artifact)
    assert [value.name for value in artifact.graph.input] == [value.name for value in proto.graph.input]
    assert [value.name for value in artifact.graph.output] == [value.name for value in proto.graph.output]
    assert read_kernels(data).counts().get(kernel) == 1
    generator = np.random.default_rng(seed)
    feed = {
        value.name: generator.standard_normal([dim.dim_value or 3 for dim in value.type.tensor_type.shape.dim]).astype(
            np.float32
        )
        for value in proto.graph.input
    }
    exact = open_session(proto.SerializeToString(), threads=1).run(feed)
    got = open_session(data, threads=1).run(feed)
    assert [array.shape for array in got] == [array.shape for array in exact]
    return [sqnr(one, two) for one, two in zip(exact, got, strict=True)]


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize(
    ("text", "op_type"),
    [
        ("g (float[N,64] x, float[64,32] w) => (float[N,32] y) { y = MatMul(x, w) }", "MatMul"),
        ("g (float[2,N,64] x, float[64,32] w) => (float[2,N,32] y) { y = MatMul(x, w) }", "MatMul"),
        ("g (float[N,64] x, float[64,32] w, float[32] b) => (float[N,32] y) { y = Gemm(x, w, b) }", "Gemm"),
        ("g (float[N,64] x, float[32,64] w, float[32] b) => (float[N,32] y) { y = Gemm<transB=1>(x, w, b) }", "Gemm"),
        (
            "g (float[N,64] x, float[64,32] w) => (float[N,32] y, float[N,32] z) { y = MatMul(x, w)\n z = Tanh(y) }",
            "MatMul",
        ),
    ],
)
def test_matrix_products(text: str, op_type: str, granularity: str) -> None:
    proto = parse(text)
    model = load_model(proto)
    node = next(node for node in model.graph if node.op_type == op_type)
    weight = node.inputs[1].const_value.numpy()
    if "transB" in node.attributes:
        weight = np.ascontiguousarray(weight.T)
    fmt = parse_format(f"int8:{granularity}", channel_axis=1)
    codes, parameters = coded(weight, fmt)
    editor = Editor(model)
    dynamic_matmul(editor, node, "w", codes, parameters, fmt)
    kernel = "DynamicQuantizeMatMul" if op_type == "MatMul" or granularity else ""
    decibels = agreement(proto, model, kernel=kernel)
    assert min(decibels) > 28


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
@pytest.mark.parametrize(
    "text",
    [
        "g (float[1,8,9,9] x, float[16,8,3,3] w) => (float[1,16,7,7] y) { y = Conv(x, w) }",
        (
            "g (float[1,8,9,9] x, float[16,8,3,3] w, float[16] b) => (float[1,16,5,5] y)"
            " { y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b) }"
        ),
        "g (float[1,8,9,9] x, float[16,4,3,3] w, float[16] b) => (float[1,16,7,7] y) { y = Conv<group=2>(x, w, b) }",
        "g (float[2,8,30] x, float[16,8,5] w, float[16] b) => (float[2,16,26] y) { y = Conv(x, w, b) }",
    ],
)
def test_convolutions(text: str, granularity: str) -> None:
    proto = parse(text)
    model = load_model(proto)
    (node,) = model.graph
    fmt = parse_format(f"int8:{granularity}")
    codes, parameters = coded(node.inputs[1].const_value.numpy(), fmt)
    dynamic_convolution(Editor(model), node, "w", codes, parameters, fmt)
    assert min(agreement(proto, model, kernel="ConvInteger")) > 28


@pytest.mark.parametrize(
    ("text", "directions"),
    [
        (
            (
                "g (float[12,N,24] x, float[1,64,24] w, float[1,64,16] wr) => (float[12,1,N,16] y) "
                "{ y = LSTM<hidden_size=16>(x, w, wr) }"
            ),
            1,
        ),
        (
            (
                "g (float[12,N,24] x, float[2,64,24] w, float[2,64,16] wr, float[2,128] b) "
                "=> (float[12,2,N,16] y, float[2,N,16] h)"
                ' { y, h = LSTM<hidden_size=16, direction="bidirectional">(x, w, wr, b) }'
            ),
            2,
        ),
        (
            (
                "g (float[12,3,24] x, float[1,3,16] h0, float[1,3,16] c0, float[1,64,24] w, "
                "float[1,64,16] wr, float[1,128] b)"
                " => (float[12,1,3,16] y, float[1,3,16] h, float[1,3,16] c)"
                " { y, h, c = LSTM<hidden_size=16>(x, w, wr, b, , h0, c0) }"
            ),
            1,
        ),
        (
            (
                "g (float[12,N,24] x, float[1,64,24] w, float[1,64,16] wr, float[1,128] b) => (float[1,N,16] h)"
                ' { , h = LSTM<hidden_size=16, direction="reverse">(x, w, wr, b) }'
            ),
            1,
        ),
    ],
)
def test_lstms(text: str, directions: int) -> None:
    proto = parse(text)
    model = load_model(proto)
    (node,) = model.graph
    fmt = parse_format("int8:per-channel", channel_axis=1)
    pairs = []
    for index in (1, 2):
        array = node.inputs[index].const_value.numpy()
        each = [coded(np.ascontiguousarray(direction.T), fmt) for direction in array]
        scale = np.stack([parameters.scale for _, parameters in each])
        pairs.append((np.stack([codes for codes, _ in each]), Parameters(scale, np.zeros(scale.shape, np.int8))))
    assert len(pairs[0][0]) == directions
    dynamic_lstm(Editor(model), node, pairs[0], pairs[1], fmt)
    assert model.graph.opset_imports["com.microsoft"] == 1
    assert min(agreement(proto, model, kernel="DynamicQuantizeLSTM")) > 25


def test_the_simulated_integers_are_the_real_ones() -> None:
    proto = parse("g (float[5,64] x, float[64,32] w) => (float[5,32] y) { y = MatMul(x, w) }")
    model = load_model(proto)
    (node,) = model.graph
    fmt = parse_format("int8:per-channel", channel_axis=1)
    codes, parameters = coded(node.inputs[1].const_value.numpy(), fmt)
    dynamic_matmul(Editor(model), node, "w", codes, parameters, fmt)
    x = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
    # By the definition of DynamicQuantizeLinear and MatMulInteger.
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    read = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    wanted = (read @ codes.astype(np.float64)) * scale * parameters.scale
    for optimized in (False, True):
        (got,) = open_session(serialize(model), threads=1, optimized=optimized).run({"x": x})
        assert np.allclose(got, wanted, rtol=1e-5, atol=1e-5)
