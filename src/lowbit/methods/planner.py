"""What plans are made by: costs that were measured, the plan that tuning found, and limits to the noise."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.exceptions import RecipeError
from lowbit.methods.budget import Budget, drop_of
from lowbit.methods.costs import (
    TunedPlan,
    cached_table,
    plan_identity,
    recall_plan,
    remember,
    remember_plan,
)
from lowbit.methods.decide import Decision, decide
from lowbit.methods.fitting import calibrated
from lowbit.methods.probe import UNSTEADY, missing_costs, probe_model
from lowbit.methods.sensitivity import everything_static, open_meter
from lowbit.methods.tune import measured_costs, tune
from lowbit.plan.choose import predicted_latency
from lowbit.plan.cost import Costs, FormulaCosts
from lowbit.plan.verification import Prediction
from lowbit.runtime.machine import this_machine

if TYPE_CHECKING:
    from lowbit.methods.calibrate import Calibration
    from lowbit.methods.work import Work

__all__ = ["Planner", "budget_of", "planner_of"]

# Calibration samples on which the noise of plans is measured.
_SAMPLES = 8
# Share of the time for latency that probing and each round of tuning take.
_PROBING = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Planner:
    """What plans are made by.

    Attributes:
        source: Where the costs come from, in words.
        costs: The costs, `None` if there are none.
        decision: The plan that tuning has found.
        tuned: What tuning measured.
        warnings: What the user should know of the costs.
    """

    source: str
    costs: Costs | None
    decision: Decision | None = None
    tuned: TunedPlan | None = None
    warnings: tuple[str, ...] = ()

    def predict(self, work: Work, decision: Decision) -> Prediction | None:
        """Return what was predicted of a decision."""
        if self.costs is None:
            return None
        predicted = predicted_latency(work.sites, self.costs, decision.executions)
        plain = predicted_latency(work.sites, self.costs, {})
        corrected = None
        spread = 0.0
        if self.tuned is not None:
            plain, spread = self.tuned.predicted_float_ns, self.tuned.spread
            if decision is self.decision:
                predicted, corrected = self.tuned.predicted_ns, self.tuned.corrected_ns
        return Prediction(
            source=self.source,
            float_ms=plain / 1e6,
            artifact_ms=predicted / 1e6,
            corrected_ms=None if corrected is None else corrected / 1e6,
            machine_spread=spread,
        )


def budget_of(work: Work, *, automatic: bool) -> tuple[Budget | None, Calibration | None]:
    """Return what keeps plans accurate, and the calibration that this took: of everything that may be integer."""
    recipe = work.recipe
    limited = recipe.optimize == "accuracy" or any(
        limit is not None for limit in (recipe.min_sqnr, recipe.max_sqnr_loss, recipe.max_drop)
    )
    if not automatic and not limited:
        return None, None
    everything = everything_static(work.sites, recipe, work.target, work.shapes)
    if not {"static", "dynamic"} & set(everything.executions.values()):
        return None, None
    calibration = calibrated(work, everything, None)
    samples = work.calibration_data if work.calibration_data is not None else work.test_data
    with work.stages("Measure the noise at the output", None):
        meter = open_meter(
            work.model, work.sites, recipe, work.target, everything, calibration, work.shapes, samples, samples=_SAMPLES
        )
        drop = None
        if recipe.max_drop is not None:
            if work.metric is None:
                raise RecipeError(
                    f"max_drop is {recipe.max_drop}",
                    cause="there is no metric that could drop",
                    remedy="give --metric, or data with labels of classes",
                )
            drop = drop_of(
                work.model,
                work.sites,
                recipe,
                work.target,
                calibration,
                work.shapes,
                work.test_data,
                work.metric,
                work.test_data.labels,
            )
        return Budget(work.sites, recipe, work.target, work.shapes, meter, drop=drop), calibration


def planner_of(work: Work, budget: Budget | None, *, automatic: bool) -> Planner:
    """Return the costs to plan by: a file's, this machine's (probed and tuned), or the target's formulas."""
    formulas = FormulaCosts(work.target.costs, work.shapes) if work.target.costs is not None else None
    if work.costs is not None:
        costs = measured_costs(work.costs.table, work.target, work.shapes)
        unknown = missing_costs(work.costs.table, work.sites, work.shapes)
        warnings = work.costs.warnings
        if unknown:
            lacking = f"{len(unknown)} of {len(work.sites)} operators, e.g. {unknown[0]}"
            warnings += (f"{work.costs.source} lacks the costs of {lacking}: probe this very model on the device",)
        return Planner(source=work.costs.source, costs=costs, warnings=warnings)
    if not work.probing or not automatic:
        return Planner(source="formulas", costs=formulas)
    machine = this_machine(threads=work.threads, engine=work.target.engine)
    known = cached_table(machine)
    identity = plan_identity(work.model, work.recipe, work.target, machine, work.shapes)
    found = recall_plan(identity)
    if (
        found is not None
        and not missing_costs(known, work.sites, work.shapes)
        and (budget is None or budget.keeps(found.executions))
    ):
        costs = measured_costs(known, work.target, work.shapes)
        decision = decide(work.sites, work.recipe, work.target, work.shapes, costs=costs, executions=found.executions)
        return Planner(
            source="measured here, cached",
            costs=costs,
            decision=_recalled(decision, found),
            tuned=found,
        )
    with work.stages("Probe the operators", None):
        probe = probe_model(
            work.model,
            work.sites,
            work.target,
            work.shapes,
            work.timing_feed,
            known=known,
            threads=work.threads,
            seconds=_PROBING * work.seconds,
        )
    with work.stages("Tune the plan", None):
        tuned = tune(
            work.model,
            work.sites,
            work.recipe,
            work.target,
            work.shapes,
            work.timing_feed,
            probe.table,
            budget=budget,
            threads=work.threads,
            seconds=_PROBING * work.seconds,
        )
    remember(tuned.table)
    # What lies in subgraphs has no entry of its own, and takes about as long in every plan.
    whole = tuned.float_ns if probe.float_ns is None else probe.float_ns
    inside = any(site.subgraph for site in work.sites)
    rest = max(whole - tuned.predicted_float_ns, 0.0) if inside else 0.0
    record = TunedPlan(
        executions=tuned.decision.executions,
        reasons=tuned.decision.reasons,
        times={path: (choice.float_ns, choice.chosen_ns) for path, choice in tuned.decision.choices.items()},
        predicted_ns=tuned.predicted_ns + rest,
        predicted_float_ns=tuned.predicted_float_ns + rest,
        corrected_ns=tuned.corrected_ns + rest,
        spread=tuned.spread,
    )
    remember_plan(identity, record)
    warnings = ()
    if tuned.spread > UNSTEADY:
        again = "`lowbit probe --fresh` measures again"
        warnings = (f"other work disturbed the measurements: their quartiles lie {tuned.spread:.0%} apart; {again}",)
    return Planner(
        source="measured here",
        costs=measured_costs(tuned.table, work.target, work.shapes),
        decision=tuned.decision,
        tuned=record,
        warnings=warnings,
    )


def _recalled(decision: Decision, tuned: TunedPlan) -> Decision:
    """Give a decision the reasons and times that tuning found, so that the artifact has the same bytes again."""
    choices = dict(decision.choices)
    for path, (own, chosen) in tuned.times.items():
        if path in choices:
            choices[path] = dataclasses.replace(choices[path], float_ns=own, chosen_ns=chosen)
    return dataclasses.replace(decision, reasons={**decision.reasons, **tuned.reasons}, choices=choices)
