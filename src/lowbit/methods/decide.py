"""From a recipe to a plan: what each site may be, what it becomes, and at which scales."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lowbit.exceptions import RecipeError
from lowbit.formats import Format, PerBlock, parse_format
from lowbit.graph.constants import constant_array, is_stored_quantized
from lowbit.methods.activation_ranges import activation_plans
from lowbit.methods.calibrate import Calibration, Watch
from lowbit.methods.expected_inputs import expected_mean
from lowbit.methods.half import check_half, guarded, guarded_by_range
from lowbit.methods.prepare import source_digest
from lowbit.methods.rerounding import rounding_of
from lowbit.plan.choose import Choice, NoiseBudget, choose_executions, explain_executions
from lowbit.plan.cost import Costs, FormulaCosts
from lowbit.plan.packed import pack_floats
from lowbit.plan.plan import Execution, Plan, SitePlan
from lowbit.plan.ranges import coded_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from lowbit.plan.cost import Shapes
    from lowbit.plan.recipe import Recipe
    from lowbit.plan.sites import Site
    from lowbit.targets import Target

__all__ = ["Decision", "decide", "make_plan", "settled", "watch_list"]

# Below this a compressed weight saves less than the nodes around it cost.
_WORTH_STORING = 4096
# The same where size is all that counts: the nodes and the scale around a weight take as much as 100 elements save.
_SMALLEST = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What every site becomes, before calibration.

    Attributes:
        executions: Execution by path.
        weights: Weight format as text, by path, where there is one.
        reasons: Reason in words, by path.
        choices: Predicted times, by path.
        activations: Activation format of the statically quantized tensors.
        warnings: What the user should know.
        allowed: What every site may become besides float, by path.
    """

    executions: dict[str, Execution]
    weights: dict[str, str]
    reasons: dict[str, str]
    choices: dict[str, Choice]
    activations: Format
    warnings: tuple[str, ...] = ()
    allowed: dict[str, frozenset[Execution]] = field(default_factory=dict)


def decide(
    sites: Sequence[Site],
    recipe: Recipe,
    target: Target,
    shapes: Shapes,
    *,
    caution: float = 1.0,
    costs: Costs | None = None,
    budget: NoiseBudget | None = None,
    everything: bool = False,
    executions: Mapping[str, Execution] | None = None,
) -> Decision:
    """Decide how every site runs.

    Args:
        sites: The model's sites.
        recipe: What the user asks for.
        target: Where the model will run.
        shapes: Shape of every tensor for one sample.
        caution: Factor on the predicted costs of integers; raised when the artifact turned out slower than predicted.
        costs: Costs that were measured; by default the target's formulas.
        budget: Limit of the noise that integers may add.
        everything: Whether everything that may be integer becomes so, whatever it costs.
        executions: Executions that were found before, by path; the costs then only explain them.

    Raises:
        RecipeError: A pattern matches nothing, or the formats contradict the method.
    """
    _check_patterns(sites, recipe)
    weights_text = with_granularity(recipe.weights or target.weights, weight_only=recipe.method == "weight-only")
    activations_text = recipe.activations or target.activations
    method = recipe.method
    if activations_text == "none":
        method = "weight-only"
    elif activations_text == "dynamic":
        method = "dynamic"
    activations = activation_format(target.activations if activations_text in {"none", "dynamic"} else activations_text)
    weight_format = parse_format(weights_text)
    half = weight_format.element.kind == "float" and weight_format.element.bits == 16
    if activations.element.kind == "float":
        return _decide_half(sites, recipe, activations, weight_format if recipe.weights else activations)
    warnings = []
    native = target.runs_weights(weight_format) and target.runs_activations(activations)
    if half and method == "auto":
        method = "weight-only"
    if not native and method == "auto" and recipe.activations is None:
        method = "weight-only"
    if not native and method in {"auto", "static"}:
        warnings.append(
            f"{target.name} has no integer kernels for {weight_format.element.name} weights with "
            f"{activations.element.name} activations: they run through dequantization, small but not fast"
        )
    allowed: dict[str, frozenset[Execution]] = {}
    refused: dict[str, str] = {}
    per_site_weights: dict[str, str] = {}
    for site in sites:
        rule = recipe.rule_for(site.path, site.op_type, site.weight.name if site.weight is not None else None)
        wanted = rule.method or method
        own = with_granularity(rule.weights, weight_only=wanted == "weight-only") if rule.weights else weights_text
        per_site_weights[site.path] = own
        allowed[site.path], refused[site.path] = _allowed(
            site, wanted, target, rule.pattern, weights=parse_format(own) if rule.weights else weight_format
        )
    # What is asked for by name is done wherever it is legal; costs decide only where the choice was left to lowbit.
    explicit = method in {"static", "dynamic"}
    own_formats = native and weight_format.element.name in target.weight_elements
    if costs is None and target.costs is not None:
        costs = FormulaCosts(target.costs, shapes)
    if executions is not None and costs is not None:
        choices = explain_executions(sites, costs, executions)
    else:
        choices = choose_executions(
            sites,
            costs if own_formats and not everything and not (explicit and budget is None) else None,
            allowed={
                path: frozenset(item for item in may if item in {"static", "dynamic"}) for path, may in allowed.items()
            },
            caution=caution,
            budget=budget,
            unfed=target.integer_only,
        )
    chosen: dict[str, Execution] = {}
    reasons: dict[str, str] = {}
    weights: dict[str, str] = {}
    for site in sites:
        choice = choices[site.path]
        execution = choice.execution
        reason = refused[site.path] or choice.reason
        if execution == "float" and "weight-only" in allowed[site.path]:
            array_size = math.prod(site.weight_array().shape)
            worth = _SMALLEST if recipe.optimize == "size" else _WORTH_STORING
            if array_size >= worth and not is_stored_quantized(site.weight):
                execution = "weight-only"
                reason = (
                    f"weights stored small; computed in float: {reason}"
                    if method == "auto"
                    else "weights only, as asked"
                )
        chosen[site.path] = execution
        reasons[site.path] = reason
        if execution != "float" and site.weight_index is not None:
            weights[site.path] = per_site_weights[site.path]
    return Decision(
        executions=chosen,
        weights=weights,
        reasons=reasons,
        choices=choices,
        activations=activations,
        warnings=tuple(warnings),
        allowed=allowed,
    )


