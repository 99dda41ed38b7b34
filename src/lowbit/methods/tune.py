"""Tuning a plan: from measured costs to the fastest plan, then from what the plan takes to better costs.

An integer program finds the plan of least predicted latency. It is built and measured as a whole, beside the float
model, the plan in which everything legal is integer, and the one that the target's formulas give. Where prediction and
measurement part, the costs are corrected and the program is solved again, until it stands by its plan. The fastest plan
that was measured is the one that is kept.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.methods.decide import Decision, decide
from lowbit.methods.probe import REPEATS, UNSTEADY, corrected, timing_artifact
from lowbit.methods.site_times import SiteTimes, time_sites
from lowbit.plan.choose import conversions, predicted_latency
from lowbit.plan.cost import FormulaCosts, MeasuredCosts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir

    from lowbit.methods.budget import Budget
    from lowbit.plan.cost import Shapes
    from lowbit.plan.cost_table import CostTable
    from lowbit.plan.plan import Execution
    from lowbit.plan.recipe import Recipe
    from lowbit.plan.sites import Site
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["Candidate", "Tuned", "tune"]

# A plan has to be this much faster than the program's last one to be preferred to it.
_CLEARLY = 0.99
_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One plan that was built and measured.

    Attributes:
        name: `measured costs`, `everything legal` or `formulas`.
        decision: What every site becomes.
        predicted_ns: Predicted latency before it was measured, in nanoseconds.
        measured_ns: Measured latency, side by side with all others.
    """

    name: str
    decision: Decision
    predicted_ns: float
    measured_ns: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The outcome of tuning.

    Attributes:
        decision: The fastest plan that was measured.
        table: The costs, corrected.
        candidates: Every plan that was measured.
        predicted_ns: Predicted latency of the plan, from the costs before they were corrected by it.
        predicted_float_ns: Predicted latency of the float model.
        float_ns: Measured latency of the float model, beside the candidates.
        corrected_ns: Predicted latency of the plan from the corrected costs.
        spread: Distance between the quartiles of the measurements over their median, the largest of all.
    """

    decision: Decision
    table: CostTable
    candidates: tuple[Candidate, ...]
    predicted_ns: float
    predicted_float_ns: float
    float_ns: float
    corrected_ns: float
    spread: float


def measured_costs(table: CostTable, target: Target, shapes: Shapes) -> MeasuredCosts:
    """Return a table as costs, with the target's formulas for what it does not hold."""
    return MeasuredCosts(table, shapes, FormulaCosts(target.costs, shapes) if target.costs is not None else None)


def in_place(
    costs: MeasuredCosts, sites: Sequence[Site], plan: Mapping[str, Execution], times: SiteTimes
) -> MeasuredCosts:
    """Return costs that know what every operator and conversion of a measured plan took in its place."""
    places: dict[tuple[str, str], float] = {
        (site.path, plan.get(site.path, "float")): times.site(site.path) for site in sites if not site.subgraph
    }
    # A conversion that the engine has merged away took no time.
    tensors: dict[tuple[str, str], float] = {
        (value.name or "", "quantize" if quantize else "dequantize"): 0.0
        for value, quantize in conversions(sites, plan)
    }
    tensors |= {(owner.name, owner.kind): ns for owner, ns in times.times.items() if owner.kind != "site"}
    return dataclasses.replace(costs, places={**costs.places, **places}, tensors={**costs.tensors, **tensors})


