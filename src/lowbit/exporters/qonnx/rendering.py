"""A Q/DQ graph as a QONNX graph, or every reason why it cannot be one."""

from __future__ import annotations

import onnx_ir as ir

from lowbit.exceptions import ModelError
from lowbit.exporters.qonnx.activations import decode_activations
from lowbit.exporters.qonnx.node import quant_node
from lowbit.exporters.qonnx.quantizer import fitted
from lowbit.exporters.qonnx.stored import Stored, stored_constant
from lowbit.exporters.shapes import with_fixed_shapes
from lowbit.graph.editor import Editor

__all__ = ["render_qonnx"]

_NAMED = 5
_WIDEST = 16
_RUNS_IN_INTEGERS = frozenset({"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"})
_GRAPHS = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})


def render_qonnx(model: ir.Model) -> ir.Model:
    """Return a quantized model with `Quant` and `BipolarQuant` nodes in place of Q/DQ pairs and stored codes.

    Every tensor between the edges is float32; its shape is in the file, as the tools behind need it. Weights are
    float32 initializers with a `Quant` node that changes none of their numbers, biases float32 initializers alone. Q
    and DQ nodes that carry codes out of the model or into it stay what they are.

    Args:
        model: A graph with Q/DQ pairs, from lowbit or another tool; left unchanged. An open first dimension of an
            input is the batch and becomes 1.

    Raises:
        ModelError: A node computes with codes, or its quantizer is none that QONNX can say; all of them are named.
    """
    graph = model.clone()
    refusals = [(node, reason) for node in graph.graph if (reason := _refusal(node)) is not None]
    if not refusals:
        # Before cleaning, which would fold weights that are decoded by a Cast and a Mul.
        _encode_constants(Editor(graph))
        graph = with_fixed_shapes(graph, "QONNX")
        refusals = decode_activations(Editor(graph))
    if refusals:
        shown = [f"{node.name or node.op_type} ({node.op_type}) {reason}" for node, reason in refusals]
        more = f"; and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
        raise ModelError(
            f"{len(shown)} operator{'s' * (len(shown) > 1)} of the model cannot be said in QONNX",
            cause="; ".join(shown[:_NAMED]) + more,
            remedy="Quantize the float model with --method static",
        )
    _remove_unread(graph)
    return graph


def _refusal(node: ir.Node) -> str | None:
    """Return why a node cannot go into the file, whatever stands around it; `None` if it can."""
    if node.op_type in _RUNS_IN_INTEGERS:
        return "computes with codes, for which QONNX has float tensors behind Quant nodes"
    if node.domain not in ("", "ai.onnx"):
        return f"is no operator of ONNX, but of {node.domain}"
    if any(attribute.type in _GRAPHS for attribute in node.attributes.values()):
        return "holds a graph of its own"
    return None


def _encode_constants(editor: Editor) -> None:
    """Put float32 initializers and `Quant` nodes where the graph stores integers."""
    done: dict[ir.Value, ir.Value] = {}
    for node in list(editor.model.graph):
        if stored_constant(node.outputs[0]) is not None:
            continue
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if value not in done:
                stored = stored_constant(value)
                if stored is None:
                    continue
                done[value] = _encoded(editor, value, stored, node)
            node.replace_input_with(index, done[value])


def _encoded(editor: Editor, value: ir.Value, stored: Stored, before: ir.Node) -> ir.Value:
    graph = editor.model.graph
    name = (value.name or "constant").removesuffix("_dequantized")
    real = stored.real()
    weight = editor.constant(graph, name, real)
    if stored.bits > _WIDEST:
        # NOTE: biases, at the scale of the accumulator. hls4ml has no place for a quantizer on them, and the codes can
        # have more than the 24 bits that a float32, in which Quant computes, can hold.
        return weight
    quantizer = fitted(stored.codes, stored.scale, stored.zero_point, signed=stored.signed)
    node = quant_node(editor, weight, quantizer, f"{name}_quantized")
    graph.insert_before(before, node)
    return node.outputs[0]


def _remove_unread(model: ir.Model) -> None:
    """Remove the nodes and initializers that nothing reads any more."""
    for node in reversed(list(model.graph)):
        if not any(list(output.uses()) or output.is_graph_output() for output in node.outputs):
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not list(value.uses()) and not value.is_graph_output():
            del model.graph.initializers[name]
