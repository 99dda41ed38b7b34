"""Applying a plan: from the cleaned float model to the artifact, a pure function of both."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import onnx_ir as ir

from lowbit.exceptions import RecipeError
from lowbit.formats import (
    Format,
    Parameters,
    PerBlock,
    PerChannel,
    PerTensor,
    choose_parameters,
    minimum_opset,
    parse_format,
    quantize,
)
from lowbit.graph import digest, opset_of, raise_opset
from lowbit.graph.clean.dead_code import remove_dead_code
from lowbit.graph.constants import constant_array
from lowbit.graph.editor import Editor
from lowbit.graph.half import convert_to_half
from lowbit.graph.qdq import absorb_activations, dequantized_bias, dequantized_weight, quantize_activation
from lowbit.graph.run_time_quantization import dynamic_convolution, dynamic_lstm, dynamic_matmul
from lowbit.graph.stored_weights import cast_weight, decoded_at_load, decoded_rows
from lowbit.methods.weights import EncodedWeight, corrected_bias, encode_matrix, encode_weight
from lowbit.plan.embedded import embed_plan
from lowbit.plan.packed import unpack_floats
from lowbit.plan.sites import Site, find_sites
from lowbit.rounding import weight_range
from lowbit.targets import Target, find_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lowbit.plan.plan import ActivationPlan, Plan, SitePlan
    from lowbit.rounding import RangeMethod

__all__ = ["Applied", "AppliedWeight", "apply_plan"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AppliedWeight:
    """A weight before and after, for the report."""

    name: str
    original: NDArray[np.float32]
    encoded: EncodedWeight


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


def apply_plan(model: ir.Model, plan: Plan) -> Applied:
    """Build the artifact that `plan` describes; the same plan and model give the same bytes.

    Args:
        model: The cleaned float model; left unchanged.
        plan: The plan, made for this very model.

    Raises:
        RecipeError: The plan was made for another model or names what is not there.
        TargetError: The plan's target is unknown.
    """
    if plan.model_sha256 != digest(model):
        raise RecipeError(
            "the plan does not fit this model",
            cause="it was made for a model with other operators or weights",
            remedy="make a new plan with --save-plan",
        )
    target = find_target(plan.target)
    result = _raised(model, plan)
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
    weights = _Weights(editor, str(plan.options.get("weight_range", "minmax")), target)
    scales = {tensor.tensor: tensor for tensor in plan.activations}
    static = {path for path, entry in planned.items() if entry.execution == "static"}

    for path in static:
        _absorb(editor, sites[path], scales)
    values = {value.name: value for value in result.graph.inputs}
    values.update({value.name: value for node in result.graph for value in node.outputs})
    coded = _code_activations(editor, values, scales, sites, static)
    entries = []
    for path, entry in planned.items():
        notes = weights.encode(sites[path], entry, coded)
        entries.append(_with_notes(entry, notes))
    half = [sites[path] for path, entry in planned.items() if entry.execution == "half" and entry.activations]
    if half:
        convert_to_half(editor, [site.node for site in half], half_type(planned, half[0].path))
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
        needed = max(needed, minimum_opset(parse_format(tensor.format)))
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


class _Weights:
    """Encodes the weights of one model, each only once for all the sites that share it."""

    def __init__(self, editor: Editor, method: str, target: Target) -> None:
        self.editor = editor
        self.method = cast("RangeMethod", method)
        self.target = target
        self.encoded: dict[str, AppliedWeight] = {}
        self._shared: dict[tuple[Any, ...], tuple[ir.Value, EncodedWeight]] = {}

    def encode(self, site: Site, entry: SitePlan, coded: Mapping[ir.Value, ActivationPlan]) -> tuple[str, ...]:
        """Rewrite the weights of one site as its entry says, and return what is to be noted."""
        if entry.execution == "float" or (entry.weights is None and site.op_type != "LSTM"):
            if entry.execution == "static":
                self._constant_operand(site, coded)
            return ()
        assert entry.weights is not None
        fmt = parse_format(entry.weights)
        if fmt.element.kind == "float" and fmt.element.bits == 16:
            return self._half(site, fmt) if entry.activations is None else ()
        if site.op_type in {"LSTM", "GRU", "RNN"} and entry.execution == "weight-only":
            return self._recurrent(site, fmt)
        if site.op_type == "LSTM":
            return self._lstm(site, fmt)
        if entry.execution == "static":
            return self._static(site, fmt, entry, coded)
        if entry.execution == "dynamic":
            return self._dynamic(site, fmt)
        return self._weight_only(site, fmt, entry)

    def _static(
        self, site: Site, fmt: Format, entry: SitePlan, coded: Mapping[ir.Value, ActivationPlan]
    ) -> tuple[str, ...]:
        read = site.node.inputs[0]
        assert read is not None
        scale = coded[read].scale
        tensor = coded[read]
        saturates = self.target.saturates and tensor.format.startswith("uint8")
        encoded = encode_weight(site, fmt, saturates=saturates, input_scale=scale, method=self.method)
        self._remember(site, encoded)
        weight = site.weight
        assert weight is not None
        assert site.weight_index is not None
        key = ("static", weight, str(encoded.fmt), encoded.parameters, encoded.codes.tobytes())
        decoded = self._shared[key][0] if key in self._shared else None
        if decoded is None:
            decoded = dequantized_weight(
                self.editor, site.node, weight.name or "weight", encoded.codes, encoded.parameters, encoded.fmt
            )
            self._shared[key] = (decoded, encoded)
        mean = unpack_floats(entry.input_mean) if entry.input_mean else None
        # Before the site's weight becomes the decoded one, of which nothing is lost any more.
        bias = corrected_bias(site, encoded, mean)
        if bias is not None:
            self._bias(site, bias, np.float32(scale), encoded)
        site.node.replace_input_with(site.weight_index, decoded)
        return encoded.notes

    def _bias(self, site: Site, bias: NDArray[np.float32], input_scale: Any, encoded: EncodedWeight) -> None:
        """Give the site an integer bias, on the node or on the Add behind it."""
        name = site.bias.name if site.bias is not None and site.bias.name else f"{site.weight.name}_bias"  # type: ignore[union-attr]
        before = site.bias_node or site.node
        decoded = dequantized_bias(self.editor, before, name, bias, input_scale, encoded.parameters.scale)
        if site.bias_node is not None:
            index = next(i for i, value in enumerate(site.bias_node.inputs) if value is site.bias)
            site.bias_node.replace_input_with(index, decoded)
        elif site.op_type in {"Conv", "Gemm"}:
            if len(site.node.inputs) < 3:
                site.node.resize_inputs(3)
            site.node.replace_input_with(2, decoded)

    def _constant_operand(self, site: Site, coded: Mapping[ir.Value, ActivationPlan]) -> None:
        """Quantize the constant operand of an Add, Mul or Concat per tensor, from its own range."""
        del coded
        for index in site.activations:
            value = site.node.inputs[index]
            array = constant_array(value)
            if value is None or array is None or array.dtype != np.float32:
                continue
            fmt = parse_format(self.target.activations)
            encoded = _encode_constant(array, fmt)
            decoded = dequantized_weight(
                self.editor, site.node, value.name or "constant", encoded.codes, encoded.parameters, fmt
            )
            site.node.replace_input_with(index, decoded)

    def _dynamic(self, site: Site, fmt: Format) -> tuple[str, ...]:
        encoded = encode_weight(site, fmt, saturates=self.target.saturates, method=self.method)
        self._remember(site, encoded)
        assert site.weight is not None
        name = site.weight.name or "weight"
        if site.op_type == "Conv":
            dynamic_convolution(self.editor, site.node, name, encoded.codes, encoded.parameters, encoded.fmt)
            return encoded.notes
        codes = encoded.codes
        if site.op_type == "Gemm" and site.attribute("transB", 0):
            codes = np.ascontiguousarray(codes.T)
        dynamic_matmul(self.editor, site.node, name, codes, encoded.parameters, encoded.fmt)
        return encoded.notes

    def _lstm(self, site: Site, fmt: Format) -> tuple[str, ...]:
        pairs = []
        notes: tuple[str, ...] = ()
        for index in (1, 2):
            array = constant_array(site.node.inputs[index])
            assert array is not None
            each = [
                encode_matrix(np.ascontiguousarray(direction.T), fmt, saturates=self.target.saturates)
                for direction in array
            ]
            scale = np.stack([np.broadcast_to(one.parameters.scale, (array.shape[1],)) for one in each])
            zero = np.zeros(scale.shape, dtype=fmt.element.dtype)
            pairs.append((np.stack([one.codes for one in each]), Parameters(scale.astype(np.float32), zero)))
            notes += tuple(note for one in each for note in one.notes)
        dynamic_lstm(self.editor, site.node, pairs[0], pairs[1], fmt)
        return notes

    def _recurrent(self, site: Site, fmt: Format) -> tuple[str, ...]:
        """Store both weights of a recurrent operator small, per row or block of a gate, decoded at load time."""
        notes: tuple[str, ...] = ()
        for index in (1, 2):
            value = site.node.inputs[index]
            array = constant_array(value)
            if value is None or array is None or array.dtype != np.float32:
                continue
            # [directions, gates · hidden, summed] as [rows, summed].
            rows = array.reshape(-1, array.shape[-1])
            granularity = fmt.granularity
            if isinstance(granularity, PerBlock) and rows.shape[1] % granularity.size == 0:
                granularity = PerBlock(1, granularity.size)
            elif isinstance(granularity, PerBlock):
                notes += (f"per row instead of blocks of {granularity.size}: {rows.shape[1]} does not divide",)
                granularity = PerChannel(0)
            elif isinstance(granularity, PerChannel):
                granularity = PerChannel(0)
            placed = Format(fmt.element, granularity, fmt.symmetric, fmt.narrow)
            parameters = choose_parameters(*weight_range(rows, placed, self.method), placed)
            decoded = decoded_at_load(
                self.editor,
                site.node,
                value.name or "weight",
                quantize(rows, parameters, placed),
                parameters,
                placed,
                shape=array.shape,
            )
            site.node.replace_input_with(index, decoded)
        return notes

    def _weight_only(self, site: Site, fmt: Format, entry: SitePlan) -> tuple[str, ...]:
        encoded = encode_weight(site, fmt, saturates=False, method=self.method)
        self._remember(site, encoded)
        weight = site.weight
        assert weight is not None
        assert site.weight_index is not None
        name = weight.name or "weight"
        simple = encoded.fmt.symmetric and encoded.fmt.element.name == "int8"
        rows = site.op_type == "Gather" and site.attribute("axis", 0) == 0
        if rows and simple and not isinstance(encoded.fmt.granularity, PerBlock):
            scale = np.broadcast_to(encoded.parameters.scale, (encoded.codes.shape[0],)).astype(np.float32)
            decoded_rows(self.editor, site.node, name, encoded.codes, scale, encoded.fmt)
            return encoded.notes
        blocks = isinstance(encoded.fmt.granularity, PerBlock) and entry.decode == "kernel"
        key = ("weight-only", weight, str(encoded.fmt), blocks, str(encoded.fmt.granularity))
        if key in self._shared:
            value = self._shared[key][0]
        else:
            store = dequantized_weight if blocks else decoded_at_load
            value = store(self.editor, site.node, name, encoded.codes, encoded.parameters, encoded.fmt)
            self._shared[key] = (value, encoded)
        site.node.replace_input_with(site.weight_index, value)
        return encoded.notes

    def _half(self, site: Site, fmt: Format) -> tuple[str, ...]:
        assert site.weight is not None
        assert site.weight_index is not None
        key = ("half", site.weight, fmt.element.name)
        if key not in self._shared:
            name = site.weight.name or "weight"
            half = site.weight_array().astype(fmt.element.dtype)
            encoded = EncodedWeight(
                codes=half,
                parameters=Parameters(np.float32(1.0), np.zeros((), dtype=fmt.element.dtype)),  # type: ignore[arg-type]
                fmt=Format(fmt.element, PerTensor()),
            )
            self._shared[key] = (cast_weight(self.editor, site.node, name, half, encoded.fmt), encoded)
        site.node.replace_input_with(site.weight_index, self._shared[key][0])
        return ()

    def _remember(self, site: Site, encoded: EncodedWeight) -> None:
        assert site.weight is not None
        self.encoded[site.path] = AppliedWeight(
            name=site.weight.name or site.path, original=site.weight_array(), encoded=encoded
        )


def _encode_constant(array: NDArray[np.float32], fmt: Format) -> EncodedWeight:
    parameters = choose_parameters(min(float(array.min()), 0.0), max(float(array.max()), 0.0), fmt)
    return EncodedWeight(codes=quantize(array, parameters, fmt), parameters=parameters, fmt=fmt)


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
