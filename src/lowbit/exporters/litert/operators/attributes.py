"""Attributes of ONNX nodes as plain values, and inputs that have to be constant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowbit.exporters.litert.constants import plain_constant
from lowbit.exporters.litert.refusal import Refusal

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["attribute", "constant_input"]


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Return an attribute, or what the specification says without it; numbers, text or a list."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value = found.value
    return list(value) if isinstance(value, (tuple, list)) else value


def constant_input(node: ir.Node, index: int) -> Any:
    """Return a constant input as an array, `None` if it is left out.

    Raises:
        Refusal: It is computed while the model runs.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    array = plain_constant(value)
    if array is None:
        raise Refusal(f"its input {value.name} is computed while the model runs")
    return array
