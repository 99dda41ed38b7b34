"""Shape inference at any model size."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from lowbit.graph.clean.weightless import weightless_proto

__all__ = ["annotate_shapes", "graph_protos", "infer_shapes"]


def infer_shapes(model: ir.Model) -> ir.Model:
    """Return a copy whose values have types and shapes wherever ONNX's inference can find them.

    Args:
        model: Left unchanged.
    """
    copy = model.clone()
    annotate_shapes(copy)
    return copy


def annotate_shapes(model: ir.Model) -> str:
    """Infer types and shapes in place.

    Shapes that the file declares for intermediate values are forgotten first where inference finds one itself: they
    are hints of the exporter, often of one traced input, and folding a `Shape` on a wrong hint would change results.

    Returns:
        Why inference failed, or an empty string.
    """
    proto = weightless_proto(model)
    for graph_proto in graph_protos(proto.graph):
        del graph_proto.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    for graph, source in zip(_ordered_graphs(model.graph), graph_protos(inferred.graph), strict=True):
        found = {info.name: info.type for info in (*source.value_info, *source.output)}
        for node in graph:
            for value in node.outputs:
                if value.name and value.name in found:
                    _annotate(value, found[value.name])
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.shape = ir.Shape(value.const_value.shape.numpy())
                value.type = ir.TensorType(value.const_value.dtype)
    return ""


def _annotate(value: ir.Value, proto: onnx.TypeProto) -> None:
    inferred_type = ir.serde.deserialize_type_proto_for_type(proto)
    inferred_shape = ir.serde.deserialize_type_proto_for_shape(proto)
    if inferred_type is not None:
        value.type = inferred_type
    if inferred_shape is None:
        return
    declared = value.shape
    if not value.is_graph_output() or declared is None or len(declared) != len(inferred_shape):
        # NOTE: names of unknown dimensions are taken from this inference too: they are equal only within one run.
        value.shape = inferred_shape
        return
    named = zip(declared, inferred_shape, strict=True)
    value.shape = ir.Shape([old if isinstance(new, ir.SymbolicDim) else new for old, new in named])


def graph_protos(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Return a graph and its subgraphs, each before its own subgraphs."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += graph_protos(attribute.g)
            for child in attribute.graphs:
                found += graph_protos(child)
    return found


def _ordered_graphs(graph: ir.Graph) -> list[ir.Graph]:
    """The graphs in the order of `graph_protos`, to pair them up."""
    found = [graph]
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.GRAPH:
                found += _ordered_graphs(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                for child in attribute.as_graphs():
                    found += _ordered_graphs(child)
    return found
