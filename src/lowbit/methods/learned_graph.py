"""The float graph with learned quantization in it: weights, biases and scales come in from outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.formats import parse_format
from lowbit.graph.constants import constant_array
from lowbit.graph.editor import Editor
from lowbit.interpreter import Interpreter
from lowbit.plan.sites import Site, find_sites
from lowbit.reconstruction.learned_quantization import DOMAIN, OPERATOR

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from lowbit.plan.plan import Plan
    from lowbit.targets import Target

__all__ = ["LearnedGraph", "block_module", "for_any_batch", "learned_graph", "squeezed_outputs"]

_SQUEEZING = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})

DROPPED = "dropped"
"""Name of the input for the share of activations that stay in float."""


@dataclass(slots=True, kw_only=True, eq=False)
class LearnedGraph:
    """A model whose quantization can be learned.

    Attributes:
        model: The model. Its inputs are the float model's, then all that is named here.
        weights: By path of a site, the input that takes its decoded weight.
        biases: By path of a site, the input that takes its bias.
        scales: By name of a quantized tensor, the input that takes the logarithm of its scale.
    """

    model: ir.Model
    weights: dict[str, str] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)


def learned_graph(model: ir.Model, plan: Plan, target: Target, weighted: Collection[str]) -> LearnedGraph:
    """Build the graph of a plan in which everything is still to be learned.

    Args:
        model: The cleaned float model; left unchanged.
        plan: Says which tensors carry codes.
        target: Where the model will run; says what belongs to an operator.
        weighted: Paths of the sites whose weights come in from outside.
    """
    result = LearnedGraph(model=model.clone())
    graph = result.model.graph
    editor = Editor(result.model)
    sites = {site.path: site for site in find_sites(result.model, target)}
    added: list[ir.Value] = []

    def outside(wish: str) -> ir.Value:
        value = ir.Value(name=editor.name(wish), type=ir.TensorType(ir.DataType.FLOAT))
        added.append(value)
        return value

    for path in weighted:
        site = sites[path]
        assert site.weight_index is not None
        value = outside(f"{path}/weight")
        site.node.replace_input_with(site.weight_index, value)
        result.weights[path] = str(value.name)
        if site.bias is not None:
            holder = site.bias_node or site.node
            index = next(i for i, one in enumerate(holder.inputs) if one is site.bias)
            bias = outside(f"{path}/bias")
            holder.replace_input_with(index, bias)
            result.biases[path] = str(bias.name)
    dropped = outside(DROPPED)
    _quantize(editor, plan, sites, dropped, outside, result)
    graph.inputs.extend(added)
    result.model.graph.opset_imports.setdefault(DOMAIN, 1)
    return result


def _quantize(
    editor: Editor, plan: Plan, sites: dict[str, Site], dropped: ir.Value, outside: object, result: LearnedGraph
) -> None:
    """Put a learned quantization behind every tensor that carries codes, for those that read them."""
    graph = result.model.graph
    static = [sites[entry.node] for entry in plan.sites if entry.execution == "static"]
    writers = {node for site in static for node in (site.node, site.bias_node, *site.fused) if node is not None}
    readers = {site.node: site for site in static}
    values = {value.name: value for value in graph.inputs}
    values.update({value.name: value for node in graph for value in node.outputs})
    for tensor in plan.activations:
        value = values.get(tensor.tensor)
        if value is None or (value.const_value is not None and not value.is_graph_input()):
            continue
        fmt = parse_format(tensor.format)
        low, high = fmt.code_range()
        scale = outside(f"{tensor.tensor}/log_scale")  # type: ignore[operator]
        result.scales[tensor.tensor] = str(scale.name)
        everyone = value.producer() in writers
        uses = [
            use
            for use in value.uses()
            if everyone or (use.node in readers and use.idx in readers[use.node].activations)
        ]
        zero_point = editor.constant(
            graph, f"{tensor.tensor}/zero_point", np.asarray(tensor.zero_point, dtype=np.float32)
        )
        node = ir.node(
            OPERATOR,
            [value, scale, zero_point, dropped],
            attributes={"low": int(low), "high": int(high)},
            domain=DOMAIN,
            outputs=[ir.Value(name=editor.name(f"{tensor.tensor}/learned"), shape=value.shape, type=value.type)],
            name=f"{tensor.tensor}/learned",
        )
        producer = value.producer()
        if producer is not None:
            graph.insert_after(producer, node)
        else:
            first = next(iter(graph))
            graph.insert_before(first, node)
        for use in uses:
            use.node.replace_input_with(use.idx, node.outputs[0])


def for_any_batch(model: ir.Model) -> ir.Model:
    """Return a copy whose Reshapes take the first dimension from their input where it was fixed to one sample.

    What it computes of several samples has to be compared with what it computes of each; see `reconstruct`.
    """
    result = model.clone()
    editor = Editor(result)
    for node in list(result.graph):
        shape = constant_array(node.inputs[1]) if node.op_type == "Reshape" else None
        allowed = node.attributes.get("allowzero")
        if shape is None or shape.size == 0 or shape[0] != 1 or (allowed is not None and allowed.value):
            continue
        copied = np.array(shape)
        copied[0] = 0
        node.replace_input_with(1, editor.constant(result.graph, f"{node.name}/shape", copied))
        for value in node.outputs:
            value.shape = None
    return result


def squeezed_outputs(model: ir.Model) -> dict[str, str]:
    """Return the outputs of a model that a Softmax or Sigmoid gives, each with the tensor that this reads."""
    found: dict[str, str] = {}
    for value in model.graph.outputs:
        producer = value.producer()
        read = producer.inputs[0] if producer is not None and producer.op_type in _SQUEEZING else None
        if read is not None and read.producer() is not None:
            found[str(value.name)] = str(read.name)
    return found


def block_module(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> Interpreter:
    """Return a part of a model as a module.

    Args:
        model: A model; left unchanged.
        inputs: Tensors at which the part begins.
        outputs: Tensors at which it ends.

    Returns:
        A module whose inputs are those that the outputs depend on, then the model's own inputs that they need.
    """
    graph = model.graph
    values = {str(value.name): value for value in graph.inputs}
    values.update({str(value.name): value for node in graph for value in node.outputs if value.name})
    bounds = {values[name] for name in inputs}
    found: dict[ir.Value, None] = {}
    seen: set[ir.Value] = set()
    ahead = [values[name] for name in outputs]
    while ahead:
        value = ahead.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in bounds or (value.is_graph_input() and value.const_value is None):
            found[value] = None
            continue
        producer = value.producer()
        if producer is not None:
            ahead += [one for one in producer.inputs if one is not None]
            for attribute in producer.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    ahead += _captured(attribute.as_graph(), values)
    ordered = [value for value in values.values() if value in found]
    part = ir.convenience.extract(graph, ordered, [values[name] for name in outputs])
    part.opset_imports.update(graph.opset_imports)
    return Interpreter(ir.Model(part, ir_version=model.ir_version, functions=list(model.functions.values())))


def _captured(graph: ir.Graph, values: dict[str, ir.Value]) -> list[ir.Value]:
    from lowbit.reconstruction.partition import read_names

    return [values[name] for node in graph for name in read_names(node) if name in values]
