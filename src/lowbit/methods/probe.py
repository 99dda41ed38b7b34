"""Probing: what the operators of a model cost on this machine, in float and in every format that the target allows.

Nothing is assumed of an engine. The model is built in a few variants (all float, all static, all dynamic), which run in
turn while the engine's profiler times every kernel in its place, with the neighbours, caches and memory layouts that it
really has. Conversions between float and codes are timed between two kernels of their own for every shape of tensor.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.graph.constants import constant_array, is_constant
from lowbit.methods.apply import apply_plan
from lowbit.methods.decide import with_granularity
from lowbit.methods.prepare import source_digest
from lowbit.methods.site_times import SiteTimes, time_sites
from lowbit.plan.choose import edges
from lowbit.plan.cost import where_is
from lowbit.plan.cost_keys import conversion_key, site_key
from lowbit.plan.cost_table import CostTable, merge
from lowbit.plan.plan import ActivationPlan, Execution, Plan, SitePlan
from lowbit.plan.ranges import coded_tensors
from lowbit.plan.sites import Site, find_sites
from lowbit.runtime.machine import this_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lowbit.plan.cost import Shapes
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["REPEATS", "UNSTEADY", "Probe", "corrected", "missing_costs", "probe_model", "timing_artifact"]

# Medians whose quartiles lie further apart than this are measured again: something else is using the processor.
UNSTEADY = 0.15
REPEATS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What probing a model found.

    Attributes:
        table: All costs that are known now.
        float_ns: Latency of the float model in nanoseconds, `None` if everything was known before.
        measured: How many operators were measured now.
    """

    table: CostTable
    float_ns: float | None
    measured: int


def probe_model(
    model: ir.Model,
    sites: Sequence[Site],
    target: Target,
    shapes: Shapes,
    feed: Feed,
    *,
    known: CostTable | None = None,
    threads: int = 1,
    seconds: float = 3.0,
    advance: Callable[[], None] = lambda: None,
) -> Probe:
    """Measure what `known` does not hold of a model's costs.

    Args:
        model: The cleaned float model.
        sites: Its sites.
        target: Where it will run: which formats are legal, and in which engine.
        shapes: Shape of every tensor for `feed`.
        feed: One set of inputs.
        known: Costs of this machine that are known already.
        threads: Threads of the engine.
        seconds: How long the model's variants run, together.
        advance: Called after every round.

    Raises:
        EngineError: The engine refuses the float model, or a variant of it.
    """
    table = known or CostTable(machine=this_machine(threads=threads, engine=target.engine))
    missing = missing_costs(table, sites, shapes)
    if not missing:
        return Probe(table=table, float_ns=None, measured=0)
    executions = [_all(sites, "static"), _all(sites, "dynamic")]
    variants: list[tuple[dict[str, Execution], ir.Model]] = [({}, model)]
    variants += [(chosen, timing_artifact(model, sites, chosen, target)) for chosen in executions if chosen]
    small, small_sites, small_feed, small_tensors = _conversions(sites, shapes, target)
    for attempt in range(REPEATS):
        times = time_sites(
            [(variant, feed) for _, variant in variants],
            sites,
            threads=threads,
            seconds=seconds * (attempt + 1),
            engine=target.engine,
            advance=advance,
        )
        spread = max(one.profile.spread for one in times)
        if spread <= UNSTEADY:
            break
    found = dataclasses.replace(table, operators={}, conversions={}, spread=spread)
    for (chosen, _), measured in zip(variants, times, strict=True):
        found = merge(found, _observed(found, sites, shapes, chosen, measured))
    if small is not None:
        (measured,) = time_sites(
            [(small, small_feed)], small_sites, threads=threads, seconds=min(seconds, 1.0), engine=target.engine
        )
        found = merge(_conversion_times(found, measured, small_tensors), found)
    return Probe(table=merge(table, found), float_ns=times[0].profile.whole_ns, measured=len(missing))


def missing_costs(table: CostTable, sites: Sequence[Site], shapes: Shapes) -> tuple[str, ...]:
    """Return the paths of the sites of which a table does not know what it could."""
    missing = []
    for site in sites:
        key = site_key(site, shapes)
        if site.subgraph or key is None:
            continue
        wanted = {"float", *(kind for kind in ("static", "dynamic") if site.path in _all([site], kind))}
        if not wanted <= set(table.operators.get(key, {})):
            missing.append(site.path)
    return tuple(missing)


def corrected(
    table: CostTable, sites: Sequence[Site], shapes: Shapes, executions: Mapping[str, Execution], times: SiteTimes
) -> CostTable:
    """Return `table` with what was measured in an artifact in place of what was expected of it."""
    return merge(table, _observed(table, sites, shapes, executions, times))


def timing_artifact(
    model: ir.Model, sites: Sequence[Site], executions: Mapping[str, Execution], target: Target
) -> ir.Model:
    """Return an artifact that takes as long as the real one, without calibration: its numbers mean nothing.

    The time of a kernel does not depend on scales or weights. All codes share one scale, for which every activation
    function is absorbed that could be, and weights are not repaired against saturation.
    """
    entries = []
    weights = with_granularity(target.weights, weight_only=False)
    for site in sites:
        execution = executions.get(site.path, "float")
        entries.append(
            SitePlan(
                node=site.path,
                op_type=site.op_type,
                execution=execution,
                reason="",
                weights=weights if execution in {"static", "dynamic"} and site.weight_index is not None else None,
                activations=target.activations if execution == "static" else None,
            )
        )
    activations = tuple(
        ActivationPlan(
            tensor=tensor.name,
            format=target.activations,
            scale=_SCALE,
            zero_point=0,
            low=0.0,
            high=_SCALE * 255,
            reason="",
        )
        for tensor in coded_tensors(sites, executions)
        if constant_array(tensor.value) is None
    )
    plan = Plan(
        target=target.name,
        method="static",
        model_sha256=source_digest(model),
        sites=tuple(entries),
        activations=activations,
    )
    return apply_plan(model, plan, target=dataclasses.replace(target, saturates=False)).model


