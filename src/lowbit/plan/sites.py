"""Sites: the places of a graph that could be compressed, and why the others could not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.formats import parse_format
from lowbit.graph.constants import constant_array, constant_weight, is_constant, is_stored_quantized
from lowbit.graph.layer_normalization import why_not_in_steps
from lowbit.graph.normalization_steps import step_format

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lowbit.formats import Format
    from lowbit.targets import OperatorSupport, Target

__all__ = ["Site", "find_sites", "walk"]

# What attributes are where a node does not say.
_DEFAULTS = {("Resize", "mode"): "nearest", ("Pad", "mode"): "constant"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Site:
    """One operator with everything that belongs to it.

    Attributes:
        path: Name of the node, for a subgraph's node `outer/branch/inner`.
        node: The operator itself.
        op_type: Its ONNX operator.
        support: What the target says of it; `None` if it has no integer kernel.
        weight_index: Input that holds the constant weight, `None` if there is none.
        bias: Constant bias, as an input of the node or of `bias_node`.
        bias_node: The `Add` behind a MatMul that adds the bias.
        activations: Inputs that are computed when the model runs, as positions.
        fused: Activation functions behind the operator that an integer kernel absorbs (Relu, Clip), in order.
        subgraph: Whether it lies in a subgraph, where calibration cannot look.
        refusals: For each execution that is not possible here, the reason in words.
    """

    path: str
    node: ir.Node
    op_type: str
    support: OperatorSupport | None
    weight_index: int | None
    bias: ir.Value | None
    bias_node: ir.Node | None
    activations: tuple[int, ...]
    fused: tuple[ir.Node, ...]
    subgraph: bool
    refusals: dict[str, str]

    @property
    def is_step(self) -> bool:
        """Whether it is a step of an operator that the target computes in several, between which codes are finer."""
        return step_format(self.node) is not None

    def written(self, default: Format) -> Format:
        """Return the format of the codes that it writes: that of all tensors, unless it is a step."""
        finer = step_format(self.node)
        return default if finer is None else parse_format(finer)

    @property
    def last(self) -> ir.Node:
        """The last node that belongs to the site."""
        return self.fused[-1] if self.fused else self.bias_node or self.node

    @property
    def output(self) -> ir.Value:
        """The tensor that leaves the site."""
        return self.last.outputs[0]

    @property
    def weight(self) -> ir.Value | None:
        """The weight, as it stands at the node's input."""
        return None if self.weight_index is None else self.node.inputs[self.weight_index]

    def weight_array(self) -> NDArray[np.float32]:
        """Return the weight in float32, in the node's own layout.

        Raises:
            ValueError: The site has no constant weight.
        """
        array = constant_weight(self.weight)
        if array is None:
            raise ValueError(f"{self.path} has no constant weight")
        return array

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute of the node as a plain value."""
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def allows(self, execution: str) -> bool:
        """Whether the site can run as `execution`."""
        return execution not in self.refusals


def walk(graph: ir.Graph, prefix: str = "") -> Iterator[tuple[str, ir.Node, bool]]:
    """Yield the path and node of every operator in order, subgraphs included, and whether it lies in a subgraph."""
    for node in graph:
        path = f"{prefix}{node.name}"
        yield path, node, bool(prefix)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from walk(attribute.as_graph(), f"{path}/{attribute.name}/")
            elif attribute.type == ir.AttributeType.GRAPHS:
                for index, graph_ in enumerate(attribute.as_graphs()):
                    yield from walk(graph_, f"{path}/{attribute.name}[{index}]/")


def find_sites(model: ir.Model, target: Target) -> tuple[Site, ...]:
    """Return one site for every operator that is not part of another site.

    The bias `Add` behind a MatMul and the activation functions that `target` absorbs belong to their operator's site.
    """
    absorbed: set[ir.Node] = set()
    sites = []
    for path, node, inside in walk(model.graph):
        if node in absorbed:
            continue
        site = _site(path, node, inside, target)
        absorbed.update(site.fused)
        if site.bias_node is not None:
            absorbed.add(site.bias_node)
        sites.append(site)
    return tuple(sites)


def _site(path: str, node: ir.Node, inside: bool, target: Target) -> Site:
    op_type = node.op_type
    support = target.operators.get(op_type) if node.domain in ("", "ai.onnx") else None
    weight_index = _weight_index(node)
    bias, bias_node = _bias(node, weight_index)
    last = bias_node or node
    fused = _fused(last, target) if support is not None and support.role in {"convolution", "matmul", "binary"} else ()
    activations = _activations(node, support, weight_index)
    refusals = _refusals(node, support, weight_index, activations, inside, target)
    return Site(
        path=path,
        node=node,
        op_type=op_type,
        support=support,
        weight_index=weight_index,
        bias=bias,
        bias_node=bias_node,
        activations=activations,
        fused=fused,
        subgraph=inside,
        refusals=refusals,
    )


def _weight_index(node: ir.Node) -> int | None:
    """Return which input of `node` is its constant weight."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in {"Conv", "ConvTranspose"}:
        candidates: tuple[int, ...] = (1,)
    elif node.op_type in {"MatMul", "Gemm"}:
        candidates = (1, 0)
    elif node.op_type in {"LSTM", "GRU", "RNN"}:
        candidates = (1,)
    elif node.op_type == "Gather":
        candidates = (0,)
    else:
        return None
    for index in candidates:
        if index < len(node.inputs) and constant_weight(node.inputs[index]) is not None:
            array = constant_weight(node.inputs[index])
            if array is not None and array.ndim >= 2:
                return index
    return None


