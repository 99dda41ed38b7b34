"""Residual branches: which can go, which go first, and what the rest computes, in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

import lowbit
from lowbit.exceptions import DataError, ModelError, RecipeError
from lowbit.graph import clean, load_model, serialize
from lowbit.graph.residual_branches import residual_branches, without_branches
from lowbit.methods.calibrate import observed_shapes
from lowbit.runtime.session import open_session

# Three branches of one shape that matter much, little, and more than that, and a fourth path that is no branch.
RESIDUAL = """g (float[N, 3, 8, 8] x) => (float[N, 8, 4, 4] y)
    <float[8, 3, 3, 3] w0, float[8, 8, 3, 3] w1, float[8, 8, 3, 3] w2, float[8] b2, float[8, 8, 3, 3] w3,
     float[8, 8, 1, 1] w4, float[8, 8, 3, 3] w5> {
        s = Conv <pads = [1, 1, 1, 1]> (x, w0)
        r0 = Relu (s)
        c1 = Conv <pads = [1, 1, 1, 1]> (r0, w1)
        a1 = Add (r0, c1)
        r1 = Relu (a1)
        c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
        a2 = Add (c2, r1)
        c3 = Conv <pads = [1, 1, 1, 1]> (a2, w3)
        t3 = Tanh (c3)
        a3 = Add (a2, t3)
        short = Conv <strides = [2, 2]> (a3, w4)
        long = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (a3, w5)
        y = Add (short, long)
    }"""
SIZES = {"w0": 0.4, "w1": 0.5, "w2": 0.002, "b2": 3.0, "w3": 0.05, "w4": 0.3, "w5": 0.1}


def model_of(text: str, sizes: dict[str, float]) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    rng = np.random.default_rng(0)
    for value in list(proto.graph.value_info):
        if value.name in sizes:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            array = (rng.standard_normal(shape) * sizes[value.name]).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    for node in proto.graph.node:
        node.name = f"make_{node.output[0]}"
    onnx.checker.check_model(proto)
    return proto


@pytest.fixture(name="net", scope="module")
def _net() -> onnx.ModelProto:
    return model_of(RESIDUAL, SIZES)


@pytest.fixture(name="samples", scope="module")
def _samples() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(12)]


def run(model, feeds, name: str = "y") -> np.ndarray:
    source = model if isinstance(model, onnx.ModelProto) else None
    session = open_session(source.SerializeToString() if source is not None else serialize(model), threads=1)
    return np.stack([session.run(feed)[0] for feed in feeds])


def branches_of(proto: onnx.ModelProto, feed: dict[str, np.ndarray]):
    model = clean(load_model(proto)).model
    return model, residual_branches(model, observed_shapes(model, feed))


def test_branches_are_found_and_two_paths_are_not_one(net, samples):
    _, found = branches_of(net, samples[0])
    assert [one.add for one in found] == ["make_a1", "make_a2", "make_a3"]
    assert [len(one.operators) for one in found] == [1, 1, 2]


def test_the_branch_that_matters_least_goes_first_and_its_mean_stays(net, samples):
    pruned = lowbit.prune_branches(net, samples, count=1)
    assert [one.place for one in pruned.branches] == [0, 1, 0]
    # The bias of the branch is nearly all of it: with the mean in its place hardly anything changes.
    exact, found = run(net, samples), run(pruned.model, samples)
    assert np.abs(found - exact).max() < 0.3
    bare = lowbit.prune_branches(net, samples, count=1, compensate=False)
    assert np.abs(run(bare.model, samples) - exact).max() > 1.0
    assert pruned.macs[0] - pruned.macs[1] == 8 * 8 * 8 * 8 * 9


def test_errors_are_those_of_the_engine(net, samples):
    pruned = lowbit.prune_branches(net, samples, count=1)
    exact = run(net, samples).astype(np.float64)
    found = run(pruned.model, samples)
    error = np.sqrt(np.square(found - exact).sum() / np.square(exact).sum())
    assert pruned.branches[1].error == pytest.approx(error, rel=1e-3)
    assert min(one.error for one in pruned.branches) == pruned.branches[1].error


def test_what_is_left_computes_the_original_without_the_branch(net, samples):
    model, (first, *_) = branches_of(net, samples[0])
    silent = onnx.ModelProto.FromString(net.SerializeToString())
    (weight,) = (each for each in silent.graph.initializer if each.name == "w1")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((8, 8, 3, 3), np.float32), "w1"))
    left = without_branches(model, {first: None})
    assert not [node for node in left.graph if node.name in {first.add, *first.operators}]
    np.testing.assert_allclose(run(left, samples), run(silent, samples), atol=1e-5)


def test_branches_of_a_pre_norm_transformer(samples):
    text = """g (float[1, 6, 16] x) => (float[1, 6, 16] y)
        <float[16] n, float[16] m, float[16, 16] w1, float[16, 64] w2, float[64, 16] w3> {
            l1 = LayerNormalization (x, n, m)
            f1 = MatMul (l1, w1)
            a1 = Add (x, f1)
            l2 = LayerNormalization (a1, n, m)
            f2 = MatMul (l2, w2)
            g2 = Gelu (f2)
            f3 = MatMul (g2, w3)
            y = Add (a1, f3)
        }"""
    net = model_of(text.replace("Gelu", "Tanh"), {"n": 1.0, "m": 0.1, "w1": 0.2, "w2": 0.2, "w3": 1e-3})
    feeds = [{"x": np.random.default_rng(2).standard_normal((1, 6, 16)).astype(np.float32)}]
    pruned = lowbit.prune_branches(net, feeds, count=1, compensate=False)
    # The last branch ends in the model's output, which keeps its name.
    assert [one.place for one in pruned.branches] == [0, 1]
    np.testing.assert_allclose(run(pruned.model, feeds), run(net, feeds), atol=0.1)


def test_a_target_of_multiplications(net, samples):
    pruned = lowbit.prune_branches(net, samples, target_macs=0.6)
    assert pruned.macs[1] <= 0.6 * pruned.macs[0]
    assert sorted(one.place for one in pruned.branches) == [0, 1, 2]


def test_what_others_read_stays(samples):
    text = """g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y, float[N, 3, 8, 8] z)
        <float[3, 3, 1, 1] w1> {
            c = Conv (x, w1)
            y = Add (x, c)
            z = Relu (c)
        }"""
    with pytest.raises(ModelError, match="no branch of the model can be left out"):
        lowbit.prune_branches(model_of(text, {"w1": 0.1}), samples, count=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "neither count nor target_macs"),
        ({"count": 1, "target_macs": 0.5}, "both given"),
        ({"count": 4}, "4 branches cannot go"),
        ({"count": 0}, "count is 0"),
        ({"target_macs": 0.1}, "a target of 10.0% cannot be reached"),
        ({"target_macs": 1.5}, "a target of 1.5"),
        ({"count": 3, "exclude": ["make_a1"]}, "3 branches cannot go"),
    ],
)
def test_impossible_wishes(net, samples, options, said):
    with pytest.raises(RecipeError, match=said):
        lowbit.prune_branches(net, samples, **options)


def test_random_data_say_nothing(net):
    with pytest.raises(DataError, match="which branches matter"):
        lowbit.prune_branches(net, "random", count=1)