def settled(recipe: Recipe, target: Target) -> Recipe:
    """Return the recipe with `auto` spelled out for a target on which nothing may stay in float."""
    return dataclasses.replace(recipe, method="static") if target.integer_only and recipe.method == "auto" else recipe


def with_granularity(text: str, *, weight_only: bool) -> str:
    """Return a weight format with its granularity spelled out.

    Without one, weights get a scale per output channel; 4 bits and fewer under float activations a scale per block of
    32, which is what makes them usable. Learned levels fit a channel without any blocks.
    """
    name, *words = text.split(":")
    if any(word in {"per-tensor", "per-channel"} or word.startswith("block=") for word in words):
        return text
    fmt = parse_format(text)
    if fmt.element.kind == "float" and fmt.element.bits == 16:
        return text
    granularity = (
        "block=32" if weight_only and fmt.element.bits <= _FEW_BITS and not fmt.element.learned else "per-channel"
    )
    return ":".join([name, granularity, *words])


def activation_format(text: str) -> Format:
    """Return an activation format; asymmetric unless the text says otherwise, as most activations are one-sided."""
    fmt = parse_format(text)
    if fmt.element.kind == "float" or "symmetric" in text.split(":"):
        return fmt
    return dataclasses.replace(fmt, symmetric=False)


def _decide_half(sites: Sequence[Site], recipe: Recipe, activations: Format, weights: Format) -> Decision:
    """Let everything compute in a 16-bit float that is not known to overflow or to lose its digits there."""
    check_half(activations, weights)
    name = activations.element.name
    executions: dict[str, Execution] = {}
    reasons: dict[str, str] = {}
    chosen: dict[str, str] = {}
    for site in sites:
        rule = recipe.rule_for(site.path, site.op_type, site.weight.name if site.weight is not None else None)
        executions[site.path] = "float"
        if rule.method == "float":
            reasons[site.path] = f"excluded by {rule.pattern!r}"
        elif site.subgraph:
            reasons[site.path] = "it lies in a subgraph, whose tensors calibration cannot see"
        elif (reason := guarded(site, activations.element)) is not None:
            reasons[site.path] = reason
        else:
            executions[site.path] = "half"
            reasons[site.path] = f"computed in {name}, as asked"
            if site.weight_index is not None:
                chosen[site.path] = name
    unknown = {site.path: Choice(execution="float", float_ns=None, chosen_ns=None, reason="") for site in sites}
    return Decision(executions=executions, weights=chosen, reasons=reasons, choices=unknown, activations=activations)


