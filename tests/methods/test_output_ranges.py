"""Ranges by the outputs of what reads a tensor: better there than the tensor's own, and worse on the tensor."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

import lowbit
from lowbit.formats import parse_format
from lowbit.graph import clean, load_model, serialize
from lowbit.methods.decide import activation_format
from lowbit.methods.output_ranges import OutputRange, output_ranges
from lowbit.plan.sites import find_sites
from lowbit.statistics import histogram_init, histogram_update, mse_range
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

TARGET = "onnxruntime-x86-avx2"
GEMM = "g (float[N,8] x, float[8,6] w1, float[6] b1) => (float[N,6] y) { y = Gemm(x, w1, b1) }"


def with_idle_inputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Let nearly nothing of the outputs depend on the last two inputs."""
    from onnx import numpy_helper

    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "w1")
    weight = numpy_helper.to_array(tensor).copy()
    weight[6:] *= 1e-3
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return proto


def heavy(count: int, *, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Return samples whose last two numbers are ten times as large as the others."""
    generator = np.random.default_rng(seed)
    sizes = np.array([1, 1, 1, 1, 1, 1, 10, 10], dtype=np.float32)
    return [{"x": generator.standard_normal((16, 8)).astype(np.float32) * sizes} for _ in range(count)]


def coded(x: np.ndarray, low: float, high: float, codes: int) -> np.ndarray:
    scale = (high - low) / (codes - 1)
    zero_point = np.rint(-low / scale)
    return (np.clip(np.rint(x / scale) + zero_point, 0, codes - 1) - zero_point) * scale


@pytest.mark.parametrize("name", ["uint8", "uint4"])
def test_outputs_become_better_and_the_tensor_worse(name: str, parse: Callable) -> None:
    proto = with_idle_inputs(parse(GEMM))
    model = clean(load_model(proto)).model
    sites = find_sites(model, find_target(TARGET))
    feeds = heavy(32)
    histogram = histogram_init()
    for feed in feeds:
        histogram = histogram_update(histogram, feed["x"])
    fmt = activation_format(name)
    (site,) = sites
    found = output_ranges(model, sites, {site.path: "static"}, fmt, {"x": histogram}, feeds)["x"]
    own = mse_range(histogram, fmt.element.code_count)
    fresh = np.concatenate([feed["x"] for feed in heavy(32, seed=5)])
    weight = site.weight_array()

    def errors(low: float, high: float) -> tuple[float, float]:
        error = coded(fresh, low, high, fmt.element.code_count) - fresh
        return float(np.square(error).mean()), float(np.square(error @ weight).mean())

    tensor, outputs = zip(errors(own.low, own.high), errors(found.low, found.high), strict=True)
    assert tensor[1] > tensor[0]
    assert outputs[1] < 0.5 * outputs[0]
    # As good as the best of a fine grid of both ends, to what few samples tell.
    ends = np.geomspace(1, 30, 40)
    assert outputs[1] < 1.15 * min(errors(-a, b)[1] for a in ends for b in ends)
    said = [float(text) for text in re.findall(r"(\S+) % -> (\S+) %", found.note)[0]]
    power = np.sqrt(np.square(fresh @ weight).mean())
    np.testing.assert_allclose(said, [100 * np.sqrt(each) / power for each in outputs], rtol=0.15)


def test_what_is_known_is_not_measured_again_unless_others_read(parse: Callable) -> None:
    proto = parse(GEMM)
    model = clean(load_model(proto)).model
    sites = find_sites(model, find_target(TARGET))
    executions = {site.path: "static" for site in sites}
    histogram = histogram_update(histogram_init(), heavy(1)[0]["x"])
    fmt = parse_format("uint8:asymmetric")
    for readers, kept in (((sites[0].path,), True), (("other",), False)):
        known = {"x": OutputRange(low=-1.0, high=1.0, readers=readers, note="")}
        got = output_ranges(model, sites, executions, fmt, {"x": histogram}, heavy(4), known=known)
        assert (got["x"] == known["x"]) is kept


BRANCHED = (
    "g (float[N,4,6,6] x, float[8,4,1,1] w1, float[8] b1, float[8,8,3,3] w2, float[8,1,3,3] w3) => (float[N,8,3,3] y)"
    " { a = Conv(x, w1, b1) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) c = Conv<pads=[1,1,1,1]>(p, w2)"
    " d = Conv<group=8, pads=[1,1,1,1]>(c, w3) y = Add(c, d) }"
)


def test_through_pools_branches_and_groups(parse: Callable, noise: Callable) -> None:
    proto = parse(BRANCHED)
    options = {"method": "static", "target": TARGET, "measure_seconds": 0, "calibration": "output-mse"}
    feeds = noise(proto, 24)
    result = lowbit.quantize(proto, data=feeds, **options)
    reasons = {entry.tensor: entry.reason for entry in result.plan.activations}
    # The pool hands on the codes of what it reads, whose range its reader's outputs chose.
    assert reasons["a"].startswith("output-mse over")
    assert "shares the scale of a" in reasons["p"]
    assert "error of what reads it" in reasons["c"]
    assert reasons["d"].startswith("mse over")
    again = lowbit.quantize(proto, data=feeds, **options)
    assert serialize(again.model) == serialize(result.model)
    plain = lowbit.quantize(proto, data=feeds, **{**options, "calibration": "mse"})
    scores = [each.verification.outputs[0].sqnr_simulated_db for each in (plain, result)]
    assert scores[1] > scores[0] - 0.5


def test_random_numbers_choose_nothing(parse: Callable) -> None:
    result = lowbit.quantize(
        parse(GEMM), data="random", method="static", target=TARGET, measure_seconds=0, calibration="output-mse"
    )
    assert all(entry.reason.startswith("mse over") for entry in result.plan.activations)
