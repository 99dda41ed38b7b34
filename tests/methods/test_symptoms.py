"""What the detectors are shown of whole graphs: masks, normalizations, joins, dead channels, saturating products."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import lowbit
from lowbit.graph import clean, load_model
from lowbit.methods.apply import apply_plan
from lowbit.methods.layer_noise import layer_noises
from lowbit.methods.prepare import prepared_for
from lowbit.methods.symptoms import causes_in_layers
from lowbit.plan.sites import find_sites
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

    from lowbit.plan.diagnosis import Cause

EXACT = "onnxruntime-arm64"


@pytest.fixture(autouse=True)
def _without_measuring_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory takes two processes a time, which would be most of the time of these tests."""
    monkeypatch.setattr("lowbit.methods.verify.peak_memory_mb", lambda *_, **__: 10.0)


def replace(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], None]) -> None:
    import onnx

    tensor = next(item for item in proto.graph.initializer if item.name == name)
    array = onnx.numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))


def causes(proto: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], **options: object) -> list[Cause]:
    """Quantize and return every cause that is found."""
    options = {"method": "static", "calibration": "minmax", "target": EXACT, **options}
    result = lowbit.quantize(proto, feeds, test_data=feeds, measure_seconds=0, **options)
    model = clean(load_model(proto)).model
    sites = find_sites(prepared_for(model, result.plan), find_target(str(options["target"])))
    found = causes_in_layers(model, sites, apply_plan(model, result.plan), feeds)
    return [cause for each in found.values() for cause in each]


def kinds(found: list[Cause]) -> set[str]:
    return {cause.kind for cause in found}


def test_a_mask_at_a_softmax(parse: Callable, noise: Callable) -> None:
    proto = parse("""g (float[1, 8, 8] x, float[8, 8] w0, float[1, 8, 8] b_mask, float[8, 16] w1)
        => (float[1, 8, 16] y) {
        q = MatMul (x, w0)
        s = Add (q, b_mask)
        p = Softmax <axis = -1> (s)
        y = MatMul (p, w1)
    }""")
    feeds = noise(proto, count=6)
    replace(proto, "b_mask", lambda array: array.fill(0.5))
    assert "Softmax mask" not in kinds(causes(proto, feeds))
    replace(proto, "b_mask", lambda array: np.copyto(array, np.triu(np.full((1, 8, 8), -1e4), 1)))
    found = [cause for cause in causes(proto, feeds) if cause.kind == "Softmax mask"]
    assert [cause.evidence["mask"] for cause in found] == [pytest.approx(-1e4, rel=1e-3)]


def test_outliers_behind_a_normalization(parse: Callable, noise: Callable) -> None:
    proto = parse("""g (float[1, 6, 32] x, float[32] w_scale, float[32, 16] w) => (float[1, 6, 16] y) {
        n = LayerNormalization <axis = -1> (x, w_scale)
        y = MatMul (n, w)
    }""")
    replace(proto, "w_scale", lambda array: array.fill(1.0))
    assert "LayerNorm outliers" not in kinds(causes(proto, noise(proto, count=6)))
    replace(proto, "w_scale", lambda array: np.put(array, 9, 50.0))
    for method in ("static", "dynamic"):
        found = causes(proto, noise(proto, count=6), method=method)
        assert [cause.evidence["channel"] for cause in found if cause.kind == "LayerNorm outliers"] == [9]


def test_unlike_branches_and_dead_channels(parse: Callable, noise: Callable) -> None:
    text = """g (float[1, 8, 9, 9] x, float[8, 8, 1, 1] w1, float[8, 8, 1, 1] w2, float[8, 8, 1, 1] w3)
        => (float[1, 8, 9, 9] y) {
        a = Conv (x, w1)
        b = Conv (x, w2)
        s = Add (a, b)
        y = Conv (s, w3)
    }"""
    proto = parse(text)
    assert kinds(causes(proto, noise(proto, count=6))) == set()
    replace(proto, "w2", lambda array: np.multiply(array, 0.01, out=array))
    found = causes(proto, noise(proto, count=6))
    assert kinds(found) == {"shared range"}
    assert found[0].evidence["ratio"] > 30
    proto = parse(text)
    for name in ("w1", "w2"):
        replace(proto, name, lambda array: array[2].fill(0.0))
    found = causes(proto, noise(proto, count=6))
    assert kinds(found) == {"dead channels"}
    assert found[0].evidence["dead"] == 1


def test_products_that_would_saturate(parse: Callable, noise: Callable) -> None:
    proto = parse("g (float[1, 64] x, float[64, 16] w) => (float[1, 16] y) { y = MatMul (x, w) }")
    # All weights of a column at its maximum: no pair of products is safe.
    replace(proto, "w", lambda array: np.copyto(array, np.where(array > 0, 0.5, -0.497)))
    feeds = noise(proto, count=6)
    assert "saturation" in kinds(causes(proto, feeds, target="onnxruntime-x86-avx2", rounding="nearest"))
    assert "saturation" not in kinds(causes(proto, feeds, rounding="nearest"))


def test_noise_is_told_apart_by_weights_and_activations(parse: Callable, noise: Callable) -> None:
    proto = parse("""g (float[1, 8, 9, 9] x, float[8, 8, 3, 3] w1, float[8, 8, 1, 1] w2) => (float[1, 8, 9, 9] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        b = Relu (a)
        y = Conv (b, w2)
    }""")
    feeds = noise(proto, count=6)
    target = find_target(EXACT)
    parts = {}
    for weights, activations in (("int4", "uint8"), ("int8", "uint8")):
        result = lowbit.quantize(
            proto, feeds, method="static", weights=weights, activations=activations, target=EXACT, measure_seconds=0
        )
        found = layer_noises(clean(load_model(proto)).model, result.plan, target, feeds)
        assert set(found) == {site.node for site in result.plan.sites if site.execution == "static"}
        parts[weights] = found
    for node, coarse in parts["int4"].items():
        fine = parts["int8"][node]
        assert coarse.noise > 4 * fine.noise
        assert coarse.weights is not None
        assert fine.weights is not None
        assert coarse.weights > 0.8 > fine.weights
