"""Applying a plan: from the cleaned float model to the artifact, a pure function of both."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import onnx_ir as ir

from lowbit.exceptions import RecipeError
from lowbit.formats import (
    Format,
    Parameters,
    PerBlock,
    PerTensor,
    minimum_opset,
    parse_format,
)
from lowbit.graph import opset_of, raise_opset
from lowbit.graph.clean.dead_code import remove_dead_code
from lowbit.graph.constants import constant_array
from lowbit.graph.editor import Editor
from lowbit.graph.entry_channels import padded_channels, read_padded
from lowbit.graph.float_islands import QUANTIZED_UNASKED, keep_in_float
from lowbit.graph.half import convert_to_half
from lowbit.graph.qdq import absorb_activations, carrier, quantize_activation
from lowbit.methods.prepare import PREPARED_KEY, prepared_for
from lowbit.methods.site_weights import AppliedWeight, WeightEncoder
from lowbit.plan.embedded import embed_plan
from lowbit.plan.sites import Site, find_sites
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowbit.plan.plan import ActivationPlan, Plan, SitePlan
    from lowbit.targets import Target

__all__ = ["Applied", "apply_plan", "fills_depth"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """An artifact in memory.

    Attributes:
        model: The compressed model.
        plan: The plan with what was noted while it was applied.
        weights: Every encoded weight, by path of its site.
    """

    model: ir.Model
    plan: Plan
    weights: dict[str, AppliedWeight]


def apply_plan(model: ir.Model, plan: Plan, *, target: Target | None = None) -> Applied:
    """Build the artifact that `plan` describes; the same plan and model give the same bytes.

    Args:
        model: The cleaned float model; left unchanged.
        plan: The plan, made for this very model.
        target: The target as a value, where it is not one of the named ones.

    Raises:
        RecipeError: The plan was made for another model or names what is not there.
        TargetError: The plan's target is unknown.
    """
    target = target or find_target(plan.target)
    result = _raised(prepared_for(model, plan, target), plan)
    result.metadata_props.pop(PREPARED_KEY, None)
    sites = {site.path: site for site in find_sites(result, target)}
    planned = {site.node: site for site in plan.sites}
    unknown = sorted(set(planned) - set(sites))
    if unknown:
        raise RecipeError(f"the plan names the operator {unknown[0]!r}, which the model does not have")
    for path, entry in planned.items():
        if entry.execution not in {"float", "half"} and not sites[path].allows(entry.execution):
            raise RecipeError(
                f"the plan wants {path!r} as {entry.execution}", cause=sites[path].refusals[entry.execution]
            )
    editor = Editor(result)
    weights = WeightEncoder(editor, str(plan.options.get("weight_range", "minmax")), target)
    scales = {tensor.tensor: tensor for tensor in plan.activations}
    static = {path for path, entry in planned.items() if entry.execution == "static"}

    # In the plan's order: a set of names has another one in every process, and the same plan must give the same bytes.
    for path in (path for path in planned if path in static):
        _absorb(editor, sites[path], scales)
    values = {value.name: value for value in result.graph.inputs}
    values.update({value.name: value for node in result.graph for value in node.outputs})
    coded = _code_activations(editor, values, scales, sites, static)
    for path in (path for path in planned if path in static):
        _fill_depth(editor, sites[path], coded, target.depth_multiple)
    entries = []
    for path, entry in planned.items():
        notes = weights.encode(sites[path], entry, coded)
        entries.append(_with_notes(entry, notes))
    if target.engine == "onnxruntime" and not target.provider:
        for path, entry in planned.items():
            if entry.execution in {"float", "weight-only"} and sites[path].op_type in QUANTIZED_UNASKED:
                keep_in_float(editor, sites[path].node)
    half = [sites[path] for path, entry in planned.items() if entry.execution == "half" and entry.activations]
    if half:
        nodes = [node for site in half for node in (site.node, site.bias_node, *site.fused) if node is not None]
        convert_to_half(editor, nodes, half_type(planned, half[0].path))
    io = str(plan.options.get("io", "float"))
    if io == "int8":
        _integer_interface(result)
    remove_dead_code(result)
    for graph in (result.graph, *result.graph.subgraphs()):
        _forget_shapes(graph)
    final = _replace_sites(plan, entries)
    embed_plan(result, final)
    return Applied(model=result, plan=final, weights=weights.encoded)


def _forget_shapes(graph: ir.Graph) -> None:
    """Drop what is known of inner tensors: engines infer it, and in a small model it outweighs the weights."""
    kept = {*graph.outputs, *graph.inputs}
    inner = [value for node in graph for value in node.outputs]
    for value in (*inner, *graph.initializers.values()):
        if value not in kept:
            value.shape = None
            value.type = None


def half_type(planned: Mapping[str, SitePlan], path: str) -> Literal["float16", "bfloat16"]:
    """Return the 16-bit float of a site that computes in one."""
    return cast('Literal["float16", "bfloat16"]', planned[path].activations)


def _raised(model: ir.Model, plan: Plan) -> ir.Model:
    """Return a copy of `model` with the lowest opset that the plan's formats need."""
    needed = 13
    for site in plan.sites:
        if site.weights is not None:
            fmt = parse_format(site.weights)
            if fmt.element.bits == 16 and fmt.element.kind == "float":
                continue
            stored = Format(fmt.element, PerTensor(), fmt.symmetric) if site.execution == "weight-only" else fmt
            needed = max(needed, minimum_opset(fmt if site.execution == "static" else stored))
            if isinstance(fmt.granularity, PerBlock):
                needed = max(needed, 21)
    for tensor in plan.activations:
        needed = max(needed, minimum_opset(carrier(parse_format(tensor.format))))
    return raise_opset(model, needed) if opset_of(model) < needed else model.clone()