def _bias(node: ir.Node, weight_index: int | None) -> tuple[ir.Value | None, ir.Node | None]:
    """Return the constant bias of `node` and the node that adds it, if that is another one."""
    if weight_index is None:
        return None, None
    if node.op_type in {"Conv", "ConvTranspose", "Gemm"}:
        return (node.inputs[2] if len(node.inputs) > 2 else None), None
    if node.op_type != "MatMul" or weight_index != 1:
        return None, None
    uses = tuple(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None, None
    consumer, position = uses[0].node, uses[0].idx
    if consumer.op_type != "Add" or consumer.domain not in ("", "ai.onnx") or consumer.graph is not node.graph:
        return None, None
    other = consumer.inputs[1 - position]
    array = constant_array(other)
    weight = constant_weight(node.inputs[1])
    if array is None or weight is None or array.dtype != np.float32 or weight.ndim != 2:
        return None, None
    if array.size != weight.shape[1] or array.shape[-1] != array.size:
        return None, None
    return other, consumer


def _fused(node: ir.Node, target: Target) -> tuple[ir.Node, ...]:
    """Return the chain of activation functions behind `node` that an integer kernel's output codes absorb."""
    chain: list[ir.Node] = []
    value = node.outputs[0]
    while True:
        uses = tuple(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return tuple(chain)
        consumer = uses[0].node
        if consumer.op_type not in target.fused_activations or consumer.graph is not node.graph or uses[0].idx != 0:
            return tuple(chain)
        if consumer.op_type == "Clip" and not all(is_constant(bound) for bound in consumer.inputs[1:] if bound):
            return tuple(chain)
        chain.append(consumer)
        value = consumer.outputs[0]


def _activations(node: ir.Node, support: OperatorSupport | None, weight_index: int | None) -> tuple[int, ...]:
    """Return which inputs of `node` are tensors that an integer kernel reads as codes."""
    if support is None:
        return ()
    match support.role:
        case "convolution" | "passive" | "unary" | "pool" | "global-pool":
            return (0,)
        case "matmul":
            return tuple(index for index in (0, 1) if index != weight_index)
        case "binary":
            return (0, 1)
        case "concat":
            return tuple(range(len(node.inputs)))


def _refusals(
    node: ir.Node,
    support: OperatorSupport | None,
    weight_index: int | None,
    activations: tuple[int, ...],
    inside: bool,
    target: Target,
) -> dict[str, str]:
    refusals: dict[str, str] = {}
    static = _static_refusal(node, support, weight_index, activations, inside, target)
    if static:
        refusals["static"] = static
    dynamic = _dynamic_refusal(node, weight_index, target)
    if dynamic:
        refusals["dynamic"] = dynamic
    if weight_index is None:
        refusals["weight-only"] = f"{node.op_type} has no constant weight matrix"
    return refusals


def _static_refusal(
    node: ir.Node,
    support: OperatorSupport | None,
    weight_index: int | None,
    activations: tuple[int, ...],
    inside: bool,
    target: Target,
) -> str:
    if node.op_type == "DequantizeLinear" and is_stored_quantized(node.outputs[0]):
        return "it decodes a weight that arrived quantized"
    if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
        return "it is part of a model that arrived quantized"
    if support is None:
        why = ""
        if node.op_type in target.stepwise_operators:
            why = f": {why_not_in_steps(node) or 'it lies in a subgraph'}"
        return f"{target.engine} has no integer kernel for {node.op_type}{why}"
    if inside:
        return "it lies in a subgraph, where calibration cannot see its tensors"
    for name, allowed in support.attributes.items():
        attribute = node.attributes.get(name)
        value = attribute.value if attribute is not None else _DEFAULTS.get((node.op_type, name))
        if value not in allowed:
            return f"{target.engine} has no integer kernel for {node.op_type} with {name}={value}"
    for index, numbers in support.constants.items():
        array = constant_array(node.inputs[index])
        if array is None or not (np.isin(array, numbers).all() and np.unique(array).size == 1):
            known = " or ".join(f"{number:g}" for number in numbers)
            return f"{target.engine} has no integer kernel for {node.op_type} but with {known}"
    if support.role == "convolution":
        if weight_index != 1:
            return "its weight is computed while the model runs"
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and constant_array(bias) is None:
            return "its bias is computed while the model runs"
    if support.role == "matmul":
        refusal = _matmul_refusal(node, weight_index)
        if refusal:
            return refusal
    if support.role == "passive" and is_constant(node.inputs[0]):
        return "it only moves constants"
    if support.role == "binary" and all(is_constant(value) for value in node.inputs):
        return "it only reads constants"
    for index in activations:
        value = node.inputs[index]
        if value is None or (value.dtype is not None and value.dtype != ir.DataType.FLOAT):
            return "it computes indices or shapes, not float32 numbers"
    return ""


def _matmul_refusal(node: ir.Node, weight_index: int | None) -> str:
    if node.op_type == "Gemm":
        alpha, beta = node.attributes.get("alpha"), node.attributes.get("beta")
        if any(item is not None and item.as_float() != 1.0 for item in (alpha, beta)):
            return "Gemm with alpha or beta other than 1 has no integer kernel"
        if "transA" in node.attributes and node.attributes["transA"].as_int():
            return "Gemm with transA has no integer kernel"
        if weight_index != 1:
            return "its weight is not its second input"
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            bias = constant_array(node.inputs[2])
            weight = constant_weight(node.inputs[1])
            if bias is None or weight is None or bias.size not in weight.shape or bias.ndim != 1:
                return "its bias is not a constant vector"
    elif weight_index == 0:
        return "its weight is its first input"
    elif weight_index == 1:
        weight = constant_weight(node.inputs[1])
        if weight is not None and weight.ndim != 2:
            return "its weight is a batch of matrices"
    return ""


def _dynamic_refusal(node: ir.Node, weight_index: int | None, target: Target) -> str:
    if node.op_type not in target.dynamic_operators or node.domain not in ("", "ai.onnx"):
        return f"{target.engine} has no kernel for {node.op_type} with ranges at run time"
    if node.op_type == "LSTM":
        return _lstm_refusal(node)
    if weight_index != 1:
        return "its weight is not a constant second input"
    if node.op_type in {"MatMul", "Gemm"}:
        return _matmul_refusal(node, weight_index)
    return ""


def _lstm_refusal(node: ir.Node) -> str:
    if any(constant_weight(node.inputs[index]) is None for index in (1, 2)):
        return "its weights are computed while the model runs"
    if "layout" in node.attributes and node.attributes["layout"].as_int():
        return "the engine's integer LSTM does not know layout=1"
    return ""
