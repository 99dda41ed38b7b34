"""The main verb: a float model and some data in, a verified artifact out."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.data import batched, input_specs
from lowbit.exceptions import DataError, EngineError, RecipeError
from lowbit.formats import parse_format
from lowbit.graph import clean, digest, load_model, save_model
from lowbit.importing import import_model, is_foreign
from lowbit.methods.account import SLOWER, provenance_of, warnings_of
from lowbit.methods.apply import Applied, apply_plan
from lowbit.methods.budget import Budget, drop_of
from lowbit.methods.calibrate import Calibration, Watch, calibrate, observed_shapes
from lowbit.methods.checkpoint import Checkpoint
from lowbit.methods.classification import default_metric, metric_name
from lowbit.methods.compensation import compensable, compensated_plan
from lowbit.methods.conformance import summary, violations
from lowbit.methods.contract import read_back
from lowbit.methods.costs import (
    LoadedCosts,
    TunedPlan,
    cached_table,
    load_costs,
    measurable,
    plan_identity,
    recall_plan,
    remember,
    remember_plan,
)
from lowbit.methods.decide import Decision, decide, make_plan, watch_list
from lowbit.methods.fastest import FASTEST_HERE, fastest_here
from lowbit.methods.histograms import report_histograms
from lowbit.methods.interface import coded_interface
from lowbit.methods.migration_search import find_migrations
from lowbit.methods.prepare import Prepared, migrated, prepare, prepared_for
from lowbit.methods.probe import UNSTEADY, missing_costs, probe_model
from lowbit.methods.rerounding import first_rounding, roundings, tells
from lowbit.methods.result import Result
from lowbit.methods.samples import calibration_and_test
from lowbit.methods.sensitivity import everything_static, open_meter
from lowbit.methods.stages import Stages, silent
from lowbit.methods.timeline import time_beside_float
from lowbit.methods.tune import measured_costs, tune
from lowbit.methods.verify import Metric, verify
from lowbit.plan.choose import predicted_latency
from lowbit.plan.cost import Costs, FormulaCosts
from lowbit.plan.files import read_plan
from lowbit.plan.recipe import Recipe
from lowbit.plan.sites import Site, find_sites
from lowbit.plan.verification import Hazards, Prediction
from lowbit.runtime.engines import SIMULATION, open_in
from lowbit.runtime.machine import this_machine
from lowbit.runtime.session import engine_version, open_session
from lowbit.runtime.timing import compare_latency
from lowbit.targets import Target, find_target

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

    from lowbit.data import Dataset, Preprocessing
    from lowbit.plan.plan import MigrationPlan, Plan
    from lowbit.plan.verification import SiteTime, Verification
    from lowbit.runtime.session import Feed

__all__ = ["quantize"]

_WHY_DATA = "measures on samples what the model's tensors hold"
# Factors on the predicted cost of integers that are tried when the artifact is slower than float.
_CAUTION = (1.0, 1.25, 1.7)
# Calibration samples on which the noise of plans is measured.
_SAMPLES = 8
# Share of the time for latency that probing and each round of tuning take.
_PROBING = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Work:
    """What stays the same while plans are tried."""

    model: ir.Model
    migrations: tuple[MigrationPlan, ...]
    sites: tuple[Site, ...]
    recipe: Recipe
    target: Target
    shapes: dict[str, tuple[int, ...]]
    float_path: Path
    folder: Path
    calibration_data: Dataset | None
    test_data: Dataset
    metric: Metric | None
    metric_name: str
    checkpoint: Path | None
    threads: int
    timing_feed: Feed
    batch: int
    seconds: float
    costs: LoadedCosts | None
    probing: bool
    here: bool
    stages: Stages

    @property
    def engine(self) -> str:
        """The engine that verifies: the target's own, or the simulation where this machine is not the target."""
        return self.target.engine if self.here else SIMULATION


