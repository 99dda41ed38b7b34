"""Limits of accuracy: switches compute what artifacts compute, and plans keep what a recipe demands."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest

import lowbit
from lowbit.exceptions import RecipeError
from lowbit.graph import clean, load_model, serialize
from lowbit.methods.apply import apply_plan
from lowbit.methods.budget import DEFAULT_SQNR, Budget, decibel
from lowbit.methods.calibrate import calibrate, observed_shapes
from lowbit.methods.decide import Decision, decide, make_plan, watch_list
from lowbit.methods.noise_power import compared_tensors
from lowbit.methods.sensitivity import everything_static, measure_sensitivities, open_meter
from lowbit.plan.recipe import Recipe
from lowbit.plan.sites import find_sites
from lowbit.runtime.session import open_session
from lowbit.targets import find_target

if TYPE_CHECKING:
    import onnx_ir as ir

TARGET = find_target("onnxruntime-x86-avx2")
EXACT = find_target("onnxruntime-arm64")


def network(seed: int = 0) -> onnx.ModelProto:
    """Return a residual network with a depthwise layer, a squeeze, a matrix product and a Softmax at its end."""
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 8, 16, 16] x) => (float[N, 10] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            b = Relu (a)
            c = Conv <pads = [1, 1, 1, 1], group = 48> (b, w2, b2)
            d = Relu (c)
            e = Conv (d, w3, b3)
            f = Add (b, e)
            g = Conv <pads = [1, 1, 1, 1]> (f, w4, b4)
            h = Relu (g)
            i = GlobalAveragePool (h)
            j = Flatten (i)
            k = MatMul (j, w5)
            l = Add (k, b5)
            y = Softmax <axis = -1> (l)
        }
    """)
    generator = np.random.default_rng(seed)
    shapes = {
        "w1": (48, 8, 3, 3),
        "b1": (48,),
        "w2": (48, 1, 3, 3),
        "b2": (48,),
        "w3": (48, 48, 1, 1),
        "b3": (48,),
        "w4": (96, 48, 3, 3),
        "b4": (96,),
        "w5": (96, 10),
        "b5": (10,),
    }
    for name, shape in shapes.items():
        scale = 0.5 if len(shape) == 1 else (2 / np.prod(shape[1:] if len(shape) == 4 else shape[:1])) ** 0.5
        array = (generator.standard_normal(shape) * scale).astype(np.float32)
        if name == "w1":
            array[3] *= 30  # one channel in a range of its own: coarse codes for all others
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def samples(count: int = 24) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(1)
    return [{"x": generator.standard_normal((1, 8, 16, 16)).astype(np.float32)} for _ in range(count)]


@dataclasses.dataclass(frozen=True)
class Setting:
    model: ir.Model
    sites: tuple
    feeds: list
    recipe: Recipe
    target: object
    shapes: dict
    everything: Decision
    calibration: object
    meter: object

    def budget(self, **options: object) -> Budget:
        recipe = dataclasses.replace(self.recipe, **options)
        return Budget(self.sites, recipe, self.target, self.shapes, self.meter)

    def built(self, decision: Decision) -> ir.Model:
        plan = make_plan(self.model, self.sites, self.recipe, self.target, decision, self.calibration, self.shapes)
        return apply_plan(self.model, plan, target=self.target).model


def setting(target=TARGET, **options: object) -> Setting:
    model = clean(load_model(network())).model
    sites = find_sites(model, target)
    feeds = samples()
    recipe = Recipe(target=target.name, **options)
    shapes = observed_shapes(model, feeds[0])
    everything = everything_static(sites, recipe, target, shapes)
    calibration = calibrate(model, feeds, watch_list(sites, everything, recipe))
    meter = open_meter(model, sites, recipe, target, everything, calibration, shapes, feeds, samples=6)
    return Setting(model, sites, feeds, recipe, target, shapes, everything, calibration, meter)


