"""The verb `check`: what would run in integers on a target, what would not and why, before anything is quantized."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from lowbit.data import Preprocessing, input_specs, open_data
from lowbit.data.inputs import batch_layout
from lowbit.graph import clean, infer_shapes, load_model
from lowbit.graph.constants import constant_array
from lowbit.methods.calibrate import observed_shapes
from lowbit.methods.conformance import Violation, violations
from lowbit.methods.decide import Decision, decide, make_plan, settled
from lowbit.methods.prepare import Prepared, in_steps
from lowbit.plan.choose import predicted_latency
from lowbit.plan.cost import Costs, FormulaCosts
from lowbit.plan.recipe import Recipe
from lowbit.plan.sites import Site, find_sites
from lowbit.targets import Target, find_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from lowbit.plan.plan import Plan

__all__ = ["Check", "OperatorCount", "check"]

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCount:
    """All operators of one type.

    Attributes:
        op_type: ONNX operator.
        count: How many there are.
        integer: How many would run in integers.
        weights: How many of the others would have their weights stored small.
        float_us: Predicted time of all of them in float in microseconds, `None` if unknown.
        planned_us: The same as planned, without conversions.
    """

    op_type: str
    count: int
    integer: int
    weights: int
    float_us: float | None
    planned_us: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a target would make of a model.

    Attributes:
        source: What was checked, as the user named it.
        target: The target.
        plan: The decision for every operator with its reason, without scales: calibration has not run.
        operators: The operators by type, the slowest or most frequent first.
        float_us: Predicted latency in float, of the operators whose cost is known, in microseconds; `None` if the
            target has no costs or shapes are unknown.
        planned_us: The same as planned, conversions included.
        conversions_us: What converting between float and codes costs of it.
        priced: For how many operators costs are known.
        unknown: Inputs with dimensions that nobody has given, as text; they keep costs unknown.
        notes: What cleaning did to the graph.
        quantized: Whether the file is an artifact already, so that `violations` is what counts.
        violations: Where the file as it is breaks a rule of the target.
    """

    source: str
    target: Target
    plan: Plan
    operators: tuple[OperatorCount, ...]
    float_us: float | None
    planned_us: float | None
    conversions_us: float | None
    priced: int
    unknown: tuple[str, ...]
    notes: tuple[str, ...]
    quantized: bool = False
    violations: tuple[Violation, ...] = ()

    @property
    def speedup(self) -> float | None:
        """Predicted float time over predicted time as planned, `None` if unknown."""
        return self.float_us / self.planned_us if self.float_us and self.planned_us else None


def check(
    model: str | Path | onnx.ModelProto | ir.Model,
    *,
    target: str | Target = "host",
    data: Any = None,
    preprocessing: Preprocessing | None = None,
    recipe: Recipe | str | Path | None = None,
    **options: Any,
) -> Check:
    """Decide for every operator as `quantize` would at first, without running or writing anything.

    Args:
        model: Path of an ONNX file, a `ModelProto` or an `onnx_ir.Model`.
        target: Where the model will run.
        data: One sample or more, only to know the shapes; without it they are inferred for batch 1.
        preprocessing: What to do to images.
        recipe: A `Recipe` or the path of a YAML file.
        **options: Fields of `Recipe`, e.g. `weights="int8"`.

    Raises:
        ModelError: The model cannot be read.
        TargetError: The target is unknown.
        RecipeError: The recipe is wrong.
        DataError: The data do not fit the model.
    """
    base = Recipe.from_yaml(recipe) if isinstance(recipe, (str, Path)) else recipe or Recipe()
    chosen = find_target(target)
    settings = Recipe.from_dict({**base.to_dict(), **options, "target": chosen.name})
    settings = settled(settings, chosen)
    loaded = load_model(model)
    cleaned = clean(loaded)
    prepared = in_steps(Prepared(model=cleaned.model), chosen)
    sites = find_sites(prepared.model, chosen)
    shapes, unknown = _shapes(prepared.model, data, preprocessing, settings)
    # Half-known costs would make every operator of unknown size look free.
    priced = chosen if not unknown else dataclasses.replace(chosen, costs=None)
    decision = decide(sites, settings, priced, shapes)
    plan = make_plan(prepared.model, sites, settings, chosen, decision, None, shapes)
    costs = FormulaCosts(priced.costs, shapes) if priced.costs is not None else None
    if costs is not None:
        plan = _priced(plan, sites, decision, costs)
    known = [site for site in plan.sites if site.predicted_float_us is not None and site.predicted_us is not None]
    floats = sum(site.predicted_float_us or 0.0 for site in known)
    planned = sum(site.predicted_us or 0.0 for site in known)
    conversions = None
    if costs is not None and known:
        conversions = _conversions(sites, decision, costs) / 1e3
    return Check(
        source=Path(model).name if isinstance(model, (str, Path)) else "model",
        target=chosen,
        plan=plan,
        operators=_count(plan),
        float_us=floats if conversions is not None else None,
        planned_us=planned + conversions if conversions is not None else None,
        conversions_us=conversions,
        priced=len(known),
        unknown=unknown,
        notes=(*cleaned.notes, *prepared.notes),
        quantized=any(_is_quantized(node) for node in loaded.graph),
        violations=violations(loaded, chosen),
    )


