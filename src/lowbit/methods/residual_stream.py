"""The residual stream of a graph: tensors that are sums of each other, who writes into them and who reads them.

Between linear layers a transformer only adds, and normalizes. A rotation that keeps the mean of the channels passes
through both (Ashkboos et al., SliceGPT and QuaRot, 2024), if the normalization's own factors are given to its readers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.clean.values import constant, is_op
from lowbit.methods.linear_layers import LinearLayer, linear_layer

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Norm", "Stream", "streams"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Norm:
    """A LayerNormalization of the stream and the linear layers that read it; none of them reads anything else."""

    node: ir.Node
    layers: tuple[LinearLayer, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class Stream:
    """A residual stream of C channels, the last axis of all its tensors.

    Attributes:
        tensor: Name of its first tensor in the graph, which names the stream.
        channels: C.
        writers: Layers whose outputs are added into it.
        constants: Tables and vectors `[…, C]` that are added into it, or looked up.
        readers: Layers that read it as it is.
        norms: Normalizations that read it.
    """

    tensor: str
    channels: int
    writers: list[LinearLayer] = field(default_factory=list)
    constants: list[ir.Value] = field(default_factory=list)
    readers: list[LinearLayer] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)

    @property
    def layers(self) -> list[LinearLayer]:
        """All layers, those behind normalizations included."""
        return [*self.writers, *self.readers, *(layer for norm in self.norms for layer in norm.layers)]


class _Refused(Exception):  # noqa: N818 - never leaves this file
    """Why a stream cannot be rotated, in words."""


def streams(model: ir.Model) -> tuple[list[Stream], dict[str, str]]:
    """Return the streams whose writers and readers are all linear, and why others are not, by their first tensor.

    Args:
        model: A cleaned model.
    """
    found: list[Stream] = []
    refusals: dict[str, str] = {}
    seen: set[ir.Value] = set()
    for node in model.graph:
        value = node.inputs[0] if is_op(node, "LayerNormalization") else None
        if value is None or value in seen:
            continue
        walk = _Walk(value)
        try:
            found.append(walk.run())
        except _Refused as error:
            refusals[value.name or ""] = str(error)
        seen |= walk.values
    return found, refusals


class _Walk:
    """The way through all tensors of one stream."""

    def __init__(self, first: ir.Value) -> None:
        shape = first.shape
        size = shape[-1] if shape is not None and len(shape) else None
        self.channels = size if isinstance(size, int) else 0
        self.stream = Stream(tensor=first.name or "", channels=self.channels)
        self.values: set[ir.Value] = {first}
        self.waiting = [first]
        self.known: dict[ir.Node, LinearLayer] = {}

    def run(self) -> Stream:
        if not self.channels:
            raise _Refused("the number of its channels is not known")
        while self.waiting:
            value = self.waiting.pop()
            if value.is_graph_output():
                raise _Refused(f"the model returns {value.name}")
            self._written(value)
            for node, index in [(use.node, use.idx) for use in value.uses()]:
                self._read(value, node, index)
        if not self.stream.norms and not self.stream.readers:
            raise _Refused("no linear layer reads it")
        return self.stream

    def _add(self, value: ir.Value) -> None:
        if value in self.values:
            return
        array = constant(value)
        if array is not None:
            self._constant(value, array)
            return
        if value.shape is None or not len(value.shape) or value.shape[-1] != self.channels:
            raise _Refused(f"{value.name} is spread over its channels")
        self.values.add(value)
        self.waiting.append(value)

    def _constant(self, value: ir.Value, array: np.ndarray) -> None:
        if array.dtype != np.float32 or array.ndim < 1 or array.shape[-1] != self.channels:
            raise _Refused(f"the constant {value.name} is not one of its channels")
        if len(tuple(value.uses())) != 1:
            raise _Refused(f"the constant {value.name} is shared")
        if value not in self.values:
            self.values.add(value)
            self.stream.constants.append(value)

    def _written(self, value: ir.Value) -> None:
        node = value.producer()
        if node is None:
            raise _Refused(f"{value.name} is an input of the model")
        layer = self._layer_written(node, value)
        if layer is not None:
            self.stream.writers.append(layer)
        elif is_op(node, "Add"):
            for operand in node.inputs:
                if operand is not None:
                    self._add(operand)
        elif is_op(node, "Gather") and (array := constant(node.inputs[0])) is not None and array.ndim > 1:
            if "axis" in node.attributes and node.attributes["axis"].as_int() != 0:
                raise _Refused(f"{node.name} looks its channels up")
            assert node.inputs[0] is not None
            self._constant(node.inputs[0], array)
        else:
            raise _Refused(f"{node.op_type} {node.name} writes it")

    def _layer_written(self, node: ir.Node, value: ir.Value) -> LinearLayer | None:
        candidates = [node]
        if is_op(node, "Add"):
            candidates = [producer for each in node.inputs if each is not None and (producer := each.producer())]
        for each in candidates:
            if is_op(each, "MatMul", "Gemm") and constant(each.inputs[1]) is not None:
                layer = self._layer(each)
                if layer.output is value:
                    return layer
        return None

    def _layer(self, node: ir.Node) -> LinearLayer:
        if node not in self.known:
            layer = linear_layer(node)
            if isinstance(layer, str):
                raise _Refused(f"{node.op_type} {node.name}: {layer}")
            self.known[node] = layer
        return self.known[node]

    def _read(self, value: ir.Value, node: ir.Node, index: int) -> None:
        if is_op(node, "Add"):
            self._add(node.outputs[0])
        elif is_op(node, "MatMul", "Gemm") and index == 0 and constant(node.inputs[1]) is not None:
            self.stream.readers.append(self._layer(node))
        elif is_op(node, "LayerNormalization") and index == 0:
            self.stream.norms.append(self._norm(node, value))
        else:
            raise _Refused(f"{node.op_type} {node.name} reads it")

    def _norm(self, node: ir.Node, value: ir.Value) -> Norm:
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
        assert value.shape is not None
        arrays = [constant(each) for each in node.inputs[1:]]
        if axis not in {-1, len(value.shape) - 1} or any(each is None or each.ndim != 1 for each in arrays):
            raise _Refused(f"LayerNormalization {node.name} is none of its channels alone")
        if arrays[0] is None or not arrays[0].all():
            raise _Refused(f"LayerNormalization {node.name} drops a channel")
        output = node.outputs[0]
        uses = [(use.node, use.idx) for use in output.uses()]
        linear = all(is_op(each, "MatMul", "Gemm") and at == 0 for each, at in uses)
        if output.is_graph_output() or not uses or not linear or any(each.uses() for each in node.outputs[1:]):
            others = sorted({each.op_type for each, at in uses if not (is_op(each, "MatMul", "Gemm") and at == 0)})
            why = f"{' and '.join(others)} read it" if others else "the model returns it"
            raise _Refused(f"{why} behind LayerNormalization {node.name}, whose factors belong to single channels")
        layers = tuple(self._layer(each) for each, _ in uses)
        return Norm(node=node, layers=layers)
