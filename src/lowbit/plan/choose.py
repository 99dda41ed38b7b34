"""Choosing which sites run in integers, at the least predicted latency.

Every site is either float or integer, and wherever a tensor crosses from one to the other somebody pays for the
conversion. That is an integer linear program (a minimum cut, for two labels), solved exactly with HiGHS:

    minimize    Σ_v float_v (1 - s_v - d_v) + static_v s_v + dynamic_v d_v  +  Σ_t quantize_t q_t + dequantize_t e_t
    subject to  q_t ≥ s_c - s_p   for every consumer c of tensor t with producer p     (a code is needed)
                e_t ≥ s_p - s_c   likewise, unless p can write float itself            (a float is needed)
                Σ_v noise_v (s_v + d_v) ≤ budget                                       (where accuracy is limited)
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.graph.constants import is_constant
from lowbit.plan.sites import Site

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lowbit.plan.cost import Costs
    from lowbit.plan.plan import Execution

__all__ = [
    "Choice",
    "NoiseBudget",
    "choose_executions",
    "conversions",
    "edges",
    "explain_executions",
    "predicted_latency",
]

_Edge = tuple[Site | None, ir.Value, list[Site | None]]
"""A tensor between sites: its producer, itself, its consumers (`None` for what only writes or reads float)."""


# Preference for dynamic kernels whose cost is unknown, in nanoseconds: about the launch of a kernel.
_BETTER_BET = -3000.0
_HALF = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The execution of one site and the predicted times behind it, in nanoseconds (`None` if unknown)."""

    execution: Execution
    float_ns: float | None
    chosen_ns: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseBudget:
    """How much quantization noise a plan may add at the model's output.

    Noise powers of different sites add up, as far as they are independent. All powers are relative to the power of the
    output in float, so that a budget of `10 ** (-SQNR / 10)` demands that SQNR in decibel.

    Attributes:
        static: Noise power that each site adds alone when it runs in static integers, by path; absent is none.
        dynamic: The same with ranges at run time.
        limit: Largest sum.
        minimize: Whether the sum is made as small as possible before anything else, within `slowest`.
        slowest: With `minimize`, how much slower than the fastest plan the chosen one may be, as a factor.
    """

    static: Mapping[str, float]
    dynamic: Mapping[str, float]
    limit: float
    minimize: bool = False
    slowest: float = 1.1


def choose_executions(
    sites: Sequence[Site],
    costs: Costs | None,
    *,
    allowed: Mapping[str, frozenset[Execution]],
    caution: float = 1.0,
    budget: NoiseBudget | None = None,
    unfed: bool = False,
) -> dict[str, Choice]:
    """Choose float, static or dynamic integers for every site.

    Args:
        sites: The model's sites in topological order.
        costs: What everything costs; without, everything that is legal becomes integer.
        allowed: Per site path, which of `static` and `dynamic` may be used; nothing if it is absent.
        caution: Factor on all integer and conversion costs; above 1 keeps more in float.
        budget: Limit of the noise that integers may add; without one latency alone decides.
        unfed: Without costs, whether operators become integer too that nothing integer feeds, movers excepted.

    Returns:
        One choice per site path.
    """
    if costs is None:
        return _everything_legal(sites, allowed, unfed=unfed)
    program = _Program(sites, costs, allowed, caution)
    if budget is None:
        return program.solve()
    if budget.minimize:
        return program.solve(noise=budget, objective_limit=program.slowest(budget))
    return program.solve(noise=budget)


def explain_executions(sites: Sequence[Site], costs: Costs, executions: Mapping[str, Execution]) -> dict[str, Choice]:
    """Return the choices behind executions that were decided elsewhere, with the times that speak for them."""
    result = {}
    for site in sites:
        execution = executions.get(site.path, "float")
        times: dict[str, float | None] = {"float": costs.site(site, "float"), "static": None, "dynamic": None}
        for kind in ("static", "dynamic"):
            if site.allows(kind):
                times[kind] = costs.site(site, kind)
        result[site.path] = _choice(execution if execution in {"static", "dynamic"} else "float", times)
    return result


