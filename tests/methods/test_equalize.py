"""Equalized models compute the same, with channels that are more alike; what cannot be equalized says why."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import numpy_helper

import lowbit
from lowbit.graph import clean, load_model, serialize
from lowbit.methods.equalize import equalize
from lowbit.plan.plan import Plan
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

PAIRS = {
    "relu": "g (float[N,4,8,8] x, float[12,4,3,3] w1, float[12] b1, float[6,12,3,3] w2, float[6] b2) =>"
    " (float[N,6,4,4] y) { a = Conv(x, w1, b1) b = Relu(a) y = Conv(b, w2, b2) }",
    "nothing": "g (float[N,4,8,8] x, float[12,4,3,3] w1, float[6,12,3,3] w2) => (float[N,6,4,4] y)"
    " { a = Conv(x, w1) y = Conv(a, w2) }",
    "leaky": "g (float[N,4,8,8] x, float[12,4,3,3] w1, float[12] b1, float[6,12,3,3] w2) => (float[N,6,4,4] y)"
    " { a = Conv(x, w1, b1) b = LeakyRelu<alpha=0.1>(a) y = Conv(b, w2) }",
    "prelu": "g (float[N,4,8,8] x, float[12,4,3,3] w1, float[12] b1, float[12,1,1] w3, float[6,12,3,3] w2) =>"
    " (float[N,6,4,4] y) { a = Conv(x, w1, b1) b = PRelu(a, w3) y = Conv(b, w2) }",
    "pool": "g (float[N,4,8,8] x, float[12,4,3,3] w1, float[12] b1, float[6,12,3,3] w2) => (float[N,6,1,1] y)"
    " { a = Conv(x, w1, b1) b = Relu(a) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b) y = Conv(p, w2) }",
    "separable": "g (float[N,4,8,8] x, float[12,4,1,1] w1, float[12] b1, float[12,1,3,3] w2, float[12] b2,"
    " float[6,12,1,1] w3) => (float[N,6,6,6] y) { a = Conv(x, w1, b1) b = Relu(a)"
    " c = Conv<group=12>(b, w2, b2) d = Relu(c) y = Conv(d, w3) }",
    "grouped": "g (float[N,4,8,8] x, float[12,4,1,1] w1, float[12] b1, float[6,4,3,3] w2) => (float[N,6,6,6] y)"
    " { a = Conv(x, w1, b1) b = Relu(a) y = Conv<group=3>(b, w2) }",
    "gemm": "g (float[N,9] x, float[9,12] w1, float[12] b1, float[5,12] w2, float[5] b2) => (float[N,5] y)"
    " { a = Gemm(x, w1, b1) b = Relu(a) y = Gemm<transB=1>(b, w2, b2) }",
    "matmul": "g (float[N,7,9] x, float[9,12] w1, float[12] b1, float[12,5] w2) => (float[N,7,5] y)"
    " { a = MatMul(x, w1) s = Add(a, b1) b = Relu(s) y = MatMul(b, w2) }",
}
REFUSED = {
    "sigmoid": (
        (
            "g (float[N,4,8,8] x, float[12,4,1,1] w1, float[6,12,1,1] w2) => (float[N,6,8,8] y)"
            " { a = Conv(x, w1) b = Sigmoid(a) y = Conv(b, w2) }"
        ),
        "Sigmoid .* is not positively homogeneous",
    ),
    "relu6": (
        (
            "g (float[N,4,8,8] x, float[12,4,1,1] w1, float[6,12,1,1] w2) => (float[N,6,8,8] y)"
            " { lo = Constant<value_float=0.0>() hi = Constant<value_float=6.0>()"
            " a = Conv(x, w1) b = Clip(a, lo, hi) y = Conv(b, w2) }"
        ),
        "finite upper bound is not homogeneous",
    ),
    "branch": (
        (
            "g (float[N,4,8,8] x, float[4,4,1,1] w1, float[4,4,1,1] w2) => (float[N,4,8,8] y)"
            " { a = Conv(x, w1) b = Conv(a, w2) y = Add(a, b) }"
        ),
        "2 operators read its output",
    ),
    "shared": (
        ("g (float[N,4,8,8] x, float[4,4,1,1] w1) => (float[N,4,8,8] y) { a = Conv(x, w1) y = Conv(a, w1) }"),
        "its weight is shared",
    ),
    "axes": (
        (
            "g (float[N,4,8,8] x, float[8,4,1,1] w1, float[8,5] w2) => (float[N,8,8,5] y)"
            " { a = Conv(x, w1) y = MatMul(a, w2) }"
        ),
        "sums over another axis",
    ),
}


def uneven(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Make the channels between the first two layers very different in size, and what reads them the opposite."""
    sizes = np.geomspace(0.1, 10, 12, dtype=np.float32)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    arrays = {name: numpy_helper.to_array(tensor).copy() for name, tensor in tensors.items()}
    first, second = arrays["w1"], arrays["w2"]
    first *= sizes[:, None, None, None] if first.ndim == 4 else sizes
    if "b1" in arrays:
        arrays["b1"] *= sizes
    if second.ndim == 4:  # [M, C / g, k, k]: a group reads channels of its own
        grouped = second.reshape(12 // second.shape[1], -1, *second.shape[1:])
        grouped /= sizes.reshape(len(grouped), 1, -1, 1, 1)
    else:
        second /= sizes[:, None] if len(second) == 12 else sizes
    for name, tensor in tensors.items():
        tensor.CopyFrom(numpy_helper.from_array(arrays[name], name))
    return proto


def feeds(proto: onnx.ModelProto, count: int) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(3)
    (value,) = proto.graph.input
    shape = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
    return [{"x": generator.standard_normal(shape).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("name", PAIRS)
def test_the_function_stays_and_the_channels_become_alike(name: str, parse: Callable) -> None:
    proto = uneven(parse(PAIRS[name]))
    model = clean(load_model(proto)).model
    before = serialize(model)
    found = equalize(model)
    assert serialize(model) == before
    assert len(found.pairs) == (2 if name == "separable" else 1)
    assert all(after < 0.5 * before for _, _, before, after in found.pairs[:1])
    old, new = (open_session(serialize(each)) for each in (model, found.model))
    for feed in feeds(proto, 3):
        expected, result = old.run(feed)[0], new.run(feed)[0]
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert "equalized" in found.notes[0]
    assert serialize(equalize(model).model) == serialize(found.model)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_equalized_says_why(name: str, parse: Callable) -> None:
    text, reason = REFUSED[name]
    model = clean(load_model(parse(text))).model
    found = equalize(model)
    assert not found.pairs
    assert any(re.search(reason, why) for why in found.refusals.values()), found.refusals
    assert serialize(found.model) == serialize(model)


def test_what_does_not_help_is_undone(parse: Callable) -> None:
    # The channels are alike already: the optimum of the weights' ranges is nothing that outputs would notice.
    proto = parse(PAIRS["relu"])
    first, second = (next(t for t in proto.graph.initializer if t.name == name) for name in ("w1", "w2"))
    for tensor, shape in ((first, (12, 4, 3, 3)), (second, (6, 12, 3, 3))):
        tensor.CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), tensor.name))
    model = clean(load_model(proto)).model
    found = equalize(model)
    assert not found.pairs
    assert "less rounding noise is not to be expected" in " ".join(found.notes)
    assert serialize(found.model) == serialize(model)


def test_one_scale_for_each_tensor_loses_less(parse: Callable) -> None:
    proto = uneven(parse(PAIRS["separable"]))
    options = {"method": "static", "weights": "int8:per-tensor", "target": "onnxruntime-x86-avx2", "measure_seconds": 0}
    results = [lowbit.quantize(proto, data=feeds(proto, 20), equalize=way, **options) for way in (False, True)]
    plain, better = (result.verification.outputs[0].sqnr_simulated_db for result in results)
    assert better > plain + 3
    assert any("equalized" in note for note in results[1].notes)
    plan = Plan.from_dict(results[1].plan.to_dict())
    assert plan.options["equalize"] is True
    assert plan.model_sha256 == results[0].plan.model_sha256
    again = lowbit.quantize(
        proto, test_data=feeds(proto, 3), plan=plan, target="onnxruntime-x86-avx2", measure_seconds=0
    )
    assert serialize(again.model) == serialize(results[1].model)
    assert "lowbit.prepared_from" not in results[1].model.metadata_props