def quantize(
    model: Any,
    data: Any = None,
    *,
    example_inputs: Any = None,
    test_data: Any = None,
    labels: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    recipe: Recipe | str | Path | None = None,
    plan: Plan | str | Path | None = None,
    metric: Metric | None = None,
    checkpoint: str | Path | None = None,
    costs: str | Path | None = None,
    force: bool = False,
    threads: int = 1,
    batch: int = 1,
    measure_seconds: float = 2.0,
    stages: Stages = silent,
    **options: Any,
) -> Result:
    """Make a model small and fast for a target, and measure what it cost.

    Args:
        model: Path of an ONNX file, a `ModelProto` or an `onnx_ir.Model`; or a model of another framework, in memory or
            as a file: whatever `import_model` brings in. Never changed.
        example_inputs: For PyTorch: the arguments of one call; by default the first sample of `data`.
        data: Calibration data: a folder, `.npz`, `.npy` or `.zip`, an iterable of `{input name: array}` or arrays, a
            PyTorch `DataLoader`, a function returning an iterable, or `random`. 100 to 300 samples are enough.
        test_data: Held-out data for verification; by default a fifth of `data` is kept back for it.
        labels: A file of labels, for `metric`.
        preprocessing: What to do to images.
        recipe: A `Recipe` or the path of a YAML file.
        plan: A saved plan, applied as it is: the same bytes come out.
        checkpoint: A file that keeps the state of calibration while it runs; the same call continues from it after an
            interruption. It is deleted when the artifact is done.
        metric: Function of the outputs (a list of arrays per sample) and the labels; higher is better. Without one,
            labels of classes give top-1 accuracy.
        costs: A file of costs from `lowbit probe --save`, measured on the device that the model is for; `formulas`
            plans by the target's formulas. By default, costs are measured here if this machine is the target.
        force: Whether a file of costs is used that does not fit the target.
        threads: Threads that costs, latency and peak memory are measured with; everything else uses all processors.
        batch: Number of samples that the model gets at once where costs and latency are measured.
        measure_seconds: How long latency is measured; 0 measures nothing and plans by formulas.
        stages: Shows progress; see `Stages`.
        **options: Fields of `Recipe`, e.g. `target="host"`, `weights="int8"`, `exclude=["lm_head"]`.

    Returns:
        The artifact, its plan and its measured account.

    Raises:
        ModelError: The model cannot be read.
        DataError: The data do not fit the model.
        RecipeError: The recipe or plan is wrong.
        TargetError: The target is unknown.
        EngineError: The engine does not run the float model.
    """
    asked = _recipe(recipe, options)
    settings = asked.resolved()
    source = model
    imported: tuple[str, ...] = ()
    if is_foreign(model):
        with stages("Import the model", None):
            brought = import_model(model, example_inputs, data=data)
        model, imported = brought.model, brought.notes
    if settings.target == FASTEST_HERE:
        if plan is not None:
            raise RecipeError(
                f"the target is {FASTEST_HERE}", cause="a saved plan is for one target", remedy="leave --target out"
            )

        def attempt(name: str) -> Result:
            return quantize(
                model,
                data,
                test_data=test_data,
                labels=labels,
                preprocessing=preprocessing,
                recipe=dataclasses.replace(settings, target=name),
                metric=metric,
                checkpoint=checkpoint,
                costs=costs,
                force=force,
                threads=threads,
                batch=batch,
                measure_seconds=measure_seconds,
                stages=stages,
            )

        return fastest_here(attempt)
    target = find_target(settings.target)
    loaded_costs = None
    if costs is not None and str(costs) != "formulas":
        loaded_costs = load_costs(costs, target, threads=threads, force=force)
    fixed = read_plan(plan) if isinstance(plan, (str, Path)) else plan
    with tempfile.TemporaryDirectory(prefix="lowbit-") as temporary:
        folder = Path(temporary)
        with stages("Load and clean the model", None):
            loaded = load_model(model)
            cleaned = clean(loaded)
            float_path = _float_file(model, loaded, folder)
        needed = f"the method {settings.method!r} {_WHY_DATA}" if settings.method in {"static", "auto"} else ""
        calibration_data, tests = calibration_and_test(
            cleaned.model,
            data,
            test_data,
            settings,
            labels=labels,
            preprocessing=preprocessing,
            needed=needed if test_data is None else "",
        )
        tried: tuple[str, ...] = ()
        in_time = asked.method == "best" and asked.time is not None and fixed is None
        if in_time and calibration_data is not None and tells(calibration_data):
            # A diagnosis quantizes, so the two modules know each other.
            from lowbit.methods.best import best_within

            settings, tried = best_within(model, cleaned.model, calibration_data, settings, stages)
        if fixed is None:
            prepared = _prepared(cleaned.model, settings, target, calibration_data, stages)
        else:
            prepared = Prepared(model=prepared_for(cleaned.model, fixed))
        sites = find_sites(prepared.model, target)
        feed = next(iter(tests))
        timing_feed = batched(feed, input_specs(cleaned.model), batch)
        here = measurable(target)
        scored = metric or default_metric(tests, float_path, required=labels is not None)
        work = _Work(
            model=prepared.model,
            migrations=prepared.migrations,
            sites=sites,
            recipe=settings,
            target=target,
            shapes=observed_shapes(prepared.model, timing_feed),
            float_path=float_path,
            folder=folder,
            calibration_data=calibration_data,
            test_data=tests,
            metric=scored,
            metric_name=metric_name(scored),
            checkpoint=Path(checkpoint) if checkpoint is not None else None,
            threads=threads,
            timing_feed=timing_feed,
            batch=batch,
            seconds=measure_seconds if here else 0.0,
            costs=loaded_costs,
            probing=costs is None and measure_seconds > 0 and here,
            here=here,
            stages=stages,
        )
        prediction = None
        if fixed is not None:
            applied = apply_plan(cleaned.model, fixed)
            verification, calibration = _verify(work, applied), None
        else:
            applied, verification, calibration, prediction = _search(work)
        verification = _accounted(work, applied, verification, prediction)
        elsewhere = _elsewhere(work, applied)
        warnings = elsewhere + warnings_of(
            applied.plan, verification, calibration_data=calibration_data, test_data=tests
        )
        if work.checkpoint is not None:
            work.checkpoint.unlink(missing_ok=True)
        histograms = report_histograms(applied, calibration.histograms if calibration is not None else {})
    return Result(
        model=applied.model,
        plan=dataclasses.replace(applied.plan, warnings=tuple(dict.fromkeys((*applied.plan.warnings, *warnings)))),
        verification=dataclasses.replace(verification, warnings=tuple(warnings)),
        histograms=histograms,
        source=_label(source),
        notes=(*imported, *cleaned.notes, *prepared.notes, *tried),
        provenance=provenance_of(source, cleaned.model, settings, target),
    )


