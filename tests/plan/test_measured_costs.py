"""Measured costs: what is known of a place comes first, then of the kind, then formulas in proportion to both."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from lowbit.plan.cost import FormulaCosts, MeasuredCosts, where_is
from lowbit.plan.cost_keys import conversion_key, site_key
from lowbit.plan.cost_table import CostTable
from lowbit.runtime.machine import Machine
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir

    from lowbit.plan.sites import Site

MODEL = find_target("onnxruntime-x86-avx2").costs
assert MODEL is not None
MACHINE = Machine(engine="onnxruntime 1.30.0", processor="any", instruction_sets=(), threads=1)
SHAPES = dict.fromkeys(("x", "a", "b", "y"), (4, 64))
CHAIN = (
    "g (float[4,64] x, float[64,64] w1, float[64,64] w2) => (float[4,64] y) "
    "{ a = MatMul(x, w1)\n b = Sigmoid(a)\n y = MatMul(b, w2) }"
)


@pytest.fixture
def sites(sites_of: Callable) -> tuple[Site, ...]:
    return sites_of(CHAIN)


def table(**entries: Mapping[str, Mapping[str, float]]) -> CostTable:
    return CostTable(machine=MACHINE, **entries)


def key(site: Site) -> str:
    found = site_key(site, SHAPES)
    assert found is not None
    return found


def value_of(sites: tuple[Site, ...], name: str) -> ir.Value:
    return next(value for site in sites for value in (*site.node.inputs, site.output) if value and value.name == name)


def test_a_place_comes_before_its_kind_and_that_before_formulas(sites: tuple[Site, ...]) -> None:
    first, _, last = sites
    assert key(first) == key(last)
    formulas = FormulaCosts(MODEL, SHAPES)
    kinds = table(operators={key(first): {"float": 1000.0, "static": 400.0}})
    costs = MeasuredCosts(kinds, SHAPES, formulas, places={(first.path, "static"): 77.0})
    assert costs.site(first, "static") == 77
    assert costs.site(last, "static") == 400
    # A place says nothing of other executions there.
    assert costs.site(first, "float") == 1000
    assert MeasuredCosts(table(), SHAPES, formulas).site(first, "static") == formulas.site(first, "static")
    assert MeasuredCosts(table(), SHAPES).site(first, "static") is None


def test_a_place_that_takes_no_time_is_known_and_not_unknown(sites: tuple[Site, ...]) -> None:
    _, sigmoid, _ = sites
    costs = MeasuredCosts(
        table(operators={key(sigmoid): {"float": 1000.0, "static": 0.0}}),
        SHAPES,
        FormulaCosts(MODEL, SHAPES),
        places={(sigmoid.path, "float"): 0.0},
    )
    assert costs.site(sigmoid, "float") == 0
    assert costs.site(sigmoid, "static") == 0


@pytest.mark.parametrize("factor", [0.25, 1.0, 8.0])
def test_formulas_are_scaled_by_what_float_takes_here(sites: tuple[Site, ...], factor: float) -> None:
    first, _, last = sites
    formulas = FormulaCosts(MODEL, SHAPES)
    plain = formulas.site(first, "float")
    assert plain is not None
    costs = MeasuredCosts(table(operators={key(first): {"float": factor * plain}}), SHAPES, formulas)
    for execution in ("static", "dynamic"):
        guess = formulas.site(first, execution)
        assert guess is not None
        assert guess != plain
        assert costs.site(first, execution) == pytest.approx(factor * guess)
    # What is measured of a place scales that place, not its kind.
    placed = dataclasses.replace(costs, places={(last.path, "float"): 3 * factor * plain})
    assert placed.site(last, "static") == pytest.approx(3 * costs.site(first, "static"))
    assert placed.site(first, "static") == costs.site(first, "static")


def test_a_formula_that_says_nothing_of_float_is_not_scaled(sites: tuple[Site, ...]) -> None:
    _, sigmoid, _ = sites
    nothing = dataclasses.replace(MODEL, node=0.0, float_elementwise={"Sigmoid": 0.0})
    costs = MeasuredCosts(table(operators={key(sigmoid): {"float": 500.0}}), SHAPES, FormulaCosts(nothing, SHAPES))
    assert costs.site(sigmoid, "static") == FormulaCosts(nothing, SHAPES).site(sigmoid, "static") > 0


def test_weights_that_are_stored_small_cost_what_float_costs_unless_measured(sites: tuple[Site, ...]) -> None:
    first = sites[0]
    costs = MeasuredCosts(table(operators={key(first): {"float": 900.0}}), SHAPES)
    assert costs.site(first, "weight-only") == costs.site(first, "half") == 900
    stored = MeasuredCosts(table(operators={key(first): {"float": 900.0, "weight-only": 300.0}}), SHAPES)
    assert (stored.site(first, "weight-only"), stored.site(first, "half")) == (300, 900)
    placed = dataclasses.replace(costs, places={(first.path, "float"): 800.0})
    assert placed.site(first, "weight-only") == placed.site(first, "half") == 800


def test_operators_of_unknown_shape_are_unknown(sites_of: Callable) -> None:
    (site,) = sites_of("g (float[n,64] x, float[64,64] w) => (float[n,64] y) { y = MatMul(x, w) }")
    costs = MeasuredCosts(table(operators={"": {"float": 1.0}, "MatMul (nx64, 64x64)": {"float": 1.0}}), {})
    assert costs.site(site, "dynamic") is None
    assert MeasuredCosts(table(), {}, FormulaCosts(MODEL, {})).site(site, "static") is None


def test_conversions_of_a_place_come_before_their_kind_and_that_before_formulas(sites: tuple[Site, ...]) -> None:
    formulas = FormulaCosts(MODEL, SHAPES)
    inside = table(conversions={conversion_key((4, 64), where="inside"): {"quantize": 200.0}})
    costs = MeasuredCosts(inside, SHAPES, formulas, tensors={("a", "quantize"): 0.0})
    a, b, x = (value_of(sites, name) for name in ("a", "b", "x"))
    assert costs.conversion(a, quantize=True) == 0
    assert costs.conversion(b, quantize=True) == 200
    # Neither the other direction nor the ends of the graph were measured.
    assert costs.conversion(b, quantize=False) == formulas.conversion(b, quantize=False)
    assert costs.conversion(x, quantize=True) == formulas.conversion(x, quantize=True) > 0
    assert MeasuredCosts(inside, SHAPES).conversion(x, quantize=True) == 0


def test_a_tensor_lies_at_an_end_of_the_graph_or_inside(sites: tuple[Site, ...], sites_of: Callable) -> None:
    assert [where_is(value_of(sites, name)) for name in "xaby"] == ["input", "inside", "inside", "output"]
    # An output that is read again is handed on inside, in whatever layout its reader wants.
    shared = sites_of("g (float[4,64] x) => (float[4,64] y, float[4,64] z) { y = Sigmoid(x)\n z = Tanh(y) }")
    assert [where_is(value_of(shared, name)) for name in "xyz"] == ["input", "inside", "output"]
