"""Layers rounded for what coded layers before them give make up for those, and are undone where they do not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

import lowbit
from lowbit.exceptions import RecipeError
from lowbit.graph import serialize
from lowbit.methods.apply import apply_plan
from lowbit.methods.coded_walk import count_layers, walked
from lowbit.methods.quantized_inputs import rounded_for_quantized_inputs
from lowbit.plan.plan import Plan
from lowbit.plan.recipe import Recipe
from lowbit.runtime.session import open_session
from lowbit.runtime.staging import with_outputs
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.methods.coded_walk import Layer
    from lowbit.plan.plan import SitePlan

TARGET = "onnxruntime-x86-avx2"
NET = (
    "g (float[N,3,10,10] x, float[16,3,3,3] w1, float[16] b1, float[16,1,3,3] w2, float[16] b2, float[12,16,1,1] w3,"
    " float[12] b3, float[12,12,1,1] w4, float[12] b4) => (float[N,12,10,10] y) {"
    " a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) c = Conv<pads=[1,1,1,1], group=16>(r, w2, b2) s = Relu(c)"
    " d = Conv(s, w3, b3) e = Conv(d, w4, b4) t = Add(d, e) y = Relu(t) }"
)
SHARED = (
    "g (float[N,6,24] x, float[24,24] w1, float[24] b1, float[24,24] w2) => (float[N,6,24] y)"
    " { a = MatMul(x, w1) b = Add(a, b1) r = Relu(b) c = MatMul(r, w2) s = Relu(c) y = MatMul(s, w2) }"
)
STATIC = {"weights": "int4:per-channel", "activations": "uint8", "rounding": "gptq"}


def error(model: object, exact: object, feeds: list[dict[str, np.ndarray]]) -> float:
    sessions = [open_session(serialize(each), optimized=False) for each in (exact, model)]  # type: ignore[arg-type]
    return float(np.mean([np.square(sessions[0].run(f)[0] - sessions[1].run(f)[0]).mean() for f in feeds]))


def test_outputs_are_nearer_on_samples_that_nobody_saw(parse: Callable, noise: Callable) -> None:
    proto = parse(NET)
    options = {**STATIC, "method": "static", "target": TARGET, "measure_seconds": 0}
    results = [
        lowbit.quantize(
            proto, data=noise(proto, 40), test_data=noise(proto, 12, seed=9), rounding_inputs=way, **options
        )
        for way in ("float", "quantized")
    ]
    plain, better = (result.verification.outputs[0].sqnr_simulated_db for result in results)
    assert better > plain + 0.5
    notes = [" ".join(entry.notes) for entry in results[1].plan.sites]
    assert sum("rounding for quantized inputs" in note for note in notes) >= 2
    plan = Plan.from_dict(results[1].plan.to_dict())
    again = lowbit.quantize(proto, test_data=noise(proto, 3), plan=plan, target=TARGET, measure_seconds=0)
    assert serialize(again.model) == serialize(results[1].model)


def test_weights_become_worse_and_outputs_better(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(NET)
    feeds = noise(proto, 32)
    built = build(proto, feeds, **STATIC)
    plan = rounded_for_quantized_inputs(built.model, built.applied.plan, find_target(TARGET), feeds)
    again = apply_plan(built.model, plan)
    assert error(again.model, built.model, feeds) < 0.8 * error(built.applied.model, built.model, feeds)
    lost = [
        sum(np.square(w.encoded.decode() - w.original).sum() for w in applied.weights.values())
        for applied in (built.applied, again)
    ]
    assert lost[1] > lost[0]


def test_notes_are_what_the_artifact_does(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(NET)
    feeds = noise(proto, 32)
    built = build(proto, feeds, **STATIC)
    plan = rounded_for_quantized_inputs(built.model, built.applied.plan, find_target(TARGET), feeds)
    again = apply_plan(built.model, plan)
    # The last layer before the sum: what its note says of held-out samples shows in the artifact's own tensor.
    entry = [entry for entry in plan.sites if entry.weights is not None][2]
    after = float(re.findall(r"-> (\S+) %", entry.notes[-1])[-1]) / 100
    held = feeds[3::4]
    names = ["d"]
    exact, coded = (
        open_session(serialize(with_outputs(model, ("d",))), optimized=False) for model in (built.model, again.model)
    )
    pairs = [(exact.run(feed, names)[0], coded.run(feed, names)[0]) for feed in held]
    bias = next(t for t in proto.graph.initializer if t.name == "b3")
    shift = np.frombuffer(bias.raw_data, dtype=np.float32).reshape(-1, 1, 1)
    power = np.mean([np.square(y - shift).mean() for y, _ in pairs])
    measured = np.sqrt(np.mean([np.square(y - z).mean() for y, z in pairs]) / power)
    # Other positions are looked at, codes come from all samples, and the tensor is rounded to codes itself.
    assert measured == pytest.approx(after, rel=0.35)


def test_what_does_not_help_is_undone(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(NET)
    feeds = noise(proto, 8)
    # Eight bits, and inputs of noise: what is left to gain is less than chance.
    built = build(proto, feeds, weights="int8:per-channel", activations="int16", rounding="gptq")
    plan = rounded_for_quantized_inputs(built.model, built.applied.plan, find_target(TARGET), feeds, biases=False)
    for entry, old in zip(plan.sites, built.applied.plan.sites, strict=True):
        if entry.notes and "kept" in entry.notes[-1]:
            assert (entry.rounding, entry.bias) == (old.rounding, old.bias)


def test_shared_weights_keep_their_codes(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(SHARED)
    feeds = noise(proto, 16)
    built = build(proto, feeds, **STATIC)
    plan = rounded_for_quantized_inputs(built.model, built.applied.plan, find_target(TARGET), feeds)
    shared = [site for site in plan.sites if site.weights is not None][1:]
    before = [site for site in built.applied.plan.sites if site.weights is not None][1:]
    assert shared == before


def test_saturating_kernels_get_legal_codes(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(NET)
    feeds = noise(proto, 16)
    built = build(proto, feeds, weights="int8:per-channel", activations="uint8", rounding="gptq")
    target = find_target(TARGET)
    assert target.saturates
    plan = rounded_for_quantized_inputs(built.model, built.applied.plan, target, feeds)
    again = apply_plan(built.model, plan)  # refuses codes that are not
    sessions = [open_session(serialize(again.model), optimized=way) for way in (True, False)]
    step = max(entry.scale for entry in plan.activations if entry.tensor == "y")
    for feed in feeds[:4]:
        real, simulated = (session.run(feed)[0] for session in sessions)
        assert np.abs(real - simulated).max() <= 1.01 * step


def test_what_is_held_on_disk_gives_the_same_plan(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(NET)
    feeds = noise(proto, 8)
    built = build(proto, feeds, **STATIC)
    target = find_target(TARGET)
    seen: list[list[float]] = []
    counted = []
    for memory in (1 << 30, 0):
        sums: list[float] = []

        def change(layer: Layer, sums: list[float] = sums) -> SitePlan:
            sums += [float(np.abs(x - y).sum()) for x, y in (*layer.inputs(), *layer.outputs())]
            return layer.entry

        plan = walked(
            built.model, built.applied.plan, target, feeds, change, memory=memory, advance=lambda: counted.append(1)
        )
        assert plan == built.applied.plan
        seen.append(sums)
    assert seen[0] == seen[1]
    assert len(counted) == 2 * count_layers(built.model, target)


def test_rounding_to_nearest_looks_at_no_inputs() -> None:
    with pytest.raises(RecipeError, match="looks at no inputs"):
        Recipe(rounding="nearest", rounding_inputs="quantized")


def test_random_numbers_do_not_show_inputs(parse: Callable) -> None:
    result = lowbit.quantize(
        parse(NET), data="random", method="static", target=TARGET, measure_seconds=0, rounding_inputs="quantized"
    )
    assert any("were not rounded for quantized inputs" in warning for warning in result.plan.warnings)


@pytest.mark.parametrize("better", [True, False])
def test_best_learns_from_what_errs_less(
    parse: Callable, noise: Callable, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    proto = parse(NET)
    if not better:
        found: list[float] = []

        def rising(*_: object) -> float:
            # The plan, the one for quantized inputs, and what was learned from the better.
            found.append((0.5, 1.0, 0.1)[len(found)])
            return found[-1]

        monkeypatch.setattr("lowbit.methods.output_error.OutputError.of", rising)
    options = {**STATIC, "method": "static", "rounding": "learned", "target": TARGET, "measure_seconds": 0}
    result = lowbit.quantize(proto, data=noise(proto, 40), test_data=noise(proto, 12, seed=9), **options)
    notes = [note for entry in result.plan.sites for note in entry.notes]
    assert any("rounding for quantized inputs" in note for note in notes) is better
