"""Chains of nodes that compute one constant from others, as engines fold them at load time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowbit.formats import Format
    from lowbit.graph.editor import Editor

__all__ = ["ConstantChain"]


class ConstantChain:
    """Nodes that compute a constant, collected until they go in front of the node that reads it.

    Args:
        editor: Editor of the model.
        before: The node that reads the result.
        name: Name of the constant; those of the nodes and tensors begin with it.
    """

    def __init__(self, editor: Editor, before: ir.Node, name: str) -> None:
        assert isinstance(before.graph, ir.Graph)
        self.editor = editor
        self.before = before
        self.name = name
        self.graph = before.graph
        self.nodes: list[ir.Node] = []

    def constant(self, what: str, array: NDArray[Any], fmt: Format | None = None) -> ir.Value:
        """Store an array beside the chain.

        Args:
            what: What it is, for its name.
            array: Its values.
            fmt: The format whose storage type they take.
        """
        return self.editor.constant(self.graph, f"{self.name}_{what}", array, fmt)

    def add(
        self, op_type: str, inputs: Sequence[ir.Value], dtype: ir.DataType, attributes: dict[str, Any] | None = None
    ) -> ir.Value:
        """Append a node and return its output."""
        node = self.editor.node(
            op_type,
            inputs,
            name=f"{self.name}_{op_type}",
            outputs=[f"{self.name}_{op_type}"],
            attributes=attributes,
            dtypes=[dtype],
        )
        self.nodes.append(node)
        return node.outputs[0]

    def reshape(self, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """Append a Reshape and return its output."""
        target = self.constant("shape", np.array(shape, dtype=np.int64))
        return self.add("Reshape", [value, target], value.dtype or ir.DataType.FLOAT)

    def insert(self) -> None:
        """Put the nodes into the graph."""
        self.graph.insert_before(self.before, self.nodes)
