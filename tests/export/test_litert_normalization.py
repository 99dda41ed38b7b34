"""LayerNorm in LiteRT: its steps in int16 kernels, in encoders and alone."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lowbit
from lowbit.exceptions import ModelError
from lowbit.runtime.litert_micro import run_micro
from lowbit.runtime.litert_session import litert_session
from lowbit.runtime.session import open_session
from lowbit.targets import TARGETS
from lowbit.targets.litert import TARGET

from .conftest import network, quantized, samples

BLOCK = """
    q{n} = MatMul ({read}, wq{n}) qb{n} = Add (q{n}, bq{n}) q4{n} = Reshape (qb{n}, heads)
    k{n} = MatMul ({read}, wk{n}) kb{n} = Add (k{n}, bk{n}) k4{n} = Reshape (kb{n}, heads)
    v{n} = MatMul ({read}, wv{n}) vb{n} = Add (v{n}, bv{n}) v4{n} = Reshape (vb{n}, heads)
    qt{n} = Transpose <perm = [0, 2, 1, 3]> (q4{n}) kt{n} = Transpose <perm = [0, 2, 3, 1]> (k4{n})
    vt{n} = Transpose <perm = [0, 2, 1, 3]> (v4{n})
    s{n} = MatMul (qt{n}, kt{n}) t{n} = Mul (s{n}, quarter) p{n} = Softmax <axis = -1> (t{n})
    o{n} = MatMul (p{n}, vt{n}) ot{n} = Transpose <perm = [0, 2, 1, 3]> (o{n}) o3{n} = Reshape (ot{n}, joined)
    a{n} = MatMul (o3{n}, wo{n}) ab{n} = Add (a{n}, bo{n})
