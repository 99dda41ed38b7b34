"""Layers with weights: they read channels along one axis of the weight and make channels along another."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.graph.constants import constant_array, is_constant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from lowbit.graph.channels.trace import Keep, Trace

__all__ = ["batch_norm", "conv", "conv_transpose", "gemm", "matmul"]


def _unknown(trace: Trace, node: ir.Node, reason: str) -> None:
    for value in node.inputs:
        trace.freeze(trace.of(value), f"{node.op_type} ({node.name}) {reason}")


def _is_weight(value: ir.Value | None, rank: int | None = None) -> bool:
    array = constant_array(value)
    return array is not None and array.dtype.kind == "f" and (rank is None or array.ndim == rank)


def _bias(trace: Trace, node: ir.Node, made: NDArray[np.int64]) -> None:
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if is_constant(node.inputs[2]):
            trace.parameter(node.inputs[2], 0, "scales", made)
        else:
            trace.channels.freeze(made, f"the bias of {node.name} is computed")


def conv(trace: Trace, node: ir.Node) -> None:
    """Read channels along axis 1 of the weight and make them along axis 0, in groups."""
    data, weight = node.inputs[0], node.inputs[1]
    if not _is_weight(weight) or weight is None:
        _unknown(trace, node, "has no constant float weight")
        return
    read = trace.of(data)[1]
    trace.freeze(trace.of(data)[2:], f"Conv ({node.name}) moves a window over it")
    outputs, depth = trace.shape(weight)[:2]
    group = _group(node)
    made = trace.parameter(weight, 0, "makes")
    inner: NDArray[np.int64] | None = None
    if group == 1:
        if read is not None:
            inner = trace.parameter(weight, 1, "reads", read)
    elif depth == 1:
        trace.roles[str(weight.name), 0] = "scales"
        if read is None:
            trace.channels.freeze(made, f"the depthwise Conv {node.name} reads what has no channels")
        else:
            trace.channels.join(made, np.repeat(read, outputs // group))
            _repair_group(trace, node, read)
    else:
        _same_in_all(trace, made, group)
        if read is not None:
            _same_in_all(trace, read, group)
            inner = trace.parameter(weight, 1, "reads", read.reshape(group, depth)[0])
    _bias(trace, node, made)
    output = trace.shape(node.outputs[0])
    positions = prod(output) / output[1]
    fixed = positions * prod(trace.shape(weight)[2:]) * (1 if inner is not None else depth)
    trace.product(node, fixed, made, inner)
    trace.axes[str(node.outputs[0].name)] = [trace.of(data)[0], made, *[None] * (len(output) - 2)]


def conv_transpose(trace: Trace, node: ir.Node) -> None:
    """Read channels along axis 0 of the weight and make them along axis 1."""
    data, weight = node.inputs[0], node.inputs[1]
    if not _is_weight(weight) or weight is None or _group(node) != 1:
        _unknown(trace, node, "is grouped, or has no constant float weight")
        return
    read = trace.of(data)[1]
    trace.freeze(trace.of(data)[2:], f"ConvTranspose ({node.name}) moves a window over it")
    if read is not None:
        trace.parameter(weight, 0, "reads", read)
    made = trace.parameter(weight, 1, "makes")
    _bias(trace, node, made)
    places = prod(trace.shape(data)) / trace.shape(data)[1]
    depth = 1 if read is not None else trace.shape(weight)[0]
    trace.product(node, places * prod(trace.shape(weight)[2:]) * depth, made, read)
    trace.axes[str(node.outputs[0].name)] = [trace.of(data)[0], made, *[None] * (len(trace.shape(data)) - 2)]


def gemm(trace: Trace, node: ir.Node) -> None:
    """Read channels along the inner axis of the weight and make them along the outer one."""
    data, weight = node.inputs[0], node.inputs[1]
    if not _is_weight(weight, 2) or weight is None or is_constant(data):
        _unknown(trace, node, "has no constant float weight")
        return
    rows, inner = (1, 0) if _flag(node, "transA") else (0, 1)
    reads, makes = (1, 0) if _flag(node, "transB") else (0, 1)
    axes = trace.of(data)
    read = axes[inner]
    if read is not None:
        trace.parameter(weight, reads, "reads", read)
    made = trace.parameter(weight, makes, "makes")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        shape = trace.shape(bias)
        if is_constant(bias) and shape and shape[-1] == len(made):
            trace.parameter(bias, len(shape) - 1, "scales", made)
        elif not is_constant(bias) or (shape and prod(shape) > 1):
            trace.channels.freeze(made, f"the bias of {node.name} is computed or repeated")
    depth = 1 if read is not None else trace.shape(weight)[reads]
    trace.product(node, trace.shape(data)[rows] * depth, made, read)
    trace.axes[str(node.outputs[0].name)] = [axes[rows], made]


def matmul(trace: Trace, node: ir.Node) -> None:
    """Read and make channels with a constant matrix, or join those that two computed tensors sum over."""
    left, right = node.inputs[0], node.inputs[1]
    if left is None or right is None or len(trace.shape(left)) < 2 or len(trace.shape(right)) < 2:
        _unknown(trace, node, "multiplies a vector")
        return
    if is_constant(left):
        _unknown(trace, node, "has its constant on the left")
        return
    output = trace.shape(node.outputs[0])
    axes = trace.of(left)
    if _is_weight(right, 2):
        read = axes[-1]
        if read is not None:
            trace.parameter(right, 0, "reads", read)
        made = trace.parameter(right, 1, "makes")
        depth = 1 if read is not None else trace.shape(right)[0]
        rows = prod(size for size, found in zip(output[:-1], axes[:-1], strict=True) if found is None)
        trace.product(node, rows * depth, made, read, *axes[:-1])
        trace.axes[str(node.outputs[0].name)] = [*axes[:-1], made]
        return
    if is_constant(right):
        _unknown(trace, node, "has a constant of more than two axes")
        return
    others = trace.of(right)
    inner = _meet(trace, node, axes[-1], others[-2])
    batch: list[NDArray[np.int64] | None] = []
    rank = len(output)
    for axis in range(rank - 2):
        found = []
        for value, known in ((left, axes), (right, others)):
            own = axis - (rank - len(known))
            if own >= 0 and trace.shape(value)[own] == output[axis]:
                found.append(known[own])
        batch.append(found[0] if len(found) == 1 else _meet(trace, node, *found) if found else None)
    result = [*batch, axes[-2], others[-1]]
    fixed = prod(size for size, found in zip(output, result, strict=True) if found is None)
    depth = 1 if inner is not None else trace.shape(left)[-1]
    trace.product(node, fixed * depth, inner, *result)
    trace.axes[str(node.outputs[0].name)] = result


def batch_norm(trace: Trace, node: ir.Node) -> None:
    """Keep channels with their scale, shift and statistics."""
    axes = trace.of(node.inputs[0])
    if len(axes) > 1 and axes[1] is not None:
        for value in node.inputs[1:]:
            if value is not None and is_constant(value):
                trace.parameter(value, 0, "scales", axes[1])
            else:
                trace.channels.freeze(axes[1], f"{node.op_type} ({node.name}) has computed parameters")
    trace.axes[str(node.outputs[0].name)] = axes


def _meet(
    trace: Trace, node: ir.Node, one: NDArray[np.int64] | None, other: NDArray[np.int64] | None
) -> NDArray[np.int64] | None:
    if one is not None and other is not None:
        trace.channels.join(one, other)
        return one
    trace.freeze([one, other], f"MatMul ({node.name}) joins it with what has no channels")
    return one if one is not None else other


def _same_in_all(trace: Trace, channels: NDArray[np.int64], group: int) -> None:
    """Join the channels at the same place in every group: groups have to stay of one size."""
    by_group = channels.reshape(group, -1)
    for row in by_group[1:]:
        trace.channels.join(by_group[0], row)


def _repair_group(trace: Trace, node: ir.Node, read: NDArray[np.int64]) -> None:
    name = str(node.name)

    def repair(_model: ir.Model, nodes: Mapping[str, ir.Node], keep: Keep) -> None:
        nodes[name].attributes["group"] = ir.AttrInt64("group", int(keep(read).sum()))

    trace.repairs.append(repair)


def _group(node: ir.Node) -> int:
    found = node.attributes.get("group")
    return 1 if found is None else found.as_int()


def _flag(node: ir.Node, name: str) -> bool:
    found = node.attributes.get(name)
    return found is not None and bool(found.as_int())