def measured(artifact: ir.Model, model: ir.Model, feeds: list) -> float:
    """Return the noise power of an artifact before the Softmax, run as it is written."""
    name = compared_tensors(model)[0].name

    def run(source: ir.Model) -> list[np.ndarray]:
        copy = source.clone()
        values = {value.name: value for node in copy.graph for value in node.outputs}
        copy.graph.outputs.append(values[name])
        session = open_session(serialize(copy), optimized=False)
        return [session.run(feed, [name])[0].astype(np.float64) for feed in feeds]

    signal = error = 0.0
    for exact, actual in zip(run(model), run(artifact), strict=True):
        exact = exact - exact.mean(axis=-1, keepdims=True)
        actual = actual - actual.mean(axis=-1, keepdims=True)
        signal += float((exact**2).sum())
        error += float(((actual - exact) ** 2).sum())
    return error / signal


@pytest.mark.parametrize("target", [TARGET, EXACT], ids=["saturating", "exact"])
@pytest.mark.parametrize("kind", ["everything", "formulas", "weights", "dynamic", "some"])
def test_switches_compute_what_the_artifact_computes(kind: str, target) -> None:
    found = setting(target, method="dynamic" if kind == "dynamic" else "auto")
    if kind == "everything":
        decision = found.everything
    elif kind == "some":
        path = next(site.path for site in found.sites if site.op_type == "Conv")
        recipe = dataclasses.replace(found.recipe, exclude=(path,))
        decision = decide(found.sites, recipe, target, found.shapes, everything=True)
    else:
        recipe = dataclasses.replace(found.recipe, method="weight-only") if kind == "weights" else found.recipe
        decision = decide(found.sites, recipe, target, found.shapes)
    assert any(execution != "float" for execution in decision.executions.values())
    expected = measured(found.built(decision), found.model, found.feeds[:6])
    assert expected > 0
    assert decibel(found.meter.noise(decision.executions)) == pytest.approx(decibel(expected), abs=0.05)


def test_noises_of_single_sites_add_up() -> None:
    found = setting()
    sensitivities = measure_sensitivities(found.meter)
    assert sensitivities.alone == 1.0
    predicted = decibel(sensitivities.predict(found.everything.executions))
    assert predicted == pytest.approx(decibel(found.meter.noise(found.everything.executions)), abs=3.0)


def test_a_slow_machine_measures_what_a_fast_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    found = setting()
    fast = measure_sensitivities(found.meter, runs=40)
    run = type(found.meter.session).run

    def slow(*arguments: Any) -> Any:
        time.sleep(0.02)
        return run(*arguments)

    monkeypatch.setattr(type(found.meter.session), "run", slow)
    assert measure_sensitivities(found.meter, runs=40) == fast
    assert fast.runs <= 40


def test_the_groups_of_a_model_too_slow_to_measure_one_by_one_share_their_noise() -> None:
    found = setting()
    sensitivities = measure_sensitivities(found.meter, runs=4)
    exact = measure_sensitivities(found.meter)
    assert sensitivities.alone < 1.0
    assert set(sensitivities.static) <= set(exact.static)
    assert sensitivities.runs < exact.runs


@pytest.mark.parametrize("more", [-1.0, 1.0, 3.0])
def test_plans_keep_their_limit_and_use_it(more: float) -> None:
    found = setting()
    fastest = decide(found.sites, found.recipe, TARGET, found.shapes).executions
    limit = decibel(found.meter.noise(fastest)) + more
    budget = found.budget(min_sqnr=limit)
    decision = budget.choose()
    noise = decibel(measured(found.built(decision), found.model, found.feeds[:6]))
    assert noise >= limit - 0.3
    assert budget.keeps(decision.executions)
    assert budget.warnings == ()
    integers = [path for path, execution in decision.executions.items() if execution in {"static", "dynamic"}]
    held_back = [path for path in fastest if fastest[path] in {"static", "dynamic"} and path not in integers]
    assert bool(held_back) is (more > 0)
    assert integers
    for path in held_back:
        assert "for accuracy" in decision.reasons[path]


