"""Pruned models compute what the original computes with the removed channels' readers zeroed, in ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import lowbit
from lowbit.exceptions import DataError, LowbitError, ModelError, RecipeError
from lowbit.graph import clean, load_model, serialize
from lowbit.graph.channels import ChannelGroup, Trace, find_groups, remove_channels, trace_channels
from lowbit.graph.channels.costs import ChannelCosts
from lowbit.graph.channels.removal import without_inputs
from lowbit.graph.constants import constant_array
from lowbit.methods.calibrate import observed_shapes
from lowbit.runtime.session import open_session

DATA = Path(os.environ.get("LOWBIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
Parse = Callable[..., onnx.ModelProto]


@pytest.fixture(name="parse")
def _parse() -> Parse:
    """Read a graph's text; tensors called `w…` and `b…` that it declares become random weights and biases."""

    def parse(text: str) -> onnx.ModelProto:
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
        rng = np.random.default_rng(0)
        for value in list(proto.graph.value_info):
            if value.name[0] in "wb":
                shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
                array = (rng.standard_normal(shape) * 0.3).astype(np.float32)
                proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        onnx.checker.check_model(proto)
        return proto

    return parse


RESIDUAL = """g (float[N, 3, 8, 8] x) => (float[N, 5] y)
    <float[16, 3, 3, 3] w1, float[16] b1, float[16, 16, 3, 3] w2, float[16, 16, 3, 3] w3, float[1, 16, 1, 1] b3,
     float[32, 1, 3, 3] w4, float[16, 16, 1, 1] w5, float[5, 64] w6, float[5] b6> {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        ar = Relu (a)
        c = Conv <pads = [1, 1, 1, 1]> (ar, w2)
        d = Conv <pads = [1, 1, 1, 1]> (c, w3)
        s = Add (ar, d)
        t = PRelu (s, b3)
        u = Concat <axis = 1> (t, c)
        v = Conv <group = 32, strides = [2, 2], pads = [1, 1, 1, 1]> (u, w4)
        first, second = Split <axis = 1, num_outputs = 2> (v)
        p = Conv (first, w5)
        q = Mul (p, second)
        m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (q)
        f = Flatten (m)
        y = Gemm <transB = 1> (f, w6, b6)
    }"""
GROUPED = """g (float[1, 3, 6, 6] x) => (float[1, 4, 6, 6] y)
    <float[24, 3, 1, 1] w1, float[24, 6, 3, 3] w2, float[4, 24, 1, 1] w3,
     int64[5] split = {1, 2, 12, 6, 6}, int64[4] joined = {1, 24, 6, 6}> {
        a = Conv (x, w1)
        b = Conv <group = 4, pads = [1, 1, 1, 1]> (a, w2)
        c = Sigmoid (b)
        r = Reshape (c, split)
        t = Transpose <perm = [0, 2, 1, 3, 4]> (r)
        s = Reshape (t, joined)
        y = Conv (s, w3)
    }"""
ATTENTION = """g (float[2, 5, 12] x) => (float[2, 5, 6] y)
    <float[12, 48] w1, float[48] b1, float[16, 6] w2, float scale = {0.5}, int64[5] parts = {0, 0, 3, 4, 4},
     int64[3] joined = {0, 0, 16}, int64 zero = {0}, int64 one = {1}, int64 two = {2}> {
        a = MatMul (x, w1)
        h = Add (a, b1)
        r = Reshape (h, parts)
        t = Transpose <perm = [2, 0, 3, 1, 4]> (r)
        q = Gather <axis = 0> (t, zero)
        k = Gather <axis = 0> (t, one)
        v = Gather <axis = 0> (t, two)
        kt = Transpose <perm = [0, 1, 3, 2]> (k)
        qk = MatMul (q, kt)
        qs = Mul (qk, scale)
        p = Softmax <axis = -1> (qs)
        o = MatMul (p, v)
        ot = Transpose <perm = [0, 2, 1, 3]> (o)
        oj = Reshape (ot, joined)
        y = MatMul (oj, w2)
    }"""


def traced(model: object, feed: dict[str, np.ndarray]) -> tuple[Trace, list[ChannelGroup]]:
    cleaned = clean(load_model(model)).model  # type: ignore[arg-type]
    trace = trace_channels(cleaned, observed_shapes(cleaned, feed, threads=1))
    return trace, [group for group in find_groups(trace) if not group.reason]