def _absorb(editor: Editor, site: Site, scales: Mapping[str, ActivationPlan]) -> None:
    """Remove the activation functions of a site whose output codes clip in the same way."""
    tensor = scales.get(site.output.name or "")
    if tensor is None or not site.fused:
        return
    # What the codes can hold, not what calibration saw: symmetric codes of a Relu's output still reach below zero.
    lowest, highest = parse_format(tensor.format).code_range()
    low, high = (lowest - tensor.zero_point) * tensor.scale, (highest - tensor.zero_point) * tensor.scale
    for node in site.fused:
        bottom, top = clip_bounds(node)
        if low < bottom or high > top * (1 + 1e-6):
            return
    absorb_activations(editor, site.fused)


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """Return the range that a Relu or Clip lets through."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    bounds = []
    for index, default in ((1, float("-inf")), (2, float("inf"))):
        array = constant_array(node.inputs[index]) if index < len(node.inputs) else None
        bounds.append(default if array is None else float(array))
    return bounds[0], bounds[1]


def _code_activations(
    editor: Editor,
    values: Mapping[str | None, ir.Value],
    scales: Mapping[str, ActivationPlan],
    sites: Mapping[str, Site],
    static: set[str],
) -> dict[ir.Value, ActivationPlan]:
    """Insert the Q/DQ pairs; return which decoded tensor came from which entry of the plan."""
    readers = {site.node: site for path, site in sites.items() if path in static}
    writers = {
        node for path in static for node in (sites[path].node, sites[path].bias_node, *sites[path].fused) if node
    }
    coded: dict[ir.Value, ActivationPlan] = {}
    for name, tensor in scales.items():
        value = values.get(name)
        if value is None:
            raise RecipeError(f"the plan names the tensor {name!r}, which the model does not have")
        fmt = parse_format(tensor.format)
        parameters = Parameters(
            np.asarray(tensor.scale, dtype=np.float32), np.asarray(tensor.zero_point, dtype=fmt.element.dtype)
        )
        if value.const_value is not None and not value.is_graph_input():
            continue
        written_in_integers = value.producer() in writers

        def reads(node: ir.Node, position: int, everyone: bool = written_in_integers) -> bool:
            site = readers.get(node)
            return everyone or (site is not None and position in site.activations)

        coded[quantize_activation(editor, value, parameters, fmt, reads_codes=reads)] = tensor
    return coded


def _fill_depth(editor: Editor, site: Site, coded: dict[ir.Value, ActivationPlan], multiple: int) -> None:
    """Pad the channels of a first layer where its integer kernel is faster so."""
    read = site.node.inputs[0]
    if read not in coded or not fills_depth(site, multiple):
        return
    assert read is not None
    channels = padded_channels(site.weight_array().shape, multiple)
    coded[read_padded(editor, site.node, channels)] = coded[read]


def fills_depth(site: Site, multiple: int) -> bool:
    """Whether a site's input and weight get channels of zeros for a target with this `depth_multiple`."""
    if site.op_type != "Conv" or site.attribute("group", 1) != 1:
        return False
    shape = site.weight_array().shape
    # Deep layers have full groups anyway; one that has not would pay more for the copy than it gains.
    return bool(padded_channels(shape, multiple) != shape[1] and shape[1] <= _ENTRY_CHANNELS)


# What counts as an image: one to four channels.
_ENTRY_CHANNELS = 4


def _with_notes(entry: SitePlan, notes: Sequence[str]) -> SitePlan:
    fresh = tuple(note for note in notes if note not in entry.notes)
    return dataclasses.replace(entry, notes=(*entry.notes, *fresh))


def _replace_sites(plan: Plan, entries: Sequence[SitePlan]) -> Plan:
    return dataclasses.replace(plan, sites=tuple(entries))


def _integer_interface(model: ir.Model) -> None:
    """Let the model take and return codes where its inputs and outputs are coded: drop the outermost Q and DQ."""
    graph = model.graph
    for index, value in enumerate(graph.inputs):
        uses = tuple(value.uses())
        if len(uses) == 1 and uses[0].node.op_type == "QuantizeLinear":
            node = uses[0].node
            replacement = ir.Value(name=value.name, shape=value.shape, type=node.outputs[0].type)
            graph.inputs[index] = replacement
            node.outputs[0].replace_all_uses_with(replacement)
            graph.remove(node, safe=True)
    for index, value in enumerate(graph.outputs):
        producer = value.producer()
        codes = producer.inputs[0] if producer is not None else None
        if producer is not None and codes is not None and producer.op_type == "DequantizeLinear" and not value.uses():
            name = value.name
            graph.outputs[index] = codes
            value.name = f"{name}_decoded"
            codes.name = name
            codes.shape = value.shape
            graph.remove(producer, safe=True)