def test_a_limit_out_of_reach_is_told() -> None:
    budget = setting().budget(min_sqnr=90.0)
    decision = budget.choose()
    assert len(budget.warnings) == 1
    assert "90.0 dB at the output are out of reach" in budget.warnings[0]
    assert not {"static"} & set(decision.executions.values())


def test_reasons_tell_noise_from_none() -> None:
    found = setting()
    fastest = decide(found.sites, found.recipe, TARGET, found.shapes).executions
    budget = found.budget(min_sqnr=90.0)
    measured_now = budget.sensitivities
    silent = next(path for path, execution in fastest.items() if execution == "static")
    # As where a Reshape between two others only moves codes.
    budget._sensitivities = dataclasses.replace(measured_now, static={**measured_now.static, silent: 0.0})
    reasons = budget.choose().reasons
    assert reasons[silent].endswith("in integers, alone, it adds no noise at the output")
    others = [path for path, execution in fastest.items() if execution == "static" and path != silent]
    assert any("alone, it leaves" in reasons[path] for path in others)
    assert not any("200.0 dB" in reason for reason in reasons.values())


def test_a_limited_loss_counts_from_the_stored_weights() -> None:
    budget = setting().budget(max_sqnr_loss=3.0)
    assert decibel(budget.limit) == pytest.approx(decibel(budget.weights_noise) - 3.0)
    assert budget.keeps(budget.choose().executions)


def test_without_limits_a_default_keeps_models_usable() -> None:
    budget = setting().budget()
    assert decibel(budget.limit) == pytest.approx(DEFAULT_SQNR)
    assert decibel(budget.meter.noise(budget.choose().executions)) >= DEFAULT_SQNR - 0.1


def test_accuracy_first_is_less_noisy_than_latency_first() -> None:
    found = setting()
    loud = found.meter.noise(decide(found.sites, found.recipe, TARGET, found.shapes).executions)
    quiet = found.meter.noise(found.budget(optimize="accuracy").choose().executions)
    assert quiet < loud


def closeness(outputs, labels) -> float:
    return -float(np.mean([np.abs(sample[0] - label).max() for sample, label in zip(outputs, labels, strict=True)]))


@pytest.mark.parametrize("allowed", [1.0, 0.01, 0.0])
def test_a_limited_drop_is_kept(allowed: float) -> None:
    feeds = samples(40)
    session = open_session(network().SerializeToString())
    targets = np.stack([session.run(feed)[0] for feed in feeds])

    def metric(outputs, labels) -> float:
        del labels
        return closeness(outputs, targets[24 : 24 + len(outputs)])

    found = lowbit.quantize(
        network(),
        data=feeds[:24],
        test_data=feeds[24:],
        metric=metric,
        max_drop=allowed,
        target="onnxruntime-x86-avx2",
        measure_seconds=0,
    )
    result = found.verification.metric
    assert result is not None
    lost = result.float_value - result.artifact_value
    if allowed > 0:
        assert lost <= allowed * 1.05
        assert not [warning for warning in found.plan.warnings if "no plan loses" in warning]
    else:
        assert [warning for warning in found.plan.warnings if "no plan loses at most 0 of the metric" in warning]


def test_a_limited_drop_needs_a_metric() -> None:
    with pytest.raises(RecipeError, match="no metric that could drop"):
        lowbit.quantize(network(), data=samples(), max_drop=0.01, measure_seconds=0)


def test_the_smallest_file_stores_small_weights_too() -> None:
    sizes = {
        optimize: sum(
            site.weights is not None
            for site in lowbit.quantize(
                network(), data=samples(), optimize=optimize, method="weight-only", measure_seconds=0
            ).plan.sites
        )
        for optimize in ("latency", "size")
    }
    assert sizes["size"] > sizes["latency"]


def test_noise_power_in_decibel() -> None:
    assert decibel(0.01) == pytest.approx(20.0)
    assert decibel(0.0) == 200.0
    assert math.isfinite(decibel(1e12))