def half(groups: list[ChannelGroup], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.choice(group.units, len(group.units) // 2, replace=False) for group in groups])


def check_removal(model: object, feed: dict[str, np.ndarray], least: int) -> tuple[Trace, list[ChannelGroup]]:
    """Hold a random half of all units to the claim, and the predicted number of weights to the real one."""
    trace, groups = traced(model, feed)
    assert len(groups) >= least
    removed = half(groups)
    small, masked = remove_channels(trace, removed), without_inputs(trace, removed)
    whole, zeroed, pruned = (
        open_session(serialize(found), threads=1).run(feed) for found in (trace.model, masked, small)
    )
    for original, expected, got in zip(whole, zeroed, pruned, strict=True):
        assert np.abs(original - expected).max() > 1e-3  # something was taken away
        np.testing.assert_allclose(got, expected, atol=1e-5 * max(np.abs(expected).max(), 1.0))
    kept = np.array([len(group.units) - len(group.units) // 2 for group in groups])
    arrays = [constant_array(value) for value in small.graph.initializers.values()]
    real = sum(array.size for array in arrays if array is not None and array.dtype.kind == "f")
    assert ChannelCosts(trace, groups).weights(kept) == pytest.approx(real)
    return trace, groups


@pytest.mark.parametrize(
    ("text", "shape", "least"),
    [(RESIDUAL, (2, 3, 8, 8), 2), (GROUPED, (1, 3, 6, 6), 2), (ATTENTION, (2, 5, 12), 1)],
    ids=["residual", "grouped", "attention"],
)
def test_small_graphs(parse: Parse, text: str, shape: tuple[int, ...], least: int) -> None:
    feed = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    check_removal(parse(text), feed, least)


def test_attention_loses_whole_heads(parse: Parse) -> None:
    feed = {"x": np.zeros((2, 5, 12), np.float32)}
    _, groups = traced(parse(ATTENTION), feed)
    heads = groups[0]
    assert len(heads.units) == 4
    assert heads.members["w1", 1].shape == (4, 12)  # queries, keys and values of 4
    assert heads.members["w1", 1][1].tolist() == [*range(4, 8), *range(20, 24), *range(36, 40)]
    assert heads.members["w2", 0][1].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("name", "shape", "least"),
    [
        ("resnet8_cifar10", (1, 32, 32, 3), 6),
        ("efficientnet_lite0", (1, 3, 224, 224), 24),
        ("fastestdet_coco", (1, 3, 352, 352), 30),
    ],
)
def test_trained_networks(name: str, shape: tuple[int, ...], least: int) -> None:
    path = DATA / "models" / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    model = load_model(path)
    values = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    check_removal(model, {str(model.graph.inputs[0].name): values}, least)


def test_sentence_encoder() -> None:
    path = Path.home() / ".cache" / "lowbit-bench" / "minilm.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not here; benchmarks/prepare makes it")
    tokens = np.random.default_rng(0).integers(1000, 30000, (2, 7))
    feed = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    _, groups = check_removal(path, feed, 12)
    assert [len(group.units) for group in groups] == [12, 1536] * 6


def test_what_is_not_understood_stays_with_its_reason(parse: Parse) -> None:
    model = parse(
        """g (float[1, 3, 4, 4] x) => (float[1, 4, 8, 8] y)
        <float[16, 3, 1, 1] w1, float[16, 16, 1, 1] w2> {
            a = Conv (x, w1)
            b = Conv (a, w2)
            y = DepthToSpace <blocksize = 2> (b)
        }"""
    )
    result = lowbit.prune_channels(model)
    assert [row.kept for row in result.groups] == [8, 16]
    assert "DepthToSpace" in result.groups[1].reason
    assert "DepthToSpace" in str(result)


def samples(shape: tuple[int, ...] = (32, 3, 8, 8)) -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.standard_normal(shape) + rng.standard_normal((shape[0], *[1] * (len(shape) - 1)))).astype(np.float32)


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor", "fisher"])
@pytest.mark.parametrize("options", [{}, {"allocation": "global"}, {"target_weights": 0.6}])
def test_criteria_and_budgets(parse: Parse, criterion: str, options: dict[str, object]) -> None:
    result = lowbit.prune_channels(parse(RESIDUAL), criterion=criterion, data=samples(), round_to=4, **options)  # type: ignore[arg-type]
    again = lowbit.prune_channels(parse(RESIDUAL), criterion=criterion, data=samples(), round_to=4, **options)  # type: ignore[arg-type]
    assert serialize(result.model) == serialize(again.model)
    assert all(0 < row.kept <= row.units and (row.kept == row.units or row.kept % 4 == 0) for row in result.groups)
    if "target_weights" in options:
        assert result.weights[1] <= 0.6 * result.weights[0]
    elif options:
        assert result.macs[1] <= 0.5 * result.macs[0]
    onnx.checker.check_model(onnx.load_from_string(serialize(result.model)), full_check=True)


def test_fisher_keeps_what_the_outputs_need(parse: Parse) -> None:
    """Channels with large weights that the next layer hardly reads: norms keep them, gradients do not."""
    model = parse(
        """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) <float[16, 3, 1, 1] w1, float[4, 16, 1, 1] w2> {
            a = Conv (x, w1)
            y = Conv (a, w2)
        }"""
    )
    by_name = {value.name: value for value in model.graph.initializer}
    first, second = (onnx.numpy_helper.to_array(by_name[name]).copy() for name in ("w1", "w2"))
    first[:8] *= 10
    second[:, :8] *= 1e-3
    for name, array in (("w1", first), ("w2", second)):
        by_name[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
    data = samples()

    def error(criterion: str) -> float:
        small = lowbit.prune_channels(model, criterion=criterion, data=data, compensate=False)
        runs = [open_session(found, threads=1).run({"x": data})[0] for found in (
            model.SerializeToString(), serialize(small.model))]  # fmt: skip
        return float(np.square(runs[0] - runs[1]).mean())

    assert error("fisher") < 0.01 * error("l2")
    assert error("taylor") < 0.01 * error("l2")


CHAIN = """g (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y)
    <float[32, 3, 1, 1] w1, float[32] b1, float[8, 32, 3, 3] w2, float[8] b2> {
        a = Conv (x, w1, b1)
        r = Relu (a)
        y = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
    }"""


@pytest.mark.parametrize(("text", "most"), [(CHAIN, 0.1), (RESIDUAL, 0.95)], ids=["chain", "residual"])
def test_refitting_helps_on_samples_it_has_not_seen(parse: Parse, text: str, most: float) -> None:
    """In a chain by far, and still where errors meet again in additions and products."""
    model, data = parse(text), samples((96, 3, 8, 8))
    errors = []
    for compensate in (False, True):
        small = lowbit.prune_channels(model, 0.5, data[:64], round_to=4, compensate=compensate)
        runs = [
            open_session(found, threads=1).run({"x": data[64:]})[0]
            for found in (model.SerializeToString(), serialize(small.model))
        ]
        errors.append(float(np.square(runs[0] - runs[1]).mean()))
    assert errors[1] <= most * errors[0]


def test_batch_norm_scales(parse: Parse) -> None:
    model = parse(
        """g (float[1, 3, 4, 4] x) => (float[1, 4, 4, 4] y)
        <float[16, 3, 1, 1] w1, float[16] w_scale, float[16] b_shift, float[16] b_mean, float[16] b_variance,
         float[4, 16, 1, 1] w2> {
            a = Conv (x, w1)
            n = BatchNormalization (a, w_scale, b_shift, b_mean, b_variance)
            r = Relu (n)
            y = Conv (r, w2)
        }"""
    )
    by_name = {value.name: value for value in model.graph.initializer}
    by_name["b_variance"].CopyFrom(onnx.numpy_helper.from_array(np.ones(16, np.float32), "b_variance"))
    scale = onnx.numpy_helper.to_array(by_name["w_scale"])
    result = lowbit.prune_channels(model, criterion="batch-norm")
    left = constant_array(result.model.graph.initializers["w_scale"])
    assert left is not None
    assert sorted(np.abs(left)) == sorted(np.abs(scale))[8:]


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"amount": 1.0}, RecipeError, "amount is 1.0"),
        ({"amount": -0.1}, RecipeError, "amount is -0.1"),
        ({"criterion": "fisher"}, DataError, "without data"),
        ({"criterion": "wanda"}, RecipeError, "criterion is 'wanda'"),
        ({"criterion": "batch-norm"}, RecipeError, "no BatchNorm"),
        ({"allocation": "best"}, RecipeError, "allocation is 'best'"),
        ({"round_to": 0}, RecipeError, "round_to is 0"),
        ({"round_to": 64}, ModelError, "no channel"),
        ({"target_macs": 0.0}, RecipeError, "target of 0.0"),
        ({"target_macs": 0.001}, RecipeError, "cannot be reached"),
        ({"target_macs": 0.5, "target_weights": 0.5}, RecipeError, "more than one target"),
        ({"exclude": ["*"]}, ModelError, "excluded"),
        ({"exclude": ["op:Conv"]}, ModelError, "excluded"),
        ({"data": "random"}, DataError, "random numbers"),
    ],
)
def test_bad_input_is_one_clear_error(
    parse: Parse, options: dict[str, object], kind: type[LowbitError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        lowbit.prune_channels(parse(RESIDUAL), **options)  # type: ignore[arg-type]
