"""Rotations of a float model, which computes the same: of its residual stream, between layers, or by a MatMul.

`x W = (x R) (Rᵀ W)` for every orthogonal `R`. What writes `x` takes `R`, what reads it `Rᵀ`; nothing is added to the
graph (QuaRot, Ashkboos et al., 2024; QuIP#, Tseng et al., 2024; SpinQuant, Liu et al., 2024). Where nothing linear
writes it, only a MatMul in front of the readers does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.exceptions import RecipeError
from lowbit.graph.clean.values import constant, is_op, new_initializer, only_consumer, set_constant
from lowbit.graph.editor import Editor
from lowbit.methods.linear_layers import LinearLayer, linear_layer
from lowbit.methods.migrate import readings
from lowbit.methods.residual_stream import streams
from lowbit.rounding.rotation import hadamard_rotation, mean_keeping_rotation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowbit.methods.migrate import Reading
    from lowbit.methods.residual_stream import Stream
    from lowbit.plan.plan import RotationPlan

__all__ = ["INSERTED", "Between", "apply_rotations", "between_layers"]

INSERTED = "_rotated"
"""How the names of MatMuls end that rotate a tensor while the model runs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Between:
    """Two linear layers with nothing between them that acts on single channels: in attention, values and output.

    Attributes:
        first: Writes the channels.
        second: Reads them.
        heads: Blocks of channels that stay apart; each is rotated by itself.
    """

    first: LinearLayer
    second: LinearLayer
    heads: int


def between_layers(model: ir.Model) -> list[Between]:
    """Return the pairs of layers that a rotation passes between.

    Args:
        model: A cleaned model.
    """
    found = []
    for node in model.graph:
        if not is_op(node, "MatMul", "Gemm"):
            continue
        layer = linear_layer(node)
        if isinstance(layer, LinearLayer):
            pair = _between(layer)
            if pair is not None:
                found.append(pair)
    return found


def _between(first: LinearLayer) -> Between | None:
    """Follow a layer's output through what moves whole heads, to the one layer that reads it."""
    value, heads = first.output, 1
    order: list[int] | None = None
    mixed = False
    while (node := only_consumer(value)) is not None:
        output = node.outputs[0]
        if is_op(node, "MatMul", "Gemm") and node.inputs[0] is value and constant(node.inputs[1]) is not None:
            second = linear_layer(node)
            if isinstance(second, str) or second.inputs != first.channels or order is not None:
                return None
            return Between(first=first, second=second, heads=heads)
        if value.shape is None or output.shape is None:
            return None
        before, after = list(value.shape), list(output.shape)
        if is_op(node, "Reshape") and not mixed and heads == 1 and len(after) == len(before) + 1:
            if not all(isinstance(size, int) for size in after[-2:]) or after[-2] * after[-1] != first.channels:
                return None
            heads, order = first.channels // int(str(after[-1])), list(range(len(after)))
        elif is_op(node, "Transpose") and order is not None:
            permutation = list(node.attributes["perm"].as_ints())
            if permutation[-1] != len(permutation) - 1:
                return None
            order = [order[index] for index in permutation]
        elif is_op(node, "MatMul") and order is not None and node.inputs[1] is value and node.inputs[0] is not value:
            if len(after) != len(before) or order[-2] == len(order) - 2:
                return None  # it sums over the heads
            mixed = True
        elif is_op(node, "Reshape") and order is not None and len(after) == len(before) - 1:
            if order != list(range(len(order))) or after[-1] != first.channels:
                return None
            order = None
        else:
            return None
        value = output
    return None


def apply_rotations(model: ir.Model, rotations: Sequence[RotationPlan]) -> ir.Model:
    """Rotate as a plan says.

    Args:
        model: The float model; left unchanged.
        rotations: What to rotate how.

    Raises:
        RecipeError: A tensor does not exist, or is none that such a rotation passes through.
    """
    result = model.clone()
    for rotation in rotations:
        if rotation.kind == "stream":
            stream = next((each for each in streams(result)[0] if each.tensor == rotation.tensor), None)
            if stream is not None:
                _rotate_stream(result, stream, rotation.seed)
                continue
        elif rotation.kind == "layers":
            pair = next((each for each in between_layers(result) if each.first.output.name == rotation.tensor), None)
            if pair is not None:
                _rotate_between(pair, rotation.seed)
                continue
        elif rotation.kind == "matmul":
            reading = next((each for each in readings(result)[0] if each.value.name == rotation.tensor), None)
            if reading is not None:
                _insert(Editor(result), reading, rotation.seed)
                continue
        raise RecipeError(
            f"the plan rotates the tensor {rotation.tensor!r} ({rotation.kind}), which does not fit the model",
            remedy="make the plan again with --save-plan",
        )
    return result


