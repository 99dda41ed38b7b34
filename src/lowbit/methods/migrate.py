"""Scales moved from activations to the weights that read them: a rewrite of the float model, which computes the same.

What is divided out of a tensor is absorbed by what writes it where that is a LayerNormalization, a product with a
constant or a linear layer, and nobody else reads the tensor. In a network that adds a block's input to its output
somebody does; then a Mul goes in front of the readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.exceptions import RecipeError
from lowbit.graph.clean.values import channel_vector, constant, is_op, new_initializer
from lowbit.graph.editor import Editor
from lowbit.methods.linear_layers import LinearLayer, linear_layer
from lowbit.plan.packed import unpack_floats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowbit.plan.plan import MigrationPlan

__all__ = ["Reading", "absorber", "apply_migrations", "readings"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """A tensor and the linear layers that read it.

    Attributes:
        value: The tensor, `[…, K]`.
        layers: The MatMuls and Gemms that read it as their first input.
        alone: Whether nobody else reads it.
    """

    value: ir.Value
    layers: tuple[LinearLayer, ...]
    alone: bool


def readings(model: ir.Model) -> tuple[list[Reading], dict[str, str]]:
    """Return the tensors of a model that linear layers read, and why other layers cannot take scales, by name.

    Args:
        model: A cleaned model.
    """
    by_value: dict[ir.Value, list[LinearLayer]] = {}
    refusals: dict[str, str] = {}
    for node in model.graph:
        if not is_op(node, "MatMul", "Gemm") or constant(node.inputs[1]) is None:
            continue
        layer = linear_layer(node)
        if isinstance(layer, str):
            refusals[node.name or ""] = layer
            continue
        value = node.inputs[0]
        if value is None or constant(value) is not None:
            refusals[layer.name] = "it reads a constant"
            continue
        by_value.setdefault(value, []).append(layer)
    found = []
    for value, layers in by_value.items():
        nodes = {layer.node for layer in layers}
        alone = not value.is_graph_output() and all(use.node in nodes and use.idx == 0 for use in value.uses())
        found.append(Reading(value=value, layers=tuple(layers), alone=alone))
    return found, refusals


def absorber(reading: Reading) -> str:
    """Return which operator absorbs what is divided out of a tensor, in words; empty if a Mul is needed."""
    producer = reading.value.producer()
    if not reading.alone or producer is None:
        return ""
    if is_op(producer, "LayerNormalization"):
        return "LayerNormalization" if _last_axis(producer, reading.value) else ""
    if is_op(producer, "Mul") and _factor(producer, reading) is not None:
        return "Mul"
    layer = _layer_before(producer)
    return layer.node.op_type if layer is not None and layer.channels == reading.layers[0].inputs else ""


def apply_migrations(model: ir.Model, migrations: Sequence[MigrationPlan]) -> ir.Model:
    """Move scales as a plan says.

    Args:
        model: The float model; left unchanged.
        migrations: What to move where.

    Raises:
        RecipeError: A tensor or layer does not exist, or has another number of channels.
    """
    result = model.clone()
    editor = Editor(result)
    for migration in migrations:
        # Again for each, because the one before may have changed the same weights.
        known = {reading.value.name: reading for reading in readings(result)[0]}
        reading = known.get(migration.tensor)
        names = {layer.name for layer in reading.layers} if reading is not None else set()
        scales = unpack_floats(migration.scales)
        if reading is None or names != set(migration.readers) or scales.size != reading.layers[0].inputs:
            raise RecipeError(
                f"the plan moves scales of the tensor {migration.tensor!r}, which does not fit the model",
                remedy="make the plan again with --save-plan",
            )
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            raise RecipeError(f"the plan's scales of the tensor {migration.tensor!r} are not positive numbers")
        _apply(result, editor, reading, scales.astype(np.float64))
    return result


def _apply(model: ir.Model, editor: Editor, reading: Reading, scales: NDArray[np.float64]) -> None:
    absorbed = absorber(reading)
    for layer in reading.layers:
        layer.multiply_inputs(scales)
        layer.store()
    producer = reading.value.producer()
    if not absorbed or producer is None:
        _insert(editor, reading, scales)
    elif absorbed == "LayerNormalization":
        for index in (1, 2):
            array = constant(producer.inputs[index]) if index < len(producer.inputs) else None
            if array is not None:
                _replace(model, producer, index, array / scales)
    elif absorbed == "Mul":
        factor = _factor(producer, reading)
        assert factor is not None
        index, vector = factor
        _replace(model, producer, index, vector / scales)
    else:
        before = _layer_before(producer)
        assert before is not None
        before.divide_outputs(scales)
        before.store()


def _insert(editor: Editor, reading: Reading, scales: NDArray[np.float64]) -> None:
    """Put a Mul between a tensor and the layers that read it."""
    value = reading.value
    first = reading.layers[0].node
    graph = first.graph
    assert isinstance(graph, ir.Graph)
    name = value.name or "tensor"
    factor = editor.constant(graph, f"{name}_migration", (1 / scales).astype(np.float32))
    node = editor.node(
        "Mul",
        [value, factor],
        name=f"{name}_migrated",
        outputs=[f"{name}_migrated"],
        dtypes=[ir.DataType.FLOAT],
        shape=value.shape,
    )
    graph.insert_before(first, node)
    for layer in reading.layers:
        layer.node.replace_input_with(0, node.outputs[0])


def _replace(model: ir.Model, node: ir.Node, index: int, array: NDArray[np.float64]) -> None:
    """Give a node a constant of its own, because others may read the old one."""
    old = node.inputs[index]
    assert old is not None
    assert isinstance(node.graph, ir.Graph)
    wish = f"{old.name}_migrated"
    node.replace_input_with(index, new_initializer(model, node.graph, wish, array.astype(np.float32)))


def _last_axis(node: ir.Node, value: ir.Value) -> bool:
    """Whether a LayerNormalization has one constant factor and shift for each channel of the last axis."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    rank = len(value.shape) if value.shape is not None else None
    if axis != -1 and (rank is None or axis != rank - 1):
        return False
    if value is not node.outputs[0]:
        return False
    scale = constant(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return scale is not None and scale.ndim == 1 and (bias is None or constant(bias) is not None)


def _factor(node: ir.Node, reading: Reading) -> tuple[int, NDArray[np.float64]] | None:
    """Return the constant operand of a Mul as one number per channel of the last axis, and its position."""
    shape = reading.value.shape
    for index in (0, 1):
        array = constant(node.inputs[index])
        other = node.inputs[1 - index]
        if array is None or shape is None or other is None or other.shape is None or len(other.shape) != len(shape):
            continue
        vector = channel_vector(array, reading.layers[0].inputs, len(shape), axis=len(shape) - 1)
        # One that widens its operand is needed as it is.
        if vector is not None and other.shape[-1] == reading.layers[0].inputs:
            return index, vector
    return None


def _layer_before(producer: ir.Node) -> LinearLayer | None:
    """Return the MatMul or Gemm whose output, bias included, this node writes."""
    candidates = [producer]
    if is_op(producer, "Add"):
        candidates += [node for node in (value.producer() for value in producer.inputs if value is not None) if node]
    for node in candidates:
        if not is_op(node, "MatMul", "Gemm"):
            continue
        layer = linear_layer(node)
        if isinstance(layer, LinearLayer) and layer.output is producer.outputs[0]:
            return layer
    return None