"""
BEFORE = (
    "n1{n} = LayerNormalization ({x}, positive_a{n}, ba{n})"
    + BLOCK.replace("{read}", "n1{n}")
    + "r{n} = Add ({x}, ab{n}) n2{n} = LayerNormalization (r{n}, positive_b{n}, bb{n})"
    " f{n} = MatMul (n2{n}, w1{n}) fb{n} = Add (f{n}, b1{n}) g{n} = Gelu (fb{n})"
    " h{n} = MatMul (g{n}, w2{n}) hb{n} = Add (h{n}, b2{n}) y{n} = Add (r{n}, hb{n})"
)
BEHIND = (
    BLOCK.replace("{read}", "{x}") + "r{n} = Add ({x}, ab{n}) n1{n} = LayerNormalization (r{n}, positive_a{n}, ba{n})"
    " f{n} = MatMul (n1{n}, w1{n}) fb{n} = Add (f{n}, b1{n}) g{n} = Relu (fb{n})"
    " h{n} = MatMul (g{n}, w2{n}) hb{n} = Add (h{n}, b2{n}) z{n} = Add (n1{n}, hb{n})"
    " y{n} = LayerNormalization (z{n}, positive_b{n}, bb{n})"
)
ALONE = network(
    "net (float[1, 4, 64] x) => (float[1, 4, 64] y) { y = LayerNormalization (x, positive, bias) }",
    {"positive": (64,), "bias": (64,)},
)


def encoder(layer: str, *, layers: int = 2, width: int = 64, tokens: int = 8) -> onnx.ModelProto:
    body = "".join(layer.format(n=n, x="x" if n == 0 else f"y{n - 1}") for n in range(layers))
    last = f"y{layers - 1}"
    weights: dict[str, tuple[int, ...]] = {"head": (width, 10)}
    if layer == BEFORE:
        body += f" last = LayerNormalization ({last}, positive_last, b_last)"
        last = "last"
        weights |= {"positive_last": (width,), "b_last": (width,)}
    for n in range(layers):
        weights |= {f"w{name}{n}": (width, width) for name in "qkvo"} | {f"b{name}{n}": (width,) for name in "qkvoab"}
        weights |= {f"positive_{name}{n}": (width,) for name in "ab"} | {f"b1{n}": (2 * width,), f"b2{n}": (width,)}
        weights |= {f"w1{n}": (width, 2 * width), f"w2{n}": (2 * width, width)}
    text = (
        f"net (float[1, {tokens}, {width}] x) => (float[1, 10] y) {{ {body}"
        f" m = ReduceMean <keepdims = 0> ({last}, axis) y = MatMul (m, head) }}"
    )
    proto = network(text, weights, opset=20)
    numbers: dict[str, Any] = {
        "heads": np.array([1, tokens, 4, width // 4], dtype=np.int64),
        "joined": np.array([1, tokens, width], dtype=np.int64),
        "quarter": np.float32(0.25),
        "axis": np.array([1], dtype=np.int64),
    }
    for name, value in numbers.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return proto


def decibels(model: ir.Model, proto: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> float:
    """SQNR of an artifact against its float model."""
    computed, wanted = (
        np.concatenate([open_session(data, optimized=False).run(feed)[0] for feed in feeds])
        for data in (ir.to_proto(model).SerializeToString(), proto.SerializeToString())
    )
    return float(10 * np.log10((wanted**2).sum() / ((computed - wanted) ** 2).sum()))


@pytest.mark.parametrize("layer", [BEFORE, BEHIND], ids=["LayerNorm before", "LayerNorm behind"])
def test_an_encoder_computes_in_integers(layer: str) -> None:
    proto = encoder(layer)
    result = quantized(proto)
    assert {site.execution for site in result.plan.sites} <= {"static", "float"}
    assert [site.op_type for site in result.plan.sites if site.execution == "float"] == []
    feeds = samples(proto, 64, seed=5)
    assert decibels(result.model, proto, feeds) > 30
    found = lowbit.export(result.model, data=feeds, samples=64)
    assert found.float_kernels == 0
    assert found.kernels["RSQRT"] == (5 if layer == BEFORE else 4)
    for agreement in found.agreements:
        # Kernels round otherwise here and there; nothing was learned, so that the scores nearly tie.
        assert agreement.sqnr_db > 35
        assert agreement.largest <= 4
        assert agreement.same_top1 is not None
        assert agreement.same_top1 > 0.95


@pytest.mark.skipif(find_spec("tflite_micro") is None, reason="tflite-micro is not installed")
def test_the_microcontroller_computes_the_same() -> None:
    found = lowbit.export(quantized(encoder(BEFORE, layers=1)).model, samples=1)
    feeds = [[np.random.default_rng(i).integers(-128, 128, (1, 8, 64)).astype(np.int8)] for i in range(8)]
    session = litert_session(found.model, kernels="reference")
    mine = np.concatenate([session.run(feed)[0].astype(int) for feed in feeds])
    theirs = np.concatenate([outputs[0].astype(int) for outputs in run_micro(found.model, feeds).outputs])
    # Both have fixed-point arithmetic of their own for RSQRT and SOFTMAX, which are a step apart now and then.
    assert np.abs(mine - theirs).max() <= 2
    assert np.mean(np.abs(mine - theirs) <= 1) > 0.95


def test_rows_of_unlike_variances_need_finer_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps in int8 lose rows whose deviation is a tenth of another's; steps in int16 lose what int8 inputs lose."""
    spread = np.array([1, 0.5, 0.2, 0.1], dtype=np.float32)[:, None]
    feeds = [{"x": feed["x"] * spread} for feed in samples(ALONE, 64)]
    found = {}
    for steps in ("int16:symmetric", "int8"):
        monkeypatch.setitem(TARGETS, "litert", dataclasses.replace(TARGET, step_activations=steps))
        result = lowbit.quantize(ALONE, data=feeds, target="litert", measure_seconds=0)
        found[steps] = decibels(result.model, ALONE, feeds)
    assert found["int16:symmetric"] > 20
    assert found["int16:symmetric"] > found["int8"] + 10