def _is_quantized(node: ir.Node) -> bool:
    """Whether a node encodes, or decodes a weight that is stored as codes."""
    if node.op_type == "Cast":
        codes = constant_array(node.inputs[0])
        return codes is not None and codes.size > 1 and codes.dtype.kind in "iu" and codes.itemsize == 1
    return node.op_type in _QUANTIZED


def _shapes(
    model: ir.Model, data: Any, preprocessing: Preprocessing | None, recipe: Recipe
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """Return the known shapes, and the inputs whose dimensions keep the others unknown."""
    specs = input_specs(model)
    if data is not None:
        with open_data(data, specs, preprocessing=preprocessing, limit=1, seed=recipe.seed) as dataset:
            return observed_shapes(model, next(iter(dataset))), ()
    axes = batch_layout(specs).axes
    single = model.clone()
    unknown = []
    for value in single.graph.inputs:
        if value.shape is None or value.name not in axes:
            continue
        axis = axes[value.name]
        # Some exporters write -1 for a dimension that they leave open.
        sizes = [dim if isinstance(dim, int) and dim >= 0 else None for dim in value.shape]
        if axis is not None and sizes[axis] is None:
            sizes[axis] = 1
        if None in sizes:
            named = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
            known = [size if size is not None else name for size, name in zip(sizes, named, strict=True)]
            unknown.append(f"{value.name} [{', '.join('?' if name in {None, -1} else str(name) for name in known)}]")
        value.shape = ir.Shape(sizes)
    inferred = infer_shapes(single)
    shapes: dict[str, tuple[int, ...]] = {}
    values = [*inferred.graph.inputs, *(value for node in inferred.graph for value in node.outputs)]
    for value in values:
        if value.name and value.shape is not None:
            dims = tuple(dim for dim in value.shape if isinstance(dim, int) and dim >= 0)
            if len(dims) == len(value.shape):
                shapes[value.name] = dims
    return shapes, tuple(unknown)


def _priced(plan: Plan, sites: Sequence[Site], decision: Decision, costs: Costs) -> Plan:
    """Fill in the predictions, also where the recipe left no choice and nobody has asked for them yet."""
    entries = []
    for site, entry in zip(sites, plan.sites, strict=True):
        plain = costs.site(site, "float")
        chosen = costs.site(site, decision.executions[site.path])
        entries.append(
            dataclasses.replace(
                entry,
                predicted_float_us=None if plain is None else plain / 1e3,
                predicted_us=None if chosen is None else chosen / 1e3,
            )
        )
    return dataclasses.replace(plan, sites=tuple(entries))


def _conversions(sites: Sequence[Site], decision: Decision, costs: Costs) -> float:
    """Return the predicted time of all QuantizeLinear and DequantizeLinear between float and integer sites, in ns."""
    kernels = sum(costs.site(site, decision.executions[site.path]) or 0.0 for site in sites)
    return predicted_latency(sites, costs, decision.executions) - kernels


def _count(plan: Plan) -> tuple[OperatorCount, ...]:
    names = Counter(site.op_type for site in plan.sites)
    rows = []
    for name, count in names.items():
        sites = [site for site in plan.sites if site.op_type == name]
        priced = [site for site in sites if site.predicted_float_us is not None]
        rows.append(
            OperatorCount(
                op_type=name,
                count=count,
                integer=sum(site.execution in {"static", "dynamic"} for site in sites),
                weights=sum(site.execution == "weight-only" for site in sites),
                float_us=sum(site.predicted_float_us or 0.0 for site in priced) if priced else None,
                planned_us=sum(site.predicted_us or site.predicted_float_us or 0.0 for site in priced)
                if priced
                else None,
            )
        )
    return tuple(sorted(rows, key=lambda row: (-(row.float_us or 0.0), -row.count, row.op_type)))
