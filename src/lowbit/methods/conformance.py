"""Whether a quantized graph is what a target accepts, told from its structure alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.formats import parse_format
from lowbit.graph import opset_of
from lowbit.graph.constants import constant_array, is_constant
from lowbit.plan.sites import walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowbit.targets import Target

__all__ = ["Violation", "summary", "violations"]

_BIAS = ir.DataType.INT32


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One place where a graph breaks a rule of a target.

    Attributes:
        node: The node, or the input whose shape is open.
        what: What is wrong, with the value.
        cause: The rule.
        remedy: What to do.
    """

    node: str
    what: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        """Return it as one sentence after the other."""
        return f"{self.node}: {self.what}; {self.cause}; {self.remedy}"


def violations(model: ir.Model, target: Target) -> tuple[Violation, ...]:
    """Return every place of a graph that `target` does not accept; nothing for a graph that conforms.

    Args:
        model: A float or quantized graph.
        target: The target.
    """
    found: list[Violation] = []
    if target.fixed_shapes:
        found += _open_shapes(model, target)
    if target.highest_opset is not None and opset_of(model) > target.highest_opset:
        found.append(
            Violation(
                node="the model",
                what=f"it uses opset {opset_of(model)}",
                cause=f"{target.name} reads up to {target.highest_opset}",
                remedy="export it with a lower opset",
            )
        )
    for path, node, _ in walk(model.graph):
        if node.op_type == "QuantizeLinear":
            found += _activation(path, node, target)
        elif node.op_type == "DequantizeLinear" and is_constant(node.inputs[0]):
            found += _constant(path, node, target)
        elif node.op_type == "DynamicQuantizeLinear" and not target.dynamic_operators:
            found.append(
                Violation(
                    node=path,
                    what="it finds a range at run time",
                    cause=f"{target.name} has no kernels with ranges at run time",
                    remedy="quantize with --method static",
                )
            )
    return tuple(found)


def summary(found: Sequence[Violation]) -> tuple[str, ...]:
    """Return one sentence for every kind of violation, with how often and where it occurs."""
    kinds: dict[tuple[str, str, str], list[str]] = {}
    for one in found:
        kinds.setdefault((one.what, one.cause, one.remedy), []).append(one.node)
    lines = []
    for (what, cause, remedy), nodes in sorted(kinds.items(), key=lambda item: -len(item[1])):
        where = nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes, e.g. {nodes[0]}"
        lines.append(f"{where}: {what}; {cause}; {remedy}")
    return tuple(lines)


def _open_shapes(model: ir.Model, target: Target) -> list[Violation]:
    found = []
    for value in model.graph.inputs:
        dims = list(value.shape) if value.shape is not None else ["?"]
        if not all(isinstance(dim, int) and dim > 0 for dim in dims):
            shown = ", ".join(
                str(dim) if isinstance(dim, int) else str(getattr(dim, "value", dim) or "?") for dim in dims
            )
            found.append(
                Violation(
                    node=str(value.name),
                    what=f"the input has the shape [{shown}]",
                    cause=f"{target.name} runs graphs of fixed shapes only",
                    remedy="export the model with the sizes that it will be fed",
                )
            )
    return found


def _activation(path: str, node: ir.Node, target: Target) -> list[Violation]:
    scale, zero_point = _parameters(node)
    if scale is None or zero_point is None:
        return [
            Violation(
                node=path,
                what="its scale or zero point is computed while the model runs",
                cause=f"{target.name} needs constants",
                remedy="quantize with --method static",
            )
        ]
    found = []
    name = ir.DataType.from_numpy(zero_point.dtype).name.lower()
    between = parse_format(target.step_activations).element.name if target.step_activations else ""
    if name not in {*target.activation_elements, between}:
        allowed = " or ".join(target.activation_elements) or "float only"
        found.append(
            Violation(
                node=path,
                what=f"it writes {name}",
                cause=f"activations on {target.name} are {allowed}",
                remedy=f"quantize with --target {target.name}",
            )
        )
    if scale.size != 1:
        found.append(
            Violation(
                node=path,
                what=f"it has {scale.size} scales",
                cause=f"{target.name} takes one scale for an activation",
                remedy="quantize activations per tensor",
            )
        )
    if target.symmetric_activations and np.any(zero_point != 0):
        found.append(
            Violation(
                node=path,
                what="its zero point is not 0",
                cause=f"activations on {target.name} are symmetric",
                remedy="quantize with --activations int8:symmetric",
            )
        )
    return found


def _constant(path: str, node: ir.Node, target: Target) -> list[Violation]:
    codes = node.inputs[0]
    assert codes is not None
    assert codes.const_value is not None
    dtype = codes.const_value.dtype
    found = []
    if dtype == _BIAS:
        if target.float_bias:
            found.append(
                Violation(
                    node=path,
                    what="it decodes an int32 bias",
                    cause=f"biases on {target.name} are float",
                    remedy=f"quantize with --target {target.name}",
                )
            )
        return found
    name = dtype.name.lower()
    if name not in target.weight_elements and name not in target.activation_elements:
        found.append(
            Violation(
                node=path,
                what=f"it decodes a constant of {name}",
                cause=f"weights on {target.name} are {' or '.join(target.weight_elements)}",
                remedy=f"quantize with --target {target.name}",
            )
        )
    zero_point = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if name == "int8" and zero_point is not None and np.any(zero_point != 0):
        found.append(
            Violation(
                node=path,
                what="its zero points are not all 0",
                cause=f"int8 weights on {target.name} are symmetric",
                remedy="quantize with symmetric weights",
            )
        )
    return found


def _parameters(node: ir.Node) -> tuple[np.ndarray | None, np.ndarray | None]:
    scale = constant_array(node.inputs[1])
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return scale, np.zeros((), dtype=np.uint8)
    return scale, constant_array(node.inputs[2])
