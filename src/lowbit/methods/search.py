"""Plan, build and measure, until the artifact is not slower than float."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lowbit.exceptions import EngineError
from lowbit.formats import parse_format
from lowbit.methods.account import SLOWER
from lowbit.methods.apply import Applied, apply_plan
from lowbit.methods.decide import decide, make_plan
from lowbit.methods.fitting import (
    calibrated,
    with_compensation,
    with_learned,
    with_quantized_inputs,
    with_reestimated,
)
from lowbit.methods.measuring import timed_again, verified
from lowbit.methods.planner import budget_of, planner_of
from lowbit.methods.rerounding import tells
from lowbit.plan.verification import worst_db
from lowbit.runtime.session import engine_version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowbit.methods.calibrate import Calibration
    from lowbit.methods.work import Work
    from lowbit.plan.recipe import Recipe
    from lowbit.plan.verification import Prediction, Verification
    from lowbit.targets import Target

__all__ = ["search"]

# Factors on the predicted cost of integers that are tried when the artifact is slower than float.
_CAUTION = (1.0, 1.25, 1.7)
# SQNR on held-out samples, in decibel, under which nothing of the signal is left.
_LOUDEST_DB = 0.0


def search(work: Work) -> tuple[Applied, Verification, Calibration | None, Prediction | None]:
    """Plan, build and measure; while the artifact is slower than float, plan again with more left in float."""
    best: tuple[Applied, Verification, Prediction | None] | None = None
    refusals: list[str] = []
    tried: set[tuple[tuple[str, str], ...]] = set()
    # Formats that the user spells out are delivered, also where they are slow; the warnings then say so.
    automatic = work.recipe.method == "auto" and not _spelled_out(work.recipe, work.target)
    budget, calibration = budget_of(work, automatic=automatic)
    source = planner_of(work, budget, automatic=automatic)
    learned = False
    for recipe, caution in _attempts(work.recipe, automatic=automatic):
        if caution == _CAUTION[0] and recipe is work.recipe and source.decision is not None:
            decision = source.decision
        elif budget is not None and recipe is work.recipe:
            decision = budget.choose(source.costs, caution=caution)
        else:
            decision = decide(work.sites, recipe, work.target, work.shapes, caution=caution, costs=source.costs)
        signature = tuple(sorted(decision.executions.items()))
        if signature in tried:
            continue
        tried.add(signature)
        calibration = calibrated(work, decision, calibration)
        plan = make_plan(
            work.model,
            work.sites,
            recipe,
            work.target,
            decision,
            calibration,
            work.shapes,
            data_free=not tells(work.calibration_data),
        )
        if work.recipe.rounding_inputs == "quantized":
            plan = with_quantized_inputs(work, plan)
        if work.recipe.learns and not learned:
            plan, learned = with_learned(work, plan), True
        warnings = (*plan.warnings, *source.warnings, *refusals[-1:])
        plan = dataclasses.replace(
            plan,
            warnings=warnings,
            migrations=work.migrations,
            rotations=work.rotations,
            absorptions=work.absorptions,
        )
        if budget is not None:
            plan = dataclasses.replace(plan, warnings=(*plan.warnings, *budget.warnings))
        plan = with_compensation(work, plan)
        if work.recipe.reestimate:
            plan = with_reestimated(work, plan)
        with work.stages("Build the artifact", None):
            applied = apply_plan(work.model, plan)
        try:
            verification = verified(work, applied)
        except EngineError as error:
            if not automatic:
                raise EngineError(
                    f"{engine_version()} does not run the {plan.method} artifact",
                    cause=error.cause.replace(str(work.folder), "").strip(),
                    remedy="choose formats that the engine has kernels for, or --method auto",
                ) from error
            refusals.append(f"a {plan.method} plan was dropped because the engine refused it: {error.cause}")
            continue
        if automatic and work.recipe.weights is None and (noise := worst_db(verification)) < _LOUDEST_DB:
            # Calibration samples kept the limit, others do not: a division by what became 0 is seen on a few only.
            refusals.append(
                f"a {plan.method} plan was dropped because its noise was louder than the signal: {noise:.1f} dB"
            )
            continue
        prediction = source.predict(work, decision)
        speedup = verification.latency.speedup if verification.latency is not None else 1.0
        if automatic and speedup < SLOWER and verification.latency is not None:
            # One slow measurement is not yet a slow artifact, and two runs should end in the same plan.
            verification = timed_again(work, applied, verification)
            assert verification.latency is not None
            speedup = verification.latency.speedup
        if best is None or speedup > (best[1].latency.speedup if best[1].latency else 1.0):
            best = (applied, verification, prediction)
        if not automatic or speedup >= SLOWER:
            return applied, verification, calibration, prediction
        refusals.append(f"a {plan.method} plan was dropped because it ran at {speedup:.2f}× the speed of float")
    if best is None:
        raise EngineError("no plan for this model loads in the engine", cause=refusals[-1] if refusals else "")
    return best[0], best[1], calibration, best[2]


def _spelled_out(recipe: Recipe, target: Target) -> bool:
    """Whether the user asks for activation and weight formats that are not the target's own."""
    if recipe.activations in {None, "none", "dynamic"}:
        return False
    weights = parse_format(recipe.weights or target.weights)
    return recipe.activations != target.activations or weights.element.name not in target.weight_elements


def _attempts(recipe: Recipe, *, automatic: bool) -> Iterator[tuple[Recipe, float]]:
    """Yield what to try, in order: more and more caution, then weights only, then nothing."""
    if not automatic:
        yield recipe, 1.0
        return
    for caution in _CAUTION:
        yield recipe, caution
    yield dataclasses.replace(recipe, method="weight-only"), 1.0
    yield dataclasses.replace(recipe, exclude=(*recipe.exclude, "*")), 1.0