def tune(
    model: ir.Model,
    sites: Sequence[Site],
    recipe: Recipe,
    target: Target,
    shapes: Shapes,
    feed: Feed,
    table: CostTable,
    *,
    budget: Budget | None = None,
    threads: int = 1,
    seconds: float = 2.0,
    advance: Callable[[], None] = lambda: None,
) -> Tuned:
    """Find the fastest plan by building and measuring.

    Args:
        model: The cleaned float model.
        sites: Its sites.
        recipe: What the user asks for.
        target: Where the model will run; its engine is the one that measures.
        shapes: Shape of every tensor for `feed`.
        feed: One set of inputs.
        table: Measured costs.
        budget: What keeps plans within a limit of accuracy; without, latency alone decides.
        threads: Threads of the engine.
        seconds: How long each round measures.
        advance: Called after every round of measuring.

    Raises:
        EngineError: The engine refuses a plan.
    """
    plans: list[tuple[str, Decision, float]] = []
    built: list[ir.Model] = []
    tried: set[tuple[tuple[str, str], ...]] = set()

    def add(name: str, decision: Decision, predicted: float) -> bool:
        signature = tuple(sorted(_quantized(decision.executions).items()))
        if signature in tried:
            return False
        tried.add(signature)
        plans.append((name, decision, predicted))
        built.append(timing_artifact(model, sites, _quantized(decision.executions), target))
        return True

    def choose(costs: MeasuredCosts) -> tuple[Decision, float]:
        decision = budget.choose(costs) if budget else decide(sites, recipe, target, shapes, costs=costs)
        return decision, predicted_latency(sites, costs, decision.executions)

    costs = measured_costs(table, target, shapes)
    predicted_float = predicted_latency(sites, costs, {})
    decision, predicted = choose(costs)
    add("measured costs", decision, predicted)
    everything = decide(sites, recipe, target, shapes, everything=True)
    guessed = decide(sites, recipe, target, shapes)
    for name, other in (("everything legal", everything), ("formulas", guessed)):
        if budget is None or (recipe.optimize != "accuracy" and budget.keeps(other.executions)):
            add(name, other, predicted_latency(sites, costs, other.executions))
    last = decision

    def measure() -> tuple[SiteTimes, ...]:
        for attempt in range(REPEATS):
            found = time_sites(
                [(model, feed), *((artifact, feed) for artifact in built)],
                sites,
                threads=threads,
                seconds=seconds * (attempt + 1),
                engine=target.engine,
                advance=advance,
            )
            if max(one.profile.spread for one in found) <= UNSTEADY:
                break
        return found

    for _ in range(_ROUNDS):
        times = measure()
        measured = [(planned, one) for (_, planned, _), one in zip(plans, times[1:], strict=True)]
        for planned, one in measured:
            if planned is last:
                table = corrected(table, sites, shapes, _quantized(planned.executions), one)
                costs = in_place(costs, sites, _quantized(planned.executions), one)
        decision, predicted = choose(costs)
        if not add("measured costs", decision, predicted):
            break
        last = decision
    else:
        times = measure()  # the program's last plan has not been measured yet
    candidates = tuple(
        Candidate(name=name, decision=planned, predicted_ns=guess, measured_ns=one.profile.whole_ns)
        for (name, planned, guess), one in zip(plans, times[1:], strict=True)
    )
    # Where accuracy comes first, the program's last word counts, and not what happens to be faster.
    best = candidates[-1] if recipe.optimize == "accuracy" and budget else _fastest(candidates)
    for candidate, one in zip(candidates, times[1:], strict=True):
        if candidate is best:
            table = corrected(table, sites, shapes, _quantized(best.decision.executions), one)
            costs = in_place(costs, sites, _quantized(best.decision.executions), one)
    explained = decide(sites, recipe, target, shapes, costs=costs, executions=best.decision.executions)
    return Tuned(
        decision=budget.explained(explained, costs) if budget else explained,
        table=table,
        candidates=candidates,
        predicted_ns=best.predicted_ns,
        predicted_float_ns=predicted_float,
        float_ns=times[0].profile.whole_ns,
        corrected_ns=float(predicted_latency(sites, costs, best.decision.executions)),
        spread=max(one.profile.spread for one in times),
    )


def _fastest(candidates: Sequence[Candidate]) -> Candidate:
    """Return the fastest plan; among those that are as good as equal the first, so that noise decides nothing."""
    shortest = min(candidate.measured_ns for candidate in candidates)
    return next(candidate for candidate in candidates if candidate.measured_ns * _CLEARLY <= shortest)


def _quantized(executions: Mapping[str, Execution]) -> dict[str, Execution]:
    """Return the executions that change a kernel; weights that are only stored small are decoded at load."""
    return {path: execution for path, execution in executions.items() if execution in {"static", "dynamic"}}
