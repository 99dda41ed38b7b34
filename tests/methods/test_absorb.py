"""High biases move behind a Relu or Clip: the float function stays, ranges shrink, and what does not help is undone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import lowbit
from lowbit.exceptions import RecipeError
from lowbit.graph import clean, load_model, serialize
from lowbit.graph.clean.normalized import normalized_of
from lowbit.methods.absorb import absorbing_pairs, apply_absorptions
from lowbit.methods.absorption_search import find_absorptions
from lowbit.plan.packed import pack_floats, unpack_floats
from lowbit.plan.plan import AbsorptionPlan, Plan
from lowbit.plan.recipe import Recipe
from lowbit.runtime.session import open_session
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

TARGET = "onnxruntime-x86-avx2"
STATIC = Recipe(target=TARGET, method="static", activations="uint8")
HIGH = np.array([0.0, 9.0, 0.0, 12.0, 7.0, 0.0, 0.0, 0.0], dtype=np.float32)
PAIRS = {
    "pointwise": "g (float[N,4,6,6] x, float[8,4,1,1] w1, float[8] b1, float[8,8,1,1] w2, float[8] b2) =>"
    " (float[N,8,6,6] y) { a = Conv(x, w1, b1) r = Relu(a) y = Conv(r, w2, b2) }",
    "without a bias": "g (float[N,4,6,6] x, float[8,4,1,1] w1, float[8] b1, float[8,8,3,3] w2) =>"
    " (float[N,8,4,4] y) { a = Conv(x, w1, b1) r = Relu(a) y = Conv(r, w2) }",
    "grouped": "g (float[N,4,6,6] x, float[8,4,1,1] w1, float[8] b1, float[6,4,3,3] w2, float[6] b2) =>"
    " (float[N,6,4,4] y) { a = Conv(x, w1, b1) r = Relu(a) y = Conv<group=2>(r, w2, b2) }",
    "depthwise": "g (float[N,4,6,6] x, float[8,4,1,1] w1, float[8] b1, float[8,1,3,3] w2, float[8] b2) =>"
    " (float[N,8,4,4] y) { a = Conv(x, w1, b1) r = Relu(a) y = Conv<group=8>(r, w2, b2) }",
    "pooled": "g (float[N,4,6,6] x, float[8,4,1,1] w1, float[8] b1, float[8,8,1,1] w2, float[8] b2) =>"
    " (float[N,8,3,3] y) { a = Conv(x, w1, b1) r = Relu(a)"
    " p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) y = Conv(p, w2, b2) }",
    "flattened": "g (float[N,4,6,6] x, float[8,4,1,1] w1, float[8] b1, float[8,5] w2, float[5] b2) =>"
    " (float[N,5] y) { a = Conv(x, w1, b1) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) y = Gemm(f, w2, b2) }",
    "clip": "g (float[N,4,6,6] x, float[8,4,1,1] w1, float[8] b1, float[8,8,1,1] w2, float[8] b2) =>"
    " (float[N,8,6,6] y) { lo = Constant<value_float=0.0>() hi = Constant<value_float=30.0>()"
    " a = Conv(x, w1, b1) r = Clip(a, lo, hi) y = Conv(r, w2, b2) }",
    "gemm": "g (float[N,4] x, float[4,8] w1, float[8] b1, float[5,8] w2, float[5] b2) => (float[N,5] y)"
    " { a = Gemm(x, w1, b1) r = Relu(a) y = Gemm<transB=1>(r, w2, b2) }",
    "matmul": "g (float[N,7,4] x, float[4,8] w1, float[8] b1, float[8,5] w2, float[5] b2) => (float[N,7,5] y)"
    " { a = MatMul(x, w1) s = Add(a, b1) r = Relu(s) m = MatMul(r, w2) y = Add(m, b2) }",
}
REFUSED = {
    "linear": (
        (
            "g (float[N,4,6,6] x, float[8,4,1,1] w1, float[8] b1, float[8,8,1,1] w2) => (float[N,8,6,6] y)"
            " { a = Conv(x, w1, b1) y = Conv(a, w2) }"
        ),
        "neither Relu nor Clip",
    ),
    "branch": (
        (
            "g (float[N,4,6,6] x, float[8,4,1,1] w1, float[8] b1, float[8,8,1,1] w2) => (float[N,8,6,6] y)"
            " { a = Conv(x, w1, b1) r = Relu(a) c = Conv(r, w2) y = Add(c, r) }"
        ),
        "2 operators read its output",
    ),
    "sigmoid": (
        (
            "g (float[N,4,6,6] x, float[8,4,1,1] w1, float[8] b1, float[8,8,1,1] w2) => (float[N,8,6,6] y)"
            " { a = Conv(x, w1, b1) r = Sigmoid(a) y = Conv(r, w2) }"
        ),
        "Sigmoid .* stands behind it",
    ),
    "average": (
        (
            "g (float[N,4,6,6] x, float[8,4,1,1] w1, float[8] b1, float[8,8,1,1] w2) => (float[N,8,6,6] y)"
            " { a = Conv(x, w1, b1) r = Relu(a) p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1],"
            " count_include_pad=1>(r) y = Conv(p, w2) }"
        ),
        "AveragePool .* stands behind it",
    ),
    "matmul": (
        (
            "g (float[N,4] x, float[4,8] w1, float[8] b1, float[8,5] w2) => (float[N,5] y)"
            " { a = Gemm(x, w1, b1) r = Relu(a) y = MatMul(r, w2) }"
        ),
        "has no bias",
    ),
}


def with_biases(proto: onnx.ModelProto, biases: np.ndarray = HIGH) -> onnx.ModelProto:
    """Give the first layer biases so high that a Relu passes all of some channels."""
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "b1")
    tensor.CopyFrom(numpy_helper.from_array(biases, tensor.name))
    return proto


def samples(proto: onnx.ModelProto, count: int, seed: int = 3) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    shape = [dim.dim_value or 1 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    return [{"x": generator.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def outputs(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    session = open_session(serialize(model))
    return [session.run(feed)[0] for feed in feeds]


@pytest.mark.parametrize("name", PAIRS)
def test_the_function_stays_and_the_range_shrinks(name: str, parse: Callable) -> None:
    proto = with_biases(parse(PAIRS[name]))
    model = clean(load_model(proto)).model
    before = serialize(model)
    feeds = samples(proto, 32)
    found, notes = find_absorptions(model, STATIC, find_target(TARGET), feeds)
    assert len(found) == 1, notes
    moved = apply_absorptions(model, found)
    assert serialize(model) == before
    amounts = unpack_floats(found[0].amounts)
    assert set(np.flatnonzero(amounts)) == {1, 3, 4}
    # Exact where no channel falls below what was seen of it.
    for old, new in zip(outputs(model, feeds[:3]), outputs(moved, feeds[:3]), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-4)
    top, less = (float(text) for text in re.findall(r"activation (\S+) -> (\S+),", found[0].reason)[0])
    assert less < 0.6 * top
    errors = [float(text) for text in re.findall(r"output error (\S+) % -> (\S+) %", found[0].reason)[0]]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_absorbed_says_why(name: str, parse: Callable) -> None:
    text, reason = REFUSED[name]
    model = clean(load_model(with_biases(parse(text)))).model
    pairs, refusals = absorbing_pairs(model)
    assert not pairs
    assert any(re.search(reason, why) for why in refusals.values()), refusals


def test_below_what_is_absorbed_the_function_changes(parse: Callable) -> None:
    # Standard normal inputs stay above; one far outside does not, and only there the outputs differ.
    proto = with_biases(parse(PAIRS["gemm"]))
    model = clean(load_model(proto)).model
    found, _ = find_absorptions(model, STATIC, find_target(TARGET), samples(proto, 32))
    moved = apply_absorptions(model, found)
    far = [{"x": np.full((1, 4), sign * 40.0, dtype=np.float32)} for sign in (-1, 1)]
    differences = [np.abs(new - old).max() for old, new in zip(outputs(model, far), outputs(moved, far), strict=True)]
    assert max(differences) > 1


def test_where_no_channel_is_high_nothing_moves(parse: Callable) -> None:
    proto = with_biases(parse(PAIRS["pointwise"]), np.zeros(8, np.float32))
    model = clean(load_model(proto)).model
    found, notes = find_absorptions(model, STATIC, find_target(TARGET), samples(proto, 8))
    assert not found
    assert "no channel stays above" in " ".join(notes)


def test_padding_that_costs_more_than_the_range_gains_is_undone(parse: Callable) -> None:
    text = PAIRS["depthwise"].replace("Conv<group=8>", "Conv<group=8, pads=[1,1,1,1]>").replace("8,4,4", "8,6,6")
    proto = with_biases(parse(text))
    model = clean(load_model(proto)).model
    found, notes = find_absorptions(model, STATIC, find_target(TARGET), samples(proto, 16))
    assert not found
    assert "it does not help" in " ".join(notes)


def test_a_channel_at_the_upper_bound_keeps_its_bias_and_the_range(parse: Callable) -> None:
    # With a bias of 12 under a bound of 11, `clip(y - c) + c` would reach beyond; the others alone gain nothing.
    proto = with_biases(parse(PAIRS["clip"].replace("30.0", "11.0")))
    model = clean(load_model(proto)).model
    found, notes = find_absorptions(model, STATIC, find_target(TARGET), samples(proto, 16))
    assert not found
    assert "it does not help" in " ".join(notes)


def test_activations_in_float_have_nothing_to_gain(parse: Callable) -> None:
    model = clean(load_model(with_biases(parse(PAIRS["gemm"])))).model
    recipe = Recipe(target=TARGET, method="weight-only")
    assert find_absorptions(model, recipe, find_target(TARGET), None) == (
        (),
        ("no bias absorbed: only activations in codes gain from it",),
    )


def normalized() -> onnx.ModelProto:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 13]>
        net (float[N, 16, 4, 4] x) => (float[N, 8, 4, 4] y) {
            c = Conv (x, w)
            n = BatchNormalization (c, gamma, beta, mean, variance)
            r = Relu (n)
            y = Conv (r, v, b)
        }""")
    generator = np.random.default_rng(0)
    w = generator.standard_normal((8, 16, 1, 1))
    arrays = {
        "w": w,
        "gamma": np.ones(8),
        "beta": 4 * HIGH,
        "mean": np.zeros(8),
        "variance": (w**2).sum(axis=(1, 2, 3)),
        "v": generator.standard_normal((8, 8, 1, 1)),
        "b": np.zeros(8),
    }
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return proto


