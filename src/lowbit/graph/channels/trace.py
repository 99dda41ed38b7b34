"""Following channels through a graph: from the weights that make them to the weights that read them.

Every axis of every tensor carries the channels that it is made of, or `None` where nothing can be removed from it: the
batch, places of a picture, steps of a sequence. An operator joins channels that have to stay or go together (the two
sides of an Add), rearranges them (Concat, Split, Transpose, Reshape) or ends them (a convolution reads them in its
weight and makes others). What is not understood freezes the channels that it reads, with the reason in words.

The idea is that of DepGraph (Fang, Ma, Song, Mi and Wang, 2023); here it is carried out channel by channel, not layer
by layer, so that concatenated, split and shuffled channels need no rules of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from lowbit.graph.channels.classes import ChannelClasses
from lowbit.graph.constants import constant_array, is_constant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["Axes", "Product", "Role", "Trace", "trace_channels"]

Ids = np.ndarray
Axes = list["NDArray[np.int64] | None"]
Role = Literal["makes", "scales", "reads"]
"""What a parameter does along an axis: make channels, work on each of them, or read them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product:
    """Multiplications of an operator: `fixed` times the number of channels on every axis in `axes`."""

    node: str
    fixed: float
    axes: tuple[NDArray[np.int64], ...]


@dataclass(slots=True, kw_only=True, eq=False)
class Trace:
    """The channels of a graph.

    Attributes:
        model: The cleaned model that was traced.
        shapes: Shape of every tensor for one sample.
        channels: Which channels are one.
        axes: Of every computed tensor, the channels along each axis.
        parameters: Channels along an axis of an initializer, by its name and the axis.
        roles: What the initializer does along that axis.
        products: Multiplications that depend on channels, and those that do not.
        repairs: What has to be rewritten beside the initializers: sizes of splits, shapes, numbers of groups. Called
            with a copy of the model, its nodes by name and a function from channels to a mask of those that are kept.
    """

    model: ir.Model
    shapes: Mapping[str, tuple[int, ...]]
    channels: ChannelClasses = field(default_factory=ChannelClasses)
    axes: dict[str, Axes] = field(default_factory=dict)
    parameters: dict[tuple[str, int], NDArray[np.int64]] = field(default_factory=dict)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    repairs: list[Repair] = field(default_factory=list)

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """Return the shape of a tensor; empty for one that is not known."""
        array = None if value is None else constant_array(value)
        if array is not None:
            return tuple(array.shape)
        return () if value is None else self.shapes.get(str(value.name), ())

    def of(self, value: ir.Value | None) -> Axes:
        """Return the channels of a tensor, axis by axis."""
        if value is None:
            return []
        return self.axes.get(str(value.name)) or [None] * len(self.shape(value))

    def parameter(
        self, value: ir.Value, axis: int, role: Role, channels: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Tie an axis of an initializer to channels, or give it channels of its own."""
        key = (str(value.name), axis)
        known = self.parameters.get(key)
        if known is None:
            known = self.channels.fresh(self.shape(value)[axis]) if channels is None else channels
            self.parameters[key], self.roles[key] = known, role
        elif channels is not None:
            self.channels.join(known, channels)
        if role == "reads" and self.roles[key] != "reads":
            self.channels.freeze(known, f"the weight {value.name} both makes and reads channels")
        return known

    def freeze(self, axes: Axes, reason: str) -> None:
        """Keep all channels on some axes."""
        for channels in axes:
            if channels is not None:
                self.channels.freeze(channels, reason)

    def product(self, node: ir.Node, fixed: float, *axes: NDArray[np.int64] | None) -> None:
        """Note the multiplications of an operator; axes without channels count in `fixed`."""
        tracked = tuple(channels for channels in axes if channels is not None)
        self.products.append(Product(node=str(node.name), fixed=fixed, axes=tracked))


Keep = Callable[["NDArray[np.int64]"], "NDArray[np.bool_]"]
Repair = Callable[[ir.Model, "Mapping[str, ir.Node]", Keep], None]


def trace_channels(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> Trace:
    """Follow the channels of a model.

    Args:
        model: The cleaned model, every node named; never changed.
        shapes: Shape of every tensor of the main graph for one sample, as the engine computed it.

    Returns:
        The channels; those that cannot be removed are frozen with their reason.
    """
    from lowbit.graph.channels.operators import HANDLERS, unknown

    trace = Trace(model=model, shapes=shapes)
    for node in model.graph:
        _freeze_captured(trace, node)
        standard = node.domain in {"", "ai.onnx"}
        handler = HANDLERS.get(node.op_type, unknown) if standard else unknown
        handler(trace, node)
        for output in node.outputs:
            axes = trace.axes.setdefault(str(output.name), [None] * len(trace.shape(output)))
            if output.is_graph_output():
                trace.freeze(axes, f"it is the model's output {output.name}")
    return trace


def _freeze_captured(trace: Trace, node: ir.Node) -> None:
    for attribute in node.attributes.values():
        if attribute.is_ref() or attribute.type not in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
            continue
        graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
        for graph in graphs:
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                for value in inner.inputs:
                    if value is not None and not is_constant(value):
                        trace.freeze(trace.axes.get(str(value.name), []), f"a subgraph of {node.name} reads it")
