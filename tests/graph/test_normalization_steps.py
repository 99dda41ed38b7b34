"""LayerNormalization in steps: what is found, what is not and why, and that the numbers stay the same."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lowbit.graph import clean, digest, operators, serialize
from lowbit.graph.layer_normalization import why_not_in_steps
from lowbit.graph.normalization_steps import normalize_in_steps, step_format

from .test_clean import count, noise, parse, run

if TYPE_CHECKING:
    import onnx_ir as ir

STEPS = {"Identity": 2, "ReduceMean": 2, "Sub": 1, "Mul": 3, "Add": 2, "Pow": 1}
WHOLE = "n = LayerNormalization <axis = -1, epsilon = 0.01> (x, scale, bias)"
DEVIATION = "m = ReduceMean <axes = [-1]> (x) c = Sub (x, m) s = {square} v = ReduceMean <axes = [2]> (s)"
PARTS = {
    "the operator": WHOLE,
    "the operator, its axis counted from the front": WHOLE.replace("-1", "2"),
    "PyTorch's parts": f"{DEVIATION} e = Add (v, eps) r = Sqrt (e) d = Div (c, r) g = Mul (d, scale) n = Add (g, bias)",
    "an inverse and factors in front": f"{DEVIATION} e = Add (eps, v) r = Sqrt (e) i = Reciprocal (r) d = Mul (i, c)"
    " g = Mul (scale, d) n = Add (bias, g)",
    "TensorFlow's parts": f"{DEVIATION} e = Add (v, eps) r = Sqrt (e) i = Reciprocal (r) f = Mul (i, scale)"
    " a = Mul (x, f) b = Mul (m, f) t = Sub (bias, b) n = Add (a, t)",
}


def network(body: str, **weights: Any) -> ir.Model:
    given = {"scale": 1 + 0.3 * noise(8, seed=1), "bias": noise(8, seed=2), "eps": np.float32(0.01)}
    given |= {"two": np.float32(2)} | weights
    used = {name: array for name, array in given.items() if name in body}
    return parse(f"g (float[2, 3, 8] x) => (float[2, 3, 8] y) {{ {body} y = Relu (n) }}", **used)


@pytest.mark.parametrize("square", ["Pow (c, two)", "Mul (c, c)"])
@pytest.mark.parametrize("parts", PARTS)
def test_the_numbers_stay_the_same(parts: str, square: str) -> None:
    model = clean(network(PARTS[parts].format(square=square))).model
    before = digest(model)
    found, rewritten = normalize_in_steps(model, "int16:symmetric")
    assert rewritten == 1
    assert digest(model) == before
    assert count(found) == {**STEPS, "Relu": 1}
    # A row without any variance too: epsilon keeps it finite.
    x = np.concatenate([noise(1, 3, 8, seed=3), np.full((1, 3, 8), 0.7, np.float32)])
    np.testing.assert_allclose(run(found, {"x": x})[0], run(model, {"x": x})[0], rtol=0, atol=2e-6)


def test_neutral_factors_are_no_steps() -> None:
    model = network(WHOLE, scale=np.ones(8), bias=np.zeros(8))
    found, _ = normalize_in_steps(model, "int16")
    assert count(found) == {**STEPS, "Mul": 2, "Add": 1, "Relu": 1}


@pytest.mark.parametrize("opset", [17, 18])
def test_axes_are_where_the_opset_has_them(opset: int) -> None:
    body = f"g (float[2, 3, 8] x) => (float[2, 3, 8] n) {{ {WHOLE} }}"
    model = parse(body, opset, scale=noise(8), bias=noise(8))
    found, _ = normalize_in_steps(model, "int16")
    assert [value.name for value in found.graph.outputs] == ["n"]
    x = noise(2, 3, 8, seed=3)
    np.testing.assert_allclose(run(found, {"x": x})[0], run(model, {"x": x})[0], rtol=0, atol=2e-6)


def test_the_finer_codes_are_told_in_memory_alone() -> None:
    found, _ = normalize_in_steps(network(WHOLE), "int16:symmetric")
    formats = [step_format(node) for _, node in operators(found)]
    assert formats == ["int16:symmetric"] * 10 + [None, None]
    assert b"int16" not in serialize(found)


def test_what_reads_the_numbers_between_keeps_them() -> None:
    """Parts whose deviation somebody else reads stay what they are."""
    parts = PARTS["PyTorch's parts"].format(square="Mul (c, c)")
    model = parse(
        f"g (float[2, 3, 8] x) => (float[2, 3, 8] n, float[2, 3, 1] r) {{ {parts} }}",
        scale=noise(8),
        bias=noise(8),
        eps=np.float32(0.01),
    )
    assert normalize_in_steps(model, "int16") == (model, 0)


def test_parts_in_half_precision_stay() -> None:
    """Codes stand for float32 numbers, and so do the constants between the steps."""
    parts = PARTS["PyTorch's parts"].format(square="Mul (c, c)")
    model = parse(
        f"g (float16[2, 3, 8] x) => (float16[2, 3, 8] n) {{ {parts} }}",
        scale=noise(8).astype(np.float16),
        bias=noise(8).astype(np.float16),
        eps=np.float16(0.01),
    )
    assert normalize_in_steps(model, "int16") == (model, 0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("n = LayerNormalization <axis = 1> (x, wide)", r"more than the last axis \(axis=1 of 3 axes\)"),
        ("n, m = LayerNormalization (x, scale) z = Neg (m)", "mean or its deviation is read"),
        ("s = Abs (x) n = LayerNormalization (x, s)", "factors are computed"),
    ],
)
def test_what_is_not_done_has_a_reason(body: str, reason: str) -> None:
    model = network(body, wide=np.ones((3, 8)))
    node = next(node for node in model.graph if node.op_type == "LayerNormalization")
    assert re.search(reason, why_not_in_steps(node))
    assert normalize_in_steps(model, "int16")[1] == 0
