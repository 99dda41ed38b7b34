"""Scales that move from activations to weights: the function stays, the artifact is better, the plan repeats it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import numpy_helper

import lowbit
from lowbit.exceptions import RecipeError
from lowbit.graph import clean, load_model, serialize
from lowbit.methods.migrate import absorber, apply_migrations, readings
from lowbit.plan.packed import pack_floats
from lowbit.plan.plan import MigrationPlan, Plan
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

TARGET = "onnxruntime-x86-avx2"
ABSORBED = {
    "LayerNormalization": "g (float[N,6,16] x, float[16] w1, float[16] b1, float[16,32] w2, float[16,8] w3) =>"
    " (float[N,6,32] y, float[N,6,8] z) { h = LayerNormalization(x, w1, b1) y = MatMul(h, w2) z = MatMul(h, w3) }",
    "Mul": "g (float[N,6,16] x, float[16] w1, float[16,32] w2) => (float[N,6,32] y)"
    " { t = Tanh(x) h = Mul(t, w1) y = MatMul(h, w2) }",
    "MatMul": "g (float[N,6,5] x, float[5,16] w1, float[16] b1, float[16,32] w2) => (float[N,6,32] y)"
    " { s = MatMul(x, w1) h = Add(s, b1) y = MatMul(h, w2) }",
    "Gemm": "g (float[N,5] x, float[16,5] w1, float[16] b1, float[32,16] w2, float[32] b2) => (float[N,32] y)"
    " { h = Gemm<transB=1>(x, w1, b1) y = Gemm<transB=1>(h, w2, b2) }",
}
INSERTED = {
    "residual": "g (float[N,6,16] x, float[16] w1, float[16] b1, float[16,16] w2) => (float[N,6,16] y)"
    " { h = LayerNormalization(x, w1, b1) r = MatMul(h, w2) y = Add(h, r) }",
    "tanh": "g (float[N,6,16] x, float[16,32] w2) => (float[N,6,32] y) { h = Tanh(x) y = MatMul(h, w2) }",
    "input": "g (float[N,6,16] x, float[16,32] w2) => (float[N,6,32] y) { y = MatMul(x, w2) }",
    "decomposed": "g (float[N,6,16] x, float[16] w1, float[16] b1, float[16,32] w2) => (float[N,6,32] y)"
    " { m = ReduceMean<keepdims=1>(x) c = Sub(x, m) n = Tanh(c) s = Mul(n, w1) h = Add(s, b1) y = MatMul(h, w2) }",
}


@pytest.mark.parametrize("name", [*ABSORBED, *INSERTED])
def test_the_function_stays(name: str, parse: Callable) -> None:
    model = clean(load_model(parse({**ABSORBED, **INSERTED}[name]))).model
    found, _ = readings(model)
    reading = max(found, key=lambda each: each.layers[0].node.name or "") if name in {"MatMul", "Gemm"} else found[0]
    assert absorber(reading) == (name if name in ABSORBED else "")
    generator = np.random.default_rng(0)
    scales = generator.uniform(0.1, 8, reading.layers[0].inputs).astype(np.float32)
    plan = MigrationPlan(
        tensor=reading.value.name or "",
        readers=tuple(layer.name for layer in reading.layers),
        scales=pack_floats(scales),
        reason="test",
    )
    before = serialize(model)
    moved = apply_migrations(model, [plan])
    assert serialize(model) == before
    count = [sum(1 for _ in each.graph) for each in (model, moved)]
    assert count[1] - count[0] == (0 if name in ABSORBED else 1)
    shape = [dim if isinstance(dim, int) else 3 for dim in model.graph.inputs[0].shape]
    feed = {"x": generator.standard_normal(shape).astype(np.float32)}
    for expected, result in zip(*(open_session(serialize(each)).run(feed) for each in (model, moved)), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    for wrong in ({"tensor": "nobody"}, {"readers": ("nobody",)}, {"scales": pack_floats(scales[1:])}):
        with pytest.raises(RecipeError, match="does not fit the model"):
            apply_migrations(model, [dataclasses.replace(plan, **wrong)])
    with pytest.raises(RecipeError, match="not positive"):
        apply_migrations(model, [dataclasses.replace(plan, scales=pack_floats(-scales))])


def transformer(parse: Callable) -> onnx.ModelProto:
    """Return a block whose normalization has a few channels far larger than the rest, as those of transformers do."""
    proto = parse("""g (float[N,8,64] x, float[64] w1, float[64] b1, float[64,128] w2, float[128] b2,
        float[128,64] w3) => (float[N,8,64] y) {
        h = LayerNormalization(x, w1, b1) u = MatMul(h, w2) s = Add(u, b2) r = Relu(s) d = MatMul(r, w3)
        y = Add(d, h) }""")
    for tensor in proto.graph.initializer:
        if tensor.name in {"w1", "b1"}:
            sizes = np.where(np.arange(64) % 16 == 3, 12.0, 0.5)
            array = (1 if tensor.name == "w1" else 0.1) * sizes
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return proto


def feeds(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [{"x": generator.standard_normal((4, 8, 64)).astype(np.float32)} for _ in range(count)]


def quantized(proto: onnx.ModelProto, **options: object) -> lowbit.Result:
    return lowbit.quantize(
        proto, data=feeds(40), test_data=feeds(6, 1), target=TARGET, optimize="size", measure_seconds=0, **options
    )


@pytest.mark.parametrize(
    ("smooth", "options"),
    [
        ("awq", {"method": "weight-only", "weights": "int4:per-channel", "rounding": "nearest"}),
        ("smoothquant", {"method": "static", "rounding": "nearest"}),
        ("smoothquant", {"method": "dynamic"}),
    ],
)
def test_the_artifact_is_better_and_its_plan_repeats_it(smooth: str, options: dict, parse: Callable) -> None:
    proto = transformer(parse)
    plain, better = (quantized(proto, smooth=way, **options) for way in ("none", smooth))
    sqnr = [result.verification.outputs[0].sqnr_simulated_db for result in (plain, better)]
    assert sqnr[1] > sqnr[0] + 1
    assert better.plan.migrations
    assert any("scales moved from h into" in note and "output error" in note for note in better.notes)
    plan = Plan.from_dict(better.plan.to_dict())
    assert plan == better.plan
    assert plan.model_sha256 == plain.plan.model_sha256
    again = lowbit.quantize(proto, test_data=feeds(2), plan=plan, target=TARGET, measure_seconds=0)
    assert serialize(again.model) == serialize(better.model)


def test_what_does_not_help_is_left_alone(parse: Callable) -> None:
    proto = parse("g (float[N,8,64] x, float[64,128] w2) => (float[N,8,128] y) { y = MatMul(x, w2) }")
    result = quantized(proto, smooth="awq", method="weight-only", weights="int8:per-channel")
    assert not result.plan.migrations
    assert any("awq does not help" in note for note in result.notes)


def test_without_data_nothing_moves(parse: Callable) -> None:
    result = lowbit.quantize(transformer(parse), target=TARGET, method="weight-only", smooth="awq", measure_seconds=0)
    assert not result.plan.migrations
    assert any("awq needs calibration data" in note for note in result.notes)
