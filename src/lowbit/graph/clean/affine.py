"""Per-channel scales and shifts after a linear operator, folded into its weight and bias.

With y = conv(x, W) + b, a following s * y + t (`BatchNormalization`, `Mul`, `Div`, `Add`, `Sub`) is
conv(x, s * W) + (s * b + t), where s and t have one number per output channel.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.clean.normalized import Normalized, normalized_of, note_normalized
from lowbit.graph.clean.values import (
    all_nodes,
    channel_vector,
    constant,
    is_op,
    new_initializer,
    only_consumer,
    replace_value,
    set_constant,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

__all__ = ["fold_affine", "remaining_batch_norms"]

_PRODUCERS = ("Conv", "ConvTranspose", "Gemm")
_FOLLOWERS = ("BatchNormalization", "Mul", "Div", "Add", "Sub")


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """The map s * y + t that a node applies to its data input; s, t: [channels] float64, s None for all ones."""

    scale: np.ndarray | None
    shift: np.ndarray


def fold_affine(model: ir.Model) -> Counter[str]:
    """Fold `BatchNormalization` and per-channel `Mul`, `Div`, `Add`, `Sub` into the `Conv`, `ConvTranspose` or `Gemm`.

    Computed in float64 and stored in the weight's own type. Refused, with the graph unchanged, where the intermediate
    result or the weight is used elsewhere, or where an operand is not constant.
    """
    changes: Counter[str] = Counter()
    # In topological order, so that when a node of a chain vanishes, the next one follows the producer itself.
    for graph, node in all_nodes(model):
        if not is_op(node, *_FOLLOWERS):
            continue
        for producer in _producers(node):
            affine = _affine(node, producer)
            if isinstance(affine, str) or _refusal(node, producer, affine):
                continue
            _fold(model, graph, node, producer, affine)
            changes[f"{{n}} {node.op_type} node{{s}} folded into {producer.op_type}"] += 1
            break
    return changes


def remaining_batch_norms(model: ir.Model) -> list[str]:
    """Say for each `BatchNormalization` right after a linear operator why it had to stay."""
    notes = []
    for _, node in all_nodes(model):
        if not is_op(node, "BatchNormalization"):
            continue
        for producer in _producers(node):
            affine = _affine(node, producer)
            reason = affine if isinstance(affine, str) else _refusal(node, producer, affine)
            notes.append(f"BatchNormalization {node.name!r} kept: {reason}")
    return notes


def _producers(node: ir.Node) -> Iterator[ir.Node]:
    """Linear operators whose result a node reads as data."""
    inputs = node.inputs[:2] if is_op(node, "Mul", "Add") else node.inputs[:1]
    for value in inputs:
        producer = None if value is None else value.producer()
        if producer is not None and is_op(producer, *_PRODUCERS):
            yield producer


def _affine(node: ir.Node, producer: ir.Node) -> Affine | str:
    """The scale and shift that a node applies per output channel of its producer; or why that cannot be said."""
    channels, rank = _channels(producer)
    if channels == 0:
        return f"the weight of {producer.name!r} is not a floating-point constant"
    if node.op_type == "BatchNormalization":
        if "training_mode" in node.attributes and node.attributes["training_mode"].as_int():
            return "it is in training mode"
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            return "its statistics are read"
        parameters = [constant(value) for value in node.inputs[1:5]]
        if any(parameter is None for parameter in parameters):
            return "its parameters are not constant"
        gamma, beta, mean, variance = (np.asarray(p, dtype=np.float64) for p in parameters)
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = gamma / np.sqrt(variance + epsilon)
            shift = beta - mean * scale
        return Affine(scale=scale, shift=shift) if scale.shape == (channels,) else "its parameters do not fit"
    operand = node.inputs[0] if node.inputs[1] is producer.outputs[0] else node.inputs[1]
    array = constant(operand)
    if array is None or not np.issubdtype(array.dtype, np.floating):
        return "its operand is not constant"
    vector = channel_vector(array, channels, rank)
    if vector is None:
        return "its operand is not one number per channel"
    match node.op_type:
        case "Mul":
            return Affine(scale=vector, shift=np.zeros(channels))
        case "Div":
            return "it divides by zero" if not vector.all() else Affine(scale=1 / vector, shift=np.zeros(channels))
        case "Add":
            return Affine(scale=None, shift=vector)
        case _:
            return Affine(scale=None, shift=-vector)


def _refusal(node: ir.Node, producer: ir.Node, affine: Affine) -> str:
    """Why the producer cannot take the map, or an empty string."""
    if producer.graph is not node.graph:
        return "its producer stands in another graph"
    if only_consumer(producer.outputs[0]) is not node:
        return f"the result of {producer.name!r} is used elsewhere too"
    weight = producer.inputs[1]
    if affine.scale is not None and (weight is None or only_consumer(weight) is not producer):
        return f"the weight of {producer.name!r} is shared"
    if weight is not None and weight.graph is not producer.graph and affine.scale is not None:
        return f"the weight of {producer.name!r} belongs to an outer graph"
    folded = _folded(producer, affine)
    if folded is None:
        return f"the bias of {producer.name!r} is not one constant per channel"
    if not all(np.isfinite(array).all() for array in folded):
        return f"the folded weight of {producer.name!r} is not finite"
    return ""


def _channels(producer: ir.Node) -> tuple[int, int]:
    """Number of output channels and rank of the result; (0, 0) if the weight is not constant."""
    weight = constant(producer.inputs[1])
    if weight is None or not np.issubdtype(weight.dtype, np.floating):
        return 0, 0
    match producer.op_type:
        case "Conv":
            return weight.shape[0], weight.ndim
        case "ConvTranspose":
            return weight.shape[1] * _int_attribute(producer, "group", 1), weight.ndim
        case _:
            return weight.shape[0 if _int_attribute(producer, "transB", 0) else 1], 2


def _bias(producer: ir.Node) -> np.ndarray | None:
    """The bias [channels] float64 with Gemm's beta applied, zeros if there is none; None if it is something else."""
    channels, _ = _channels(producer)
    value = producer.inputs[2] if len(producer.inputs) > 2 else None
    if value is None:
        return np.zeros(channels)
    array = constant(value)
    if array is None:
        return None
    vector = channel_vector(array, channels, 2) if producer.op_type == "Gemm" else array.astype(np.float64)
    if vector is None or vector.shape != (channels,):
        return None
    beta = producer.attributes["beta"].as_float() if "beta" in producer.attributes else 1.0
    return vector * beta