def test_a_row_without_variance_gives_the_bias() -> None:
    """One over the root of zero saturates, in the graph and in the kernels, and is multiplied by zero."""
    result = quantized(ALONE)
    flat = [{"x": np.full((1, 4, 64), value, dtype=np.float32)} for value in (0.0, 0.5)]
    (_, bias) = (onnx.numpy_helper.to_array(tensor) for tensor in ALONE.graph.initializer)
    step = next(tensor.scale for tensor in result.plan.activations if tensor.tensor == "y")
    session = open_session(ir.to_proto(result.model).SerializeToString(), optimized=False)
    for feed in flat:
        np.testing.assert_allclose(session.run(feed)[0], np.broadcast_to(bias, (1, 4, 64)), rtol=0, atol=step)
    for agreement in lowbit.export(result.model, data=flat, samples=2).agreements:
        assert agreement.largest <= 1


def test_parts_become_the_same_kernels() -> None:
    """What PyTorch's older exporter writes instead of the operator."""
    proto = network(
        "net (float[1, 4, 64] x) => (float[1, 4, 64] y) { m = ReduceMean <axes = [-1]> (x) c = Sub (x, m)"
        " s = Pow (c, two) v = ReduceMean <axes = [-1]> (s) e = Add (v, eps) r = Sqrt (e) d = Div (c, r)"
        " g = Mul (d, positive) y = Add (g, bias) }",
        {"positive": (64,), "bias": (64,)},
    )
    for name, value in (("two", np.float32(2)), ("eps", np.float32(1e-5))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    mine, whole = (lowbit.export(quantized(each).model) for each in (proto, ALONE))
    assert mine.kernels == whole.kernels
    assert mine.float_kernels == 0


def test_a_plan_is_applied_again_to_the_same_bytes() -> None:
    result = quantized(ALONE)
    assert {tensor.format for tensor in result.plan.activations} == {"int16", "int8:asymmetric"}
    again = lowbit.quantize(ALONE, data=samples(ALONE), plan=result.plan, target="litert", measure_seconds=0)
    assert ir.to_proto(again.model).SerializeToString() == ir.to_proto(result.model).SerializeToString()


def test_other_axes_are_refused_with_the_reason() -> None:
    proto = network(
        "net (float[1, 4, 8] x) => (float[1, 4, 8] y) { a = Relu (x) b = LayerNormalization <axis = 1> (a, s)"
        " y = Relu (b) }",
        {"s": (4, 8)},
    )
    reason = r"no integer kernel for LayerNormalization: .*more than the last axis \(axis=1 of 3 axes\)"
    result = quantized(proto)
    (refused,) = [site for site in result.plan.sites if site.execution == "float"]
    with pytest.raises(ModelError, match=reason):
        lowbit.export(result.model)
    with pytest.raises(ModelError, match=reason):
        raise ModelError(refused.reason)
    other = network("net (float[1, 4, 8] x) => (float[1, 4, 8] y) { y = LayerNormalization (x, s) }", {"s": (8,)})
    unplanned = quantized(other, target="onnxruntime-arm64", method="static")
    with pytest.raises(ModelError, match="--target litert"):
        lowbit.export(unplanned.model)


def test_check_tells_the_steps() -> None:
    found = lowbit.check(ALONE, target="litert")
    assert {site.execution for site in found.plan.sites} == {"static"}
    assert {site.op_type for site in found.plan.sites} == {"Identity", "ReduceMean", "Sub", "Mul", "Add", "Pow"}


def test_int16_elsewhere_is_refused() -> None:
    """Artifacts of other tools may have int16 where LiteRT's rules here have no kernel for it."""
    proto = network(
        "net (float[1, 4, 8] x) => (float[1, 4, 8] y) { q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
        " i = QuantizeLinear (d, s, w) e = DequantizeLinear (i, s, w) t = Softmax (e)"
        " u = QuantizeLinear (t, s, w) y = DequantizeLinear (u, s, w) }",
        {},
        opset=21,
    )
    numbers: dict[str, Any] = {"s": np.float32(0.01), "z": np.int8(0), "w": np.int16(0)}
    for name, value in numbers.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    proto.ir_version = 10
    with pytest.raises(ModelError, match="int16"):
        lowbit.export(proto)
