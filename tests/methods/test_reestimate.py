"""Coded layers get back the mean and spread of every float output, in scales and biases, and only where it helps."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

import lowbit
from lowbit.graph import serialize
from lowbit.methods.apply import apply_plan
from lowbit.methods.reestimate import reestimated_plan
from lowbit.plan.plan import Plan
from lowbit.runtime.session import open_session
from lowbit.runtime.staging import with_outputs
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

TARGET = "onnxruntime-x86-avx2"
NETS = {
    "conv": "g (float[N,3,8,8] x, float[24,3,3,3] w1, float[24] b1, float[24,6,3,3] w2, float[24] b2,"
    " float[16,24,1,1] w3, float[16] b3) => (float[N,16,8,8] y) { a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a)"
    " c = Conv<pads=[1,1,1,1], group=4>(r, w2, b2) s = Relu(c) y = Conv(s, w3, b3) }",
    "matmul": "g (float[N,7,32] x, float[32,32] w1, float[32] b1, float[32,32] w2, float[32] b2) => (float[N,7,32] y)"
    " { m = MatMul(x, w1) a = Add(m, b1) r = Relu(a) n = MatMul(r, w2) y = Add(n, b2) }",
    "gemm": "g (float[N,32] x, float[32,32] w1, float[32] b1, float[8,32] w2, float[8] b2) => (float[N,8] y)"
    " { a = Gemm(x, w1, b1) r = Relu(a) y = Gemm<transB=1>(r, w2, b2) }",
}


def run(model: ir.Model, names: list[str], feeds: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    session = open_session(serialize(with_outputs(model, tuple(names))), optimized=False)
    return [session.run(feed, names) for feed in feeds]


def positive(feeds: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    return [{"x": np.abs(feed["x"])} for feed in feeds]


@pytest.mark.parametrize("weights", ["int3:per-channel", "int4:block=16", "int4:per-tensor"])
@pytest.mark.parametrize("name", NETS)
def test_means_and_spreads_are_those_of_float(
    name: str, weights: str, parse: Callable, noise: Callable, build: Callable
) -> None:
    proto = parse(NETS[name])
    feeds = positive(noise(proto, 24))
    options = {"method": "weight-only", "optimize": "size", "bias_correction": False, "rounding": "nearest"}
    built = build(proto, feeds, weights=weights, **options)
    plan = reestimated_plan(built.model, built.applied.plan, find_target(TARGET), feeds)
    again = apply_plan(built.model, plan)
    outputs = {"conv": ["a", "c", "y"], "matmul": ["a", "y"], "gemm": ["a", "y"]}[name]
    axis = 1 if name == "conv" else -1
    stacks = [
        [np.concatenate([np.moveaxis(each[i], axis, 0).reshape(each[i].shape[axis], -1) for each in found], axis=1)
         for i in range(len(outputs))]
        for found in (run(model, outputs, feeds) for model in (built.model, built.applied.model, again.model))
    ]  # fmt: skip
    entries = [entry for entry in plan.sites if entry.weights is not None]
    for exact, coded, restored, entry in zip(*stacks, entries, strict=True):
        note = entry.notes[-1]
        before, after = (float(text) for text in re.findall(r"([\d.e+-]+) %", note)[:2])
        if "by restoring" not in note:
            assert after >= before
            continue
        np.testing.assert_allclose(restored.mean(axis=1), exact.mean(axis=1), atol=2e-3 * exact.std())
        if "spreads" in note and weights == "int3:per-channel":
            wanted = exact.std(axis=1)
            alive = np.abs(np.log2(wanted / coded.std(axis=1))) < 0.9
            np.testing.assert_allclose(restored.std(axis=1)[alive], wanted[alive], rtol=5e-3)
        assert np.square(restored - exact).mean() < np.square(coded - exact).mean()
    assert any("by restoring" in entry.notes[-1] for entry in entries)
    if "block" in weights or "channel" in weights:
        assert any(entry.scale is not None for entry in entries)
    else:  # one scale for all channels cannot hold factors
        assert all(entry.scale is None for entry in entries)


def test_codes_stay_and_the_plan_gives_the_same_bytes(parse: Callable, noise: Callable) -> None:
    proto = parse(NETS["conv"])
    feeds = positive(noise(proto, 24))
    options = {"method": "static", "weights": "int3", "activations": "uint8", "target": TARGET, "measure_seconds": 0}
    plain, restored = (lowbit.quantize(proto, data=feeds, reestimate=way, **options) for way in (False, True))
    changed = [entry for entry in restored.plan.sites if entry.scale is not None]
    assert changed
    again = lowbit.quantize(
        proto, test_data=feeds[:3], plan=Plan.from_dict(restored.plan.to_dict()), target=TARGET, measure_seconds=0
    )
    assert serialize(again.model) == serialize(restored.model)
    scores = [each.verification.outputs[0].sqnr_simulated_db for each in (plain, restored)]
    assert scores[1] > scores[0]


def test_what_is_right_already_is_left_alone(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(NETS["gemm"])
    feeds = noise(proto, 40)
    # Eight bits of a plain layer have nothing to restore that others than the samples it was measured on would show.
    built = build(proto, feeds, method="weight-only", optimize="size", weights="int8:per-channel")
    plan = reestimated_plan(built.model, built.applied.plan, find_target(TARGET), feeds)
    for entry, old in zip(plan.sites, built.applied.plan.sites, strict=True):
        if "not restored" in " ".join(entry.notes):
            assert dataclasses.replace(entry, notes=old.notes) == old


def test_saturating_kernels_keep_their_codes(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(NETS["matmul"])
    feeds = positive(noise(proto, 24))
    built = build(proto, feeds, weights="int8:per-channel", activations="uint8", weight_range="mse")
    target = find_target(TARGET)
    assert target.saturates
    plan = reestimated_plan(built.model, built.applied.plan, target, feeds)
    again = apply_plan(built.model, plan)
    for path, weight in again.weights.items():
        if plan.site(path).scale is not None:
            np.testing.assert_array_equal(weight.encoded.codes, built.applied.weights[path].encoded.codes)


def test_random_numbers_restore_nothing(parse: Callable) -> None:
    result = lowbit.quantize(
        parse(NETS["gemm"]), data="random", method="static", target=TARGET, measure_seconds=0, reestimate=True
    )
    assert any("nothing was re-estimated" in warning for warning in result.plan.warnings)
