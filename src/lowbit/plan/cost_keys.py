"""The names under which measured costs are kept: an operator with its attributes, its shapes and what surrounds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from lowbit.graph.constants import is_constant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowbit.plan.cost import Shapes
    from lowbit.plan.sites import Site

__all__ = ["conversion_key", "site_key"]

# Attributes that say nothing about the time; those of a weight's shape say the same as the weight.
_REDUNDANT = frozenset({"epsilon", "momentum"})
_REDUNDANT_BESIDE_A_WEIGHT = _REDUNDANT | {"kernel_shape"}


def site_key(site: Site, shapes: Shapes) -> str | None:
    """Return what the time of a site depends on, as text, e.g. `Conv group=32 (1x32x56x56, 32x1x3x3)+Clip`.

    Operators without weights cost what their surroundings make of them (an Add behind a convolution is free in float,
    because the convolution's kernel adds), so theirs names the operators that feed them and read them. It also names
    the shape that they write, which constants may decide (the factors of a Resize).

    Returns:
        `None` if a shape is unknown.
    """
    shape_texts = []
    for value in site.node.inputs:
        if value is None:
            shape_texts.append("-")
            continue
        shape = _shape(value, shapes)
        if shape is None:
            return None
        shape_texts.append("x".join(map(str, shape)) or "scalar")
    redundant = _REDUNDANT if site.weight_index is None else _REDUNDANT_BESIDE_A_WEIGHT
    attributes = [
        f" {name}={_attribute(attribute)}"
        for name, attribute in sorted(site.node.attributes.items())
        if name not in redundant
        and attribute.type not in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}
        and not (name == "auto_pad" and attribute.value == "NOTSET")
    ]
    text = f"{site.op_type}{''.join(attributes)} ({', '.join(shape_texts)})"
    if site.bias_node is not None:
        text += "+bias"
    text += "".join(f"+{node.op_type}" for node in site.fused)
    if site.weight_index is None:
        written = _shape(site.output, shapes)
        if written is not None:
            text += f" = {'x'.join(map(str, written)) or 'scalar'}"
        readers = sorted({use.node.op_type for value in site.last.outputs for use in value.uses()})
        text += f" <{','.join(_writers(site.node.inputs))} >{','.join(readers) or 'output'}"
    return text


def conversion_key(shape: tuple[int, ...], *, where: str) -> str:
    """Return what the time of a conversion between float and codes depends on.

    Args:
        shape: Shape of the tensor.
        where: `inside`, `input` or `output` of the graph: at its ends no kernel's own layout has to be undone.
    """
    return f"{'x'.join(map(str, shape)) or 'scalar'} {where}"


def _shape(value: ir.Value, shapes: Shapes) -> tuple[int, ...] | None:
    if value.name and value.name in shapes:
        return shapes[value.name]
    if value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    if value.shape is not None and all(isinstance(dim, int) for dim in value.shape):
        return tuple(dim for dim in value.shape if isinstance(dim, int))
    return None


def _writers(values: Sequence[ir.Value | None]) -> list[str]:
    names = []
    for value in values:
        if value is None or is_constant(value):
            continue
        producer = value.producer()
        names.append("input" if producer is None else producer.op_type)
    return sorted(names)


def _attribute(attribute: ir.Attr) -> str:
    value = attribute.value
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value)
    if isinstance(value, ir.TensorProtocol):
        return "x".join(map(str, value.shape)) or "scalar"
    return str(value)
