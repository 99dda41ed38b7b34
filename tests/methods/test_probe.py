"""Probing: everything that a plan could ask about is measured once, in place, and nothing is measured twice."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lowbit.graph import clean, load_model, serialize
from lowbit.methods import probe
from lowbit.methods.attribution import Owner
from lowbit.methods.calibrate import observed_shapes
from lowbit.methods.probe import REPEATS, UNSTEADY, corrected, missing_costs, probe_model, timing_artifact
from lowbit.methods.site_times import SiteTimes
from lowbit.plan.choose import edges
from lowbit.plan.cost import where_is
from lowbit.plan.cost_keys import conversion_key, site_key
from lowbit.plan.cost_table import CostTable
from lowbit.plan.sites import find_sites
from lowbit.runtime.kernels import read_kernels
from lowbit.runtime.machine import this_machine
from lowbit.runtime.profile import Profile
from lowbit.runtime.session import open_session
from lowbit.targets import find_target

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.plan.sites import Site

TARGET = find_target("onnxruntime-x86-avx2")

NET = """g (float[1,8,12,12] x, float[16,8,3,3] w1, float[16,1,3,3] w2, float[8,16,1,1] w3, float[8,6] w4, float[6] b4)
    => (float[1,6] y) {
    c = Conv<pads=[1,1,1,1]>(x, w1)
    r = Relu(c)
    d = Conv<pads=[1,1,1,1], group=16>(r, w2)
    e = Conv(d, w3)
    s = Add(e, x)
    n = Tanh(s)
    p = GlobalAveragePool(n)
    f = Flatten(p)
    q = MatMul(f, w4)
    y = Add(q, b4)
}"""
TWINS = """g (float[4,16] x, float[16,16] w1, float[16,16] w2) => (float[4,16] y) {
    a = MatMul(x, w1)
    b = Sigmoid(a)
    y = MatMul(b, w2)
}"""


@dataclass(frozen=True, kw_only=True)
class Net:
    """A cleaned model with what probing asks for."""

    model: ir.Model
    sites: tuple[Site, ...]
    shapes: dict[str, tuple[int, ...]]
    feed: dict[str, np.ndarray]

    def static(self) -> dict[str, str]:
        return {site.path: "static" for site in self.sites if site.allows("static")}

    def key(self, path: str) -> str | None:
        return next(site_key(site, self.shapes) for site in self.sites if site.path == path)


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


def test_everything_that_a_plan_could_ask_is_measured(load: Load) -> None:
    net = load(NET)
    found = probe_model(net.model, net.sites, TARGET, net.shapes, net.feed, seconds=0.2)
    assert found.table.machine == this_machine()
    assert found.measured == len(net.sites)
    assert found.float_ns is not None
    assert found.float_ns > 0
    assert missing_costs(found.table, net.sites, net.shapes) == ()
    for site in net.sites:
        entry = found.table.operators[site_key(site, net.shapes)]
        wanted = {"float"} | ({"static"} if site.allows("static") else set())
        wanted |= {"dynamic"} if site.op_type == "MatMul" else set()
        assert set(entry) == wanted, site.path
        assert all(np.isfinite(ns) and ns >= 0 for ns in entry.values())
        if site.weight_index is not None:
            assert all(ns > 0 for ns in entry.values()), site.path
    for producer, value, consumers in edges(net.sites):
        if not any(site is not None and site.allows("static") for site in (producer, *consumers)):
            continue
        where = where_is(value)
        entry = found.table.conversions[conversion_key(net.shapes[value.name], where=where)]
        wanted = {"input": {"quantize"}, "output": {"dequantize"}}.get(where, {"quantize", "dequantize"})
        assert set(entry) >= wanted, value.name
        assert all(entry[kind] > 0 for kind in wanted)


def test_what_is_known_is_not_measured_again(load: Load) -> None:
    net = load(TWINS)
    rounds: list[int] = []
    known = probe_model(net.model, net.sites, TARGET, net.shapes, net.feed, seconds=0.1).table
    again = probe_model(
        net.model, net.sites, TARGET, net.shapes, net.feed, known=known, advance=lambda: rounds.append(1)
    )
    assert (again.table, again.float_ns, again.measured, rounds) == (known, None, 0, [])


def test_only_what_is_missing_counts_as_measured_and_what_was_known_stays(load: Load) -> None:
    net = load(NET)
    table = CostTable(
        machine=this_machine(),
        operators={net.key("Conv_0"): {"float": 1.0, "static": 2.0}, "Resize elsewhere": {"float": 3.0}},
        conversions={"1x1 inside": {"quantize": 4.0}},
    )
    missing = missing_costs(table, net.sites, net.shapes)
    assert missing == tuple(site.path for site in net.sites if site.path != "Conv_0")
    found = probe_model(net.model, net.sites, TARGET, net.shapes, net.feed, known=table, seconds=0.1)
    assert found.measured == len(missing)
    assert found.table.operators["Resize elsewhere"] == {"float": 3.0}
    assert found.table.conversions["1x1 inside"] == {"quantize": 4.0}
    # New measurements replace old ones of the same operator.
    assert found.table.operators[net.key("Conv_0")] != {"float": 1.0, "static": 2.0}


def test_half_of_a_cost_is_missing(load: Load) -> None:
    net = load(TWINS)
    key, sigmoid = net.key("MatMul_0"), net.key("Sigmoid_0")
    whole = {key: {"float": 1.0, "static": 1.0, "dynamic": 1.0}, sigmoid: {"float": 1.0, "static": 1.0}}
    assert missing_costs(CostTable(machine=this_machine(), operators=whole), net.sites, net.shapes) == ()
    for lacking in ("float", "static", "dynamic"):
        entry = {kind: ns for kind, ns in whole[key].items() if kind != lacking}
        table = CostTable(machine=this_machine(), operators={**whole, key: entry})
        assert missing_costs(table, net.sites, net.shapes) == ("MatMul_0", "MatMul_1")


def test_what_has_no_shape_is_not_missed_for_ever(load: Load) -> None:
    net = load("g (float[N,16] x, float[16,16] w) => (float[N,16] y) { y = MatMul(x, w) }")
    empty = CostTable(machine=this_machine())
    assert missing_costs(empty, net.sites, {}) == ()
    assert missing_costs(empty, net.sites, {"x": (4, 16)}) == ("MatMul_0",)


@pytest.mark.parametrize("options", [{"method": "static"}, {"method": "dynamic"}, {"exclude": ["Conv_1"]}], ids=str)
def test_an_artifact_for_timing_runs_the_kernels_of_the_real_one(
    load: Load, parse: Callable, noise: Callable, build: Callable, options: dict
) -> None:
    proto = parse(NET)
    built = build(proto, noise(proto), bias_correction=False, **options)
    net = load(NET)
    executions = {entry.node: entry.execution for entry in built.applied.plan.sites if entry.execution != "float"}
    artifact = serialize(timing_artifact(net.model, net.sites, executions, TARGET))
    expected = Counter(kernel.op_type for kernel in read_kernels(built.artifact_bytes).kernels)
    assert Counter(kernel.op_type for kernel in read_kernels(artifact).kernels) == expected
    (output,) = open_session(artifact, threads=1).run(net.feed)
    assert output.shape == (1, 6)


def test_building_for_timing_leaves_the_model_alone(load: Load) -> None:
    net = load(NET)
    before = serialize(net.model)
    timing_artifact(net.model, net.sites, net.static(), TARGET)
    assert serialize(net.model) == before


def simulated(times: dict[Owner, float], *, spread: float = 0.0) -> SiteTimes:
    whole = sum(times.values())
    return SiteTimes(
        times=times,
        kernels={},
        unowned_ns=0.0,
        profile=Profile(kernels=(), whole_ns=whole, spread=spread, runs=1),
    )


def at(path: str) -> Owner:
    return Owner(kind="site", name=path)


def test_operators_alike_share_the_mean_of_their_times(load: Load) -> None:
    net = load(TWINS)
    assert net.key("MatMul_0") == net.key("MatMul_1")
    table = corrected(
        CostTable(machine=this_machine(), operators={net.key("MatMul_0"): {"float": 9.0, "dynamic": 5.0}}),
        net.sites,
        net.shapes,
        {"MatMul_0": "static", "MatMul_1": "static"},
        simulated(
            {
                at("MatMul_0"): 100.0,
                at("MatMul_1"): 300.0,
                Owner(kind="quantize", name="x"): 7.0,
                Owner(kind="dequantize", name="a"): 4.0,
                Owner(kind="quantize", name="no tensor of the model"): 1.0,
            }
        ),
    )
    assert table.operators[net.key("MatMul_0")] == {"float": 9.0, "dynamic": 5.0, "static": 200.0}
    # An operator that another one's kernel does takes no time.
    assert table.operators[net.key("Sigmoid_0")] == {"float": 0.0}
    assert table.conversions == {"4x16 input": {"quantize": 7.0}, "4x16 inside": {"dequantize": 4.0}}


@pytest.mark.parametrize(
    ("spreads", "lengths"),
    [([0.0], [1]), ([0.5, UNSTEADY], [1, 2]), ([0.5] * REPEATS, [1, 2, 3])],
    ids=["calm", "calm at last", "never calm"],
)
def test_a_disturbed_measurement_is_repeated_for_longer(
    load: Load, monkeypatch: pytest.MonkeyPatch, spreads: list[float], lengths: list[int]
) -> None:
    net = load(TWINS)
    seen: list[float] = []

    def fake(models: list, sites: tuple[Site, ...], *, seconds: float, **_: object) -> tuple[SiteTimes, ...]:
        if len(models) == 1:  # the conversions
            return (simulated({}),)
        spread = spreads[len(seen)]
        seen.append(seconds)
        return tuple(simulated({at(site.path): 10.0 for site in sites}, spread=spread) for _ in models)

    monkeypatch.setattr(probe, "time_sites", fake)
    found = probe_model(net.model, net.sites, TARGET, net.shapes, net.feed, seconds=1.0)
    assert seen == lengths
    assert found.table.spread == spreads[-1]


def test_where_nothing_is_legal_only_float_is_measured(load: Load) -> None:
    net = load(TWINS)
    bare = dataclasses.replace(TARGET, operators={}, dynamic_operators=())
    sites = find_sites(net.model, bare)
    found = probe_model(net.model, sites, bare, net.shapes, net.feed, seconds=0.1)
    assert all(set(entry) == {"float"} for entry in found.table.operators.values())
    assert found.table.conversions == {}