def watch_list(sites: Sequence[Site], decision: Decision, recipe: Recipe) -> Watch:
    """Return what calibration has to watch for this decision."""
    tensors = coded_tensors(sites, decision.executions)
    names = tuple(tensor.name for tensor in tensors if constant_array(tensor.value) is None)
    halves = [site for site in sites if decision.executions[site.path] == "half"]
    names += tuple(site.output.name for site in halves if site.output.name)
    means: dict[str, int] = {}
    if recipe.bias_correction:
        for site in sites:
            # Also where weights may yet be stored small, so that one calibration serves every plan.
            rounded = decision.executions[site.path] in _CORRECTED or "weight-only" in decision.allowed.get(
                site.path, ()
            )
            if rounded and _correctable(site) and not site.subgraph:
                read = site.node.inputs[0]
                assert read is not None
                if read.name:
                    means[read.name] = 1 if site.op_type == "Conv" else -1
    return Watch(tensors=names, means=means, moving_average=recipe.calibration == "moving-average")


def make_plan(
    model: ir.Model,
    sites: Sequence[Site],
    recipe: Recipe,
    target: Target,
    decision: Decision,
    calibration: Calibration | None,
    shapes: Shapes,
    *,
    data_free: bool = False,
) -> Plan:
    """Turn a decision and what calibration saw into a plan.

    Args:
        model: The cleaned float model.
        sites: Its sites.
        recipe: The recipe.
        target: The target.
        decision: What every site becomes.
        calibration: What calibration saw; `None` if nothing is quantized statically.
        shapes: Shape of every tensor for one sample.
        data_free: Whether calibration saw random numbers, or nothing: means of inputs then are those that folded
            BatchNormalizations tell, where they do.
    """
    activations = activation_plans(sites, recipe, decision, calibration) if calibration is not None else ()
    entries = []
    for site in sites:
        choice = decision.choices[site.path]
        execution = decision.executions[site.path]
        weights = decision.weights.get(site.path)
        reason = decision.reasons[site.path]
        if execution == "half" and calibration is not None:
            guard = guarded_by_range(site, decision.activations.element, calibration)
            if guard is not None:
                execution, weights, reason = "float", None, guard
        mean = None
        correct = recipe.bias_correction and execution in _CORRECTED and weights is not None
        if correct and _correctable(site):
            read = site.node.inputs[0]
            found = calibration.means.get(read.name or "") if calibration is not None and read is not None else None
            if data_free and not site.subgraph and site.op_type != "MatMul":
                told = expected_mean(read)
                found = found if told is None else told
            mean = pack_floats(found) if found is not None else None
        coded = execution in {"static", "half"}
        written = str(site.written(decision.activations))
        rounding, notes = rounding_of(calibration.roundings if calibration else {}, site.path, execution, weights)
        entries.append(
            SitePlan(
                node=site.path,
                op_type=site.op_type,
                execution=execution,
                reason=reason,
                weights=weights,
                activations=written if coded else "uint8" if execution == "dynamic" else None,
                predicted_float_us=_microseconds(choice.float_ns),
                predicted_us=_microseconds(choice.chosen_ns),
                decode=_decode(site, weights, shapes, target) if execution == "weight-only" else None,
                input_mean=mean,
                rounding=rounding,
                notes=notes,
            )
        )
    return Plan(
        target=target.name,
        method=_method(entries),
        model_sha256=source_digest(model),
        sites=tuple(entries),
        activations=activations,
        options={
            "weight_range": recipe.weight_range,
            "io": recipe.io,
            "calibration": recipe.calibration,
            "equalize": recipe.equalize,
        },
        warnings=decision.warnings,
    )


# What has rounded weights whose mean error a bias can make up for.
_CORRECTED = ("static", "weight-only")
# Weights of so few bits need a scale for every few of them.
_FEW_BITS = 4


