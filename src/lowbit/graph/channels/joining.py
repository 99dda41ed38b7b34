"""Operators in which channels meet: place by place, or one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.constants import is_constant

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.graph.channels.trace import Axes, Trace

__all__ = ["concat", "elementwise", "same_places"]


def elementwise(trace: Trace, node: ir.Node) -> None:
    """Join channels that meet under numpy's broadcasting; constants per channel belong to them."""
    output = node.outputs[0]
    rank = len(trace.shape(output))
    result: Axes = []
    for axis in range(rank):
        computed, constants = [], []
        for value in node.inputs:
            own = None if value is None else axis - (rank - len(trace.shape(value)))
            if value is None or own is None or own < 0:
                continue
            size = trace.shape(value)[own]
            if is_constant(value):
                constants += [(value, own)] if size > 1 else []
            elif size > 1 or trace.shape(output)[axis] == 1:
                computed.append(trace.of(value)[own])
        result.append(_met(trace, node, computed))
        channels = result[-1]
        if channels is not None:
            for value, own in constants:
                if trace.shape(value)[own] == len(channels):
                    trace.parameter(value, own, "scales", channels)
                else:
                    trace.channels.freeze(channels, f"{node.op_type} ({node.name}) repeats it")
    trace.axes[str(output.name)] = result


def same_places(trace: Trace, node: ir.Node) -> None:
    """Pass batch and channels of a pooling; its windows have none."""
    axes = trace.of(node.inputs[0])
    trace.freeze(axes[2:], f"{node.op_type} ({node.name}) moves a window over it")
    for output in node.outputs:
        trace.axes[str(output.name)] = [*axes[:2], *[None] * (len(axes) - 2)]


def concat(trace: Trace, node: ir.Node) -> None:
    """Put channels one after the other; all other axes meet place by place."""
    inputs = [value for value in node.inputs if value is not None]
    rank = len(trace.shape(node.outputs[0]))
    axis = node.attributes["axis"].as_int() % rank
    result: Axes = []
    for number in range(rank):
        parts = [trace.of(value)[number] for value in inputs]
        if number != axis:
            result.append(_met(trace, node, parts))
            continue
        if all(part is None for part in parts):
            result.append(None)
            continue
        pieces = []
        for value, part in zip(inputs, parts, strict=True):
            if part is None:
                part = trace.channels.fresh(trace.shape(value)[number])
                trace.channels.freeze(part, f"it comes from {value.name}, which is not made of channels")
            pieces.append(part)
        result.append(np.concatenate(pieces))
    trace.axes[str(node.outputs[0].name)] = result


def _met(trace: Trace, node: ir.Node, parts: list[NDArray[np.int64] | None]) -> NDArray[np.int64] | None:
    """Return the channels of an axis on which several tensors meet."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    if len(known) < len(parts):
        for part in known:
            trace.channels.freeze(part, f"{node.op_type} ({node.name}) joins it with what has no channels")
    for other in known[1:]:
        trace.channels.join(known[0], other)
    return known[0]
