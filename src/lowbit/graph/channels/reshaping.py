"""Reshape and what is like it: channels split into heads or groups, merged with places, or left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.graph.channels.rewriting import replace_constant
from lowbit.graph.constants import constant_array, is_constant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lowbit.graph.channels.trace import Axes, Keep, Trace

__all__ = ["flatten", "reshape"]


def flatten(trace: Trace, node: ir.Node) -> None:
    """Rearrange axes of an operator whose shape follows by itself."""
    trace.axes[str(node.outputs[0].name)] = _rearranged(trace, node)


def reshape(trace: Trace, node: ir.Node) -> None:
    """Rearrange axes, and note which entries of the shape have to be rewritten."""
    axes = _rearranged(trace, node)
    trace.axes[str(node.outputs[0].name)] = axes
    if all(channels is None for channels in axes):
        return
    pieces = _pieces(trace, node.inputs[1])
    if pieces is None:
        trace.freeze(axes, f"the shape of Reshape ({node.name}) is computed")
        return
    entries: list[int | None] = [entry for _, values in pieces for entry in values]
    for channels, entry in zip(axes, entries, strict=True):
        if channels is not None and entry is None:
            trace.channels.freeze(channels, f"the shape of Reshape ({node.name}) is computed")
    trace.repairs.append(_new_shape(str(node.name), axes, [list(values) for _, values in pieces]))


def _new_shape(name: str, axes: Axes, pieces: list[list[int | None]]):  # type: ignore[no-untyped-def]
    def repair(model: ir.Model, nodes: Mapping[str, ir.Node], keep: Keep) -> None:
        node = nodes[name]
        shape = node.inputs[1]
        assert shape is not None
        place, changed = 0, False
        renewed: list[list[int | None]] = []
        for piece in pieces:
            new = list(piece)
            for offset, entry in enumerate(piece):
                channels = axes[place]
                if channels is not None and entry is not None and entry > 0:
                    new[offset] = int(keep(channels).sum())
                    changed |= new[offset] != entry
                place += 1
            renewed.append(new)
        if not changed:
            return
        if is_constant(shape):
            replace_constant(model, node, 1, np.array(renewed[0], np.int64))
            return
        old = shape.producer()
        assert old is not None
        joined = ir.node("Concat", list(old.inputs), attributes={"axis": 0}, name=f"{name}__shape")
        joined.outputs[0].name = f"{name}__shape"
        joined.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        model.graph.insert_before(node, joined)
        for index, new in enumerate(renewed):
            if all(entry is not None for entry in new):
                replace_constant(model, joined, index, np.array(new, np.int64))
        node.replace_input_with(1, joined.outputs[0])

    return repair


def _pieces(trace: Trace, shape: ir.Value | None) -> list[tuple[ir.Value, list[int | None]]] | None:
    """Return the parts that a shape is put together from, `None` for entries that are computed."""
    if shape is None:
        return None
    if is_constant(shape):
        array = constant_array(shape)
        assert array is not None
        return [(shape, [int(entry) for entry in array])]
    producer = shape.producer()
    if producer is None or producer.op_type != "Concat":
        return None
    found: list[tuple[ir.Value, list[int | None]]] = []
    for value in producer.inputs:
        assert value is not None
        array = constant_array(value)
        if array is None:
            found.append((value, [None] * trace.shape(value)[0]))
        else:
            found.append((value, [int(entry) for entry in array.reshape(-1)]))
    return found


def _rearranged(trace: Trace, node: ir.Node) -> Axes:
    """Return the channels of the output, block by block of axes with as many elements on either side."""
    source, output = node.inputs[0], node.outputs[0]
    axes, before, after = trace.of(source), trace.shape(source), trace.shape(output)
    result: Axes = [None] * len(after)
    for olds, news in _blocks(before, after):
        carrying = [axis for axis in olds if axes[axis] is not None]
        if not carrying:
            continue
        channels = axes[carrying[0]]
        assert channels is not None
        if len(olds) == 1 and len(news) == 1:
            result[news[0]] = channels
        elif len(olds) == 1:
            chosen = _carrier(trace, output, news)
            by_axis = channels.reshape([after[axis] for axis in news])
            moved = np.moveaxis(by_axis, news.index(chosen), 0).reshape(after[chosen], -1)
            for column in moved.T[1:]:
                trace.channels.join(moved[:, 0], column)
            result[chosen] = moved[:, 0].copy()
        elif len(carrying) == 1 and len(news) == 1:
            place = olds.index(carrying[0])
            shape = [1] * len(olds)
            shape[place] = len(channels)
            result[news[0]] = np.broadcast_to(channels.reshape(shape), [before[axis] for axis in olds]).reshape(-1)
        else:
            trace.freeze([axes[axis] for axis in carrying], f"{node.op_type} ({node.name}) mixes it with other axes")
    return result


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the smallest runs of axes with equal numbers of elements; axes of size 1 are in none."""
    olds = [axis for axis, size in enumerate(before) if size != 1]
    news = [axis for axis, size in enumerate(after) if size != 1]
    while olds and news:
        left, right = [olds.pop(0)], [news.pop(0)]
        one, other = before[left[0]], after[right[0]]
        while one != other and (olds or news):
            if one < other and olds:
                left.append(olds.pop(0))
                one *= before[left[-1]]
            elif news:
                right.append(news.pop(0))
                other *= after[right[-1]]
            else:
                break
        yield left, right


_STEPS = 8


def _carrier(trace: Trace, value: ir.Value, candidates: list[int]) -> int:
    """Choose the axis that channels are removed from: the heads of an attention, else the longest one."""
    for axis in candidates:
        if _is_heads(trace, value, axis, _STEPS):
            return axis
    sizes = trace.shape(value)
    return max(candidates, key=lambda axis: (sizes[axis], -axis))


def _is_heads(trace: Trace, value: ir.Value, axis: int, steps: int) -> bool:
    """Whether an axis becomes one over which a product of two computed tensors is repeated."""
    for node in value.consumers() if steps else ():
        follow = axis
        if node.op_type == "MatMul":
            if not any(is_constant(source) for source in node.inputs) and axis < len(trace.shape(value)) - 2:
                return True
            continue
        if node.op_type == "Transpose":
            perm = node.attributes.get("perm")
            rank = len(trace.shape(value))
            order = list(perm.as_ints()) if perm is not None else list(range(rank))[::-1]
            follow = order.index(axis)
        elif node.op_type in {"Gather", "Squeeze"}:
            rank_lost = len(trace.shape(value)) - len(trace.shape(node.outputs[0]))
            attribute = node.attributes.get("axis")
            picked = 0 if attribute is None else attribute.as_int()
            follow = axis - rank_lost if axis > picked else axis
            if axis == picked:
                continue
        elif node.op_type not in {"Mul", "Div", "Add", "Split", "Softmax", "Cast", "Identity"}:
            continue
        if any(_is_heads(trace, output, follow, steps - 1) for output in node.outputs):
            return True
    return False
