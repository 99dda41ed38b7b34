"""Operators that the ONNX standard defines by others: their own definition computes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

if TYPE_CHECKING:
    from lowbit.interpreter.registry import Call

__all__ = ["standard_body"]


def standard_body(node: ir.Node, call: Call) -> ir.Function | None:
    """Return the standard's definition of an operator by others, `None` if it has none.

    Args:
        node: The node; definitions may depend on its attributes and on the types of its inputs.
        call: The same for the interpreter.
    """
    try:
        schema = onnx.defs.get_schema(call.op_type, call.version, call.domain)
    except onnx.defs.SchemaError:
        return None
    if schema.has_function:
        return ir.from_proto(schema.function_body)
    if not schema.has_context_dependent_function:
        return None
    proto = ir.to_proto(node)
    types = []
    for value in node.inputs:
        kind = onnx.TypeProto()
        if value is not None and value.dtype is not None:
            kind.tensor_type.elem_type = int(value.dtype)
        types.append(kind.SerializeToString())
    body = schema.get_context_dependent_function(proto.SerializeToString(), types)
    function = onnx.FunctionProto.FromString(body)
    return ir.from_proto(function) if function.node else None
