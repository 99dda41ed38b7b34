"""Cross-layer equalization of a model, from its weights alone.

A pair is a Conv, Gemm or MatMul, what may stand between, and the one Conv, Gemm or MatMul that reads it. What the model
computes does not change, and neither do the names and types of its operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.clean.normalized import normalized_of, note_normalized
from lowbit.graph.clean.values import constant, is_op, only_consumer
from lowbit.methods.linear_layers import LinearLayer, linear_layer
from lowbit.rounding.equalization import equalizing_scales, pair_noise

if TYPE_CHECKING:
    import onnx_ir as ir
__all__ = ["Equalized", "equalize"]

# f(s x) = s f(x) for every s > 0, channel by channel.
_HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu")
# The same, where the channels are the axis 1 of a convolution.
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_ROUNDS = 40
_CONVERGED = 1e-3
# What is gained has to be more than what rounding to float32 can do.
_WORTH = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Equalized:
    """What equalization did.

    Attributes:
        model: A model that computes the same.
        pairs: Names of both operators of every pair, with the rounding noise that is expected at its output before and
            after; see `lowbit.rounding.equalization.pair_noise`.
        refusals: By name of an operator, why it has no partner, in words.
    """

    model: ir.Model
    pairs: tuple[tuple[str, str, float, float], ...]
    refusals: dict[str, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done and what not, in words."""
        done = tuple(
            f"equalized {first} with {second}: {_decibel(after / before)} of rounding noise expected behind them"
            for first, second, before, after in self.pairs
        )
        return done + tuple(f"{name} not equalized: {reason}" for name, reason in self.refusals.items())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pair:
    first: LinearLayer
    second: LinearLayer

    def noise(self) -> float:
        first, second = self.first, self.second
        return pair_noise(
            first.output_ranges(),
            second.input_ranges(),
            first.output_norms(),
            second.input_norms(),
            depth=first.weight.size // first.channels,
            readers=second.weight.size // second.inputs,
        )


def equalize(model: ir.Model) -> Equalized:
    """Equalize all pairs of layers until their scales no longer change (Nagel et al., 2019, section 4.1).

    Args:
        model: A cleaned model; left unchanged.
    """
    result = model.clone()
    pairs, refusals = _pairs(result)
    layers = {id(layer): layer for pair in pairs for layer in (pair.first, pair.second)}
    original = {key: (layer.weight.copy(), layer.bias_copy()) for key, layer in layers.items()}
    known = {key: normalized_of(layer.node) for key, layer in layers.items()}
    before = [pair.noise() for pair in pairs]
    total = [np.ones(pair.first.channels) for pair in pairs]
    for _ in range(_ROUNDS):
        largest = 0.0
        for pair, so_far in zip(pairs, total, strict=True):
            wanted = equalizing_scales(pair.first.output_ranges(), pair.second.input_ranges()) * so_far
            # Kept within the limits all rounds together, not each.
            scales = equalizing_scales(wanted**2, np.ones_like(wanted)) / so_far
            pair.first.divide_outputs(scales)
            pair.second.multiply_inputs(scales)
            so_far *= scales
            largest = max(largest, float(np.abs(np.log(scales)).max(initial=0.0)))
        if largest < _CONVERGED:
            break
    after = [pair.noise() for pair in pairs]
    kept = []
    for chain in _chains(pairs):
        members = [pairs[index] for index in chain]
        # Each pair counts by what it had: noise early in a chain is not in the units of noise behind it.
        gain = sum(np.log(max(before[index], 1e-300) / max(after[index], 1e-300)) for index in chain)
        if gain <= _WORTH * len(chain):
            for layer in {id(each): each for pair in members for each in (pair.first, pair.second)}.values():
                layer.weight, layer.bias = original[id(layer)]
            refusals.update({pair.first.name: "less rounding noise is not to be expected of it" for pair in members})
            continue
        kept += chain
    for layer in layers.values():
        layer.store()
    divisors = {id(pairs[index].first): total[index] for index in kept}
    for key, statistics in known.items():
        if statistics is not None:
            divisor = divisors.get(key)
            moved = statistics if divisor is None else statistics.mapped(1 / divisor, 0.0)
            note_normalized(layers[key].node, moved)
    return Equalized(
        model=result,
        pairs=tuple(
            (pairs[index].first.name, pairs[index].second.name, before[index], after[index]) for index in sorted(kept)
        ),
        refusals=refusals,
    )


