"""The main verb: a float model and some data in, a verified artifact out."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.data import batched, input_specs
from lowbit.exceptions import RecipeError
from lowbit.graph import clean, load_model, save_model
from lowbit.importing import import_model, is_foreign
from lowbit.methods.absorption_search import find_absorptions
from lowbit.methods.account import provenance_of, warnings_of
from lowbit.methods.apply import apply_plan
from lowbit.methods.calibrate import observed_shapes
from lowbit.methods.checkpoint import learning_folder, remove_blocks
from lowbit.methods.classification import default_metric, metric_name
from lowbit.methods.costs import load_costs, measurable
from lowbit.methods.decide import settled
from lowbit.methods.fastest import FASTEST_HERE, fastest_here
from lowbit.methods.histograms import report_histograms
from lowbit.methods.measuring import accounted, elsewhere_of, verified
from lowbit.methods.migration_search import find_migrations
from lowbit.methods.prepare import Prepared, absorbed, in_steps, migrated, prepare, prepared_for, rotated
from lowbit.methods.rerounding import tells
from lowbit.methods.result import Result
from lowbit.methods.rotate import INSERTED
from lowbit.methods.rotation_search import find_rotations
from lowbit.methods.samples import calibration_and_test
from lowbit.methods.search import search
from lowbit.methods.stages import Stages, silent
from lowbit.methods.work import Work
from lowbit.plan.files import read_plan
from lowbit.plan.recipe import Recipe
from lowbit.plan.sites import find_sites
from lowbit.targets import Target, find_target

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.data import Dataset, Preprocessing
    from lowbit.methods.verify import Metric
    from lowbit.plan.plan import Plan

__all__ = ["quantize"]

_WHY_DATA = "measures on samples what the model's tensors hold"


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
        checkpoint: A file that keeps the state of calibration while it runs; blocks that were learned lie beside it, in
            a folder of the same name and `.learned`. The same call continues from them after an interruption. They are
            deleted when the artifact is done.
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
    settings = settled(settings, target)
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
            prepared = in_steps(_prepared(cleaned.model, settings, target, calibration_data, stages), target)
        else:
            prepared = Prepared(model=prepared_for(cleaned.model, fixed, target))
        sites = find_sites(prepared.model, target)
        inserted = tuple(f"{each.tensor}{INSERTED}" for each in prepared.rotations if each.kind == "matmul")
        # A rotation in codes would bring back the outliers' error.
        settings = dataclasses.replace(settings, exclude=(*settings.exclude, *inserted))
        feed = next(iter(tests))
        timing_feed = batched(feed, input_specs(cleaned.model), batch)
        here = measurable(target)
        scored = metric or default_metric(tests, float_path, required=labels is not None)
        work = Work(
            model=prepared.model,
            migrations=prepared.migrations,
            rotations=prepared.rotations,
            absorptions=prepared.absorptions,
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
            verification, calibration = verified(work, applied), None
        else:
            applied, verification, calibration, prediction = search(work)
        verification = accounted(work, applied, verification, prediction)
        elsewhere = elsewhere_of(work, applied)
        warnings = elsewhere + warnings_of(
            applied.plan, verification, calibration_data=calibration_data, test_data=tests
        )
        if work.checkpoint is not None:
            work.checkpoint.unlink(missing_ok=True)
            remove_blocks(learning_folder(work.checkpoint))
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
    """Return the float model that plans are made for: equalized, with biases and scales moved, as far as is asked."""
    with stages("Prepare the model", None):
        prepared = prepare(cleaned, recipe)
        if recipe.absorb_bias:
            seen = data if data is not None and tells(data) else None
            prepared = absorbed(prepared, *find_absorptions(prepared.model, recipe, target, seen))
        if recipe.rotate != "none":
            if data is None or not tells(data):
                prepared = rotated(prepared, (), ("nothing rotated: whether it helps is measured on calibration data",))
            else:
                prepared = rotated(prepared, *find_rotations(prepared.model, recipe, target, data))
        if recipe.smooth == "none":
            return prepared
        if data is None or not tells(data):
            return migrated(prepared, (), (f"no scales moved: {recipe.smooth} needs calibration data",))
        return migrated(prepared, *find_migrations(prepared.model, recipe, target, data))


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
