"""Rotated models compute the same; errors fall where channels stick out, and nothing is rotated where they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import lowbit
from lowbit.exceptions import RecipeError
from lowbit.graph import clean, load_model, serialize
from lowbit.methods.residual_stream import streams
from lowbit.methods.rotate import apply_rotations, between_layers
from lowbit.plan.plan import Plan, RotationPlan
from lowbit.rounding.rotation import mean_keeping_rotation
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

# Attention of 2 heads of 8 channels over 5 tokens, and a feed-forward part.
ATTENTION = """
    q0 = MatMul({x}, wq) q1 = Add(q0, bq) q2 = Reshape(q1, heads) q3 = Transpose<perm=[0,2,1,3]>(q2)
    k0 = MatMul({x}, wk) k1 = Add(k0, bk) k2 = Reshape(k1, heads) k3 = Transpose<perm=[0,2,3,1]>(k2)
    v0 = MatMul({x}, wv) v1 = Add(v0, bv) v2 = Reshape(v1, heads) v3 = Transpose<perm=[0,2,1,3]>(v2)
    s0 = MatMul(q3, k3) s1 = Softmax(s0) c0 = MatMul(s1, v3) c1 = Transpose<perm=[0,2,1,3]>(c0)
    c2 = Reshape(c1, flat) o0 = MatMul(c2, wo) o1 = Add(o0, bo)