def _prepared(cleaned: ir.Model, recipe: Recipe, target: Target, data: Dataset | None, stages: Stages) -> Prepared:
    """Return the float model that plans are made for: equalized, and with scales moved, as far as is asked for."""
    with stages("Prepare the model", None):
        prepared = prepare(cleaned, recipe)
        if recipe.smooth == "none":
            return prepared
        if data is None or not tells(data):
            return migrated(prepared, (), (f"no scales moved: {recipe.smooth} needs calibration data",))
        return migrated(prepared, *find_migrations(prepared.model, recipe, target, data))


def _search(work: _Work) -> tuple[Applied, Verification, Calibration | None, Prediction | None]:
    """Plan, build and measure; while the artifact is slower than float, plan again with more left in float."""
    best: tuple[Applied, Verification, Prediction | None] | None = None
    refusals: list[str] = []
    tried: set[tuple[tuple[str, str], ...]] = set()
    # Formats that the user spells out are delivered, also where they are slow; the warnings then say so.
    automatic = work.recipe.method == "auto" and not _spelled_out(work.recipe, work.target)
    budget, calibration = _budget(work, automatic=automatic)
    source = _planner(work, budget, automatic=automatic)
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
        calibration = _calibrated(work, decision, calibration)
        plan = make_plan(work.model, work.sites, recipe, work.target, decision, calibration, work.shapes)
        if work.recipe.rounding == "learned" and not learned:
            plan, learned = _learned(work, plan), True
        warnings = (*plan.warnings, *source.warnings, *refusals[-1:])
        plan = dataclasses.replace(plan, warnings=warnings, migrations=work.migrations)
        if budget is not None:
            plan = dataclasses.replace(plan, warnings=(*plan.warnings, *budget.warnings))
        plan = _compensated(work, plan)
        with work.stages("Build the artifact", None):
            applied = apply_plan(work.model, plan)
        try:
            verification = _verify(work, applied)
        except EngineError as error:
            if not automatic:
                raise EngineError(
                    f"{engine_version()} does not run the {plan.method} artifact",
                    cause=error.cause.replace(str(work.folder), "").strip(),
                    remedy="choose formats that the engine has kernels for, or --method auto",
                ) from error
            refusals.append(f"a {plan.method} plan was dropped because the engine refused it: {error.cause}")
            continue
        prediction = source.predict(work, decision)
        speedup = verification.latency.speedup if verification.latency is not None else 1.0
        if automatic and speedup < SLOWER and verification.latency is not None:
            # One slow measurement is not yet a slow artifact, and two runs should end in the same plan.
            verification = _timed_again(work, applied, verification)
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Planner:
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

    def predict(self, work: _Work, decision: Decision) -> Prediction | None:
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


