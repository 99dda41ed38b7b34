"""LayerNormalization over the last axis, as one operator or as the parts that exporters write instead.

`(x - m) · (v + ε)^(-1/2) · γ + β` with the mean m and the variance v of every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.graph.clean.values import constant, is_op, only_consumer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LayerNormalization", "layer_normalization_at", "why_not_in_steps"]

_EPSILON = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNormalization:
    """A normalization over the last axis.

    Attributes:
        x: What it normalizes, float32.
        epsilon: ε.
        scale: γ, `[channels]`, or one number; `None` is 1.
        bias: β, likewise; `None` is 0.
        last: The node that writes the result.
    """

    x: ir.Value
    epsilon: float
    scale: NDArray[np.float32] | None
    bias: NDArray[np.float32] | None
    last: ir.Node


def layer_normalization_at(node: ir.Node) -> LayerNormalization | None:
    """Return the normalization that a LayerNormalization is, or that the parts around a Sqrt are.

    NOTE: Parts whose numbers are read elsewhere too are left to those readers.
    """
    if is_op(node, "LayerNormalization"):
        return None if why_not_in_steps(node) else _operator(node)
    return _parts(node) if is_op(node, "Sqrt") else None


def why_not_in_steps(node: ir.Node) -> str:
    """Return why a LayerNormalization is not computed in steps, in words; empty if it can be."""
    x = node.inputs[0]
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    rank = len(x.shape) if x is not None and x.shape is not None else None
    if axis != -1 and rank is None:
        return "how many axes its input has is not known"
    if axis != -1 and rank is not None and axis % rank != rank - 1:
        return f"it normalizes over more than the last axis (axis={axis} of {rank} axes)"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "its mean or its deviation is read too"
    if any(value is not None and constant(value) is None for value in node.inputs[1:]):
        return "its factors are computed while the model runs"
    if x is None or x.dtype not in {None, ir.DataType.FLOAT}:
        return "its input is not float32"
    return ""


def _operator(node: ir.Node) -> LayerNormalization:
    x = node.inputs[0]
    assert x is not None
    return LayerNormalization(
        x=x,
        epsilon=node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else _EPSILON,
        scale=constant(node.inputs[1]),
        bias=constant(node.inputs[2]) if len(node.inputs) > 2 else None,
        last=node,
    )


def _parts(root: ir.Node) -> LayerNormalization | None:
    """Match ReduceMean, Sub, a square, ReduceMean, Add, Sqrt, and what divides by it."""
    guarded = _constant_operand(_producer(root.inputs[0], "Add"))
    if guarded is None or guarded[1].size != 1:
        return None
    squares = _mean_of(guarded[0])
    centred = _squared(squares)
    x = _centred(centred)
    if x is None or x.dtype not in {None, ir.DataType.FLOAT} or only_consumer(root.outputs[0]) is None:
        return None
    found = _divided(root, x) or _spread(root, x)
    if found is None:
        return None
    last, scale, bias = found
    channels = x.shape[-1] if x.shape is not None else None
    if any(array is not None and array.size not in {1, channels} for array in (scale, bias)):
        return None
    if any(array is not None and array.size > 1 and array.shape[-1] != array.size for array in (scale, bias)):
        return None
    flat = [None if array is None else array.reshape(-1) for array in (scale, bias)]
    return LayerNormalization(x=x, epsilon=float(guarded[1].item()), scale=flat[0], bias=flat[1], last=last)


_Found = tuple[ir.Node, "NDArray[np.float32] | None", "NDArray[np.float32] | None"]


def _divided(root: ir.Node, x: ir.Value) -> _Found | None:
    """Match (x - m) / root · γ + β, as PyTorch writes it."""
    last = only_consumer(root.outputs[0])
    divisor = root.outputs[0]
    if is_op(last, "Reciprocal") and last is not None:
        divisor = last.outputs[0]
        last = only_consumer(divisor)
        if not is_op(last, "Mul"):
            return None
    elif not is_op(last, "Div"):
        return None
    assert last is not None
    others = [value for value in last.inputs if value is not divisor]
    if len(others) != 1 or _centred(others[0]) is not x or (last.op_type == "Div" and last.inputs[1] is not divisor):
        return None
    found: list[NDArray[np.float32] | None] = []
    for op_type in ("Mul", "Add"):
        following = only_consumer(last.outputs[0])
        operand = _constant_operand(following) if is_op(following, op_type) else None
        found.append(None if operand is None else operand[1])
        last = following if operand is not None and following is not None else last
    return last, found[0], found[1]


def _spread(root: ir.Node, x: ir.Value) -> _Found | None:
    """Match x · f + (β - m · f) with f = γ / root, as TensorFlow writes it."""
    reciprocal = only_consumer(root.outputs[0])
    if not is_op(reciprocal, "Reciprocal") or reciprocal is None:
        return None
    factor = reciprocal.outputs[0]
    scaled = only_consumer(factor)
    operand = _constant_operand(scaled) if is_op(scaled, "Mul") else None
    scale = None
    if operand is not None and scaled is not None:
        factor, scale = scaled.outputs[0], operand[1]
    products = {use.node for use in factor.uses() if is_op(use.node, "Mul")}
    moved = next((node for node in products if _mean_of(_other(node, factor)) is x), None)
    direct = next((node for node in products if _other(node, factor) is x), None)
    if len(products) != len(tuple(factor.uses())) or moved is None or direct is None:
        return None
    shift = only_consumer(moved.outputs[0])
    last = only_consumer(direct.outputs[0])
    if shift is None or not is_op(shift, "Sub") or shift.inputs[1] is not moved.outputs[0]:
        return None
    bias = constant(shift.inputs[0])
    if bias is None or last is None or not is_op(last, "Add") or only_consumer(shift.outputs[0]) is not last:
        return None
    return last, scale, bias


def _producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if is_op(node, *op_types) else None


def _constant_operand(node: ir.Node | None) -> tuple[ir.Value, NDArray[np.float32]] | None:
    """Return the computed and the constant operand of a node with one of each."""
    if node is None:
        return None
    for value, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        array = constant(other)
        if value is not None and array is not None and constant(value) is None:
            return value, array
    return None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _mean_of(value: ir.Value | None) -> ir.Value | None:
    """Return x if a tensor is its mean over the last axis, which is kept."""
    node = _producer(value, "ReduceMean")
    if node is None or ("keepdims" in node.attributes and not node.attributes["keepdims"].as_int()):
        return None
    x = node.inputs[0]
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None and "axes" in node.attributes:
        given = np.asarray(node.attributes["axes"].as_ints())
    rank = len(x.shape) if x is not None and x.shape is not None else None
    if given is None or given.size != 1 or given.item() not in ({-1} if rank is None else {-1, rank - 1}):
        return None
    return x


def _squared(value: ir.Value | None) -> ir.Value | None:
    """Return x if a tensor is x²."""
    node = _producer(value, "Pow", "Mul")
    if node is None:
        return None
    if node.op_type == "Mul":
        return node.inputs[0] if node.inputs[0] is node.inputs[1] else None
    exponent = constant(node.inputs[1])
    return node.inputs[0] if exponent is not None and np.all(exponent == 2) else None


def _centred(value: ir.Value | None) -> ir.Value | None:
    """Return x if a tensor is x minus its mean."""
    node = _producer(value, "Sub")
    return node.inputs[0] if node is not None and _mean_of(node.inputs[1]) is node.inputs[0] else None
