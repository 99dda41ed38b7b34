"""Shape inference at any model size."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from lowbit.graph.clean.weightless import weightless_proto

__all__ = ["annotate_shapes", "infer_shapes"]


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
    for graph in _graphs(proto.graph):
        del graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    for graph, source in zip(_ordered_graphs(model.graph), _graphs(inferred.graph), strict=True):
        found = {info.name: info.type for info in (*source.value_info, *source.output)}
        for node in graph:
            for value in node.outputs:
                if value.name and value.name in found:
                    _annotate(value, found[value.name])
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.shape = ir.Shape(value.const_value.shape)
                value.type = ir.TensorType(value.const_value.dtype)
    return ""


def _annotate(value: ir.Value, proto: onnx.TypeProto) -> None:
    inferred_type = ir.serde.deserialize_type_proto_for_type(proto)
    inferred_shape = ir.serde.deserialize_type_proto_for_shape(proto)
    if inferred_type is not None:
        value.type = inferred_type
    if inferred_shape is None:
        return
    if value.shape is None or len(value.shape) != len(inferred_shape):
        value.shape = inferred_shape
        return
    # The file's names of unknown dimensions say more than generated ones; its numbers are not trusted.
    value.shape = ir.Shape(
        [
            known if isinstance(guess, ir.SymbolicDim) and isinstance(known, ir.SymbolicDim) and known.value else guess
            for known, guess in zip(value.shape, inferred_shape, strict=True)
        ]
    )


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += _graphs(attribute.g)
            for child in attribute.graphs:
                found += _graphs(child)
    return found


def _ordered_graphs(graph: ir.Graph) -> list[ir.Graph]:
    """The graphs in the order of `_graphs`, to pair them up."""
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
