"""Shape arithmetic, evaluated element by element where only some dimensions are known.

Exporters compute paddings and target shapes at run time (`Shape` → `Gather` → `Concat` → …). With a symbolic batch size
the whole `Shape` is not constant, but the elements that are finally used often are. An array here is a numpy object
array: an int is a known number, a str is the name of a symbolic dimension, None is unknown.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.graph.clean.values import all_nodes, constant, is_op, new_initializer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["fold_dimensions"]

# Shapes are short; anything longer is data.
_ELEMENTS = 1024
_INTEGERS: dict[ir.DataType | None, Any] = {
    ir.DataType.INT64: np.dtype(np.int64),
    ir.DataType.INT32: np.dtype(np.int32),
}

Partial = Any  # np.ndarray of dtype object, holding int, str or None


def fold_dimensions(model: ir.Model) -> Counter[str]:
    """Replace integer values whose elements all follow from known dimensions by constants.

    The target of a `Reshape` becomes constant even if one element is unknown (written as -1), and any number of them if
    they repeat the dimension that the data have there (written as 0). Shapes must have been inferred before.
    """
    changes: Counter[str] = Counter()
    known: dict[ir.Value, Partial] = {}
    for graph, node in all_nodes(model):
        if node.domain not in {"", "ai.onnx"} or len(node.outputs) != 1:
            continue
        output = node.outputs[0]
        if is_op(node, "Reshape") and len(node.inputs) == 2 and node.inputs[1] in known:
            target = _reshape_target(node, known[node.inputs[1]])
            if target is not None:
                shape = new_initializer(model, graph, f"{output.name}_shape", np.array(target, dtype=np.int64))
                node.replace_input_with(1, shape)
                changes["{n} Reshape node{s} given a constant shape"] += 1
        result = _evaluate(node, known)
        if result is None:
            continue
        known[output] = result
        numbers = _integers(result)
        if numbers is None or output.is_graph_output() or not output.name:
            continue
        array = np.array(numbers, dtype=_INTEGERS[output.dtype]).reshape(result.shape)
        tensor = ir.tensor(array, name=output.name)
        value = ir.Value(
            name=output.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        output.replace_all_uses_with(value)
        graph.remove(node, safe=True)
        graph.register_initializer(value)
        changes["{n} node{s} of shape arithmetic folded"] += 1
    return changes


def _evaluate(node: ir.Node, known: dict[ir.Value, Partial]) -> Partial | None:
    rule = _RULES.get(node.op_type)
    if rule is None or node.outputs[0].dtype not in _INTEGERS:
        return None
    inputs: list[Partial] = []
    if node.op_type not in {"Shape", "Size"}:
        inputs = [_partial(value, known) for value in node.inputs]
        if any(array is None for value, array in zip(node.inputs, inputs, strict=True) if value is not None):
            return None
    result = rule(node, inputs)
    return None if result is None or result.size > _ELEMENTS else result


def _reshape_target(node: ir.Node, wanted: Partial) -> list[int] | None:
    """The constant that can stand for a partly known target shape, or None if two or more elements stay open."""
    if wanted.ndim != 1 or _attribute(node, "allowzero", 0):
        return None
    data = node.inputs[0]
    dimensions = _dimensions(data.shape) if data is not None and data.shape is not None else []
    target = []
    for index, item in enumerate(wanted):
        repeats = isinstance(item, str) and index < len(dimensions) and dimensions[index] == item
        target.append(item if isinstance(item, int) else 0 if repeats else -1)
    return target if target.count(-1) <= 1 else None


def _dimensions(shape: ir.Shape) -> list[int | str | None]:
    """The elements of a shape; None also for placeholder names, which say nothing about equality."""
    items: list[int | str | None] = []
    for dimension in shape:
        if isinstance(dimension, int):
            items.append(dimension if dimension >= 0 else None)
        else:
            items.append(dimension.value if dimension.value and dimension.value not in {"?", "-1", "None"} else None)
    return items


def _partial(value: ir.Value | None, known: dict[ir.Value, Partial]) -> Partial | None:
    if value is None:
        return None
    if value in known:
        return known[value]
    if value.const_value is None or value.const_value.dtype not in _INTEGERS or value.const_value.size > _ELEMENTS:
        return None
    array = constant(value)
    return None if array is None else _objects(array.tolist(), array.shape)


def _objects(items: Any, shape: Sequence[int]) -> Partial:
    result = np.empty(tuple(shape), dtype=object)
    flat = np.array(items, dtype=object).reshape(-1)
    result.reshape(-1)[:] = flat
    return result


def _integers(array: Partial | None) -> list[int] | None:
    """The elements if all are known."""
    if array is None or any(not isinstance(item, int) for item in array.reshape(-1)):
        return None
    return [int(item) for item in array.reshape(-1)]


def _attribute(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _shape(node: ir.Node, _: list[Partial]) -> Partial | None:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    end = node.attributes.get("end")
    dimensions = _dimensions(value.shape)[_attribute(node, "start", 0) : None if end is None else end.as_int()]
    return _objects(dimensions, (len(dimensions),))


def _size(node: ir.Node, _: list[Partial]) -> Partial | None:
    value = node.inputs[0]
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return _objects([int(np.prod(value.shape.numpy(), dtype=np.int64))], ())


def _same(_: ir.Node, inputs: list[Partial]) -> Partial:
    return inputs[0]


def _cast(node: ir.Node, inputs: list[Partial]) -> Partial | None:
    bounds = np.iinfo(_INTEGERS[node.outputs[0].dtype])
    items = [item for item in inputs[0].reshape(-1) if isinstance(item, int)]
    return inputs[0] if all(bounds.min <= item <= bounds.max for item in items) else None


def _gather(node: ir.Node, inputs: list[Partial]) -> Partial | None:
    indices = _integers(inputs[1])
    axis = _attribute(node, "axis", 0)
    if indices is None or not -inputs[0].ndim <= axis < inputs[0].ndim:
        return None
    length = inputs[0].shape[axis]
    if any(not -length <= index < length for index in indices):
        return None
    return np.asarray(np.take(inputs[0], np.array(indices, dtype=np.int64).reshape(inputs[1].shape), axis=axis), object)


def _slice(_: ir.Node, inputs: list[Partial]) -> Partial | None:
    bounds = [_integers(array) for array in inputs[1:]]
    if len(bounds) < 2 or any(b is None for b, a in zip(bounds, inputs[1:], strict=True) if a is not None):
        return None
    starts, ends = bounds[0] or [], bounds[1] or []
    axes = bounds[2] if len(bounds) > 2 and bounds[2] is not None else list(range(len(starts)))
    steps = bounds[3] if len(bounds) > 3 and bounds[3] is not None else [1] * len(starts)
    index: list[slice] = [slice(None)] * inputs[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step == 0 or not -inputs[0].ndim <= axis < inputs[0].ndim:
            return None
        length = inputs[0].shape[axis]
        if step < 0 and start < -length:
            return None
        # ONNX clamps an end below -length to "before the first", which Python writes as None.
        last: int | None = None if step < 0 and end < -length else end
        index[axis] = slice(start, last, step)
    return inputs[0][tuple(index)]


def _concat(node: ir.Node, inputs: list[Partial]) -> Partial | None:
    return np.concatenate(inputs, axis=_attribute(node, "axis", 0)) if inputs[0].ndim else None


def _unsqueeze(node: ir.Node, inputs: list[Partial]) -> Partial | None:
    axes = _axes(node, inputs)
    return None if axes is None else np.expand_dims(inputs[0], tuple(axes))


def _squeeze(node: ir.Node, inputs: list[Partial]) -> Partial | None:
    axes = _axes(node, inputs)
    if axes is None:
        return np.asarray(np.squeeze(inputs[0]), object) if len(inputs) < 2 else None
    return np.asarray(np.squeeze(inputs[0], axis=tuple(axes)), object)


def _axes(node: ir.Node, inputs: list[Partial]) -> list[int] | None:
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return list(attribute.as_ints())
    return _integers(inputs[1]) if len(inputs) > 1 else None


def _reshape(node: ir.Node, inputs: list[Partial]) -> Partial | None:
    target = _integers(inputs[1])
    if target is None:
        return None
    if not _attribute(node, "allowzero", 0):
        if any(d == 0 and i >= inputs[0].ndim for i, d in enumerate(target)):
            return None
        target = [inputs[0].shape[i] if d == 0 else d for i, d in enumerate(target)]
    return inputs[0].reshape(target)


def _transpose(node: ir.Node, inputs: list[Partial]) -> Partial:
    perm = node.attributes.get("perm")
    return np.transpose(inputs[0], None if perm is None else perm.as_ints())


def _elementwise(function: Callable[[int, int], int | None]) -> Callable[[ir.Node, list[Partial]], Partial | None]:
    def rule(node: ir.Node, inputs: list[Partial]) -> Partial | None:
        left, right = np.broadcast_arrays(inputs[0], inputs[1])
        bounds = np.iinfo(_INTEGERS[node.outputs[0].dtype])
        items: list[int | None] = []
        for a, b in zip(left.reshape(-1), right.reshape(-1), strict=True):
            item = function(a, b) if isinstance(a, int) and isinstance(b, int) else None
            if item is not None and not bounds.min <= item <= bounds.max:
                return None  # engines wrap around; leave that to them
            items.append(item)
        return _objects(items, left.shape)

    return rule


def _truncated_division(a: int, b: int) -> int | None:
    if b == 0:
        return None
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


_RULES: dict[str, Callable[[ir.Node, list[Partial]], Partial | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(_truncated_division),
}
