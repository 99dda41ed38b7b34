"""What a plan takes from data: ranges, roundings, and what is learned."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from itertools import islice
from typing import TYPE_CHECKING

from lowbit.exceptions import DataError
from lowbit.graph import digest
from lowbit.methods.apply import apply_plan
from lowbit.methods.calibrate import Calibration, Watch, calibrate
from lowbit.methods.checkpoint import Checkpoint, learning_folder
from lowbit.methods.compensation import compensable, compensated_plan
from lowbit.methods.decide import Decision, make_plan, watch_list
from lowbit.methods.output_error import OutputError
from lowbit.methods.output_ranges import output_ranges
from lowbit.methods.quantized_inputs import rounded_for_quantized_inputs
from lowbit.methods.reestimate import reestimated_plan
from lowbit.methods.rerounding import first_rounding, roundings, tells

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowbit.methods.schedules import Learning
    from lowbit.methods.work import Work
    from lowbit.plan.plan import Plan

__all__ = [
    "calibrated",
    "with_compensation",
    "with_learned",
    "with_quantized_inputs",
    "with_reestimated",
]


def calibrated(work: Work, decision: Decision, known: Calibration | None) -> Calibration | None:
    """Calibrate what the decision needs; what is known already is not measured again."""
    watch = watch_list(work.sites, decision, work.recipe)
    found = known
    # Weights that are only stored need no ranges, but means and moments to round by, where there are data.
    stored = work.recipe.rounding != "nearest" and "weight-only" in decision.executions.values()
    wanted = bool(watch.tensors) or (stored and work.calibration_data is not None and tells(work.calibration_data))
    covered = known is not None and set(watch.tensors) <= set(known.histograms) and set(watch.means) <= set(known.means)
    if wanted and not covered:
        if work.calibration_data is None:
            raise DataError(
                "static quantization needs calibration data",
                cause="the ranges of activations are measured on them",
                remedy="give --data, or use --method dynamic or weight-only",
            )
        with work.stages("Calibrate", work.calibration_data.count()) as advance:
            # A second calibration watches other tensors; the file is for the first, long one.
            checkpoint = _checkpoint(work, watch) if known is None else None
            found = calibrate(work.model, work.calibration_data, watch, checkpoint=checkpoint, advance=advance)
    if work.recipe.calibration == "output-mse" and found is not None and tells(work.calibration_data):
        found = _with_output_ranges(work, decision, found)
    if work.recipe.rounding == "nearest":
        return found
    seen = found or Calibration(histograms={}, averages={}, means={}, samples=0)
    plan = make_plan(
        work.model,
        work.sites,
        work.recipe,
        work.target,
        decision,
        seen,
        work.shapes,
        data_free=not tells(work.calibration_data),
    )
    with work.stages("Round weights", None):
        chosen = roundings(
            work.model,
            work.sites,
            plan,
            work.target,
            work.calibration_data,
            kind=first_rounding(work.recipe, work.target),
            known=seen.roundings,
            seed=work.recipe.seed,
        )
    return dataclasses.replace(seen, roundings=chosen) if chosen else found


def _with_output_ranges(work: Work, decision: Decision, found: Calibration) -> Calibration:
    """Choose the ranges of activations by the outputs of what reads them; what is known is not measured again."""
    assert work.calibration_data is not None
    with work.stages("Choose ranges by outputs", None):
        ranges = output_ranges(
            work.model,
            work.sites,
            decision.executions,
            decision.activations,
            found.histograms,
            work.calibration_data,
            known=found.ranges,
            seed=work.recipe.seed,
        )
    return dataclasses.replace(found, ranges=ranges)


def with_learned(work: Work, plan: Plan) -> Plan:
    """Learn what restores the float outputs; the plan then holds it, if it errs less on samples that nobody learned on.

    At few bits learning starts from weights that are rounded for quantized inputs, where these err less.
    """
    data = work.calibration_data
    if data is None or not tells(data):
        missing = "nothing was learned: random numbers, or none, do not say what the model's tensors hold; give --data"
        return dataclasses.replace(plan, warnings=(*plan.warnings, missing))
    # PyTorch takes a second to load, and nothing else needs it.
    from lowbit.methods.block_samples import held_out
    from lowbit.methods.reconstruct import count_blocks, reconstruct

    started = time.monotonic()
    feeds = -(-data.count() // data.batch_size)
    judge = OutputError(work.model, islice(data, held_out(feeds)))

    def error(each: Plan) -> float:
        return judge.of(apply_plan(work.model, each).model)

    plan, before = min(((each, error(each)) for each in _starts(work, plan)), key=lambda pair: pair[1])
    limit = work.recipe.time
    kind: Learning = "adaround" if work.recipe.rounding == "adaround" else "learned"
    with work.stages("Learn block by block", count_blocks(work.model, plan, work.target, kind)) as advance:
        learned = reconstruct(
            work.model,
            plan,
            work.target,
            data,
            kind=kind,
            seconds=None if limit is None else max(limit - (time.monotonic() - started), 1.0),
            seed=work.recipe.seed,
            checkpoint=learning_folder(work.checkpoint) if work.checkpoint is not None else None,
            advance=advance,
        ).plan
    after = error(learned)
    if after <= before:
        return learned
    undone = f"what was learned was undone: error at the outputs {before:.2%} -> {after:.2%} on samples held out"
    return dataclasses.replace(plan, warnings=(*plan.warnings, undone))


def _starts(work: Work, plan: Plan) -> Iterator[Plan]:
    """Yield what learning may start from."""
    yield plan
    static = any(entry.execution == "static" and entry.weights is not None for entry in plan.sites)
    few = first_rounding(work.recipe, work.target) == "gptq"
    if work.recipe.rounding == "learned" and work.recipe.rounding_inputs == "float" and static and few:
        yield with_quantized_inputs(work, plan)


def with_compensation(work: Work, plan: Plan) -> Plan:
    """Make up for few bits in stored weights, as far as the recipe asks for it."""
    if not any(compensable(entry, work.recipe) for entry in plan.sites):
        return plan
    with work.stages("Make up for few bits", None):
        return compensated_plan(work.model, work.sites, plan, work.recipe, work.target, work.calibration_data)


def with_quantized_inputs(work: Work, plan: Plan) -> Plan:
    """Round weights for what the quantized layers before give; the plan then holds it."""
    if work.calibration_data is None or not tells(work.calibration_data):
        missing = (
            "weights were not rounded for quantized inputs: random numbers, or none, do not show them; give --data"
        )
        return dataclasses.replace(plan, warnings=(*plan.warnings, missing))
    # PyTorch takes a second to load, and nothing else needs it.
    from lowbit.methods.coded_walk import count_layers

    with work.stages("Round for quantized inputs", count_layers(work.model, work.target)) as advance:
        return rounded_for_quantized_inputs(
            work.model,
            plan,
            work.target,
            work.calibration_data,
            kind=first_rounding(work.recipe, work.target),
            biases=work.recipe.bias_correction,
            seed=work.recipe.seed,
            advance=advance,
        )


def with_reestimated(work: Work, plan: Plan) -> Plan:
    """Restore means and spreads of the outputs of layers; the plan then holds it."""
    if work.calibration_data is None or not tells(work.calibration_data):
        missing = "nothing was re-estimated: random numbers, or none, do not say what a layer gives; give --data"
        return dataclasses.replace(plan, warnings=(*plan.warnings, missing))
    # PyTorch takes a second to load, and nothing else needs it.
    from lowbit.methods.coded_walk import count_layers

    with work.stages("Re-estimate layer by layer", count_layers(work.model, work.target)) as advance:
        return reestimated_plan(work.model, plan, work.target, work.calibration_data, advance=advance)


def _checkpoint(work: Work, watch: Watch) -> Checkpoint | None:
    if work.checkpoint is None or work.calibration_data is None:
        return None
    data = work.calibration_data
    identity = (digest(work.model), data.name, str(data.count()), str(work.recipe.seed), repr(watch))
    return Checkpoint(work.checkpoint, hashlib.sha256("\n".join(identity).encode()).hexdigest())
