"""Applying a plan is a pure function: the same plan gives the same bytes, and a plan for another model is refused."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lowbit.exceptions import RecipeError
from lowbit.formats import dequantize, parse_format
from lowbit.graph import clean, digest, load_model, serialize
from lowbit.methods.apply import apply_plan
from lowbit.plan.files import read_plan, write_plan
from lowbit.runtime.kernels import read_kernels
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lowbit.plan.plan import Plan

NETWORK = """g (float[1,8,9,9] x, float[16,8,3,3] w, float[16] b, float[16,1,3,3] wd, float[784,10] wm, float[10] bm)
    => (float[1,10] y, float[1,16,7,7] r) {
    c = Conv(x, w, b)
    r = Relu(c)
    d = Conv<group=16, pads=[1,1,1,1]>(r, wd)
    a = Add(d, r)
    f = Flatten(a)
    m = MatMul(f, wm)
    y = Add(m, bm)
}"""
TWO_PRODUCTS = "g (float[3,256] x, float[256,64] w) => (float[3,64] y, float[3,64] z) {"
LSTM = """g (float[6,1,32] x, float[1,48,32] w, float[1,48,12] wr, float[1,96] b) => (float[6,1,1,12] y)
    { y = LSTM<hidden_size=12>(x, w, wr, b) }"""


def rebuilt(built: object, plan: Plan) -> bytes:
    return serialize(apply_plan(built.model, plan).model)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (NETWORK, {}),
        (NETWORK, {"weights": "int8"}),
        (NETWORK, {"io": "int8"}),
        (NETWORK, {"method": "dynamic"}),
        (NETWORK, {"method": "weight-only", "weights": "int4:block=16"}),
        (NETWORK, {"method": "weight-only", "weights": "float16"}),
        (NETWORK, {"rules": [{"pattern": "op:Conv", "method": "float"}]}),
        (LSTM, {"method": "dynamic"}),
    ],
)
def test_a_plan_gives_the_same_bytes_again_and_from_its_file(
    text: str, options: dict, parse: Callable, noise: Callable, build: Callable, tmp_path: Path
) -> None:
    proto = parse(text)
    built = build(proto, noise(proto), **options)
    plan = built.applied.plan
    assert any(site.execution != "float" for site in plan.sites)
    assert rebuilt(built, plan) == built.artifact_bytes
    write_plan(plan, tmp_path / "plan.yaml")
    again = read_plan(tmp_path / "plan.yaml")
    assert again == plan
    assert rebuilt(built, again) == built.artifact_bytes
    # And from a model that was loaded and cleaned anew.
    assert serialize(apply_plan(clean(load_model(proto)).model, again).model) == built.artifact_bytes


def test_the_artifact_is_checked_onnx_with_the_same_interface(
    parse: Callable, noise: Callable, build: Callable
) -> None:
    proto = parse(NETWORK)
    built = build(proto, noise(proto))
    artifact = onnx.load_from_string(built.artifact_bytes)
    onnx.checker.check_model(artifact, full_check=True)
    for side in ("input", "output"):
        wanted = [(value.name, value.type) for value in getattr(proto.graph, side)]
        assert [(value.name, value.type) for value in getattr(artifact.graph, side)] == wanted
    names = [node.name for node in artifact.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)


def test_the_model_is_left_as_it_was(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(NETWORK)
    built = build(proto, noise(proto))
    before = digest(built.model), serialize(built.model)
    apply_plan(built.model, built.applied.plan)
    assert (digest(built.model), serialize(built.model)) == before
    assert not any(node.op_type == "QuantizeLinear" for node in built.model.graph)


def test_a_plan_for_another_model_is_refused(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(NETWORK)
    built = build(proto, noise(proto))
    other = clean(load_model(parse(NETWORK, seed=1))).model
    with pytest.raises(RecipeError, match="does not fit this model"):
        apply_plan(other, built.applied.plan)


def test_a_plan_that_names_what_is_not_there_is_refused(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(NETWORK)
    built = build(proto, noise(proto))
    plan = built.applied.plan
    ghost = dataclasses.replace(plan.sites[0], node="ghost")
    with pytest.raises(RecipeError, match="ghost"):
        apply_plan(built.model, dataclasses.replace(plan, sites=(*plan.sites, ghost)))
    tensor = dataclasses.replace(plan.activations[0], tensor="phantom")
    with pytest.raises(RecipeError, match="phantom"):
        apply_plan(built.model, dataclasses.replace(plan, activations=(*plan.activations, tensor)))


def test_a_plan_that_wants_the_impossible_is_refused(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse("g (float[1,4] x) => (float[1,4] y) { y = Tanh(x) }")
    built = build(proto, noise(proto))
    (site,) = built.applied.plan.sites
    wanted = dataclasses.replace(built.applied.plan, sites=(dataclasses.replace(site, execution="static"),))
    with pytest.raises(RecipeError, match="no integer kernel for Tanh"):
        apply_plan(built.model, wanted)


def test_what_the_plan_says_of_a_tensor_is_in_the_graph(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(NETWORK)
    built = build(proto, noise(proto))
    quantizers = {node.outputs[0].name: node for node in built.applied.model.graph if node.op_type == "QuantizeLinear"}
    activations = built.applied.plan.activations
    assert len(quantizers) == len(activations) == 5
    for tensor in activations:
        scale, zero_point = (value.const_value.numpy() for value in quantizers[f"{tensor.tensor}_codes"].inputs[1:])
        assert (float(scale), int(zero_point)) == (tensor.scale, tensor.zero_point)
        assert scale.dtype == np.float32
        assert zero_point.dtype == np.uint8


def test_encoded_weights_are_what_the_graph_decodes(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(NETWORK)
    built = build(proto, noise(proto))
    originals = {item.name: onnx.numpy_helper.to_array(item) for item in proto.graph.initializer}
    assert {weight.name for weight in built.applied.weights.values()} == {"w", "wd", "wm"}
    for weight in built.applied.weights.values():
        assert np.array_equal(weight.original, originals[weight.name])
        encoded = weight.encoded
        codes = built.applied.model.graph.initializers[f"{weight.name}_codes"].const_value.numpy()
        assert np.array_equal(codes, encoded.codes)
        assert np.array_equal(encoded.decode(), dequantize(codes, encoded.parameters, encoded.fmt))
        assert np.abs(encoded.decode() - weight.original).max() <= encoded.parameters.scale.max() * 1.5


@pytest.mark.parametrize(
    "options",
    [
        {"method": "static"},
        {"method": "weight-only"},
        {"method": "weight-only", "weights": "int4:block=32"},
        {"method": "weight-only", "weights": "float16"},
    ],
)
def test_tied_weights_are_stored_once(options: dict, parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(TWO_PRODUCTS + " t = Tanh(x)\n y = MatMul(x, w)\n z = MatMul(t, w) }")
    built = build(proto, noise(proto), bias_correction=False, **options)
    stored = [
        value.const_value
        for value in built.applied.model.graph.initializers.values()
        if np.prod(value.const_value.shape, dtype=int) == 256 * 64
    ]
    assert len(stored) == 1
    assert stored[0].dtype != ir.DataType.FLOAT


def test_a_half_precision_weight_is_rounded_to_nearest(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse("g (float[4,128] x, float[128,64] w) => (float[4,64] y) { y = MatMul(x, w) }")
    (original,) = (onnx.numpy_helper.to_array(item) for item in proto.graph.initializer)
    for name in ("float16", "bfloat16"):
        fmt = parse_format(name)
        built = build(proto, noise(proto), method="weight-only", weights=name)
        wanted = original.astype(fmt.element.dtype).astype(np.float32)
        for feed, (_, real, _) in zip(noise(proto), built.run(noise(proto)), strict=True):
            assert np.allclose(real, feed["x"] @ wanted, atol=1e-5)
        assert set(read_kernels(built.artifact_bytes).counts()) == {"MatMul"}


def test_an_integer_interface_takes_and_returns_codes(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse("g (float[1,8,9,9] x, float[16,8,3,3] w) => (float[1,16,7,7] y) { y = Conv(x, w) }")
    feeds = noise(proto)
    built = build(proto, feeds, io="int8")
    plain = build(proto, feeds)
    scales = {item.tensor: item for item in built.applied.plan.activations}
    session = open_session(built.artifact_bytes, threads=1)
    for feed, (_, real, _) in zip(feeds, plain.run(feeds), strict=True):
        x, y = scales["x"], scales["y"]
        codes = np.clip(np.rint(feed["x"] / np.float32(x.scale)) + x.zero_point, 0, 255).astype(np.uint8)
        (got,) = session.run({"x": codes})
        assert got.dtype == np.uint8
        assert np.allclose((got.astype(np.float32) - y.zero_point) * np.float32(y.scale), real, atol=1e-6)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(read_kernels(built.artifact_bytes).counts())