def predicted_latency(sites: Sequence[Site], costs: Costs, executions: Mapping[str, Execution]) -> float:
    """Return the predicted time of the whole model in nanoseconds: kernels, and conversions between float and codes.

    Operators of unknown cost count nothing.
    """
    total = sum(costs.site(site, executions.get(site.path, "float")) or 0.0 for site in sites)
    return float(total + sum(costs.conversion(value, quantize=kind) for value, kind in conversions(sites, executions)))


def conversions(sites: Sequence[Site], executions: Mapping[str, Execution]) -> list[tuple[ir.Value, bool]]:
    """Return the tensors converted between float and codes under a set of executions, and whether to codes."""
    found = []
    for producer, value, consumers in edges(sites):
        written = producer is not None and executions.get(producer.path) == "static"
        reads = [site is not None and executions.get(site.path) == "static" for site in consumers]
        free = producer is not None and producer.support is not None and producer.support.float_output
        if not written and any(reads) and not is_constant(value):
            found.append((value, True))
        if written and not all(reads) and not free:
            found.append((value, False))
    return found


def _everything_legal(
    sites: Sequence[Site], allowed: Mapping[str, frozenset[Execution]], *, unfed: bool
) -> dict[str, Choice]:
    """Choose without costs: every weighted operator, and the others where an integer neighbour feeds them."""
    choices: dict[str, Choice] = {}
    coded: set[ir.Value] = set()
    for site in sites:
        may = allowed.get(site.path, frozenset())
        weighted = site.weight_index is not None
        sources = [site.node.inputs[index] for index in site.activations]
        fed = bool(sources) and all(
            value in coded
            or is_constant(value)
            or (unfed and value is not None and value.is_graph_input())
            or (unfed and site.support is not None and site.support.role != "passive")
            for value in sources
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


class _Program:
    """The integer linear program of one model; solved as often as limits change."""

    def __init__(
        self, sites: Sequence[Site], costs: Costs, allowed: Mapping[str, frozenset[Execution]], caution: float
    ) -> None:
        self.sites = sites
        self.costs = costs
        self.objective: list[float] = []  # coefficient of each 0/1 variable
        self.static_of: dict[str, int] = {}
        self.dynamic_of: dict[str, int] = {}
        self.times: dict[str, dict[str, float | None]] = {}
        self.constraints: list[tuple[dict[int, float], float]] = []  # Σ coefficient · variable ≥ bound
        for site in sites:
            self._add_site(site, allowed.get(site.path, frozenset()), caution)
        for path, static in self.static_of.items():
            if path in self.dynamic_of:
                self.constraints.append(({static: -1.0, self.dynamic_of[path]: -1.0}, -1.0))
        self._add_conversions(caution)

    def _add_site(self, site: Site, may: frozenset[Execution], caution: float) -> None:
        plain = self.costs.site(site, "float")
        times: dict[str, float | None] = {"float": plain, "static": None, "dynamic": None}
        self.times[site.path] = times
        if "static" in may:
            times["static"] = self.costs.site(site, "static")
            self.static_of[site.path] = len(self.objective)
            self.objective.append(_difference(plain, times["static"], caution, unknown=0.0))
        if "dynamic" in may:
            times["dynamic"] = self.costs.site(site, "dynamic")
            self.dynamic_of[site.path] = len(self.objective)
            # Without shapes the dynamic kernels of matrix products and LSTMs are still the better bet: they read a
            # quarter of the weights, and what they add grows with the activations only.
            self.objective.append(_difference(plain, times["dynamic"], caution, unknown=_BETTER_BET))

    def _add_conversions(self, caution: float) -> None:
        all_edges = edges(self.sites)
        touching: dict[str, list[_Edge]] = defaultdict(list)
        for edge in all_edges:
            for path in {end.path for end in (edge[0], *edge[2]) if end is not None}:
                touching[path].append(edge)
        for producer, value, consumers in all_edges:
            producing = self.static_of.get(producer.path) if producer is not None else None
            coded = [self.static_of.get(site.path) if site is not None else None for site in consumers]
            free_output = producer is not None and producer.support is not None and producer.support.float_output
            if any(index is not None for index in coded) and not is_constant(value):
                quantize = len(self.objective)
                self.objective.append(caution * self.costs.conversion(value, quantize=True))
                for index in coded:
                    if index is not None:
                        own = {producing: 1.0} if producing is not None else {}
                        self.constraints.append(({quantize: 1.0, index: -1.0, **own}, 0.0))
            if producing is not None and not free_output:
                dequantize = len(self.objective)
                self.objective.append(caution * self.costs.conversion(value, quantize=False))
                for index in coded:
                    own = {index: 1.0} if index is not None else {}
                    self.constraints.append(({dequantize: 1.0, producing: -1.0, **own}, 0.0))
        # An engine fuses whatever stands between codes, asked or not; a plan cannot keep that in float.
        for site in self.sites:
            if site.path in self.static_of and site.weight_index is None:
                around = _neighbours(site, touching[site.path])
                if around is not None and all(other.path in self.static_of for other in around):
                    ends = dict.fromkeys((self.static_of[other.path] for other in around), -1.0)
                    self.constraints.append(({self.static_of[site.path]: 1.0, **ends}, 1.0 - len(ends)))

    def slowest(self, budget: NoiseBudget) -> float:
        """Return the objective of a plan that is slower than the fastest within the limit by the budget's factor."""
        fastest = float(np.dot(self.objective, self._solution(budget, None))) if self.objective else 0.0
        # The objective is what integers add to the model in float: the factor is on both together.
        whole = predicted_latency(self.sites, self.costs, {}) + fastest
        return fastest + (budget.slowest - 1.0) * max(whole, 0.0)

    def solve(self, *, noise: NoiseBudget | None = None, objective_limit: float | None = None) -> dict[str, Choice]:
        """Return the best assignment.

        Args:
            noise: The limit of noise.
            objective_limit: Take the least noisy plan up to this objective, not the fastest.
        """
        chosen = self._solution(noise, objective_limit) > _HALF if self.objective else np.zeros(0, dtype=bool)
        result = {}
        for site in self.sites:
            execution: Execution = "float"
            if site.path in self.static_of and chosen[self.static_of[site.path]]:
                execution = "static"
            elif site.path in self.dynamic_of and chosen[self.dynamic_of[site.path]]:
                execution = "dynamic"
            result[site.path] = _choice(execution, self.times[site.path])
        return result

    def _solution(self, noise: NoiseBudget | None, objective_limit: float | None) -> NDArray[np.float64]:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        constraints = list(self.constraints)
        objective = np.asarray(self.objective)
        if noise is not None:
            powers = {index: noise.static.get(path, 0.0) for path, index in self.static_of.items()}
            powers |= {index: noise.dynamic.get(path, 0.0) for path, index in self.dynamic_of.items()}
            # Scaled to the limit: the solver's tolerances are absolute.
            constraints.append(({index: -power / noise.limit for index, power in powers.items()}, -1.0))
            if objective_limit is not None:
                scale = max(np.abs(objective).max(), 1e-9)
                terms = {index: -value / scale for index, value in enumerate(self.objective)}
                constraints.append((terms, -objective_limit / scale))
                # A power is below 0 where integers are quieter than weights that are only stored small.
                largest = max((abs(power) for power in powers.values()), default=0.0) or 1.0
                objective = 1e-6 * objective / scale
                for index, power in powers.items():
                    objective[index] += power / largest
        entries = [
            (coefficient, row, column)
            for row, (terms, _) in enumerate(constraints)
            for column, coefficient in terms.items()
        ]
        values, rows, columns = zip(*entries, strict=True) if entries else ((), (), ())
        matrix = coo_array((values, (rows, columns)), shape=(len(constraints), len(objective))).tocsc()
        solution = milp(
            c=objective,
            integrality=np.ones(len(objective)),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, lb=np.asarray([bound for _, bound in constraints]))
            if constraints
            else None,
        )
        assert solution.success, solution.message  # all-float is always feasible, and the fastest plan within `slowest`
        return np.asarray(solution.x, dtype=np.float64)


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


def edges(sites: Sequence[Site]) -> list[_Edge]:
    """Return every tensor between sites: its producer, itself, and its consumers (`None` for what only reads float)."""
    site_of: dict[ir.Node, Site] = {}
    for site in sites:
        site_of[site.node] = site
        site_of.update(dict.fromkeys(site.fused, site))
        if site.bias_node is not None:
            site_of[site.bias_node] = site
    found: list[_Edge] = []
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
                found.append((producer, value, consumers))
    return found