def _rotate_stream(model: ir.Model, stream: Stream, seed: int) -> None:
    R = mean_keeping_rotation(stream.channels, seed=seed)
    for norm in stream.norms:
        _plain(model, norm.node, norm.layers)
    for writer in stream.writers:
        _rotate_outputs(writer, R)
    for reader in (*stream.readers, *(layer for norm in stream.norms for layer in norm.layers)):
        _rotate_inputs(reader, R)
    for norm in stream.norms:
        shift = constant(norm.node.inputs[2]) if len(norm.node.inputs) > 2 else None
        if shift is not None and shift.any():
            _give(model, norm.node, 2, shift.astype(np.float64) @ R)
    for layer in stream.layers:
        layer.store()
    for value in stream.constants:
        array = constant(value)
        assert array is not None
        set_constant(value, (array.astype(np.float64) @ R).astype(np.float32))


def _plain(model: ir.Model, node: ir.Node, layers: Sequence[LinearLayer]) -> None:
    """Give a normalization's factors to its readers, and its shift too where all of them have a bias."""
    factor = constant(node.inputs[1])
    assert factor is not None
    shift = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    takes = all(layer.bias is not None for layer in layers)
    for layer in layers:
        if shift is not None and layer.bias is not None and takes:
            weight = layer.weight.T if layer.transposed else layer.weight
            layer.bias = layer.bias + shift.astype(np.float64) @ weight
        layer.multiply_inputs(factor.astype(np.float64))
    _give(model, node, 1, np.ones(factor.shape))
    if shift is not None:
        _give(model, node, 2, np.zeros(shift.shape) if takes else shift.astype(np.float64) / factor)


def _rotate_between(pair: Between, seed: int) -> None:
    size = pair.first.channels // pair.heads
    R = np.kron(np.eye(pair.heads), hadamard_rotation(size, seed=seed)).astype(np.float64)
    _rotate_outputs(pair.first, R)
    _rotate_inputs(pair.second, R)
    pair.first.store()
    pair.second.store()


def _insert(editor: Editor, reading: Reading, seed: int) -> None:
    """Put a MatMul between a tensor and the layers that read it."""
    value, first = reading.value, reading.layers[0].node
    graph = first.graph
    assert isinstance(graph, ir.Graph)
    R = hadamard_rotation(reading.layers[0].inputs, seed=seed)
    name = value.name or "tensor"
    node = editor.node(
        "MatMul",
        [value, editor.constant(graph, f"{name}_rotation", R.astype(np.float32))],
        name=f"{name}{INSERTED}",
        outputs=[f"{name}{INSERTED}"],
        dtypes=[ir.DataType.FLOAT],
        shape=value.shape,
    )
    graph.insert_before(first, node)
    for layer in reading.layers:
        _rotate_inputs(layer, R)
        layer.store()
        layer.node.replace_input_with(0, node.outputs[0])


def _rotate_outputs(layer: LinearLayer, R: NDArray[np.float64]) -> None:
    layer.weight = R.T @ layer.weight if layer.transposed else layer.weight @ R
    if layer.bias is not None:
        layer.bias = layer.bias @ R


def _rotate_inputs(layer: LinearLayer, R: NDArray[np.float64]) -> None:
    layer.weight = layer.weight @ R if layer.transposed else R.T @ layer.weight


def _give(model: ir.Model, node: ir.Node, index: int, array: NDArray[np.float64]) -> None:
    """Give a node a constant of its own, because others may read the old one."""
    old = node.inputs[index]
    assert old is not None
    assert isinstance(node.graph, ir.Graph)
    node.replace_input_with(index, new_initializer(model, node.graph, f"{old.name}_rotated", array.astype(np.float32)))
