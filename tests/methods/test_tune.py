"""Tuning: the plan that is returned was built and measured, is the fastest of those, and is predicted consistently."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from lowbit.graph import clean, load_model
from lowbit.methods import tune as module
from lowbit.methods.attribution import Owner
from lowbit.methods.calibrate import observed_shapes
from lowbit.methods.probe import missing_costs, probe_model
from lowbit.methods.site_times import SiteTimes
from lowbit.methods.tune import Candidate, Tuned, in_place, measured_costs, tune
from lowbit.plan.choose import conversions, predicted_latency
from lowbit.plan.cost_keys import conversion_key, site_key
from lowbit.plan.cost_table import CostTable
from lowbit.plan.recipe import Recipe
from lowbit.plan.sites import find_sites
from lowbit.runtime.machine import this_machine
from lowbit.runtime.profile import Profile
from lowbit.targets import find_target

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from lowbit.plan.sites import Site

TARGET = find_target("onnxruntime-x86-avx2")
RECIPE = Recipe(target=TARGET.name)

NET = """g (float[1,16,14,14] x, float[32,16,3,3] w1, float[32,1,3,3] w2, float[16,32,1,1] w3, float[16,10] w4)
    => (float[1,10] y) {
    c = Conv<pads=[1,1,1,1]>(x, w1)
    r = Relu(c)
    d = Conv<pads=[1,1,1,1], group=32>(r, w2)
    e = Conv(d, w3)
    s = Add(e, x)
    t = Sigmoid(s)
    p = GlobalAveragePool(t)
    f = Flatten(p)
    y = MatMul(f, w4)
}"""
# Every operator has its own shapes, so that costs of one say nothing of another.
CHAIN = """g (float[4,16] x, float[16,24] w1, float[24,40] w2, float[40,8] w3) => (float[4,8] y) {
    a = MatMul(x, w1)
    b = Sigmoid(a)
    c = MatMul(b, w2)
    d = Sigmoid(c)
    y = MatMul(d, w3)
}"""


@dataclass(frozen=True, kw_only=True)
class Net:
    """A cleaned model with what tuning asks for."""

    model: ir.Model
    sites: tuple[Site, ...]
    shapes: dict[str, tuple[int, ...]]
    feed: dict[str, np.ndarray]

    def tune(self, table: CostTable, recipe: Recipe = RECIPE, **options: float) -> Tuned:
        return tune(self.model, self.sites, recipe, TARGET, self.shapes, self.feed, table, **options)


Load = Callable[[str], Net]


@pytest.fixture
def load(parse: Callable, noise: Callable) -> Load:
    def call(text: str) -> Net:
        proto = parse(text)
        model = clean(load_model(proto)).model
        (feed,) = noise(proto, count=1)
        return Net(
            model=model, sites=find_sites(model, TARGET), shapes=observed_shapes(model, feed, threads=1), feed=feed
        )

    return call


def quantized(executions: Mapping[str, str]) -> dict[str, str]:
    return {path: kind for path, kind in executions.items() if kind in {"static", "dynamic"}}


def check(tuned: Tuned, net: Net) -> Candidate:
    """What holds whatever was measured; returns the candidate that was taken."""
    plans = [tuple(sorted(quantized(one.decision.executions).items())) for one in tuned.candidates]
    assert len(set(plans)) == len(plans), "nothing is built twice"
    assert tuned.candidates[0].name == "measured costs"
    assert {one.name for one in tuned.candidates} <= {"measured costs", "everything legal", "formulas"}
    chosen = plans.index(tuple(sorted(quantized(tuned.decision.executions).items())))
    taken = tuned.candidates[chosen]
    fastest = min(one.measured_ns for one in tuned.candidates)
    # One that is as good as equal may come before it.
    assert taken.measured_ns * 0.99 <= fastest
    assert all(one.measured_ns * 0.99 > fastest for one in tuned.candidates[:chosen])
    assert tuned.predicted_ns == taken.predicted_ns
    assert set(tuned.decision.executions) == {site.path for site in net.sites}
    assert all(tuned.decision.reasons.values())
    return taken


def test_in_the_engine_the_fastest_plan_that_was_measured_is_kept(load: Load) -> None:
    net = load(NET)
    table = probe_model(net.model, net.sites, TARGET, net.shapes, net.feed, seconds=0.1).table
    rounds: list[int] = []
    tuned = net.tune(table, seconds=0.15, advance=lambda: rounds.append(1))
    taken = check(tuned, net)
    costs = measured_costs(table, TARGET, net.shapes)
    assert tuned.predicted_float_ns == predicted_latency(net.sites, costs, {})
    assert tuned.candidates[0].predicted_ns == predicted_latency(
        net.sites, costs, tuned.candidates[0].decision.executions
    )
    assert tuned.float_ns > 0
    assert all(one.measured_ns > 0 for one in tuned.candidates)
    # Corrected by what the plan took, the costs count no kernel twice.
    assert 0 < tuned.corrected_ns <= taken.measured_ns * 1.001
    assert missing_costs(tuned.table, net.sites, net.shapes) == ()
    assert tuned.table.machine == table.machine
    assert rounds


@dataclass
class Simulation:
    """A machine that takes exactly as long as its costs say.

    Attributes:
        kernels: Nanoseconds by path and execution.
        conversion: Nanoseconds of every conversion.
        built: The plans that were built, in order.
        measured: How many models were timed in each round.
    """

    kernels: dict[tuple[str, str], float]
    conversion: float = 5.0
    built: list[dict[str, str]] = field(default_factory=list)
    measured: list[int] = field(default_factory=list)

    def build(self, model: ir.Model, sites: tuple[Site, ...], executions: dict[str, str], target: object) -> dict:
        del model, sites, target
        self.built.append(executions)
        return executions

    def times(self, sites: tuple[Site, ...], executions: Mapping[str, str]) -> dict[Owner, float]:
        found = {
            Owner(kind="site", name=site.path): self.kernels[site.path, executions.get(site.path, "float")]
            for site in sites
        }
        for value, codes in conversions(sites, executions):
            found[Owner(kind="quantize" if codes else "dequantize", name=value.name)] = self.conversion
        return found

    def latency(self, sites: tuple[Site, ...], executions: Mapping[str, str]) -> float:
        return sum(self.times(sites, executions).values())

    def measure(self, models: list, sites: tuple[Site, ...], **_: object) -> tuple[SiteTimes, ...]:
        self.measured.append(len(models))
        results = []
        for index, (plan, _) in enumerate(models):
            times = self.times(sites, plan if index else {})
            profile = Profile(kernels=(), whole_ns=sum(times.values()), spread=0.01 * index, runs=1)
            results.append(SiteTimes(times=times, kernels={}, unowned_ns=0.0, profile=profile))
        return tuple(results)

    def table(self, net: Net, **wrong: float) -> CostTable:
        """Return the costs of this machine as probing would; `wrong` are factors by execution."""
        operators: dict[str, dict[str, float]] = {}
        for site in net.sites:
            key = site_key(site, net.shapes)
            assert key is not None
            kinds = ["float", *(kind for kind in ("static", "dynamic") if (site.path, kind) in self.kernels)]
            operators[key] = {kind: self.kernels[site.path, kind] * wrong.get(kind, 1.0) for kind in kinds}
        tensors = {
            conversion_key(shape, where=where): {"quantize": self.conversion, "dequantize": self.conversion}
            for shape in net.shapes.values()
            for where in ("inside", "input", "output")
        }
        return CostTable(machine=this_machine(), operators=operators, conversions=tensors)


def machine(net: Net, **factors: float) -> Simulation:
    """A machine on which integers take a factor of float; Sigmoids take the same."""
    kernels: dict[tuple[str, str], float] = {}
    for site in net.sites:
        for kind in ("float", "static", "dynamic"):
            weighted = site.weight_index is not None
            kernels[site.path, kind] = 1000.0 * factors.get(kind, 1.0) if weighted else 100.0
    return Simulation(kernels)


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Callable[[Simulation], None]:
    def call(simulation: Simulation) -> None:
        monkeypatch.setattr(module, "timing_artifact", simulation.build)
        monkeypatch.setattr(module, "time_sites", simulation.measure)

    return call


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({"static": 0.3, "dynamic": 0.5}, {"static"}),
        ({"static": 0.9, "dynamic": 0.4}, {"dynamic", "float"}),
        ({"static": 3.0, "dynamic": 2.0}, {"float"}),
    ],
    ids=["static", "dynamic", "float"],
)
@pytest.mark.parametrize(
    "wrong",
    [{}, {"static": 0.1, "dynamic": 0.1}, {"static": 10.0, "dynamic": 10.0}, {"float": 0.1}, {"static": 0.1}],
    ids=["true costs", "integers too good", "integers too bad", "float too good", "static too good"],
)
def test_the_best_that_was_measured_wins_whatever_was_believed(
    load: Load, simulate: Callable, factors: dict[str, float], expected: set[str], wrong: dict[str, float]
) -> None:
    net = load(CHAIN)
    simulation = machine(net, **factors)
    simulate(simulation)
    table = simulation.table(net, **wrong)
    tuned = net.tune(table)
    taken = check(tuned, net)
    assert [one.measured_ns for one in tuned.candidates] == [
        simulation.latency(net.sites, plan) for plan in simulation.built
    ]
    assert len(simulation.built) == len(tuned.candidates)
    assert tuned.float_ns == simulation.latency(net.sites, {})
    assert tuned.spread == pytest.approx(0.01 * len(tuned.candidates))
    # What is known of the plan after it was measured is the truth.
    assert tuned.corrected_ns == pytest.approx(taken.measured_ns)
    assert 1 <= len(simulation.measured) <= 4
    if not wrong:
        assert tuned.predicted_ns == pytest.approx(taken.measured_ns)
        assert tuned.predicted_float_ns == pytest.approx(tuned.float_ns)
        assert {kind.replace("weight-only", "float") for kind in tuned.decision.executions.values()} == expected


def test_a_plan_that_disappoints_is_replaced_by_float(load: Load, simulate: Callable) -> None:
    net = load(CHAIN)
    simulation = machine(net, static=3.0, dynamic=3.0)
    simulate(simulation)
    tuned = net.tune(simulation.table(net, static=0.1, dynamic=0.1))
    assert quantized(tuned.candidates[0].decision.executions)
    assert quantized(tuned.decision.executions) == {}
    assert tuned.predicted_ns == pytest.approx(tuned.float_ns)


def test_an_operator_that_belies_its_costs_is_left_in_float_after_a_round(load: Load, simulate: Callable) -> None:
    net = load(CHAIN)
    simulation = machine(net, static=0.3, dynamic=2.0)
    table = simulation.table(net)
    middle = net.sites[2].path
    simulation.kernels[middle, "static"] = 9000.0
    simulate(simulation)
    tuned = net.tune(table)
    check(tuned, net)
    # The first plan and the one in which everything is integer both fell for it.
    assert all(one.decision.executions[middle] == "static" for one in tuned.candidates[:2] if one.name != "formulas")
    assert quantized(tuned.decision.executions) == {
        site.path: "static" for site in net.sites if site.weight_index is not None and site.path != middle
    } | {path: "static" for path in quantized(tuned.decision.executions) if path.startswith("Sigmoid")}
    assert len(simulation.measured) >= 2


def test_costs_are_corrected_by_what_the_plan_took(load: Load, simulate: Callable) -> None:
    net = load(CHAIN)
    simulation = machine(net, static=0.3, dynamic=0.5)
    simulate(simulation)
    before = simulation.table(net, static=2.0)
    tuned = net.tune(before)
    assert set(quantized(tuned.decision.executions).values()) == {"static"}
    for site in net.sites:
        key = site_key(site, net.shapes)
        assert tuned.table.operators[key]["static"] == simulation.kernels[site.path, "static"]
        assert tuned.table.operators[key]["float"] == before.operators[key]["float"]
    assert before == simulation.table(net, static=2.0)


def test_what_is_excluded_is_in_no_plan(load: Load, simulate: Callable) -> None:
    net = load(CHAIN)
    simulation = machine(net, static=0.3, dynamic=0.3)
    simulate(simulation)
    path = net.sites[2].path
    tuned = net.tune(simulation.table(net), dataclasses.replace(RECIPE, exclude=(path,)))
    check(tuned, net)
    assert simulation.built
    assert all(path not in plan for plan in simulation.built)


def test_a_disturbed_machine_is_measured_again(load: Load, simulate: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    net = load(CHAIN)
    simulation = machine(net, static=0.3)
    simulate(simulation)
    lengths: list[float] = []

    def shaken(models: list, sites: tuple[Site, ...], *, seconds: float, **options: object) -> tuple[SiteTimes, ...]:
        lengths.append(seconds)
        found = simulation.measure(models, sites, **options)
        calm = len(lengths) == 2
        return tuple(
            dataclasses.replace(one, profile=dataclasses.replace(one.profile, spread=0.0 if calm else 0.9))
            for one in found
        )

    monkeypatch.setattr(module, "time_sites", shaken)
    tuned = net.tune(simulation.table(net), seconds=1.0)
    assert lengths[:2] == [1.0, 2.0]
    assert tuned.spread in {0.0, 0.9}
    check(tuned, net)


def test_places_know_what_each_operator_and_conversion_took(load: Load) -> None:
    net = load(CHAIN)
    simulation = machine(net, static=0.3)
    first, sigmoid, *_ = net.sites
    plan = {first.path: "static", sigmoid.path: "static"}
    times = simulation.times(net.sites, plan)
    # The engine has merged one conversion away.
    merged = Owner(kind="quantize", name="x")
    assert times.pop(merged) == 5
    profile = Profile(kernels=(), whole_ns=sum(times.values()), spread=0.0, runs=1)
    costs = in_place(
        measured_costs(CostTable(machine=this_machine()), TARGET, net.shapes),
        net.sites,
        plan,
        SiteTimes(times=times, kernels={}, unowned_ns=0.0, profile=profile),
    )
    assert costs.site(first, "static") == 300
    assert costs.site(net.sites[2], "float") == 1000
    assert costs.conversion(first.node.inputs[0], quantize=True) == 0
    assert predicted_latency(net.sites, costs, plan) == profile.whole_ns