# Codes then reach from 0 to 0.996: inside what Relu, Clip(0, 1) and Clip(0, 6) let through.
_SCALE = 1.0 / 256.0


def _all(sites: Sequence[Site], execution: Execution) -> dict[str, Execution]:
    """Return every operator that may run so; a convolution with ranges at run time never pays and is left out."""
    return {
        site.path: execution
        for site in sites
        if site.allows(execution)
        and not site.subgraph
        and (execution == "static" or (site.weight_index is not None and site.op_type != "Conv"))
    }


def _observed(
    table: CostTable, sites: Sequence[Site], shapes: Shapes, executions: Mapping[str, Execution], times: SiteTimes
) -> CostTable:
    """Return what one model's times say: operators and conversions, the mean where one key occurs several times."""
    operators: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for site in sites:
        key = site_key(site, shapes)
        if key is not None and not site.subgraph:
            operators[key][executions.get(site.path, "float")].append(times.site(site.path))
    conversions: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    values = {value.name: value for _, value, _ in edges(sites)}
    for owner, nanoseconds in times.times.items():
        value, shape = values.get(owner.name), shapes.get(owner.name)
        if owner.kind != "site" and value is not None and shape is not None:
            conversions[conversion_key(shape, where=where_is(value))][owner.kind].append(nanoseconds)
    return dataclasses.replace(table, operators=_means(operators), conversions=_means(conversions))


def _means(found: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, float]]:
    return {key: {kind: math.fsum(ns) / len(ns) for kind, ns in entry.items()} for key, entry in found.items()}


_Micro = tuple[ir.Model | None, tuple[Site, ...], dict[str, np.ndarray], dict[str, str]]


def _conversions(sites: Sequence[Site], shapes: Shapes, target: Target) -> _Micro:
    """Return a model with one branch for every conversion that a plan could need, and the key of each of its tensors.

    Feature maps stand between depthwise 1×1 convolutions, so that the change between the blocked layout of float
    kernels and the channels-last layout of integer ones is part of the time; other tensors between functions.
    """
    wanted: dict[str, tuple[tuple[int, ...], str]] = {}
    for producer, value, consumers in edges(sites):
        shape = shapes.get(value.name or "")
        able = [site is not None and site.allows("static") for site in (producer, *consumers)]
        if shape is None or not any(able) or is_constant(value) or math.prod(shape) == 0:
            continue
        where = where_is(value)
        wanted[conversion_key(shape, where=where)] = (shape, where)
    nodes: list[ir.Node] = []
    inputs: list[ir.Value] = []
    outputs: list[ir.Value] = []
    initializers: list[ir.Value] = []
    feed: dict[str, np.ndarray] = {}
    keys: dict[str, str] = {}
    static: set[str] = set()
    generator = np.random.default_rng(0)
    for index, (key, (shape, where)) in enumerate(wanted.items()):
        mapped = len(shape) == _MAP_RANK and shape[1] > 1 and math.prod(shape[2:]) > 1
        value = ir.Value(name=f"x{index}", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        inputs.append(value)
        feed[f"x{index}"] = generator.random(shape, dtype=np.float32)
        # float → integer → float; at the graph's own ends without the float neighbour.
        steps = {"input": ("static", "float"), "output": ("float", "static")}.get(where, ("float", "static", "float"))
        for step, execution in enumerate(steps):
            name = f"t{index}_{step}"
            output = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
            node_name = f"n{index}_{step}"
            if mapped:
                weight = ir.Value(
                    name=f"w{index}_{step}", const_value=ir.tensor(np.ones((shape[1], 1, 1, 1), "float32"))
                )
                initializers.append(weight)
                node = ir.node("Conv", [value, weight], {"group": shape[1]}, outputs=[output], name=node_name)
            else:
                operator = "Sigmoid" if execution == "static" else "Neg"
                node = ir.node(operator, [value], outputs=[output], name=node_name)
            if execution == "static":
                static.add(node_name)
                keys.setdefault(f"quantize {value.name}", key)
                keys[f"dequantize {name}"] = key
            nodes.append(node)
            value = output
        outputs.append(value)
    if not wanted:
        return None, (), {}, {}
    graph = ir.Graph(
        inputs, outputs, nodes=nodes, initializers=initializers, opset_imports={"": 17}, name="conversions"
    )
    model = ir.Model(graph, ir_version=8)
    model_sites = find_sites(model, target)
    executions: dict[str, Execution] = {
        site.path: "static" for site in model_sites if site.path in static and site.allows("static")
    }
    return timing_artifact(model, model_sites, executions, target), model_sites, feed, keys


_MAP_RANK = 4


def _conversion_times(table: CostTable, measured: SiteTimes, keys: Mapping[str, str]) -> CostTable:
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for owner, nanoseconds in measured.times.items():
        key = keys.get(f"{owner.kind} {owner.name}")
        if key is not None:
            found[key][owner.kind].append(nanoseconds)
    return dataclasses.replace(table, operators={}, conversions=_means(found))
