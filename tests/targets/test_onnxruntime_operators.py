"""ONNX Runtime's fusion contract: every operator of the table becomes an integer kernel, every other is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from lowbit.graph import clean, load_model
from lowbit.plan.sites import find_sites
from lowbit.targets import TARGETS, find_target
from lowbit.targets.onnxruntime_operators import DYNAMIC_OPERATORS, OPERATORS

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGE = "float[1,4,6,6] x"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """One operator: a graph of it alone, the kernel that the engine must choose, how far real may be from simulated."""

    text: str
    kernel: str
    steps: float = 0.0


def alone(call: str, kernel: str, *, output: str = "1,4,6,6", constants: str = "", steps: float = 0.0) -> Contract:
    text = f"g ({IMAGE}) => (float[{output}] y) {f'<{constants}>' if constants else ''} {{ y = {call} }}"
    return Contract(text=text, kernel=kernel, steps=steps)


CONTRACT = {
    "Conv": Contract(
        text="g (float[1,8,6,6] x, float[16,8,3,3] w) => (float[1,16,4,4] y) { y = Conv(x, w) }", kernel="QLinearConv"
    ),
    # A product that leaves the graph needs no codes: these kernels write float.
    "MatMul": Contract(
        text="g (float[4,16] x, float[16,8] w) => (float[4,8] y) { y = MatMul(x, w) }", kernel="MatMulIntegerToFloat"
    ),
    "Gemm": Contract(
        text="g (float[4,16] x, float[16,8] w, float[8] b) => (float[4,8] y) { y = Gemm(x, w, b) }", kernel="QGemm"
    ),
    "Add": Contract(
        text=f"g ({IMAGE}, float[1,4,6,6] z) => (float[1,4,6,6] y) {{ y = Add(x, z) }}", kernel="QLinearAdd", steps=1
    ),
    "Mul": Contract(
        text=f"g ({IMAGE}, float[1,4,6,6] z) => (float[1,4,6,6] y) {{ y = Mul(x, z) }}", kernel="QLinearMul", steps=1
    ),
    "Sigmoid": alone("Sigmoid(x)", "QLinearSigmoid", steps=1),
    "LeakyRelu": alone("LeakyRelu<alpha=0.2>(x)", "QLinearLeakyRelu", steps=1),
    "Softmax": Contract(
        text="g (float[4,9] x) => (float[4,9] y) { y = Softmax<axis=-1>(x) }", kernel="QLinearSoftmax", steps=1
    ),
    "GlobalAveragePool": alone("GlobalAveragePool(x)", "QLinearGlobalAveragePool", output="1,4,1,1", steps=1),
    "AveragePool": alone(
        "AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)", "QLinearAveragePool", output="1,4,3,3", steps=1
    ),
    "Concat": Contract(
        text=f"g ({IMAGE}, float[1,2,6,6] z) => (float[1,6,6,6] y) {{ y = Concat<axis=1>(x, z) }}",
        kernel="QLinearConcat",
        steps=1,
    ),
    "MaxPool": alone("MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", "MaxPool", output="1,4,3,3"),
    "Reshape": alone("Reshape(x, s)", "Reshape", output="4,36", constants="int64[2] s = {4, 36}"),
    "Transpose": alone("Transpose<perm=[0,2,3,1]>(x)", "Transpose", output="1,6,6,4"),
    "Squeeze": alone("Squeeze(x, s)", "Squeeze", output="4,6,6", constants="int64[1] s = {0}"),
    "Unsqueeze": alone("Unsqueeze(x, s)", "Unsqueeze", output="1,1,4,6,6", constants="int64[1] s = {0}"),
    "Flatten": alone("Flatten(x)", "Flatten", output="1,144"),
    "Slice": alone(
        "Slice(x, s, e, a)",
        "Slice",
        output="1,2,6,6",
        constants="int64[1] s = {1}, int64[1] e = {3}, int64[1] a = {1}",
    ),
    "Gather": alone("Gather<axis=1>(x, i)", "Gather", output="1,3,6,6", constants="int64[3] i = {3, 0, 2}"),
    "Split": Contract(
        text=f"g ({IMAGE}) => (float[1,1,6,6] y, float[1,3,6,6] z) <int64[2] s = {{1, 3}}> "
        "{ y, z = Split<axis=1>(x, s) }",
        kernel="Split",
    ),
    "Expand": alone("Expand(x, s)", "Expand", output="5,4,6,6", constants="int64[4] s = {5, 4, 6, 6}"),
    "Resize": alone(
        'Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , s)',
        "Resize",
        output="1,4,12,12",
        constants="float[4] s = {1.0, 1.0, 2.0, 2.0}",
    ),
}

REFUSED = {
    "Relu": alone("Relu(x)", ""),
    "Clip": alone("Clip(x, l, h)", "", constants="float l = {0.0}, float h = {6.0}"),
    "Tanh": alone("Tanh(x)", ""),
    "HardSigmoid": alone("HardSigmoid(x)", ""),
    "HardSwish": alone("HardSwish(x)", ""),
    "Sub": Contract(text=f"g ({IMAGE}, float[1,4,6,6] z) => (float[1,4,6,6] y) {{ y = Sub(x, z) }}", kernel=""),
    "Exp": alone("Exp(x)", ""),
    "Erf": alone("Erf(x)", ""),
    "ReduceMean": alone("ReduceMean<keepdims=1>(x, a)", "", output="1,4,1,1", constants="int64[2] a = {2, 3}"),
    "Pad": alone("Pad(x, p)", "", output="1,4,8,8", constants="int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}"),
    "Resize": alone(
        'Resize<mode="linear">(x, , s)', "", output="1,4,12,12", constants="float[4] s = {1.0, 1.0, 2.0, 2.0}"
    ),
    "ConvTranspose": Contract(
        text=f"g ({IMAGE}, float[4,3,2,2] w) => (float[1,3,7,7] y) {{ y = ConvTranspose(x, w) }}", kernel=""
    ),
}


def test_every_operator_of_the_table_has_a_contract() -> None:
    assert set(CONTRACT) == set(OPERATORS)
    assert set(DYNAMIC_OPERATORS) == {"MatMul", "Gemm", "Conv", "LSTM"}
    for name in ("onnxruntime-x86-avx2", "onnxruntime-x86-vnni", "onnxruntime-arm64"):
        assert TARGETS[name].operators is OPERATORS


@pytest.mark.parametrize("op_type", CONTRACT)
def test_the_engine_fuses_the_operator(op_type: str, quantize_text: Callable) -> None:
    contract = CONTRACT[op_type]
    quantized = quantize_text(contract.text)
    assert [site.execution for site in quantized.plan.sites] == ["static"]
    decoded = {
        output for kernel in quantized.kernels if kernel.op_type == "DequantizeLinear" for output in kernel.outputs
    }
    fused = [kernel for kernel in quantized.kernels if kernel.op_type == contract.kernel]
    assert len(fused) == 1
    # Between codes: nothing that the kernel reads was decoded before.
    assert not decoded & set(fused[0].inputs)
    for exact, real, simulated in quantized.outputs():
        step = quantized.step() or 1e-4  # float products round their sums in another order
        assert np.abs(real - simulated).max() <= (contract.steps + 0.01) * step
        assert np.abs(simulated - exact).max() < 0.2
        assert np.abs(exact).max() > 0.01


@pytest.mark.parametrize("op_type", REFUSED)
def test_other_operators_are_refused_with_a_reason(op_type: str, parse: Callable) -> None:
    model = clean(load_model(parse(REFUSED[op_type].text, opset=14 if op_type == "HardSwish" else 21))).model
    (site,) = (site for site in find_sites(model, find_target("onnxruntime-x86-avx2")) if site.op_type == op_type)
    assert not site.allows("static")
    assert op_type in site.refusals["static"]
    assert "no integer kernel" in site.refusals["static"]


@pytest.mark.parametrize("op_type", sorted(set(REFUSED) - {"ConvTranspose"}))
def test_what_is_refused_would_not_fuse(op_type: str, parse: Callable) -> None:
    """The other direction: between Q and DQ the engine really leaves these in float."""
    from lowbit.runtime.kernels import read_kernels

    proto = parse(REFUSED[op_type].text, opset=14 if op_type == "HardSwish" else 21)
    kernels = read_kernels(_surrounded(proto).SerializeToString()).kernels
    decoded = {output for kernel in kernels if kernel.op_type == "DequantizeLinear" for output in kernel.outputs}
    assert any(decoded & set(kernel.inputs) for kernel in kernels)


def _surrounded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Put Q/DQ pairs around the only node of a graph, by hand."""
    graph = proto.graph
    (node,) = graph.node
    graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.float32(0.05), "q_scale"),
            onnx.numpy_helper.from_array(np.uint8(128), "q_zero"),
        ]
    )
    before = []
    for value in graph.input:
        before += _pair(value.name, f"{value.name}_decoded")
        for index, name in enumerate(node.input):
            if name == value.name:
                node.input[index] = f"{value.name}_decoded"
    node.output[0] = "raw"
    nodes = [*before, node, *_pair("raw", graph.output[0].name)]
    del graph.node[:]
    graph.node.extend(nodes)
    return proto


def _pair(source: str, target: str) -> list[onnx.NodeProto]:
    return [
        onnx.helper.make_node("QuantizeLinear", [source, "q_scale", "q_zero"], [f"{target}_codes"]),
        onnx.helper.make_node("DequantizeLinear", [f"{target}_codes", "q_scale", "q_zero"], [target]),
    ]


def test_softmax_and_sigmoid_ranges_are_what_the_mathematics_imply(quantize_text: Callable) -> None:
    # The kernel of Softmax multiplies by the whole part of 1 / scale, which 1/255 as a float32 has not.
    for op_type, highest in (("Sigmoid", 1.0), ("Softmax", 255 / 256)):
        quantized = quantize_text(CONTRACT[op_type].text)
        tensor = next(item for item in quantized.plan.activations if item.tensor == "y")
        assert (tensor.low, tensor.high, tensor.zero_point) == (0.0, highest, 0)
