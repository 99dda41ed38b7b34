"""Operators as networks combine them: what the engine makes of the artifact, and that it computes what is simulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

X = "float[1,8,8,8] x"


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood:
    """A graph, and how often each of the engine's kernels must occur in its artifact.

    Attributes:
        text: The graph.
        counts: Kernels that must occur, with their number.
        absent: Kernels that must not.
        steps: How many output steps real may be from simulated; integer kernels round ties in another order.
        floats: Operator types that are kept in float.
    """

    text: str
    counts: dict[str, int]
    absent: tuple[str, ...] = ("Relu", "Clip", "Conv", "MatMul", "Gemm", "Add", "Mul", "FusedConv")
    steps: float = 1.0
    floats: tuple[str, ...] = ()


def conv(call: str, weights: str, *, output: str = "1,16,6,6", constants: str = "") -> Neighbourhood:
    text = f"g ({X}, {weights}) => (float[{output}] y) {f'<{constants}>' if constants else ''} {{ {call} }}"
    return Neighbourhood(text=text, counts={"QLinearConv": 1})


NEIGHBOURHOODS = {
    "conv-bias": conv("y = Conv(x, w, b)", "float[16,8,3,3] w, float[16] b"),
    "conv-relu": conv("c = Conv(x, w, b)\n y = Relu(c)", "float[16,8,3,3] w, float[16] b"),
    "conv-clip6": conv(
        "c = Conv(x, w)\n y = Clip(c, l, h)", "float[16,8,3,3] w", constants="float l = {0.0}, float h = {6.0}"
    ),
    "conv-relu-clip": conv(
        "c = Conv(x, w)\n r = Relu(c)\n y = Clip(r, l, h)",
        "float[16,8,3,3] w",
        constants="float l = {0.0}, float h = {1.0}",
    ),
    "conv-asymmetric-padding": conv(
        "y = Conv<pads=[0,1,2,1], strides=[2,2]>(x, w)", "float[16,8,3,3] w", output="1,16,4,4"
    ),
    "conv-dilated": conv("y = Conv<dilations=[2,2]>(x, w)", "float[16,8,3,3] w", output="1,16,4,4"),
    "conv-pointwise": conv("y = Conv(x, w)", "float[5,8,1,1] w", output="1,5,8,8"),
    "conv-depthwise": conv("y = Conv<group=8, pads=[1,1,1,1]>(x, w)", "float[8,1,3,3] w", output="1,8,8,8"),
    "conv-depthwise-multiplier": conv("y = Conv<group=8>(x, w)", "float[16,1,3,3] w"),
    "conv-grouped": conv("y = Conv<group=2>(x, w)", "float[16,4,3,3] w"),
    "conv-grouped-odd": Neighbourhood(
        text="g (float[1,9,8,8] x, float[6,3,3,3] w) => (float[1,6,6,6] y) { y = Conv<group=3>(x, w) }",
        counts={"QLinearConv": 1},
    ),
    "conv-1d": Neighbourhood(
        text="g (float[1,8,20] x, float[6,8,5] w, float[6] b) => (float[1,6,16] y) { c = Conv(x, w, b)\n y = Relu(c) }",
        counts={"QLinearConv": 1},
    ),
    "conv-batch": Neighbourhood(
        text="g (float[N,8,8,8] x, float[6,8,3,3] w) => (float[N,6,6,6] y) { y = Conv(x, w) }",
        counts={"QLinearConv": 1},
    ),
    # One kernel each, whether the last product writes float or, as the first, codes.
    "matmul-bias-2d": Neighbourhood(
        text="g (float[4,16] x, float[16,12] w, float[12] b) => (float[4,12] y) { m = MatMul(x, w)\n y = Add(m, b) }",
        counts={"QGemm": 1},
    ),
    "matmul-bias-3d": Neighbourhood(
        text="g (float[2,4,16] x, float[16,12] w, float[12] b) => (float[2,4,12] y) "
        "{ m = MatMul(x, w)\n y = Add(b, m) }",
        counts={"QGemm": 1},
        absent=("MatMul", "Gemm", "Add", "DequantizeLinear"),
    ),
    "matmul-bias-codes": Neighbourhood(
        text="g (float[4,16] x, float[16,12] w, float[12] b, float[12,6] wb) => (float[4,6] y) "
        "{ m = MatMul(x, w)\n a = Add(m, b)\n r = Relu(a)\n y = MatMul(r, wb) }",
        counts={"QGemm": 1, "MatMulIntegerToFloat": 1},
    ),
    "matmul-codes-3d": Neighbourhood(
        text="g (float[2,4,16] x, float[16,12] w, float[12,6] wb) => (float[2,4,6] y) "
        "{ m = MatMul(x, w)\n y = MatMul(m, wb) }",
        counts={"QLinearMatMul": 1, "MatMulIntegerToFloat": 1},
    ),
    "gemm-transB": Neighbourhood(
        text="g (float[4,16] x, float[12,16] w, float[12] b) => (float[4,12] y) { y = Gemm<transB=1>(x, w, b) }",
        counts={"QGemm": 1},
    ),
    "gemm-relu-gemm": Neighbourhood(
        text="g (float[4,16] x, float[12,16] w, float[12] b, float[12,5] wb) => (float[4,5] y) "
        "{ h = Gemm<transB=1>(x, w, b)\n r = Relu(h)\n y = Gemm(r, wb) }",
        counts={"QGemm": 2},
    ),
    "matmul-of-two-tensors": Neighbourhood(
        text="g (float[2,4,16] x, float[2,16,5] z) => (float[2,4,5] y) { y = MatMul(x, z) }",
        counts={"MatMulIntegerToFloat": 1},
    ),
    "add-relu": Neighbourhood(
        text=f"g ({X}, float[1,8,8,8] z) => (float[1,8,8,8] y) {{ a = Add(x, z)\n y = Relu(a) }}",
        counts={"QLinearAdd": 1},
    ),
    "add-constant": Neighbourhood(
        text=f"g ({X}, float[8,1,1] b) => (float[1,8,8,8] y) {{ y = Add(x, b) }}", counts={"QLinearAdd": 1}
    ),
    "mul-scalar": Neighbourhood(
        text=f"g ({X}) => (float[1,8,8,8] y) <float s = {{0.25}}> {{ y = Mul(x, s) }}", counts={"QLinearMul": 1}
    ),
    "residual-block": Neighbourhood(
        text=f"g ({X}, float[8,8,3,3] w, float[8] b, float[8,8,3,3] w2, float[8] b2) => (float[1,8,8,8] y) {{"
        " c = Conv<pads=[1,1,1,1]>(x, w, b)\n r = Relu(c)\n d = Conv<pads=[1,1,1,1]>(r, w2, b2)\n"
        " a = Add(d, x)\n y = Relu(a) }",
        counts={"QLinearConv": 2, "QLinearAdd": 1, "QuantizeLinear": 1, "DequantizeLinear": 1},
        steps=2,
    ),
    "concat-equal-scales": Neighbourhood(
        text=f"g ({X}) => (float[1,16,8,8] y) {{ a = Sigmoid(x)\n s = Sigmoid(a)\n y = Concat<axis=1>(a, s) }}",
        counts={"QLinearSigmoid": 2, "QLinearConcat": 1},
    ),
    "concat-unequal-scales": Neighbourhood(
        text=f"g ({X}) => (float[1,16,8,8] y) <float t = {{9.0}}> "
        "{ a = Sigmoid(x)\n s = Mul(x, t)\n y = Concat<axis=1>(a, s) }",
        counts={"QLinearSigmoid": 1, "QLinearMul": 1, "QLinearConcat": 1},
    ),
    "squeeze-excite": Neighbourhood(
        text=f"g ({X}, float[4,8,1,1] w, float[4] b, float[8,4,1,1] w2, float[8] b2) => (float[1,8,8,8] y) {{"
        " p = GlobalAveragePool(x)\n c = Conv(p, w, b)\n r = Relu(c)\n d = Conv(r, w2, b2)\n s = Sigmoid(d)\n"
        " y = Mul(x, s) }",
        counts={"QLinearGlobalAveragePool": 1, "QLinearConv": 2, "QLinearSigmoid": 1, "QLinearMul": 1},
        steps=2,
    ),
    "swish": Neighbourhood(
        text=f"g ({X}, float[8,8,1,1] w) => (float[1,8,8,8] y) {{ c = Conv(x, w)\n s = Sigmoid(c)\n y = Mul(c, s) }}",
        counts={"QLinearConv": 1, "QLinearSigmoid": 1, "QLinearMul": 1, "DequantizeLinear": 1},
        steps=2,
    ),
    "codes-move-between-products": Neighbourhood(
        text=f"g ({X}, float[6,8,3,3] w, float[54,5] w2) => (float[1,5] y) {{"
        " c = Conv(x, w)\n r = Relu(c)\n p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)\n f = Flatten(p)\n"
        " y = MatMul(f, w2) }",
        counts={"QLinearConv": 1, "NhwcMaxPool": 1, "MatMulIntegerToFloat": 1, "QuantizeLinear": 1},
        absent=("Relu", "Conv", "MatMul", "DequantizeLinear"),
    ),
    "float-operator-between": Neighbourhood(
        text=f"g ({X}, float[8,8,1,1] w, float[8,8,1,1] w2) => (float[1,8,8,8] y) "
        "{ c = Conv(x, w)\n t = Tanh(c)\n y = Conv(t, w2) }",
        counts={"QLinearConv": 2, "Tanh": 1, "QuantizeLinear": 2, "DequantizeLinear": 2},
        steps=2,
    ),
    "shared-by-integer-and-float": Neighbourhood(
        text=f"g ({X}, float[8,8,1,1] w) => (float[1,8,8,8] y, float[1,8,8,8] z) {{ y = Conv(x, w)\n z = Tanh(x) }}",
        counts={"QLinearConv": 1, "Tanh": 1},
    ),
}


@pytest.mark.parametrize("name", NEIGHBOURHOODS)
def test_neighbourhood(name: str, quantize_text: Callable) -> None:
    case = NEIGHBOURHOODS[name]
    quantized = quantize_text(case.text, floats=case.floats)
    counts = quantized.counts()
    assert {key: counts.get(key, 0) for key in case.counts} == case.counts, counts
    assert not quantized.names() & set(case.absent)
    # Of Gaussian inputs 8 bits leave far more than this, a wrong scale far less.
    for exact, real, simulated in quantized.outputs():
        step = quantized.step() or 1e-5 * float(np.abs(exact).max())
        assert np.abs(real - simulated).max() <= (case.steps + 0.01) * step
        noise = np.square(simulated - exact).sum() / np.square(exact).sum()
        assert 10 * np.log10(noise) < -20


@pytest.mark.parametrize("weights", ["int8", "int8:per-channel", "int8:narrow", "int8:per-channel:narrow"])
@pytest.mark.parametrize("name", ["conv-grouped", "conv-relu", "gemm-transB", "matmul-bias-2d"])
def test_weight_formats_fuse_alike(name: str, weights: str, quantize_text: Callable) -> None:
    case = NEIGHBOURHOODS[name]
    quantized = quantize_text(case.text, weights=weights)
    counts = quantized.counts()
    assert {key: counts.get(key, 0) for key in case.counts} == case.counts, counts
