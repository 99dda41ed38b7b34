"""A model that learns: from an ONNX graph and the plan of post-training quantization to a PyTorch module."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.data import Dataset, Preprocessing, input_specs, open_data, split_calibration
from lowbit.exceptions import DataError, ModelError, RecipeError
from lowbit.graph import clean, load_model
from lowbit.methods.prepare import PREPARED_KEY, in_steps, prepare
from lowbit.methods.stages import Stages, silent
from lowbit.methods.training_graph import build_module
from lowbit.methods.training_plan import float_plan, training_plan, with_plain_weights
from lowbit.plan.recipe import Recipe
from lowbit.plan.sites import find_sites
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    import onnx_ir as ir

    from lowbit.plan.plan import Plan
    from lowbit.targets import Target
    from lowbit.training.module import TrainableModel

__all__ = ["Origin", "trainable"]

_CALIBRATION_SHARE = 0.8
_SIGNS = {"binary": "int2:per-channel:narrow", "ternary": "int2:per-channel:narrow"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Origin:
    """What a trainable model was made from, and what its artifact is written from.

    Attributes:
        source: What the user gave: a path, or a model.
        loaded: The same, as it was loaded.
        model: The cleaned float model, whose sites the plan is about.
        plan: The plan that training starts from.
        recipe: The recipe.
        target: Where the artifact will run.
        tests: Samples that calibration has not seen; `None` without data.
        calibration: What it has seen.
        notes: What cleaning did.
        binary: Paths of operators whose weights are ±1 times a scale.
        soft: Temperature of soft assignments to codebooks; 0 for hard ones.
    """

    source: Any
    loaded: ir.Model
    model: ir.Model
    plan: Plan
    recipe: Recipe
    target: Target
    tests: Dataset | None
    calibration: Dataset | None
    notes: tuple[str, ...] = ()
    binary: frozenset[str] = field(default_factory=frozenset)
    soft: float = 0.0

    def __deepcopy__(self, _memo: object) -> Origin:
        return self  # Nothing in it is ever changed.


def trainable(
    model: str | Path | onnx.ModelProto | ir.Model,
    recipe: Recipe | str | Path | None = None,
    *,
    data: Any = None,
    test_data: Any = None,
    preprocessing: Preprocessing | None = None,
    quantized: bool = True,
    plan: Plan | str | Path | None = None,
    keep_zeros: bool = False,
    keep_clusters: bool = False,
    soft: float = 0.0,
    edges: bool = True,
    taps: Sequence[str] = (),
    channels_last: bool = True,
    stages: Stages = silent,
    **options: Any,
) -> TrainableModel:
    """Return an ONNX model as a PyTorch module that learns what the quantized model computes.

    The module starts from what post-training quantization would choose: batch normalizations are folded, activations
    have calibrated ranges, weights the scales of least error. From there weights, biases, scales and zero points are
    learned (Esser et al., Learned Step Size Quantization, 2020; Bhalgat et al., LSQ+, 2020). Train it with any loop, or
    with `lowbit.qat`; `lowbit.finalize` then writes the artifact.

    Args:
        model: Path of an ONNX file, a `ModelProto` or an `onnx_ir.Model`; never changed.
        recipe: A `Recipe` or the path of a YAML file. `auto` is `static` here: everything that may be integer is.
        data: Calibration data, as in `lowbit.quantize`; batches of a training loader will do.
        test_data: Held-out data that `finalize` verifies with; by default a fifth of `data` is kept back for it.
        preprocessing: What to do to images.
        quantized: Whether anything is quantized; `False` fine-tunes the float model.
        plan: A plan to start from instead of making one.
        keep_zeros: Whether weights that are exactly 0 stay 0, as pruning left them.
        keep_clusters: Whether weights that have the same value keep having the same, as `lowbit.share` left them.
        soft: Temperature at which weights of a codebook are mixtures of its entries while they are trained, so that
            they may change their entry (Cho et al., DKM, 2022); 1e-3 is usual, 0 keeps every weight at its entry.
        edges: Whether the first and the last layers get 8 bits where the recipe asks for fewer, as is usual.
        taps: Names of inner tensors that `module(x, tapped=True)` returns as well.
        channels_last: Whether images are laid out with their channels last in memory, which CPUs are faster with.
        stages: Shows progress; see `Stages`.
        **options: Fields of `Recipe`, e.g. `weights="int4"`, `activations="uint4"`; weights may also be `binary` or
            `ternary` here: ±1 or -1, 0, 1 times a scale per channel, stored as 2 bits.

    Returns:
        The module. It takes the graph's inputs in order, float32, and returns its output (several as a tuple).

    Raises:
        ModelError: The model cannot be read, or nothing in it can learn.
        DataError: There are no data to calibrate with, or they do not fit.
        RecipeError: The recipe is wrong, or asks for what training has no gradient for.
    """
    settings, binary = _recipe(recipe, options)
    target = find_target(settings.target)
    with stages("Load and clean the model", None):
        loaded = load_model(model)
        cleaned = clean(loaded)
        prepared = prepare(with_plain_weights(cleaned.model, target), dataclasses.replace(settings, smooth="none"))
        prepared = in_steps(prepared, target)
        base = prepared.model
        base.metadata_props.pop(PREPARED_KEY, None)
        sites = find_sites(base, target)
    calibration, tests = _data(base, data, test_data, preprocessing, settings)
    if plan is not None:
        start = _given(plan, base)
    elif not quantized:
        start = float_plan(base, sites, settings, target)
    elif calibration is None:
        raise DataError(
            "there are no data to calibrate with",
            cause="quantized training starts from the ranges of activations",
            remedy="give data=, e.g. the training loader; or quantized=False to fine-tune in float",
        )
    else:
        with stages("Calibrate", None):
            start = training_plan(base, sites, settings, target, calibration, edges=edges)
    start = dataclasses.replace(start, migrations=(), options={**start.options, "equalize": False})
    origin = Origin(
        source=model if isinstance(model, (str, Path)) else None,
        loaded=loaded,
        model=base,
        plan=start,
        recipe=settings,
        target=target,
        tests=tests,
        calibration=calibration,
        notes=(*cleaned.notes, *prepared.notes),
        binary=_matching(sites, binary),
        soft=soft,
    )
    return build_module(
        origin, keep_zeros=keep_zeros, keep_clusters=keep_clusters, taps=tuple(taps), channels_last=channels_last
    )


def _given(plan: Plan | str | Path, base: ir.Model) -> Plan:
    from lowbit.graph import digest
    from lowbit.plan.files import read_plan

    found = read_plan(plan) if isinstance(plan, (str, Path)) else plan
    return dataclasses.replace(found, model_sha256=digest(base))


def _recipe(recipe: Recipe | str | Path | None, options: dict[str, Any]) -> tuple[Recipe, tuple[tuple[str, bool], ...]]:
    """Return the recipe, and patterns of operators with whether their weights are binary; the last one counts."""
    base = Recipe.from_yaml(recipe) if isinstance(recipe, (str, Path)) else recipe or Recipe()
    if not options:
        return base.resolved(), ()
    options = dict(options)
    signs: list[tuple[str, bool]] = []
    if options.get("weights") is not None:
        signs.append(("*", options["weights"] == "binary"))
        options["weights"] = _SIGNS.get(options["weights"], options["weights"])
    rules = []
    for rule in options.get("rules", ()):
        values = dict(rule) if isinstance(rule, dict) else dataclasses.asdict(rule)
        if values.get("weights"):
            signs.append((values["pattern"], values["weights"] == "binary"))
            values["weights"] = _SIGNS.get(values["weights"], values["weights"])
        rules.append({key: value for key, value in values.items() if value is not None})
    if rules:
        options["rules"] = rules
    return Recipe.from_dict({**base.to_dict(), **options}).resolved(), tuple(signs)


def _matching(sites: Any, patterns: tuple[tuple[str, bool], ...]) -> frozenset[str]:
    from lowbit.plan.recipe import matches

    found = set()
    for site in sites:
        name = site.weight.name if site.weight is not None else None
        chosen = [binary for pattern, binary in patterns if matches(pattern, site.path, site.op_type, name)]
        if chosen and chosen[-1]:
            found.add(site.path)
    return frozenset(found)


def _data(
    model: ir.Model, data: Any, test_data: Any, preprocessing: Preprocessing | None, recipe: Recipe
) -> tuple[Dataset | None, Dataset | None]:
    specs = input_specs(model)
    if not specs:
        raise ModelError("the model has no inputs", remedy="give a model that computes something from data")

    def opened(source: Any, limit: int | None) -> Dataset:
        return open_data(source, specs, preprocessing=preprocessing, limit=limit, seed=recipe.seed)

    tests = opened(test_data, recipe.samples) if test_data is not None else None
    if data is None:
        return None, tests
    dataset = opened(data, 2 * recipe.samples)
    if tests is not None:
        return dataset.subset(0, min(recipe.samples, dataset.count())), tests
    if dataset.count() < 2 * dataset.unit:
        return dataset, dataset
    wanted = min(recipe.samples / dataset.count(), _CALIBRATION_SHARE)
    return split_calibration(dataset, calibration=wanted, seed=recipe.seed)


def refuse_unlearnable(what: str, why: str) -> RecipeError:
    """Return the error for a format that has no gradient."""
    return RecipeError(
        f"{what} cannot be trained", cause=why, remedy="use a symmetric integer format, nf4 or a codebook"
    )