def _budget(work: _Work, *, automatic: bool) -> tuple[Budget | None, Calibration | None]:
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
    calibration = _calibrated(work, everything, None)
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


def _planner(work: _Work, budget: Budget | None, *, automatic: bool) -> _Planner:
    """Return the costs to plan by: a file's, this machine's (probed and tuned), or the target's formulas."""
    formulas = FormulaCosts(work.target.costs, work.shapes) if work.target.costs is not None else None
    if work.costs is not None:
        costs = measured_costs(work.costs.table, work.target, work.shapes)
        unknown = missing_costs(work.costs.table, work.sites, work.shapes)
        warnings = work.costs.warnings
        if unknown:
            lacking = f"{len(unknown)} of {len(work.sites)} operators, e.g. {unknown[0]}"
            warnings += (f"{work.costs.source} lacks the costs of {lacking}: probe this very model on the device",)
        return _Planner(source=work.costs.source, costs=costs, warnings=warnings)
    if not work.probing or not automatic:
        return _Planner(source="formulas", costs=formulas)
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
        return _Planner(
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
    return _Planner(
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


def _accounted(
    work: _Work, applied: Applied, verification: Verification, prediction: Prediction | None
) -> Verification:
    """Add where the time goes, and what the engine runs for every operator that was planned in integers."""
    if not work.target.loads_here:
        return dataclasses.replace(verification, prediction=prediction, unfused=(), integer_kernels=0, kernels={})
    with work.stages("Read back what runs", None):
        rows, unasked = read_back(
            applied.model, work.sites, applied.plan, engine=work.target.engine, threads=work.threads
        )
        timeline: tuple[SiteTime, ...] = ()
        if work.seconds > 0 and applied.plan.options.get("io") != "int8":
            timeline = time_beside_float(
                work.model,
                applied,
                work.sites,
                work.timing_feed,
                threads=work.threads,
                seconds=work.seconds / 2,
                engine=work.target.engine,
            )
    hazards = tuple(
        Hazards(
            node=path,
            pairs=report.pairs,
            hazards=report.hazards,
            channels=report.channels,
            rescaled=report.scaled + report.scaled_and_clipped,
            recoded=report.clipped,
        )
        for path, weight in applied.weights.items()
        if (report := weight.encoded.saturation) is not None and report.hazards
    )
    unfused = tuple(row.node for row in rows if not row.integer)
    return dataclasses.replace(
        verification,
        contract=rows,
        timeline=timeline,
        prediction=prediction,
        hazards=hazards,
        unfused=unfused,
        unasked=unasked,
    )


def _elsewhere(work: _Work, applied: Applied) -> list[str]:
    """Return what there is to say of an artifact for a device that this machine is not."""
    if work.here:
        return []
    rules = (
        f"this machine is no {work.target.name}: the artifact was checked against that target's rules and its quality "
        "computed as the graph says; no latency is claimed"
    )
    return [rules, *summary(violations(applied.model, work.target))]


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


def _calibrated(work: _Work, decision: Decision, known: Calibration | None) -> Calibration | None:
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
    if work.recipe.rounding == "nearest":
        return found
    seen = found or Calibration(histograms={}, averages={}, means={}, samples=0)
    plan = make_plan(work.model, work.sites, work.recipe, work.target, decision, seen, work.shapes)
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


def _learned(work: _Work, plan: Plan) -> Plan:
    """Learn what restores the float outputs; the plan then holds it."""
    if work.calibration_data is None or not tells(work.calibration_data):
        missing = "nothing was learned: random numbers, or none, do not say what the model's tensors hold; give --data"
        return dataclasses.replace(plan, warnings=(*plan.warnings, missing))
    # PyTorch takes a second to load, and nothing else needs it.
    from lowbit.methods.reconstruct import count_blocks, reconstruct

    with work.stages("Learn block by block", count_blocks(work.model, plan, work.target)) as advance:
        return reconstruct(
            work.model,
            plan,
            work.target,
            work.calibration_data,
            seconds=work.recipe.time,
            seed=work.recipe.seed,
            advance=advance,
        ).plan


def _compensated(work: _Work, plan: Plan) -> Plan:
    """Make up for few bits in stored weights, as far as the recipe asks for it."""
    if not any(compensable(entry, work.recipe) for entry in plan.sites):
        return plan
    with work.stages("Make up for few bits", None):
        return compensated_plan(work.model, work.sites, plan, work.recipe, work.target, work.calibration_data)


def _checkpoint(work: _Work, watch: Watch) -> Checkpoint | None:
    if work.checkpoint is None or work.calibration_data is None:
        return None
    data = work.calibration_data
    identity = (digest(work.model), data.name, str(data.count()), str(work.recipe.seed), repr(watch))
    return Checkpoint(work.checkpoint, hashlib.sha256("\n".join(identity).encode()).hexdigest())


def _verify(work: _Work, applied: Applied) -> Verification:
    path = work.folder / "artifact.onnx"
    save_model(applied.model, path)
    with work.stages("Verify in the engine", work.test_data.count()) as advance:
        return verify(
            float_path=work.float_path,
            artifact_path=path,
            cleaned=work.model,
            artifact=applied.model,
            plan=applied.plan,
            sites=work.sites,
            feeds=work.test_data,
            labels=work.test_data.labels,
            metric=work.metric,
            metric_name=work.metric_name,
            threads=work.threads,
            engine=work.engine,
            latency_feed=work.timing_feed,
            batch=work.batch,
            memory=work.here,
            seconds=work.seconds,
            advance=advance,
        )


def _timed_again(work: _Work, applied: Applied, verification: Verification) -> Verification:
    """Measure latency once more, twice as long; this measurement counts."""
    path = work.folder / "artifact.onnx"
    save_model(applied.model, path)
    with work.stages("Measure again", None):
        feed = work.timing_feed
        artifact = open_session(path, threads=1)
        latency = compare_latency(
            open_in(work.engine, work.float_path, threads=work.threads),
            open_in(work.engine, path, threads=work.threads),
            feed,
            coded_interface(artifact, applied.plan).encode(feed),
            threads=work.threads,
            batch=work.batch,
            seconds=2 * work.seconds,
        )
    return dataclasses.replace(verification, latency=latency)


def _recipe(recipe: Recipe | str | Path | None, options: dict[str, Any]) -> Recipe:
    base = Recipe.from_yaml(recipe) if isinstance(recipe, (str, Path)) else recipe or Recipe()
    if not options:
        return base
    return Recipe.from_dict({**base.to_dict(), **options})


def _float_file(source: object, loaded: ir.Model, folder: Path) -> Path:
    """Return the user's own file, which is what the artifact is compared with, or write the model that was given."""
    if isinstance(source, (str, Path)):
        return Path(source)
    path = folder / "float.onnx"
    save_model(loaded, path)
    return path


def _label(model: object) -> str:
    if isinstance(model, (str, Path)):
        return Path(model).name
    return type(model).__name__ if is_foreign(model) else "model"