def _allowed(
    site: Site, wanted: str, target: Target, pattern: str, *, weights: Format
) -> tuple[frozenset[Execution], str]:
    """Return what a site may become, and why nothing, if so."""
    if wanted == "float":
        return frozenset(), f"excluded by {pattern!r}"
    options: set[Execution] = set()
    if wanted == "auto":
        options.update(_automatic(site))
    elif wanted == "static":
        options.add("static")
    elif wanted == "dynamic":
        options.add("dynamic")
    else:
        options.add("weight-only")
    if weights.element.kind == "codebook" and site.weight_index is not None:
        # Its codes are indices of levels: no kernel multiplies them.
        options &= {"weight-only"}
    legal = {option for option in options if site.allows(option)}
    if "dynamic" in legal and weights.element.name != "int8":
        legal.discard("dynamic")
    if legal:
        return frozenset(legal), ""
    if wanted == "auto" and site.allows("static"):
        return frozenset(), f"one calibrated range is too coarse for {_delicate(site)}; --method static quantizes it"
    reason = next(
        (
            site.refusals[option]
            for option in ("static", "dynamic", "weight-only")
            if option in site.refusals and option in options
        ),
        "",
    )
    return frozenset(), reason or f"{target.engine} cannot run it in {weights.element.name}"


def _automatic(site: Site) -> set[Execution]:
    """Return the executions that are safe to choose from without being asked.

    Matrix products over sequences meet outliers that one calibrated range cannot hold (a transformer's LayerNorm
    outputs, attention scores with a mask of -1e4), so they find their range at run time; LSTMs have no static kernel.
    """
    options: set[Execution] = {"weight-only"}
    if site.op_type in {"MatMul", "Gemm", "LSTM"}:
        if site.weight_index is not None:
            options.add("dynamic")
        if site.op_type == "Gemm" or _rank(site) == 2:
            options.add("static")
        return options if site.weight_index is not None else set()
    if site.op_type == "Softmax":
        # A mask of -1e4 among its inputs leaves the scores themselves a handful of codes.
        return options
    options.add("static")
    return options


def _delicate(site: Site) -> str:
    return "the scores of a Softmax" if site.op_type == "Softmax" else "a product of two activations"


def _rank(site: Site) -> int | None:
    value = site.node.inputs[0]
    return len(value.shape) if value is not None and value.shape is not None else None


def _correctable(site: Site) -> bool:
    return (
        site.op_type in {"Conv", "Gemm", "MatMul"}
        and site.weight_index is not None
        and (site.op_type != "MatMul" or site.bias is not None)
    )


def _check_patterns(sites: Sequence[Site], recipe: Recipe) -> None:
    from lowbit.plan.recipe import matches

    for pattern in (*recipe.exclude, *(rule.pattern for rule in recipe.rules)):
        if not any(
            matches(pattern, site.path, site.op_type, site.weight.name if site.weight is not None else None)
            for site in sites
        ):
            names = ", ".join(site.path for site in sites[:3])
            raise RecipeError(
                f"the pattern {pattern!r} matches no operator",
                remedy=f"operators are called {names} …; `lowbit inspect --details` lists them",
            )


def _decode(site: Site, weights: str | None, shapes: Shapes, target: Target) -> str:
    """Choose where a weight under a float operator is decoded: block by block only if the products have few rows."""
    if weights is None or site.op_type not in {"MatMul", "Gemm"} or site.weight_index != 1:
        return "load"
    fmt = parse_format(weights)
    if fmt.element.kind == "codebook" or not isinstance(fmt.granularity, PerBlock) or target.engine != "onnxruntime":
        return "load"
    # NOTE: ONNX Runtime 1.32 reads 2-bit codes wrongly in its block-wise kernel where a row of them ends within a byte.
    if any(size * fmt.element.bits % 8 for size in site.weight_array().shape) and fmt.element.bits < _FEW_BITS:
        return "load"
    output = shapes.get(site.node.outputs[0].name or "")
    rows = math.prod(output[:-1]) if output else 1
    return "kernel" if rows <= _FEW_ROWS else "load"


# Above this many rows the engine's block-wise kernel is slower than a float product with decoded weights.
_FEW_ROWS = 16


def _microseconds(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else round(float(nanoseconds) / 1000.0, 3)


def _method(entries: Sequence[SitePlan]) -> str:
    kinds = {entry.execution for entry in entries if entry.weights is not None and entry.execution != "float"}
    if not kinds:
        return "float"
    integer = kinds - {"weight-only"}
    if len(integer) > 1:
        return "mixed"
    return integer.pop() if integer else "weight-only"