@pytest.mark.parametrize("data", [False, True])
def test_a_batch_normalization_says_how_much_with_and_without_data(data: bool) -> None:
    model = clean(load_model(normalized())).model
    feeds = samples(normalized(), 16) if data else None
    (found,), _ = find_absorptions(model, STATIC, find_target(TARGET), feeds)
    np.testing.assert_allclose(unpack_floats(found.amounts), np.maximum(4 * HIGH - 3, 0), atol=1e-5)
    assert ("output error" if data else "rounding noise expected") in found.reason
    moved = apply_absorptions(model, [found])
    first, second = (node for node in moved.graph if node.op_type == "Conv")
    known = normalized_of(first)
    assert known is not None
    np.testing.assert_allclose(known.mean, np.minimum(4 * HIGH, 3), atol=1e-5)
    assert normalized_of(second) is None
    # One value in 740 lies below, by little.
    feeds = samples(normalized(), 8, seed=9)
    old, new = (np.stack(outputs(each, feeds)) for each in (model, moved))
    assert np.square(new - old).mean() < 1e-3 * old.var()


def test_without_data_padding_and_unknown_layers_keep_their_bias(parse: Callable) -> None:
    model = clean(load_model(with_biases(parse(PAIRS["gemm"])))).model
    found, notes = find_absorptions(model, STATIC, find_target(TARGET), None)
    assert not found
    assert "nothing is known of its outputs" in " ".join(notes)