def _folded(producer: ir.Node, affine: Affine) -> tuple[np.ndarray, np.ndarray] | None:
    """Weight and bias with the map folded in, in the weight's type; None if there is no constant weight and bias."""
    weight, bias = constant(producer.inputs[1]), _bias(producer)
    if weight is None or bias is None:
        return None
    with np.errstate(over="ignore"):
        if affine.scale is None:
            return weight, (bias + affine.shift).astype(weight.dtype)
        scaled = weight.astype(np.float64) * _per_weight(producer, affine.scale, weight)
        return scaled.astype(weight.dtype), (bias * affine.scale + affine.shift).astype(weight.dtype)


def _fold(model: ir.Model, graph: ir.Graph, node: ir.Node, producer: ir.Node, affine: Affine) -> None:
    weight, folded = producer.inputs[1], _folded(producer, affine)
    if weight is None or folded is None:
        raise AssertionError("_refusal lets only constants pass")
    known = _statistics(node, producer, affine)
    if affine.scale is not None:
        set_constant(weight, folded[0])
    old = producer.inputs[2] if len(producer.inputs) > 2 else None
    if old is not None and only_consumer(old) is producer and old.graph is graph:
        set_constant(old, folded[1])
    else:
        if len(producer.inputs) < 3:
            producer.resize_inputs(3)
        producer.replace_input_with(2, new_initializer(model, graph, f"{weight.name}_bias", folded[1]))
    producer.attributes.pop("beta", None)
    if known is not None:
        note_normalized(producer, known)
    replace_value(node.outputs[0], producer.outputs[0])
    graph.remove(node, safe=True)


def _statistics(node: ir.Node, producer: ir.Node, affine: Affine) -> Normalized | None:
    """What is known of a follower's output once it is folded, if a BatchNormalization has said it."""
    if node.op_type != "BatchNormalization":
        known = normalized_of(producer)
        return None if known is None else known.mapped(affine.scale, affine.shift)
    gamma, beta = constant(node.inputs[1]), constant(node.inputs[2])
    if gamma is None or beta is None:
        raise AssertionError("_affine lets only constants pass")
    return Normalized(mean=beta.astype(np.float64), deviation=np.abs(gamma.astype(np.float64)))


def _per_weight(producer: ir.Node, scale: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The scale per output channel, shaped to multiply the weight."""
    spatial = (1,) * (weight.ndim - 2)
    match producer.op_type:
        case "Conv":
            return scale.reshape(-1, 1, *spatial)
        case "ConvTranspose":
            # W: [in, out / group, *kernel]; input channels of one group share the group's output channels.
            group = _int_attribute(producer, "group", 1)
            rows = np.repeat(scale.reshape(group, -1), weight.shape[0] // group, axis=0)
            return rows.reshape(*weight.shape[:2], *spatial)
        case _:
            return scale.reshape(-1, 1) if _int_attribute(producer, "transB", 0) else scale.reshape(1, -1)


def _int_attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default
