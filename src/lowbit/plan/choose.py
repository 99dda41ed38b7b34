"""Choosing which sites run in integers, at the least predicted latency.

Every site is either float or integer, and wherever a tensor crosses from one to the other somebody pays for the
conversion. That is an integer linear program (a minimum cut, for two labels), solved exactly with HiGHS:

    minimize    Σ_v float_v (1 - s_v - d_v) + static_v s_v + dynamic_v d_v  +  Σ_t quantize_t q_t + dequantize_t e_t
    subject to  q_t ≥ s_c - s_p   for every consumer c of tensor t with producer p     (a code is needed)
                e_t ≥ s_p - s_c   likewise, unless p can write float itself            (a float is needed)
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.graph.constants import is_constant
from lowbit.plan.cost import Shapes, conversion_cost, dynamic_cost, float_cost, static_cost
from lowbit.plan.sites import Site

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowbit.plan.plan import Execution
    from lowbit.targets import CostModel, Target

__all__ = ["Choice", "choose_executions"]

_Edge = tuple[Site | None, ir.Value, list[Site | None]]
"""A tensor between sites: its producer, itself, its consumers (`None` for what only writes or reads float)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The execution of one site and the predicted times behind it, in nanoseconds (`None` if unknown)."""

    execution: Execution
    float_ns: float | None
    chosen_ns: float | None
    reason: str


def choose_executions(
    sites: Sequence[Site],
    target: Target,
    shapes: Shapes,
    *,
    allowed: Mapping[str, frozenset[Execution]],
    caution: float = 1.0,
) -> dict[str, Choice]:
    """Choose float, static or dynamic integers for every site.

    Args:
        sites: The model's sites in topological order.
        target: The target; without cost constants everything that is legal becomes integer.
        shapes: Shape of every tensor for one sample.
        allowed: Per site path, which of `static` and `dynamic` may be used; nothing if it is absent.
        caution: Factor on all integer and conversion costs; above 1 keeps more in float.

    Returns:
        One choice per site path.
    """
    if target.costs is None:
        return _everything_legal(sites, allowed)
    return _cheapest(sites, target.costs, shapes, allowed, caution)


def _everything_legal(sites: Sequence[Site], allowed: Mapping[str, frozenset[Execution]]) -> dict[str, Choice]:
    """Choose without costs: every weighted operator, and the others where an integer neighbour feeds them."""
    choices: dict[str, Choice] = {}
    coded: set[ir.Value] = set()
    for site in sites:
        may = allowed.get(site.path, frozenset())
        weighted = site.weight_index is not None
        fed = bool(site.activations) and all(
            site.node.inputs[index] in coded or is_constant(site.node.inputs[index]) for index in site.activations
        )
        execution: Execution = "float"
        if "static" in may and (weighted or fed):
            execution = "static"
            coded.update(site.last.outputs)
        elif "dynamic" in may and weighted:
            execution = "dynamic"
        choices[site.path] = Choice(
            execution=execution,
            float_ns=None,
            chosen_ns=None,
            reason="legal on the target, whose costs nobody has measured"
            if execution != "float"
            else "no integer neighbour",
        )
    return choices


def _cheapest(
    sites: Sequence[Site],
    costs: CostModel,
    shapes: Shapes,
    allowed: Mapping[str, frozenset[Execution]],
    caution: float,
) -> dict[str, Choice]:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    variables: list[float] = []  # objective coefficient of each 0/1 variable
    static_of: dict[str, int] = {}
    dynamic_of: dict[str, int] = {}
    times: dict[str, dict[str, float | None]] = {}
    for site in sites:
        may = allowed.get(site.path, frozenset())
        plain = float_cost(site, shapes, costs)
        times[site.path] = {"float": plain, "static": None, "dynamic": None}
        if "static" in may:
            cost = static_cost(site, shapes, costs)
            times[site.path]["static"] = cost
            static_of[site.path] = len(variables)
            variables.append(_difference(plain, cost, caution, unknown=0.0))
        if "dynamic" in may:
            cost = dynamic_cost(site, shapes, costs)
            times[site.path]["dynamic"] = cost
            dynamic_of[site.path] = len(variables)
            # Without shapes the dynamic kernels of matrix products and LSTMs are still the better bet: they read a
            # quarter of the weights, and what they add grows with the activations only.
            variables.append(_difference(plain, cost, caution, unknown=-costs.node))

    rows: list[int] = []
    columns: list[int] = []
    entries: list[float] = []
    lower: list[float] = []

    def constrain(terms: Mapping[int, float], bound: float) -> None:
        for column, entry in terms.items():
            rows.append(len(lower))
            columns.append(column)
            entries.append(entry)
        lower.append(bound)

    for path, static in static_of.items():
        if path in dynamic_of:
            constrain({static: -1.0, dynamic_of[path]: -1.0}, -1.0)
    edges = _edges(sites)
    touching: dict[str, list[_Edge]] = defaultdict(list)
    for edge in edges:
        around_edge = {end.path for end in (edge[0], *edge[2]) if end is not None}
        for path in around_edge:
            touching[path].append(edge)
    for producer, value, consumers in edges:
        producing = static_of.get(producer.path) if producer is not None else None
        shape = shapes.get(value.name or "")
        coded = [static_of.get(site.path) if site is not None else None for site in consumers]
        free_output = producer is not None and producer.support is not None and producer.support.float_output
        if any(index is not None for index in coded):
            quantize = len(variables)
            variables.append(caution * conversion_cost(shape, costs, quantize=True))
            for index in coded:
                if index is not None:
                    constrain({quantize: 1.0, index: -1.0, **({producing: 1.0} if producing is not None else {})}, 0.0)
        if producing is not None and not free_output:
            dequantize = len(variables)
            variables.append(caution * conversion_cost(shape, costs, quantize=False))
            for index in coded:
                terms = {dequantize: 1.0, producing: -1.0, **({index: 1.0} if index is not None else {})}
                constrain(terms, 0.0)

    # An engine fuses whatever stands between codes, asked or not; a plan cannot keep that in float.
    for site in sites:
        if site.path in static_of and site.weight_index is None:
            around = _neighbours(site, touching[site.path])
            if around is not None and all(other.path in static_of for other in around):
                ends = [static_of[other.path] for other in around]
                constrain({static_of[site.path]: 1.0, **dict.fromkeys(ends, -1.0)}, 1.0 - len(set(ends)))

    if not static_of and not dynamic_of:
        return {site.path: _choice("float", times[site.path]) for site in sites}
    matrix = coo_array((entries, (rows, columns)), shape=(len(lower), len(variables))).tocsc()
    solution = milp(
        c=np.asarray(variables),
        integrality=np.ones(len(variables)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix, lb=np.asarray(lower)) if lower else None,
    )
    assert solution.success, solution.message  # all-float is always feasible
    chosen = solution.x > 0.5
    result = {}
    for site in sites:
        execution: Execution = "float"
        if site.path in static_of and chosen[static_of[site.path]]:
            execution = "static"
        elif site.path in dynamic_of and chosen[dynamic_of[site.path]]:
            execution = "dynamic"
        result[site.path] = _choice(execution, times[site.path])
    return result


def _neighbours(site: Site, edges: Sequence[_Edge]) -> list[Site] | None:
    """Return the sites that write what `site` reads and that read what it writes; None if one of them has no codes."""
    found: list[Site] = []
    for producer, value, consumers in edges:
        if site in consumers:
            if producer is None:
                return None
            found.append(producer)
        if value in site.last.outputs:
            if any(consumer is None for consumer in consumers):
                return None
            found += [consumer for consumer in consumers if consumer is not None]
    return found


def _difference(plain: float | None, cost: float | None, caution: float, *, unknown: float) -> float:
    """Return what choosing an integer kernel adds to the objective."""
    return unknown if plain is None or cost is None else cost * caution - plain


def _choice(execution: Execution, times: Mapping[str, float | None]) -> Choice:
    plain, taken = times["float"], times[execution]
    if execution != "float":
        unknown = "reads a quarter of the weights" if execution == "dynamic" else "keeps codes flowing"
        speed = f"{plain / taken:.1f}× faster than float predicted" if plain and taken else unknown
        if plain and taken and plain < taken:
            speed = "saves the conversions around it"
        return Choice(execution=execution, float_ns=plain, chosen_ns=taken, reason=speed)
    integer = [time for key, time in times.items() if key != "float" and time is not None]
    if integer and plain is not None:
        reason = (
            f"slower in integers: {min(integer) / 1000:.0f} µs predicted against {plain / 1000:.0f} µs"
            if min(integer) > plain
            else "converting its inputs and outputs costs more than integers save"
        )
    else:
        reason = "no integer neighbour to save a conversion for"
    return Choice(execution="float", float_ns=plain, chosen_ns=plain, reason=reason)


def _edges(sites: Sequence[Site]) -> list[_Edge]:
    """Return every tensor between sites: its producer, itself, and its consumers (`None` for what only reads float)."""
    site_of: dict[ir.Node, Site] = {}
    for site in sites:
        site_of[site.node] = site
        site_of.update(dict.fromkeys(site.fused, site))
        if site.bias_node is not None:
            site_of[site.bias_node] = site
    edges = []
    seen: set[ir.Value] = set()
    for site in sites:
        candidates = [*site.last.outputs, *(value for value in site.node.inputs if value is not None)]
        for value in candidates:
            if value in seen or (is_constant(value) and site.weight is value):
                continue
            seen.add(value)
            producer_node = value.producer()
            producer = site_of.get(producer_node) if producer_node is not None else None
            if producer is not None and value not in producer.last.outputs:
                continue  # inside a site
            consumers: list[Site | None] = []
            for use in value.uses():
                consumer = site_of.get(use.node)
                reads_codes = consumer is not None and consumer.node is use.node and use.idx in consumer.activations
                consumers.append(consumer if reads_codes else None)
            if value.is_graph_output():
                consumers.append(None)
            if consumers:
                edges.append((producer, value, consumers))
    return edges
