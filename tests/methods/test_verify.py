"""Verification: its arithmetic, what it finds wrong, and that it measures the files it is given."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.exceptions import DataError
from lowbit.graph import serialize
from lowbit.methods.verify import sqnr_db, unfused_sites, verify
from lowbit.plan.sites import find_sites
from lowbit.runtime.kernels import read_kernels
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lowbit.plan.verification import Verification

NETWORK = """g (float[1,8,9,9] x, float[16,8,3,3] w, float[784,10] wm, float[10] bm) => (float[1,10] y) {
    c = Conv(x, w)
    r = Relu(c)
    f = Flatten(r)
    m = MatMul(f, wm)
    y = Add(m, bm)
}"""


def check(folder: Path, reference: bytes, changed: bytes, feeds: list, **options: object) -> Verification:
    (folder / "float.onnx").write_bytes(reference)
    (folder / "artifact.onnx").write_bytes(changed)
    settings = {"cleaned": None, "artifact": None, "plan": None, "sites": (), "seconds": 0.0, "memory": False}
    return verify(
        float_path=folder / "float.onnx",
        artifact_path=folder / "artifact.onnx",
        feeds=feeds,
        quality_threads=1,
        **(settings | options),  # type: ignore[arg-type]
    )


def test_sqnr_by_its_definition() -> None:
    assert sqnr_db(100.0, 1.0) == pytest.approx(20.0)
    assert sqnr_db(1.0, 1.0) == 0.0
    assert sqnr_db(1.0, 2.0) == pytest.approx(-3.0103, abs=1e-4)
    assert sqnr_db(5.0, 0.0) == 200.0
    assert sqnr_db(0.0, 0.0) == 200.0
    assert sqnr_db(0.0, 1.0) == -200.0
    assert sqnr_db(1.0, math.inf) == sqnr_db(1.0, math.nan) == -200.0


@given(*[st.floats(1e-9, 1e9)] * 2, st.floats(1e-6, 1e6))
def test_sqnr_is_a_ratio(signal: float, noise: float, factor: float) -> None:
    assert sqnr_db(signal * factor, noise * factor) == pytest.approx(sqnr_db(signal, noise), abs=1e-6)
    assert sqnr_db(signal, noise * 10) == pytest.approx(sqnr_db(signal, noise) - 10, abs=1e-6)


def test_outputs_are_compared_over_all_samples(tmp_path: Path, parse: Callable, noise: Callable) -> None:
    """An artifact that is 1 % too large everywhere has 40 dB, and one that scales one class decides otherwise."""
    text = "g (float[4,5] x) => (float[4,5] y) <float[5] k = {%s}> { y = Mul(x, k) }"
    reference = parse(text % "1.0, 1.0, 1.0, 1.0, 1.0")
    feeds = noise(reference, count=6)
    louder = parse(text % ", ".join(["1.01"] * 5))
    found = check(tmp_path, reference.SerializeToString(), louder.SerializeToString(), feeds)
    (output,) = found.outputs
    assert found.samples == 6
    assert output.name == "y"
    assert output.sqnr_real_db == pytest.approx(40.0, abs=0.01)
    assert output.sqnr_simulated_db == pytest.approx(40.0, abs=0.01)
    assert output.top1_agreement == 1.0
    assert output.max_error == pytest.approx(0.01 * max(np.abs(feed["x"]).max() for feed in feeds), rel=1e-4)

    flipped = parse(text % "-1.0, 1.0, 1.0, 1.0, 1.0")
    (output,) = check(tmp_path, reference.SerializeToString(), flipped.SerializeToString(), feeds).outputs
    every = np.concatenate([feed["x"] for feed in feeds])
    other = every * np.array([-1, 1, 1, 1, 1], np.float32)
    assert output.top1_agreement == pytest.approx((every.argmax(1) == other.argmax(1)).mean())
    signal, difference = np.square(every).sum(), np.square(other - every).sum()
    assert output.sqnr_real_db == pytest.approx(10 * np.log10(signal / difference), abs=1e-3)


def test_pictures_have_no_top1(tmp_path: Path, parse: Callable, noise: Callable) -> None:
    proto = parse("g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Tanh(x) }")
    data = proto.SerializeToString()
    (output,) = check(tmp_path, data, data, noise(proto)).outputs
    assert output.top1_agreement is None
    assert output.sqnr_real_db > 100


def test_an_artifact_that_yields_nan_is_as_bad_as_can_be(tmp_path: Path, parse: Callable, noise: Callable) -> None:
    good = parse("g (float[1,3] x) => (float[1,3] y) { y = Tanh(x) }")
    bad = parse("g (float[1,3] x) => (float[1,3] y) { y = Log(x) }")
    feeds = [{"x": np.array([[1.0, -1.0, 0.5]], np.float32)}]
    (output,) = check(tmp_path, good.SerializeToString(), bad.SerializeToString(), feeds).outputs
    assert output.sqnr_real_db == -200.0


def test_no_samples_are_refused(tmp_path: Path, parse: Callable) -> None:
    data = parse("g (float[1,3] x) => (float[1,3] y) { y = Tanh(x) }").SerializeToString()
    with pytest.raises(DataError, match="no samples"):
        check(tmp_path, data, data, [])


def test_the_users_metric_sees_outputs_and_labels(tmp_path: Path, parse: Callable, noise: Callable) -> None:
    proto = parse("g (float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Tanh(x)\n z = Neg(x) }")
    feeds = noise(proto, count=5)
    calls = []

    def metric(outputs: list[list[np.ndarray]], labels: np.ndarray | None) -> float:
        calls.append((outputs, labels))
        return float(len(calls))

    labels = np.arange(5)
    data = proto.SerializeToString()
    found = check(tmp_path, data, data, feeds, metric=metric, metric_name="calls", labels=labels)
    assert found.metric is not None
    assert (found.metric.name, found.metric.float_value, found.metric.artifact_value) == ("calls", 1.0, 2.0)
    assert found.metric.samples == 5
    for outputs, given_labels in calls:
        assert given_labels is labels
        assert len(outputs) == 5
        assert all(np.array_equal(z, -feed["x"]) for (_, z), feed in zip(outputs, feeds, strict=True))


def test_everything_fused_and_layers_are_accounted_for(
    tmp_path: Path, parse: Callable, noise: Callable, build: Callable
) -> None:
    proto = parse(NETWORK)
    feeds = noise(proto, count=5)
    built = build(proto, feeds)
    sites = find_sites(built.model, find_target("onnxruntime-x86-avx2"))
    found = check(
        tmp_path,
        built.float_bytes,
        built.artifact_bytes,
        feeds,
        cleaned=built.model,
        artifact=built.applied.model,
        plan=built.applied.plan,
        sites=sites,
    )
    assert found.unfused == ()
    assert found.planned_integer == 2
    assert found.integer_kernels >= 2
    assert found.kernels["QLinearConv"] == 1
    assert found.float_bytes == len(built.float_bytes)
    assert found.artifact_bytes == len(built.artifact_bytes)
    tensors = {layer.tensor: layer for layer in found.layers}
    assert {"r", "y"} <= set(tensors)
    for layer in found.layers:
        assert layer.sqnr_simulated_db > 30
        assert layer.sqnr_real_db is None or abs(layer.sqnr_real_db - layer.sqnr_simulated_db) < 0.5
    assert tensors["r"].sqnr_real_db is not None


def test_a_fusion_broken_on_purpose_is_reported(parse: Callable, noise: Callable, build: Callable) -> None:
    """A Tanh between the Conv and its codes: what a careless tool leaves there. The plan still says integers."""
    proto = parse(NETWORK)
    built = build(proto, noise(proto))
    sites = find_sites(built.model, find_target("onnxruntime-x86-avx2"))
    (conv,) = (site.path for site in sites if site.op_type == "Conv")
    assert unfused_sites(read_kernels(built.artifact_bytes), built.applied.plan, sites) == ()
    broken = onnx.load_from_string(built.artifact_bytes)
    index, node = next((i, node) for i, node in enumerate(broken.graph.node) if node.op_type == "Conv")
    name = node.output[0]
    node.output[0] = "before_tanh"
    broken.graph.node.insert(index + 1, onnx.helper.make_node("Tanh", ["before_tanh"], [name], name="in_the_way"))
    kernels = read_kernels(broken.SerializeToString())
    assert "QLinearConv" not in kernels.counts()
    assert unfused_sites(kernels, built.applied.plan, sites) == (conv,)


def test_verifying_does_not_change_the_graphs(
    tmp_path: Path, parse: Callable, noise: Callable, build: Callable
) -> None:
    proto = parse(NETWORK)
    feeds = noise(proto, count=2)
    built = build(proto, feeds)
    before = serialize(built.applied.model)
    check(
        tmp_path,
        built.float_bytes,
        built.artifact_bytes,
        feeds,
        cleaned=built.model,
        artifact=built.applied.model,
        plan=built.applied.plan,
        sites=find_sites(built.model, find_target("host")),
    )
    assert serialize(built.applied.model) == before
