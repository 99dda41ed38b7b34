"""What is guarded from computing in float16, on graphs that would give NaN or lose everything without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import lowbit
from lowbit.exceptions import RecipeError
from lowbit.runtime.session import open_session


def model(body: str, **constants: Any) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 13]> net (float[N, 16] x, float[N, 16] m) => (float[N, 8] y) {{ {body} }}'
    )
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32) / 4
    for name, value in {"w": weight, **constants}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return proto


def feeds(count: int = 8, *, mask: float = 0.0, size: float = 1.0) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(1)
    return [
        {
            "x": (size * generator.standard_normal((1, 16))).astype(np.float32),
            "m": (mask * (generator.random((1, 16)) < 0.3)).astype(np.float32),
        }
        for _ in range(count)
    ]


def halved(proto: onnx.ModelProto, data: list[dict[str, np.ndarray]], **recipe: Any) -> lowbit.Result:
    return lowbit.quantize(proto, data=data, weights="float16", activations="float16", measure_seconds=0, **recipe)


def reasons(result: lowbit.Result) -> dict[str, str]:
    return {site.op_type: site.reason for site in result.plan.sites if site.execution == "float"}


def decibels(proto: onnx.ModelProto, result: lowbit.Result, data: list[dict[str, np.ndarray]]) -> float:
    exact = open_session(proto.SerializeToString(), threads=1)
    mine = open_session(ir.to_proto(result.model).SerializeToString(), threads=1)
    pairs = [(exact.run(feed)[0], mine.run(feed)[0]) for feed in data]
    noise = sum(float(np.sum((a - b) ** 2)) for a, b in pairs)
    signal = sum(float(np.sum(a**2)) for a, _ in pairs)
    return float(10 * np.log10(signal / noise)) if noise else float("inf")


def test_a_mask_that_calibration_never_saw_is_no_infinity() -> None:
    """0 · -inf is NaN: the constant has to stay in float32 although all that calibration saw is zero."""
    proto = model("a = Mul (m, big) b = Add (x, a) r = Relu (b) y = MatMul (r, w)", big=np.float32(-3.4e38))
    result = halved(proto, feeds())
    assert "constant reaches 3.4e+38" in reasons(result)["Mul"]
    assert "Add" not in reasons(result)
    assert decibels(proto, result, feeds()) > 60


def test_a_constant_that_prevents_a_division_by_zero_keeps_its_digits() -> None:
    proto = model(
        "q = Mul (x, x) v = Add (q, eps) s = Sqrt (v) d = Div (x, s) y = MatMul (d, w)", eps=np.float32(1e-12)
    )
    data = feeds()
    data[3]["x"][0, :4] = 0
    result = halved(proto, data)
    assert "1e-12 loses its digits" in reasons(result)["Add"]
    assert decibels(proto, result, data) > 50


@pytest.mark.parametrize(("size", "reason"), [(1e5, "too close to where float16 ends"), (1e-7, "stays below")])
def test_ranges_that_calibration_saw_are_guarded(size: float, reason: str) -> None:
    proto = model("a = Relu (x) b = Add (a, m) y = MatMul (b, w)")
    data = feeds(size=size)
    result = halved(proto, data)
    assert set(reasons(result)) == {"Relu", "Add", "MatMul"}
    assert all(reason in text for text in reasons(result).values())
    assert decibels(proto, result, data) > 60


def test_bfloat16_is_for_storage() -> None:
    proto = model("a = Relu (x) b = Add (a, m) y = MatMul (b, w)")
    with pytest.raises(RecipeError, match="--weights bfloat16 --activations none"):
        lowbit.quantize(proto, data=feeds(), weights="bfloat16", activations="bfloat16")
