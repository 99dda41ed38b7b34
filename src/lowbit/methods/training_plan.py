"""What training starts from: the plan of post-training quantization, with few bits only where they are worth it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from lowbit.exceptions import RecipeError
from lowbit.formats import PerTensor, parse_format
from lowbit.graph.clean.dead_code import remove_dead_code
from lowbit.graph.constants import constant_array
from lowbit.graph.editor import Editor
from lowbit.methods.calibrate import calibrate, observed_shapes
from lowbit.methods.decide import activation_format, decide, make_plan, watch_list
from lowbit.plan.ranges import coded_tensors, share_scales
from lowbit.plan.sites import Site, find_sites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lowbit.methods.decide import Decision
    from lowbit.plan.plan import Plan
    from lowbit.plan.recipe import Recipe
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["WeightedGraph", "float_plan", "training_plan", "with_plain_weights"]

_BYTE = 8
_EIGHT_BITS = "uint8"
_EIGHT_BIT_WEIGHTS = "int8:per-channel"


def with_plain_weights(model: ir.Model, target: Target) -> ir.Model:
    """Return a copy in which every weight is a float initializer of its own name, also what arrived quantized."""
    result = model.clone()
    editor = Editor(result)
    for site in find_sites(result, target):
        value = site.weight
        if value is None or site.weight_index is None or value.is_initializer():
            continue
        graph = site.node.graph
        if isinstance(graph, ir.Graph):
            plain = editor.constant(graph, f"{value.name}_float", site.weight_array())
            site.node.replace_input_with(site.weight_index, plain)
    remove_dead_code(result)
    return result


def float_plan(model: ir.Model, sites: Sequence[Site], recipe: Recipe, target: Target) -> Plan:
    """Return the plan that leaves everything in float."""
    everything = dataclasses.replace(recipe, exclude=("*",), rules=(), weights=None, activations=None, method="auto")
    decision = decide(sites, everything, target, {})
    return make_plan(model, sites, everything, target, decision, None, {})


def training_plan(
    model: ir.Model,
    sites: Sequence[Site],
    recipe: Recipe,
    target: Target,
    feeds: Iterable[Feed],
    *,
    edges: bool = True,
    advance: Callable[[], None] = lambda: None,
) -> Plan:
    """Plan what `lowbit.trainable` starts from.

    Everything that may be integer is, unless the recipe says otherwise: costs are looked at when a plan is quantized,
    not when it is trained. Below 8 bits, codes of few bits are what convolutions and matrix products read; what only
    other operators read has 8, because there it costs accuracy and saves no multiplication.

    Args:
        model: The cleaned float model.
        sites: Its sites.
        recipe: What the user asks for; `auto` is `static` here.
        target: Where the model will run.
        feeds: Calibration samples.
        edges: Whether the first and the last layers have 8 bits where the recipe asks for fewer.
        advance: Called after every sample.

    Raises:
        RecipeError: The recipe asks for ranges at run time, or for a format that training has no gradient for.
        DataError: There is no sample.
    """
    recipe = _trained(recipe)
    feeds = list(feeds)
    shapes = observed_shapes(model, feeds[0]) if feeds else {}
    decision = decide(sites, recipe, target, shapes)
    few = decision.activations.element.kind == "integer" and decision.activations.element.bits < _BYTE
    graph = WeightedGraph(sites)
    if edges:
        decision = _with_wide_edges(decision, graph)
    watch = watch_list(sites, decision, recipe)
    calibration = calibrate(model, feeds, watch, advance=advance) if watch.tensors or watch.means else None
    plan = make_plan(model, sites, recipe, target, decision, calibration, shapes)
    dynamic = next((entry.node for entry in plan.sites if entry.execution == "dynamic"), None)
    if dynamic is not None:
        raise RecipeError(
            f"{dynamic!r} would find its ranges at run time",
            cause="what is trained are ranges that stay",
            remedy="use the method static, or weight-only, or exclude it",
        )
    if not few or calibration is None:
        return plan
    wide = dataclasses.replace(decision, activations=activation_format(_EIGHT_BITS))
    return _widened(plan, make_plan(model, sites, recipe, target, wide, calibration, shapes), graph, edges=edges)


def _trained(recipe: Recipe) -> Recipe:
    method = recipe.method
    if method in {"auto", "best"}:
        method = "weight-only" if recipe.activations == "none" else "static"
    if method == "dynamic" or recipe.activations == "dynamic":
        raise RecipeError(
            "the recipe asks for ranges at run time",
            cause="what is trained are ranges that stay",
            remedy="use the method static or weight-only for training",
        )
    return dataclasses.replace(recipe, method=method)


def _with_wide_edges(decision: Decision, graph: WeightedGraph) -> Decision:
    weights = dict(decision.weights)
    for path in graph.first | graph.last:
        text = weights.get(path)
        if text is None:
            continue
        asked = parse_format(text)
        if asked.element.kind == "integer" and asked.element.bits < _BYTE and decision.executions[path] == "static":
            weights[path] = "int8:per-tensor" if isinstance(asked.granularity, PerTensor) else _EIGHT_BIT_WEIGHTS
    return dataclasses.replace(decision, weights=weights)


def _widened(plan: Plan, wide: Plan, graph: WeightedGraph, *, edges: bool) -> Plan:
    """Return the plan with 8 bits wherever few bits would cost accuracy and save nothing."""
    executions = {entry.node: entry.execution for entry in plan.sites}
    tensors = [tensor for tensor in coded_tensors(graph.sites, executions) if constant_array(tensor.value) is None]
    ranges = {entry.tensor: (entry.low, entry.high) for entry in plan.activations}
    root = share_scales([tensor for tensor in tensors if tensor.name in ranges], ranges)
    keep: set[str] = set()
    for tensor in tensors:
        readers = [site for site in tensor.readers if site.weight_index is not None]
        inner = [site for site in readers if not edges or site.path not in graph.first | graph.last]
        if inner:
            keep.add(root.get(tensor.name, tensor.name))
    eight = {entry.tensor: entry for entry in wide.activations}
    activations = tuple(
        entry if root.get(entry.tensor, entry.tensor) in keep else eight[entry.tensor] for entry in plan.activations
    )
    return dataclasses.replace(plan, activations=activations)


@dataclass(slots=True, init=False, eq=False)
class WeightedGraph:
    """Where operators with weights lie.

    Args:
        sites: The sites of a graph, in topological order.

    Attributes:
        sites: The same.
        first: Paths of those with no operator with weights before them.
        last: Paths of those with none behind them.
    """

    sites: tuple[Site, ...]
    first: frozenset[str]
    last: frozenset[str]

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = tuple(sites)
        weighted = {site.node: site.path for site in sites if site.weight_index is not None and not site.subgraph}
        nodes = [node for graph in {site.node.graph for site in sites if not site.subgraph} for node in graph or ()]
        behind: dict[ir.Value, bool] = {}
        first = set()
        for node in nodes:
            seen = any(behind.get(value, False) for value in node.inputs if value is not None)
            if node in weighted and not seen:
                first.add(weighted[node])
            behind.update((value, seen or node in weighted) for value in node.outputs)
        ahead: dict[ir.Value, bool] = {}
        last = set()
        for node in reversed(nodes):
            seen = any(ahead.get(value, False) for value in node.outputs)
            if node in weighted and not seen:
                last.add(weighted[node])
            for value in node.inputs:
                if value is not None:
                    ahead[value] = ahead.get(value, False) or seen or node in weighted
        self.first, self.last = frozenset(first), frozenset(last)
