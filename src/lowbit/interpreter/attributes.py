"""Attributes of nodes as plain values; references to the attributes of a function resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir

from lowbit.exceptions import ModelError
from lowbit.interpreter.dtypes import from_array

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

__all__ = ["bound", "constant", "plain", "tensor"]


def bound(node: ir.Node, bindings: Mapping[str, ir.Attr]) -> list[ir.Attr]:
    """Return a node's attributes; each reference as what it is bound to, left out where it is bound to nothing.

    Args:
        node: The node.
        bindings: Attributes of the function that the node stands in, as its caller or its defaults set them.
    """
    found = []
    for attribute in node.attributes.values():
        if not attribute.is_ref():
            found.append(attribute)
        elif attribute.ref_attr_name in bindings:
            source = bindings[str(attribute.ref_attr_name)]
            found.append(ir.Attr(attribute.name, source.type, source.value))
    return found


def plain(attribute: ir.Attr) -> Any:
    """Return an attribute that is no graph as numbers, strings, lists of them, or tensors."""
    kind = attribute.type
    if kind == ir.AttributeType.TENSOR:
        value = attribute.as_tensor()
        return value if value.dtype == ir.DataType.STRING else tensor(value)
    if kind == ir.AttributeType.STRING:
        return attribute.as_string()
    if kind in {ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS}:
        return list(cast("Sequence[Any]", attribute.value))
    return attribute.value


def constant(attribute: ir.Attr) -> torch.Tensor:
    """Return the tensor that a `Constant` stands for, by its only attribute.

    Raises:
        ModelError: PyTorch has no such tensors; strings, for one.
    """
    if attribute.type == ir.AttributeType.TENSOR:
        return tensor(attribute.as_tensor())
    if attribute.type in {ir.AttributeType.FLOAT, ir.AttributeType.FLOATS}:
        return from_array(np.asarray(attribute.value, dtype=np.float32))
    if attribute.type in {ir.AttributeType.INT, ir.AttributeType.INTS}:
        return from_array(np.asarray(attribute.value, dtype=np.int64))
    raise ModelError(
        f"PyTorch has no tensors for a Constant with {attribute.name}", remedy="run this graph in ONNX Runtime"
    )


def tensor(value: ir.TensorProtocol) -> torch.Tensor:
    """Return an ONNX tensor as one of PyTorch.

    Raises:
        ModelError: PyTorch has no such tensors; strings, for one.
    """
    return from_array(np.asarray(value.numpy()))
