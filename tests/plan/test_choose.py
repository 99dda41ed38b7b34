"""Choosing executions: the integer program finds what trying everything finds."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.plan.choose import NoiseBudget, choose_executions, explain_executions, predicted_latency
from lowbit.plan.cost import FormulaCosts, conversion_cost, dynamic_cost, float_cost, static_cost
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import onnx_ir as ir

    from lowbit.plan.sites import Site

TARGET = find_target("onnxruntime-x86-avx2")
COSTS = TARGET.costs
assert COSTS is not None
Assignment = dict[str, str]


def price(sites: tuple[Site, ...], shapes: Mapping[str, tuple[int, ...]], chosen: Assignment, caution: float) -> float:
    """Predicted time of an assignment, from the definition: kernels, and a conversion wherever codes meet floats."""
    total = 0.0
    for site in sites:
        plain = float_cost(site, shapes, COSTS)
        kernel = {"float": float_cost, "static": static_cost, "dynamic": dynamic_cost}[chosen[site.path]]
        cost = kernel(site, shapes, COSTS)
        if plain is None or cost is None:
            assert chosen[site.path] != "dynamic"
            continue
        total += cost * (1.0 if chosen[site.path] == "float" else caution)
    home = {node: site for site in sites for node in (site.node, site.bias_node, *site.fused) if node is not None}
    tensors = {value.name: value for site in sites for value in site.node.inputs if value is not None}
    tensors |= {value.name: value for site in sites for value in site.last.outputs}
    for value in tensors.values():
        if value.const_value is not None:
            continue
        writer = home.get(value.producer())
        if writer is not None and value is not writer.output:
            continue
        codes = [
            home[use.node]
            for use in value.uses()
            if use.idx in home[use.node].activations and use.node is home[use.node].node
        ]
        in_float = len(codes) < len(value.uses()) or value.is_graph_output()
        wanted = {chosen[site.path] == "static" for site in codes} | ({False} if in_float else set())
        written = writer is not None and chosen[writer.path] == "static"
        if not written and True in wanted:
            total += caution * conversion_cost(shapes[value.name], COSTS, quantize=True)
        if written and False in wanted and not writer.support.float_output:
            total += caution * conversion_cost(shapes[value.name], COSTS, quantize=False)
    return total


def enclosed(sites: tuple[Site, ...], allowed: Mapping[str, frozenset[str]], chosen: Assignment) -> bool:
    """Whether an operator without weights is in float between codes on all sides, where the engine fuses it anyway."""
    home = {node: site for site in sites for node in (site.node, site.bias_node, *site.fused) if node is not None}
    for site in sites:
        if site.weight_index is not None or chosen[site.path] == "static" or "static" not in allowed[site.path]:
            continue
        around: list[Site | None] = []
        for index in site.activations:
            value = site.node.inputs[index]
            if value.const_value is None:
                around.append(home.get(value.producer()))
        around += [home[use.node] for use in site.output.uses()]
        if site.output.is_graph_output():
            around.append(None)
        if all(other is not None and chosen[other.path] == "static" for other in around):
            return True
    return False


def cheapest(sites: tuple[Site, ...], shapes: Mapping, allowed: Mapping, caution: float) -> float:
    """Try every assignment."""
    options = [["float", *sorted(allowed[site.path])] for site in sites]
    found = float("inf")
    for combination in itertools.product(*options):
        chosen = {site.path: execution for site, execution in zip(sites, combination, strict=True)}
        if not enclosed(sites, allowed, chosen):
            found = min(found, price(sites, shapes, chosen, caution))
    return found


OPERATORS = ("pointwise", "dense", "depthwise", "sigmoid", "tanh", "add", "mul", "leaky")


@st.composite
def networks(draw: st.DrawFn) -> tuple[str, tuple[int, ...]]:
    """A random graph over tensors of one shape: chains, diamonds and residual blocks."""
    channels, size = draw(st.sampled_from([8, 64, 256])), draw(st.sampled_from([4, 14, 56]))
    shape = f"1,{channels},{size},{size}"
    tensors, lines, weights = ["x"], [], []
    for index in range(draw(st.integers(2, 6))):
        kind = draw(st.sampled_from(OPERATORS))
        # Mostly the newest tensor, so that there are chains as well as branches.
        source = tensors[-1 - draw(st.integers(0, min(2, len(tensors) - 1)))]
        other = tensors[draw(st.integers(0, len(tensors) - 1))]
        name, weight = f"t{index}", f"w{index}"
        match kind:
            case "pointwise":
                lines.append(f"{name} = Conv({source}, {weight})")
                weights.append(f"float[{channels},{channels},1,1] {weight}")
            case "dense":
                lines.append(f"{name} = Conv<pads=[1,1,1,1]>({source}, {weight})")
                weights.append(f"float[{channels},{channels},3,3] {weight}")
            case "depthwise":
                lines.append(f"{name} = Conv<pads=[1,1,1,1], group={channels}>({source}, {weight})")
                weights.append(f"float[{channels},1,3,3] {weight}")
            case "sigmoid" | "tanh" | "leaky":
                lines.append(
                    f"{name} = { {'sigmoid': 'Sigmoid', 'tanh': 'Tanh', 'leaky': 'LeakyRelu'}[kind] }({source})"
                )
            case _:
                lines.append(f"{name} = {kind.capitalize()}({source}, {other})")
        tensors.append(name)
    inputs = ", ".join([f"float[{shape}] x", *weights])
    body = "\n ".join(lines)
    return f"g ({inputs}) => (float[{shape}] {tensors[-1]}) {{ {body} }}", (1, channels, size, size)


def test_the_program_finds_the_optimum(sites_of: Callable) -> None:
    seen: set[str] = set()

    @settings(max_examples=80)
    @given(networks(), st.sampled_from([1.0, 1.25, 1.7]))
    def law(network: tuple[str, tuple[int, ...]], caution: float) -> None:
        text, shape = network
        sites = sites_of(text)
        shapes = dict.fromkeys(["x", *(site.output.name for site in sites)], shape)
        allowed = {site.path: frozenset({"static"} if site.allows("static") else set[str]()) for site in sites}
        choices = choose_executions(sites, FormulaCosts(COSTS, shapes), allowed=allowed, caution=caution)
        chosen = {path: choice.execution for path, choice in choices.items()}
        assert all(chosen[path] in {"float", *allowed[path]} for path in chosen)
        assert not enclosed(sites, allowed, chosen)
        best = cheapest(sites, shapes, allowed, caution)
        assert price(sites, shapes, chosen, caution) == pytest.approx(best, rel=1e-6)
        seen.add("".join(sorted(set(chosen.values()))))

    law()
    # The examples are worth something: all float, all integer and mixtures occur.
    assert seen == {"float", "static", "floatstatic"}


def test_products_choose_among_three(sites_of: Callable) -> None:
    seen: set[str] = set()

    @settings(max_examples=60)
    @given(st.lists(st.sampled_from([8, 64, 512]), min_size=2, max_size=5), st.sampled_from([1, 8, 64]), st.data())
    def law(widths: list[int], rows: int, data: st.DataObject) -> None:
        lines, names, shapes = [], ["x"], {"x": (rows, widths[0])}
        for index, (depth, columns) in enumerate(itertools.pairwise(widths)):
            name = f"t{index}"
            lines.append(f"{name} = MatMul({names[-1]}, w{index})")
            shapes[name] = (rows, columns)
            if data.draw(st.booleans()):
                lines.append(f"s{index} = {data.draw(st.sampled_from(['Tanh', 'Sigmoid']))}({name})")
                shapes[f"s{index}"] = (rows, columns)
                name = f"s{index}"
            names.append(name)
            del depth
        weights = [f"float[{a},{b}] w{index}" for index, (a, b) in enumerate(itertools.pairwise(widths))]
        body = "\n ".join(lines)
        inputs = ", ".join([f"float[{rows},{widths[0]}] x", *weights])
        text = f"g ({inputs}) => (float[{rows},{widths[-1]}] {names[-1]}) {{ {body} }}"
        sites = sites_of(text)
        allowed = {
            site.path: frozenset(
                execution
                for execution in ("static", "dynamic")
                if site.allows(execution) and (execution == "static" or site.weight_index is not None)
            )
            for site in sites
        }
        choices = choose_executions(sites, FormulaCosts(COSTS, shapes), allowed=allowed)
        chosen = {path: choice.execution for path, choice in choices.items()}
        assert price(sites, shapes, chosen, 1.0) == pytest.approx(cheapest(sites, shapes, allowed, 1.0), rel=1e-6)
        seen.update(chosen.values())

    law()
    assert seen == {"float", "static", "dynamic"}


PAIR = (
    "g (float[1,256,28,28] x, float[256,256,1,1] w, float[256,256,1,1] w2) => (float[1,256,28,28] y) "
    "{ c = Conv(x, w)\n y = Conv(c, w2) }"
)


def test_caution_keeps_more_in_float(sites_of: Callable) -> None:
    sites = sites_of(PAIR)
    shapes = dict.fromkeys(("x", "c", "y"), (1, 256, 28, 28))
    allowed = {site.path: frozenset({"static"}) for site in sites}
    counts = []
    for caution in (1.0, 1.5, 3.0):
        choices = choose_executions(sites, FormulaCosts(COSTS, shapes), allowed=allowed, caution=caution)
        counts.append(sum(choice.execution == "static" for choice in choices.values()))
        assert all(choice.reason for choice in choices.values())
    assert counts[0] == 2
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


def test_what_is_not_allowed_is_not_chosen(sites_of: Callable) -> None:
    sites = sites_of(PAIR)
    shapes = dict.fromkeys(("x", "c", "y"), (1, 256, 28, 28))
    only = {sites[0].path: frozenset({"static"})}
    choices = choose_executions(sites, FormulaCosts(COSTS, shapes), allowed=only)
    assert [choices[site.path].execution for site in sites] == ["static", "float"]
    assert {
        choice.execution for choice in choose_executions(sites, FormulaCosts(COSTS, shapes), allowed={}).values()
    } == {"float"}


def test_without_costs_everything_legal_is_integer(sites_of: Callable) -> None:
    sites = sites_of(
        "g (float[1,8,6,6] x, float[8,8,1,1] w) => (float[1,8,6,6] y) "
        "{ s = Sigmoid(x)\n c = Conv(s, w)\n t = Tanh(c)\n d = Sigmoid(c)\n y = Mul(d, c)\n z = Add(t, y) }"
    )
    allowed = {site.path: frozenset({"static"}) for site in sites if site.allows("static")}
    choices = choose_executions(sites, None, allowed=allowed)
    chosen = {site.op_type + site.output.name: choices[site.path].execution for site in sites}
    # What has no weights is integer only where all it reads is codes already.
    assert chosen == {
        "Sigmoids": "float",
        "Convc": "static",
        "Tanht": "float",
        "Sigmoidd": "static",
        "Muly": "static",
        "Addz": "float",
    }


@dataclass(frozen=True, slots=True)
class DrawnCosts:
    """Costs that follow no formula: any operator may be fast or slow, and any conversion cheap or dear."""

    sites: Mapping[tuple[str, str], float | None]
    tensors: Mapping[tuple[str, bool], float]

    def site(self, site: Site, execution: str) -> float | None:
        return self.sites[site.path, execution]

    def conversion(self, value: ir.Value, *, quantize: bool) -> float:
        return self.tensors[value.name, quantize]


def drawn_costs(sites: tuple[Site, ...], generator: np.random.Generator, *, unknown: float = 0.0) -> DrawnCosts:
    times: dict[tuple[str, str], float | None] = {}
    tensors: dict[tuple[str, bool], float] = {}
    for site in sites:
        for execution in ("float", "static", "dynamic"):
            times[site.path, execution] = (
                None if generator.random() < unknown else float(generator.integers(1_000, 100_000))
            )
        for value in (*site.node.inputs, *site.node.outputs, site.output):
            for quantize in (True, False):
                tensors[value.name, quantize] = float(generator.integers(500, 20_000))
    return DrawnCosts(times, tensors)


@st.composite
def products(draw: st.DrawFn) -> str:
    """Chains and diamonds of matrix products, which have all three executions, and of what stands between them."""
    names, lines, weights = ["x"], [], []
    for index in range(draw(st.integers(1, 6))):
        source = names[-1 - draw(st.integers(0, min(2, len(names) - 1)))]
        kind = draw(st.sampled_from(["MatMul", "MatMul", "Sigmoid", "Softplus", "Add"]))
        other = {"MatMul": f", w{index}", "Add": f", {draw(st.sampled_from(names))}"}.get(kind, "")
        if kind == "MatMul":
            weights.append(f"float[8,8] w{index}")
        lines.append(f"t{index} = {kind}({source}{other})")
        names.append(f"t{index}")
    body = "\n ".join(lines)
    return f"g ({', '.join(['float[4,8] x', *weights])}) => (float[4,8] {names[-1]}) {{ {body} }}"


def legal(sites: tuple[Site, ...]) -> dict[str, frozenset[str]]:
    return {site.path: frozenset(kind for kind in ("static", "dynamic") if site.allows(kind)) for site in sites}


def assignments(sites: tuple[Site, ...], allowed: Mapping[str, frozenset[str]]) -> Iterator[Assignment]:
    """Every assignment that an engine can be made to run."""
    options = [["float", *sorted(allowed[site.path])] for site in sites]
    for combination in itertools.product(*options):
        chosen = {site.path: execution for site, execution in zip(sites, combination, strict=True)}
        if not enclosed(sites, allowed, chosen):
            yield chosen


def drawn_budget(sites: tuple[Site, ...], generator: np.random.Generator, share: float) -> NoiseBudget:
    """A limit at a share of what the loudest plan adds; a few operators are quieter in integers than stored small."""
    static = {site.path: float(10.0 ** generator.uniform(-5, -2)) for site in sites}
    dynamic = {path: power * float(generator.uniform(-0.2, 1.0)) for path, power in static.items()}
    return NoiseBudget(static=static, dynamic=dynamic, limit=max(share * sum(static.values()), 1e-9))


def noise_of(chosen: Assignment, budget: NoiseBudget) -> float:
    powers = {"static": budget.static, "dynamic": budget.dynamic, "float": {}}
    return math.fsum(powers[execution].get(path, 0.0) for path, execution in chosen.items())


def choose(sites: tuple[Site, ...], costs: DrawnCosts, budget: NoiseBudget | None, caution: float = 1.0) -> Assignment:
    choices = choose_executions(sites, costs, allowed=legal(sites), budget=budget, caution=caution)
    return {path: choice.execution for path, choice in choices.items()}


def test_whatever_the_costs_are_the_program_finds_the_optimum(sites_of: Callable) -> None:
    seen: set[str] = set()

    @settings(max_examples=60)
    @given(products(), st.integers(0, 2**32))
    def law(text: str, seed: int) -> None:
        sites = sites_of(text)
        costs = drawn_costs(sites, np.random.default_rng(seed))
        chosen = choose(sites, costs, None)
        best = min(predicted_latency(sites, costs, other) for other in assignments(sites, legal(sites)))
        assert predicted_latency(sites, costs, chosen) == pytest.approx(best, rel=1e-9)
        seen.update(chosen.values())

    law()
    assert seen == {"float", "static", "dynamic"}


def test_within_a_limit_of_noise_the_program_finds_the_optimum(sites_of: Callable) -> None:
    binding = 0

    @settings(max_examples=60)
    @given(products(), st.integers(0, 2**32), st.sampled_from([0.0, 0.05, 0.3, 0.8]))
    def law(text: str, seed: int, share: float) -> None:
        nonlocal binding
        sites = sites_of(text)
        generator = np.random.default_rng(seed)
        costs, budget = drawn_costs(sites, generator), drawn_budget(sites, generator, share)
        chosen = choose(sites, costs, budget)
        within = [other for other in assignments(sites, legal(sites)) if noise_of(other, budget) <= budget.limit]
        best = min(predicted_latency(sites, costs, other) for other in within)
        assert noise_of(chosen, budget) <= budget.limit * (1 + 1e-5)
        assert predicted_latency(sites, costs, chosen) == pytest.approx(best, rel=1e-9)
        binding += best > predicted_latency(sites, costs, choose(sites, costs, None)) * 1.001

    law()
    assert binding > 10, "the limits of the examples never decided anything"


@pytest.mark.parametrize("caution", [1.0, 1.7])
def test_the_least_noisy_plan_is_found_among_those_that_are_fast_enough(sites_of: Callable, caution: float) -> None:
    quieter = 0

    @settings(max_examples=60)
    @given(products(), st.integers(0, 2**32), st.sampled_from([0.3, 0.8, 2.0]), st.sampled_from([1.0, 1.2, 2.0]))
    def law(text: str, seed: int, share: float, slowest: float) -> None:
        nonlocal quieter
        sites = sites_of(text)
        generator = np.random.default_rng(seed)
        costs, budget = drawn_costs(sites, generator), drawn_budget(sites, generator, share)
        budget = dataclasses.replace(budget, minimize=True, slowest=slowest)
        # With caution, integers and conversions count for more: in the search for the fastest as in the limit.
        cautious = DrawnCosts(
            {key: ns * (caution if key[1] != "float" else 1.0) for key, ns in costs.sites.items() if ns is not None},
            {key: ns * caution for key, ns in costs.tensors.items()},
        )
        chosen = choose(sites, costs, budget, caution)
        within = [other for other in assignments(sites, legal(sites)) if noise_of(other, budget) <= budget.limit]
        times = [predicted_latency(sites, cautious, other) for other in within]
        slow = slowest * min(times) * (1 + 1e-5)
        quietest = min(noise_of(other, budget) for other, time in zip(within, times, strict=True) if time <= slow)
        assert predicted_latency(sites, cautious, chosen) <= slow
        assert noise_of(chosen, budget) <= quietest + 1e-4 * max(budget.static.values())
        quieter += quietest < 0.99 * noise_of(within[times.index(min(times))], budget)

    law()
    assert quieter > 5, "the examples never had anything to gain"


def test_noise_below_that_of_stored_weights_is_sought_and_not_shunned(sites_of: Callable) -> None:
    sites = sites_of("g (float[4,8] x, float[8,8] w) => (float[4,8] y) { y = MatMul(x, w) }")
    costs = DrawnCosts(
        {(sites[0].path, "float"): 1000.0, (sites[0].path, "static"): 1000.0, (sites[0].path, "dynamic"): 1000.0},
        dict.fromkeys(itertools.product("xyw", (True, False)), 0.0),
    )
    budget = NoiseBudget(
        static={sites[0].path: -1e-4}, dynamic={sites[0].path: -1e-3}, limit=1e-2, minimize=True, slowest=1.1
    )
    assert choose(sites, costs, budget) == {sites[0].path: "dynamic"}


def test_unknown_costs_leave_a_plan_within_the_limit(sites_of: Callable) -> None:
    @settings(max_examples=60)
    @given(products(), st.integers(0, 2**32), st.sampled_from([0.5, 1.0]), st.booleans(), st.sampled_from([1.0, 1.7]))
    def law(text: str, seed: int, unknown: float, minimize: bool, caution: float) -> None:
        sites = sites_of(text)
        generator = np.random.default_rng(seed)
        costs = drawn_costs(sites, generator, unknown=unknown)
        budget = dataclasses.replace(drawn_budget(sites, generator, 0.3), minimize=minimize)
        chosen = choose(sites, costs, budget, caution)
        assert noise_of(chosen, budget) <= budget.limit * (1 + 1e-5)
        assert not enclosed(sites, legal(sites), chosen)

    law()


def test_predicted_latency_is_kernels_and_each_conversion_once(sites_of: Callable) -> None:
    sites = sites_of(
        "g (float[4,8] x, float[8,8] w1, float[8,8] w2) => (float[4,8] y) "
        "{ a = Sigmoid(x)\n b = MatMul(a, w1)\n c = MatMul(a, w2)\n y = Add(b, c) }"
    )
    sigmoid, left, right, add = (site.path for site in sites)
    # Kernels are powers of 1, conversions powers of 1000: the sum tells what was counted.
    times = {(path, kind): 1.0 for path in (sigmoid, left, right, add) for kind in ("float", "static", "dynamic")}
    tensors = {("x", True): 10.0, ("a", True): 100.0, ("b", True): 1e3, ("c", True): 1e4, ("y", True): 1e5}
    tensors |= {(name, False): 1e6 * ns for (name, _), ns in tensors.items()}
    costs = DrawnCosts(times, tensors)

    def latency(**chosen: str) -> float:
        paths = {"sigmoid": sigmoid, "left": left, "right": right, "add": add}
        return predicted_latency(sites, costs, {paths[name]: execution for name, execution in chosen.items()})

    assert latency() == 4
    # Both products read the codes of one QuantizeLinear.
    assert latency(left="static", right="static") == 4 + 100
    # A matrix product's kernel can write float; a Sigmoid's cannot, and its other reader wants float.
    assert latency(sigmoid="static", left="static") == 4 + 10 + 100e6
    assert latency(add="static") == 4 + 1e3 + 1e4 + 1e11
    assert latency(sigmoid="static", left="static", right="static", add="static") == 4 + 10 + 1e11
    # Ranges at run time need no codes between operators.
    assert latency(left="dynamic", right="dynamic") == 4


def test_explained_choices_repeat_what_was_decided_elsewhere(sites_of: Callable) -> None:
    sites = sites_of(PAIR)
    shapes = dict.fromkeys(("x", "c", "y"), (1, 256, 28, 28))
    first, second = (site.path for site in sites)
    choices = explain_executions(sites, FormulaCosts(COSTS, shapes), {first: "static", second: "weight-only"})
    assert choices[first].execution == "static"
    assert choices[first].chosen_ns == static_cost(sites[0], shapes, COSTS)
    assert "faster than float predicted" in choices[first].reason
    # Weights that are only stored small compute in float.
    assert choices[second].execution == "float"
    assert choices[second].chosen_ns == choices[second].float_ns == float_cost(sites[1], shapes, COSTS)