def _pairs(model: ir.Model) -> tuple[list[_Pair], dict[str, str]]:
    pairs: list[_Pair] = []
    refusals: dict[str, str] = {}
    known: dict[str, LinearLayer] = {}

    def layer_of(node: ir.Node) -> LinearLayer | str:
        found = known.get(node.name or "") or linear_layer(node)
        if isinstance(found, LinearLayer):
            known[found.name] = found
        return found

    for node in model.graph:
        if not is_op(node, "Conv", "Gemm", "MatMul"):
            continue
        first = layer_of(node)
        if isinstance(first, str):
            refusals[node.name or ""] = first
            continue
        second = _partner(first)
        if not isinstance(second, str):
            found = layer_of(second)
            second = found if isinstance(found, str) else second
            if isinstance(found, LinearLayer):
                if found.inputs == first.channels:
                    pairs.append(_Pair(first=first, second=found))
                    continue
                second = f"{found.name} reads {found.inputs} channels, not its {first.channels}"
        refusals[first.name] = str(second)
    return pairs, refusals


def _partner(first: LinearLayer) -> ir.Node | str:
    """Return the linear operator that alone reads a layer through positively homogeneous ones, or why not."""
    value = first.output
    while True:
        consumer = only_consumer(value)
        if consumer is None:
            readers = len(tuple(value.uses()))
            return "the model returns its output" if value.is_graph_output() else f"{readers} operators read its output"
        if consumer.graph is not first.node.graph:
            return "its output is read in a subgraph"
        if is_op(consumer, "Conv", "Gemm", "MatMul"):
            if consumer.inputs[0] is not value:
                return f"{consumer.name} does not read it as its first input"
            if (consumer.op_type == "Conv") != (first.node.op_type == "Conv"):
                return f"{consumer.name} sums over another axis"
            return consumer
        reason = _refusal(consumer, value, convolution=first.node.op_type == "Conv")
        if reason:
            return reason
        value = consumer.outputs[0]


def _refusal(node: ir.Node, value: ir.Value, *, convolution: bool) -> str:
    """Return why a node between two layers does not commute with a positive scale of each channel; empty if it does."""
    if node.inputs[0] is not value:
        return f"{node.op_type} {node.name} stands behind it, which is not positively homogeneous"
    if is_op(node, "PRelu") and constant(node.inputs[1]) is None:
        return f"the slope of PRelu {node.name} is computed while the model runs"
    if is_op(node, *_HOMOGENEOUS) or (convolution and is_op(node, *_POOLS) and len(node.outputs) == 1):
        return ""
    if is_op(node, "Clip"):
        # NOTE: With a bound for every channel it would be a Min with a vector, which no engine fuses into the operator
        # before; a Relu in its place would compute something else.
        return (
            f"Clip {node.name} stands behind it, whose finite upper bound is not homogeneous: each channel would need "
            "a bound of its own, which engines do not fuse"
        )
    return f"{node.op_type} {node.name} stands behind it, which is not positively homogeneous"


def _chains(pairs: list[_Pair]) -> list[list[int]]:
    """Return the indices of pairs that share layers, together."""
    chains: list[tuple[set[int], list[int]]] = []
    for index, pair in enumerate(pairs):
        members = {id(pair.first), id(pair.second)}
        touching = [chain for chain in chains if chain[0] & members]
        joined = (set().union(members, *(chain[0] for chain in touching)), [index])
        for chain in touching:
            joined[1][:0] = chain[1]
            chains.remove(chain)
        chains.append(joined)
    return [sorted(chain[1]) for chain in chains]


def _decibel(ratio: float) -> str:
    return f"{10 * np.log10(max(ratio, 1e-30)):+.1f} dB"
