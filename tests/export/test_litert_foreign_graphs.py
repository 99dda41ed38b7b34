"""Q/DQ graphs that lowbit did not write: scales and patterns that its own quantizer would not choose."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnx.parser
import pytest

import lowbit
from lowbit.exceptions import EngineError, ModelError

CONSTANTS = {
    "s": np.float32(0.1),
    "t": np.float32(0.07),
    "z": np.int8(0),
    "u": np.uint8(128),
    "low": np.float32(-0.5),
    "high": np.float32(0.7),
    "codes": np.random.default_rng(0).integers(-127, 128, size=(4, 3, 1, 1)).astype(np.int8),
    "scales": np.array([0.01, 0.02, 0.015, 0.03], dtype=np.float32),
    "bias": np.array([0.1, -0.2, 0.3, 0.0], dtype=np.float32),
}


def graph(body: str, *, shape: str = "1, 3, 4, 5", out: str = "1, 3, 4, 5", opset: int = 17) -> onnx.ModelProto:
    """Return a model whose input `x` arrives as `d`, and whose `c` leaves as `y`."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}]> net (float[{shape}] x) => (float[{out}] y) {{\n'
        f"q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)\n{body}\n}}"
    )
    for name, value in CONSTANTS.items():
        if any(name in node.input for node in proto.graph.node):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return proto


LEAVE = "p = QuantizeLinear (c, t, z) y = DequantizeLinear (p, t, z)"


@pytest.mark.parametrize(
    ("body", "out", "kernels"),
    [
        (f"c = Clip (d, low, high) {LEAVE}", "1, 3, 4, 5", {"QUANTIZE", "MAXIMUM", "MINIMUM"}),
        (f"c = Relu (d) {LEAVE}", "1, 3, 4, 5", {"RELU"}),
        ("y = Relu (d)", "1, 3, 4, 5", {"RELU"}),
        (f"c = Concat <axis = 1> (d, d) {LEAVE}", "1, 6, 4, 5", {"QUANTIZE", "CONCATENATION"}),
        (f"c = Sigmoid (d) {LEAVE}", "1, 3, 4, 5", {"LOGISTIC", "QUANTIZE"}),
        ("p = QuantizeLinear (d, t, u) y = DequantizeLinear (p, t, u)", "1, 3, 4, 5", {"QUANTIZE"}),
        (
            f"w = DequantizeLinear <axis = 0> (codes, scales) c = Conv (d, w, bias) {LEAVE}",
            "1, 4, 4, 5",
            {"CONV_2D"},
        ),
        (
            f"w = DequantizeLinear <axis = 0> (codes, scales) v = Conv (d, w, bias) c = Clip (v, low, high) {LEAVE}",
            "1, 4, 4, 5",
            {"CONV_2D", "MAXIMUM", "MINIMUM"},
        ),
        (
            f"w = DequantizeLinear <axis = 0> (codes, scales) v = Conv (d, w, bias) c = Relu (v) {LEAVE}",
            "1, 4, 4, 5",
            {"CONV_2D"},
        ),
    ],
)
def test_other_patterns(body: str, out: str, kernels: set[str]) -> None:
    found = lowbit.export(graph(body, out=out))
    assert set(found.kernels) == kernels
    assert found.float_kernels == 0
    assert max(agreement.largest for agreement in found.agreements) <= 1


@pytest.mark.parametrize(
    ("body", "out", "opset", "reason"),
    [
        ("c = Conv (d, codes_float) y = Relu (c)", "1, 4, 4, 5", 17, "weight is float"),
        (f"c = Sin (d) {LEAVE}", "1, 3, 4, 5", 17, "Sin"),
        ("y = Add (d, d)", "1, 3, 4, 5", 17, "y is float: no QuantizeLinear behind it"),
        (f'c = Resize <mode = "cubic"> (d, , sizes) {LEAVE}', "1, 3, 8, 10", 17, "cubic"),
        ("p = QuantizeLinear (d, t, wide) y = DequantizeLinear (p, t, wide)", "1, 3, 4, 5", 21, "int16"),
    ],
)
def test_refusals_say_the_operator_and_the_reason(body: str, out: str, opset: int, reason: str) -> None:
    proto = graph(body, out=out, opset=opset)
    more = {
        "codes_float": CONSTANTS["codes"].astype(np.float32),
        "sizes": np.array([1, 1, 2, 2], dtype=np.float32),
        "wide": np.int16(0),
    }
    for name, value in more.items():
        if any(name in node.input for node in proto.graph.node):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    with pytest.raises(ModelError, match=reason):
        lowbit.export(proto)


def test_without_the_package_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.delitem(sys.modules, "ai_edge_litert.schema_py_generated", raising=False)
    with pytest.raises(EngineError, match=r"lowbit\[litert\]"):
        lowbit.export(graph("y = Relu (d)"))
