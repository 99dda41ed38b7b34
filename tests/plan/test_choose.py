"""Choosing executions: the integer program finds what trying everything finds."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.plan.choose import choose_executions
from lowbit.plan.cost import FormulaCosts, conversion_cost, dynamic_cost, float_cost, static_cost
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
