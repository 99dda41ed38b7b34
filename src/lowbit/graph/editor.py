"""Editing a graph: new constants and nodes with fresh names, inserted where they are needed."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from lowbit.formats import Format, to_ir_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

__all__ = ["Editor", "abbreviated"]

_LONGEST = 48


class Editor:
    """Adds nodes and initializers to one model, which it changes in place.

    Names are unique over the whole model, subgraphs included, and depend only on the order of the calls.

    Args:
        model: The model to change; pass a clone if the caller's must stay.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._taken: set[str] = set()
        for graph in (model.graph, *model.graph.subgraphs()):
            self._taken.update(value.name for value in graph.inputs if value.name)
            self._taken.update(graph.initializers)
            for node in graph:
                self._taken.update(value.name for value in node.outputs if value.name)
        self._nodes = {node.name for graph in (model.graph, *model.graph.subgraphs()) for node in graph if node.name}

    def name(self, wish: str) -> str:
        """Return `wish`, or `wish_1`, `wish_2` … if a value has that name already, and reserve it."""
        return _reserve(wish, self._taken)

    def constant(self, graph: ir.Graph, wish: str, array: NDArray[Any], fmt: Format | None = None) -> ir.Value:
        """Add an initializer to `graph`.

        Args:
            graph: Where to add it.
            wish: Preferred name.
            array: Its values; codes, if a format is given.
            fmt: The format whose storage type the codes take.
        """
        name = self.name(abbreviated(wish))
        tensor = ir.tensor(array, name=name) if fmt is None else to_ir_tensor(array, fmt, name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
        return value

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        name: str,
        outputs: Sequence[str],
        attributes: dict[str, Any] | None = None,
        domain: str = "",
        dtypes: Iterable[ir.DataType] = (),
        shape: ir.Shape | None = None,
    ) -> ir.Node:
        """Make a node that is not yet in a graph.

        Args:
            op_type: ONNX operator.
            inputs: Its inputs; `None` for an optional one that is left out.
            name: Preferred name of the node.
            outputs: Preferred names of its outputs.
            attributes: Plain values.
            domain: Operator domain; empty for ai.onnx.
            dtypes: Element type of each output, as far as known.
            shape: Shape of the first output, if known.
        """
        values = [ir.Value(name=self.name(abbreviated(wish))) for wish in outputs]
        for value, dtype in zip(values, dtypes, strict=False):
            value.type = ir.TensorType(dtype)
        if shape is not None:
            values[0].shape = shape
        return ir.node(
            op_type,
            inputs=list(inputs),
            attributes=attributes or {},
            domain=domain,
            outputs=values,
            name=_reserve(abbreviated(name), self._nodes),
        )

    def rename(self, value: ir.Value, wish: str) -> None:
        """Give `value` another name, so that its old one is free."""
        if value.name is not None:
            self._taken.discard(value.name)
        value.name = self.name(wish)

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` replace `old` everywhere, its name and its place among the graph outputs included."""
        name = old.name
        new.shape = old.shape
        producer = old.producer()
        graph = producer.graph if producer is not None else None
        if graph is not None:
            for index, output in enumerate(graph.outputs):
                if output is old:
                    graph.outputs[index] = new
        old.replace_all_uses_with(new)
        if name:
            self.rename(old, f"{name}_replaced")
            self.rename(new, name)

    def drop(self, node: ir.Node) -> None:
        """Remove a node whose outputs nobody reads."""
        assert node.graph is not None
        node.graph.remove(node, safe=True)

    def use_domain(self, domain: str, version: int) -> None:
        """Declare an operator set."""
        self.model.graph.opset_imports.setdefault(domain, version)


def abbreviated(name: str) -> str:
    """Return `name`, or for a long one its end and a checksum of the whole.

    Some exporters join the names of all layers that they fused, hundreds of characters; every tensor derived from such
    a one would repeat them, which in a small model outweighs the weights.
    """
    return name if len(name) <= _LONGEST else f"{zlib.crc32(name.encode()):08x}{name[8 - _LONGEST :]}"


def _reserve(wish: str, taken: set[str]) -> str:
    name, index = wish, 0
    while name in taken:
        index += 1
        name = f"{wish}_{index}"
    taken.add(name)
    return name