"""
FORWARD = "f0 = MatMul({x}, wf) f1 = Add(f0, bf) f2 = Gelu(f1) f3 = MatMul(f2, wg) f4 = Add(f3, bg)"
HEAD = """g (int64[1,5] ids, float[20,16] wtable, float[1,5,16] wplace, float[16] wn1, float[16] bn1, float[16] wn2,
    float[16] bn2, float[16] wn3, float[16] bn3, float[16,16] wq, float[16] bq, float[16,16] wk, float[16] bk,
    float[16,16] wv, float[16] bv, float[16,16] wo, float[16] bo, float[16,32] wf, float[32] bf, float[32,16] wg,
    float[16] bg, float[16,7] wh) => (float[1,5,7] y)
    {{ heads = Constant<value_ints=[1,5,2,8]>() flat = Constant<value_ints=[1,5,16]>()
    e0 = Gather(wtable, ids) e1 = Add(e0, wplace) {body} }}"""
BEFORE = HEAD.format(
    body="n1 = LayerNormalization(e1, wn1, bn1)"
    + ATTENTION.format(x="n1")
    + "r1 = Add(e1, o1) n2 = LayerNormalization(r1, wn2, bn2)"
    + FORWARD.format(x="n2")
    + "r2 = Add(r1, f4) n3 = LayerNormalization(r2, wn3, bn3) y = MatMul(n3, wh)"
)
BEHIND = HEAD.format(
    body="n1 = LayerNormalization(e1, wn1, bn1)"
    + ATTENTION.format(x="n1")
    + "r1 = Add(n1, o1) n2 = LayerNormalization(r1, wn2, bn2)"
    + FORWARD.format(x="n2")
    + "r2 = Add(n2, f4) n3 = LayerNormalization(r2, wn3, bn3) y = MatMul(n3, wh)"
)


def outliers(proto: onnx.ModelProto, factor: float = 60.0) -> onnx.ModelProto:
    """Make one channel of the stream much larger than all others, and what reads it small, as large transformers do."""
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name in {"wtable", "wplace"}:
            array[..., 3] *= factor
        if tensor.name in {"wq", "wk", "wv", "wf", "wh"}:
            array[3] /= factor
        if tensor.name[:2] == "wn":
            array[:] = 1
        if tensor.name[:2] == "bn":
            array *= 0.05
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


def sentences(count: int) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(1)
    return [{"ids": generator.integers(0, 20, (1, 5))} for _ in range(count)]


def same(old: ir.Model, new: ir.Model) -> None:
    sessions = [open_session(serialize(each)) for each in (old, new)]
    for feed in sentences(3):
        expected, found = (session.run(feed)[0] for session in sessions)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def plan(kind: str, tensor: str) -> RotationPlan:
    return RotationPlan(tensor=tensor, kind=kind, seed=0, reason="")


@pytest.mark.parametrize("channels", [1, 2, 12, 16, 384])
def test_the_mean_is_kept(channels: int) -> None:
    R = mean_keeping_rotation(channels, seed=1)
    np.testing.assert_allclose(R @ R.T, np.eye(channels), atol=1e-12)
    np.testing.assert_allclose(R.sum(axis=0), 1, atol=1e-12)
    np.testing.assert_allclose(R.sum(axis=1), 1, atol=1e-12)
    if channels > 100:  # a channel that sticks out is spread
        assert np.abs(R).max() < 0.25


def test_a_stream_between_normalizations_is_rotated(parse: Callable) -> None:
    model = clean(load_model(outliers(parse(BEFORE)))).model
    before = serialize(model)
    (stream,), refusals = streams(model)
    assert not refusals
    assert (len(stream.writers), len(stream.norms), len(stream.constants)) == (2, 3, 2)
    rotated = apply_rotations(model, [plan("stream", stream.tensor)])
    assert serialize(model) == before
    assert [node.op_type for node in rotated.graph] == [node.op_type for node in model.graph]
    same(model, rotated)
    table = [each.graph.initializers["wtable"].const_value.numpy() for each in (model, rotated)]
    reach = [np.abs(each).max() / np.sqrt(np.square(each).mean()) for each in table]
    assert reach[1] < 0.6 * reach[0]


def test_a_stream_of_outputs_of_normalizations_says_why_not(parse: Callable) -> None:
    model = clean(load_model(parse(BEHIND))).model
    found, refusals = streams(model)
    assert not found
    assert any("Add read it behind LayerNormalization" in reason for reason in refusals.values())


@pytest.mark.parametrize("text", [BEFORE, BEHIND])
def test_values_are_rotated_head_by_head(text: str, parse: Callable) -> None:
    model = clean(load_model(parse(text))).model
    (pair,) = between_layers(model)
    assert pair.heads == 2
    rotated = apply_rotations(model, [plan("layers", pair.first.output.name or "")])
    same(model, rotated)
    names = [pair.first.node.inputs[1].name, pair.second.node.inputs[1].name]
    for name in names:
        assert not np.allclose(*(each.graph.initializers[name].const_value.numpy() for each in (model, rotated)))


def test_a_matmul_is_added_in_front_of_readers(parse: Callable) -> None:
    model = clean(load_model(parse(BEHIND))).model
    rotated = apply_rotations(model, [plan("matmul", "n1")])
    assert len(list(rotated.graph)) == len(list(model.graph)) + 1
    same(model, rotated)


def quantized(proto: onnx.ModelProto, rotate: str, **options: object) -> lowbit.Result:
    data = sentences(64)
    settings = {"method": "static", "weights": "int8", "target": "onnxruntime-x86-avx2", **options}
    return lowbit.quantize(proto, data=data, rotate=rotate, measure_seconds=0, **settings)


def sqnr(result: lowbit.Result) -> float:
    return min(each.sqnr_real_db for each in result.verification.outputs)


def test_outliers_are_spread_and_plans_do_it_again(parse: Callable) -> None:
    result = quantized(outliers(parse(BEFORE)), "offline")
    assert any(each.kind == "stream" for each in result.plan.rotations), result.notes
    assert any("rotated" in note and "->" in note for note in result.notes)
    assert sqnr(result) > sqnr(quantized(outliers(parse(BEFORE)), "none")) + 3
    text = Plan.from_dict(result.plan.to_dict())
    assert text.rotations == result.plan.rotations
    again = lowbit.quantize(outliers(parse(BEFORE)), test_data=sentences(4), plan=text, measure_seconds=0)
    assert serialize(again.model) == serialize(result.model)


def test_channels_that_are_alike_are_left_alone(parse: Callable) -> None:
    """Codes of a Gaussian are as good in any direction: what a rotation changes is chance."""
    result = quantized(parse(BEFORE), "offline")
    gains = [note for note in result.notes if "not rotated" in note]
    assert gains
    assert not any(each.kind == "stream" for each in result.plan.rotations)


def test_an_added_matmul_stays_in_float(parse: Callable) -> None:
    proto = parse(BEHIND)
    for tensor in proto.graph.initializer:
        if tensor.name in {"wn1", "wq", "wk", "wv"}:
            array = numpy_helper.to_array(tensor).copy()
            array[3] *= 80 if tensor.name == "wn1" else 1 / 80
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    assert not any(each.kind == "matmul" for each in quantized(proto, "offline").plan.rotations)
    result = quantized(proto, "online")
    assert any((each.kind, each.tensor) == ("matmul", "n1") for each in result.plan.rotations), result.notes
    assert result.plan.site("n1_rotated").execution == "float"


def test_what_does_not_fit_or_cannot_be_judged(parse: Callable) -> None:
    model = clean(load_model(parse(BEHIND))).model
    with pytest.raises(RecipeError, match="does not fit the model"):
        apply_rotations(model, [plan("stream", "e1")])
    with pytest.raises(RecipeError, match="rotate is 'all'"):
        lowbit.Recipe(rotate="all")
    result = lowbit.quantize(parse(BEFORE), data="random", rotate="offline", measure_seconds=0)
    assert any("nothing rotated" in note for note in result.notes)