def test_the_artifact_is_nearer_and_its_plan_gives_the_same_bytes(parse: Callable) -> None:
    proto = with_biases(parse(PAIRS["pointwise"]), 8 * HIGH)
    # The biases cancel in the outputs, whose codes would otherwise be the coarsest.
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "w2")
    weight = numpy_helper.to_array(tensor)[..., 0, 0]
    weight = weight - np.outer(weight @ HIGH, HIGH) / (HIGH @ HIGH)
    tensor.CopyFrom(numpy_helper.from_array(weight[..., None, None].astype(np.float32), tensor.name))
    options = {"method": "static", "target": TARGET, "measure_seconds": 0}
    results = [lowbit.quantize(proto, data=samples(proto, 24), absorb_bias=way, **options) for way in (False, True)]
    plain, better = (result.verification.outputs[0].sqnr_simulated_db for result in results)
    assert better > plain + 3
    assert any("absorbed by" in note for note in results[1].notes)
    plan = Plan.from_dict(results[1].plan.to_dict())
    assert plan == results[1].plan
    assert len(plan.absorptions) == 1
    assert plan.model_sha256 == results[0].plan.model_sha256
    again = lowbit.quantize(proto, test_data=samples(proto, 3), plan=plan, target=TARGET, measure_seconds=0)
    assert serialize(again.model) == serialize(results[1].model)


def test_a_plan_of_another_model_is_refused(parse: Callable) -> None:
    model = clean(load_model(parse(PAIRS["gemm"]))).model
    (pair,), _ = absorbing_pairs(model)
    good = {"layer": pair.first.name, "reader": pair.second.name, "reason": ""}
    for wrong in (
        AbsorptionPlan(**{**good, "reader": "other"}, amounts=pack_floats(np.ones(8, np.float32))),
        AbsorptionPlan(**good, amounts=pack_floats(np.ones(7, np.float32))),
        AbsorptionPlan(**good, amounts=pack_floats(np.full(8, -1, np.float32))),
    ):
        with pytest.raises(RecipeError, match="which does not fit"):
            apply_absorptions(model, [wrong])
