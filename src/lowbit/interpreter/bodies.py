"""Operators that the ONNX standard defines by others: their own definition computes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowbit.interpreter.registry import Call

__all__ = ["resolved_proto", "standard_body"]


def standard_body(node: ir.Node, attributes: Sequence[ir.Attr], call: Call) -> ir.Function | None:
    """Return the standard's definition of an operator by others, `None` if it has none.

    Args:
        node: The node; definitions may depend on its attributes and on the types of its inputs.
        attributes: Its attributes, references resolved.
        call: The node as the interpreter sees it.
    """
    try:
        schema: Any = onnx.defs.get_schema(call.op_type, call.version, call.domain)
    except onnx.defs.SchemaError:
        return None
    if schema.has_function:
        return ir.serde.deserialize_function(schema.function_body)
    if not schema.has_context_dependent_function:
        return None
    types = []
    for value in node.inputs:
        kind = onnx.TypeProto()
        if value is not None and value.dtype is not None:
            kind.tensor_type.elem_type = int(value.dtype)
        types.append(kind.SerializeToString())
    proto = resolved_proto(node, attributes)
    body = schema.get_context_dependent_function(proto.SerializeToString(), types)
    function = onnx.FunctionProto.FromString(body)
    return ir.serde.deserialize_function(function) if function.node else None


def resolved_proto(node: ir.Node, attributes: Sequence[ir.Attr]) -> onnx.NodeProto:
    """Return a node whose attributes refer to no function."""
    proto = ir.to_proto(node)
    del proto.attribute[:]
    proto.attribute.extend(ir.to_proto(attribute) for attribute in attributes)
    return proto
