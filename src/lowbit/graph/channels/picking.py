"""Operators that pick some of the channels: Split, Slice, Gather; and Resize, which names their number."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.channels.rewriting import replace_constant
from lowbit.graph.constants import constant_array, is_constant

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from lowbit.graph.channels.trace import Keep, Trace

__all__ = ["gather", "resize", "slice_", "split"]


def _all_needed(trace: Trace, node: ir.Node) -> None:
    trace.freeze(trace.of(node.inputs[0]), f"{node.op_type} ({node.name}) picks from it by number")


def split(trace: Trace, node: ir.Node) -> None:
    """Cut channels into pieces, of new sizes once some are removed."""
    axes = trace.of(node.inputs[0])
    attribute = node.attributes.get("axis")
    axis = (0 if attribute is None else attribute.as_int()) % len(axes)
    sizes = [trace.shape(output)[axis] for output in node.outputs]
    channels = axes[axis]
    bounds = np.cumsum([0, *sizes]).tolist()
    pieces = [None if channels is None else channels[a:b] for a, b in pairwise(bounds)]
    for output, piece in zip(node.outputs, pieces, strict=True):
        trace.axes[str(output.name)] = [*axes[:axis], piece, *axes[axis + 1 :]]
    if channels is None:
        return
    if "split" in node.attributes:  # before opset 13; cleaning raises the opset where it can
        trace.channels.freeze(channels, f"Split ({node.name}) is of an opset before 13")
        return
    name = str(node.name)

    def repair(model: ir.Model, nodes: Mapping[str, ir.Node], keep: Keep) -> None:
        kept = np.array([keep(piece).sum() for piece in pieces if piece is not None], np.int64)
        replace_constant(model, nodes[name], 1, kept)
        nodes[name].attributes.pop("num_outputs", None)

    trace.repairs.append(repair)


def slice_(trace: Trace, node: ir.Node) -> None:
    """Cut a stretch of channels out."""
    axes = trace.of(node.inputs[0])
    arrays = [constant_array(value) if value is not None else None for value in node.inputs[1:]]
    if len(arrays) < 2 or any(array is None for array in arrays):
        _all_needed(trace, node)
        return
    starts, ends = (array for array in arrays[:2] if array is not None)
    given = arrays[2] if len(arrays) > 2 and arrays[2] is not None else np.arange(len(starts))
    steps = arrays[3] if len(arrays) > 3 and arrays[3] is not None else np.ones(len(starts), np.int64)
    result = list(axes)
    for place, (start, end, axis, step) in enumerate(zip(starts, ends, given, steps, strict=True)):
        axis = int(axis) % len(axes)
        channels = axes[axis]
        if channels is None:
            continue
        if step != 1:
            trace.channels.freeze(channels, f"Slice ({node.name}) has a step of {step}")
        first, last, _ = slice(int(start), int(end), int(step)).indices(len(channels))
        result[axis] = channels[slice(int(start), int(end), int(step))]
        if step == 1:
            trace.repairs.append(_new_bounds(str(node.name), place, channels, first, last))
    trace.axes[str(node.outputs[0].name)] = result


def _new_bounds(name: str, place: int, channels: np.ndarray, first: int, last: int):  # type: ignore[no-untyped-def]
    def repair(model: ir.Model, nodes: Mapping[str, ir.Node], keep: Keep) -> None:
        kept = keep(channels)
        for index, bound in ((1, first), (2, last)):
            values = constant_array(nodes[name].inputs[index])
            assert values is not None
            changed = values.copy()
            changed[place] = kept[:bound].sum()
            replace_constant(model, nodes[name], index, changed)

    return repair


def gather(trace: Trace, node: ir.Node) -> None:
    """Pick channels by constant numbers; or look rows up in a table whose columns are channels."""
    data, indices = node.inputs[0], node.inputs[1]
    attribute = node.attributes.get("axis")
    rank = len(trace.shape(data))
    axis = (0 if attribute is None else attribute.as_int()) % max(rank, 1)
    picked = [None] * len(trace.shape(indices))
    if data is not None and is_constant(data):
        array = constant_array(data)
        if array is None or array.dtype.kind != "f" or array.ndim != 2 or axis != 0:
            return
        made = trace.parameter(data, 1, "makes")
        trace.axes[str(node.outputs[0].name)] = [*picked, made]
        return
    axes = trace.of(data)
    channels = axes[axis]
    numbers = constant_array(indices)
    if channels is not None and (numbers is None or numbers.ndim != 1):
        trace.channels.freeze(channels, f"Gather ({node.name}) picks from it by number")
        channels = None
    if channels is None:
        trace.axes[str(node.outputs[0].name)] = [*axes[:axis], *picked, *axes[axis + 1 :]]
        return
    assert numbers is not None
    numbers = numbers % len(channels)
    name = str(node.name)
    trace.axes[str(node.outputs[0].name)] = [*axes[:axis], channels[numbers], *axes[axis + 1 :]]

    def repair(model: ir.Model, nodes: Mapping[str, ir.Node], keep: Keep) -> None:
        kept = keep(channels)
        replace_constant(model, nodes[name], 1, (np.cumsum(kept) - 1)[numbers[kept[numbers]]].astype(np.int64))

    trace.repairs.append(repair)


def resize(trace: Trace, node: ir.Node) -> None:
    """Pass axes that keep their size; sizes that are constants are written anew."""
    axes = trace.of(node.inputs[0])
    before, after = trace.shape(node.inputs[0]), trace.shape(node.outputs[0])
    if "axes" in node.attributes:
        _all_needed(trace, node)
        return
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    result = []
    for axis, channels in enumerate(axes):
        if channels is not None and (before[axis] != after[axis] or (sizes is not None and not is_constant(sizes))):
            trace.channels.freeze(channels, f"Resize ({node.name}) computes its size")
        result.append(channels if before[axis] == after[axis] else None)
    trace.axes[str(node.outputs[0].name)] = result
    if sizes is None or not is_constant(sizes):
        return
    name = str(node.name)

    def repair(model: ir.Model, nodes: Mapping[str, ir.Node], keep: Keep) -> None:
        values = [int(keep(c).sum()) if c is not None else after[axis] for axis, c in enumerate(axes)]
        replace_constant(model, nodes[name], 3, np.array(values, np.int64))

    trace.repairs.append(repair)
