"""High biases moved behind an activation function, into the layer that reads it: a rewrite of the float model.

`act(y) = act(y - c) + c` where neither side is clipped. The first bias loses `c`, the second gains what its own weights
make of `c` (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section 4.1.3).
The float function stays the same for those values only, so that the plan holds the amounts that were found to pay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import RecipeError
from lowbit.graph.clean.normalized import normalized_of, note_normalized
from lowbit.graph.clean.values import constant, is_op, new_initializer, only_consumer
from lowbit.methods.linear_layers import LinearLayer, linear_layer
from lowbit.plan.packed import unpack_floats

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.plan.plan import AbsorptionPlan

__all__ = ["Absorbing", "absorbing_pairs", "apply_absorptions"]

_LAYERS = ("Conv", "Gemm", "MatMul")
# Each gives c if it reads c everywhere, whatever stands at the borders.
_POOLS = ("MaxPool", "GlobalAveragePool", "GlobalMaxPool")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Absorbing:
    """Two layers between which a bias can move.

    Attributes:
        first: The layer that has it.
        second: The layer that can take it.
        low: Lower bound of the activation function between them.
        high: Its upper bound.
        between: What stands between them, in order.
        padded: Whether the second layer pads what it reads with zeros, which then stand for `c`.
    """

    first: LinearLayer
    second: LinearLayer
    low: float
    high: float
    between: tuple[ir.Node, ...]
    padded: bool

    @property
    def read(self) -> ir.Value:
        """The tensor that the second layer reads."""
        value = self.second.node.inputs[0]
        assert value is not None
        return value


def absorbing_pairs(model: ir.Model) -> tuple[list[Absorbing], dict[str, str]]:
    """Return the pairs of layers between which biases can move, and why other layers have no partner, by name.

    Args:
        model: A cleaned model.
    """
    pairs: list[Absorbing] = []
    refusals: dict[str, str] = {}
    for node in model.graph:
        if not is_op(node, *_LAYERS) or constant(node.inputs[1]) is None:
            continue
        found = _pair(node)
        if isinstance(found, str):
            refusals[node.name or ""] = found
        else:
            pairs.append(found)
    return pairs, refusals


def apply_absorptions(model: ir.Model, absorptions: Sequence[AbsorptionPlan]) -> ir.Model:
    """Move biases as a plan says.

    Args:
        model: The float model; left unchanged.
        absorptions: What to move where.

    Raises:
        RecipeError: The layers do not exist, or have other channels.
    """
    result = model.clone()
    for absorption in absorptions:
        # Again for each, because the one before may have changed the same layers.
        pairs = {(pair.first.name, pair.second.name): pair for pair in absorbing_pairs(result)[0]}
        pair = pairs.get((absorption.layer, absorption.reader))
        amounts = unpack_floats(absorption.amounts).astype(np.float64)
        if pair is None or amounts.size != pair.first.channels or not (np.isfinite(amounts) & (amounts >= 0)).all():
            raise RecipeError(
                f"the plan moves a bias of {absorption.layer!r} into {absorption.reader!r}, which does not fit",
                remedy="make the plan again with --save-plan",
            )
        _apply(result, pair, amounts)
    return result


def _apply(model: ir.Model, pair: Absorbing, amounts: NDArray[np.float64]) -> None:
    known = [normalized_of(layer.node) for layer in (pair.first, pair.second)]
    _add_to_bias(model, pair.second, pair.second.response(amounts))
    _add_to_bias(model, pair.first, -amounts)
    if known[0] is not None:
        note_normalized(pair.first.node, known[0].mapped(None, -amounts))
    if known[1] is not None:
        # Its outputs stay what they were.
        note_normalized(pair.second.node, known[1])


def _add_to_bias(model: ir.Model, layer: LinearLayer, shift: NDArray[np.float64]) -> None:
    if layer.bias is not None:
        layer.bias = layer.bias + shift
        layer.store()
        return
    graph = layer.node.graph
    assert graph is not None
    layer.node.resize_inputs(3)
    wish = f"{layer.name}_bias"
    layer.node.replace_input_with(2, new_initializer(model, graph, wish, shift.astype(np.float32)))


def _pair(node: ir.Node) -> Absorbing | str:
    first = linear_layer(node)
    if isinstance(first, str):
        return first
    if first.bias is None:
        return "it has no bias"
    if _scaled(node):
        return "it scales its product or bias"
    between = _reader(first)
    if isinstance(between, str):
        return between
    reader, nodes, low, high = between
    second = linear_layer(reader)
    if isinstance(second, str):
        return f"{reader.name}, which reads it, cannot take a bias: {second}"
    if _scaled(reader):
        return f"{second.name}, which reads it, scales its product or bias"
    if second.bias is None and (second.node.op_type == "MatMul" or second.node.graph is not first.node.graph):
        return f"{second.name}, which reads it, has no bias"
    if second.inputs != first.channels:
        return f"{second.name} reads {second.inputs} channels, not its {first.channels}"
    if not math.isfinite(low):
        return "neither Relu nor Clip stands behind it"
    return Absorbing(first=first, second=second, low=low, high=high, between=nodes, padded=_pads(reader))


def _reader(first: LinearLayer) -> tuple[ir.Node, tuple[ir.Node, ...], float, float] | str:
    """Return the one layer that reads another, what stands between them and its bounds, or why there is none."""
    value, low, high, pooled = first.output, -math.inf, math.inf, False
    between: list[ir.Node] = []
    while True:
        node = only_consumer(value)
        if node is None:
            readers = len(tuple(value.uses()))
            return "the model returns its output" if value.is_graph_output() else f"{readers} operators read its output"
        if node.graph is not first.node.graph:
            return "its output is read in a subgraph"
        if node.inputs[0] is not value:
            return f"{node.op_type} {node.name} does not read it as its first input"
        if is_op(node, *_LAYERS):
            if (node.op_type == "Conv") != (first.node.op_type == "Conv") and not pooled:
                return f"{node.name} sums over another axis"
            return node, tuple(between), low, high
        convolution = first.node.op_type == "Conv"
        if is_op(node, "Relu"):
            low = max(low, 0.0)
        elif is_op(node, "Clip"):
            bounds = _bounds(node)
            if bounds is None:
                return f"the bounds of Clip {node.name} are computed while the model runs"
            low, high = max(low, bounds[0]), min(high, bounds[1])
        elif is_op(node, "Flatten") and convolution and is_op(value.producer(), "GlobalAveragePool", "GlobalMaxPool"):
            if "axis" in node.attributes and node.attributes["axis"].as_int() != 1:
                return f"Flatten {node.name} joins samples"
            pooled = True
        elif not (convolution and is_op(node, *_POOLS) and len(node.outputs) == 1):
            return f"{node.op_type} {node.name} stands behind it"
        between.append(node)
        value = node.outputs[0]


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    found = []
    for index, default in ((1, -math.inf), (2, math.inf)):
        value = node.inputs[index] if index < len(node.inputs) else None
        array = constant(value)
        if value is not None and array is None:
            return None
        found.append(default if array is None else float(array.reshape(())))
    return found[0], found[1]


def _scaled(node: ir.Node) -> bool:
    """Whether a Gemm has factors."""
    return any(name in node.attributes and node.attributes[name].as_float() != 1.0 for name in ("alpha", "beta"))


def _pads(node: ir.Node) -> bool:
    """Whether a convolution pads with zeros."""
    if not is_op(node, "Conv"):
        return False
    if "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() in {"SAME_UPPER", "SAME_LOWER"}:
        return True
    return "pads" in node.attributes and any(node.attributes["pads"].as_ints())
