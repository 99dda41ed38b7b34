"""Handing a model in memory to an engine, whatever its size."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from lowbit.graph import save_model, serialize

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["staged", "with_outputs"]

# Protobuf ends at 2 GB; above this the weights go to a file beside the model.
_EMBEDDED_LIMIT = 1_500_000_000


@contextmanager
def staged(model: ir.Model) -> Iterator[bytes | Path]:
    """Yield what an engine can load: the serialized model, or for a large one the path of a temporary file."""
    weights = sum(
        value.const_value.nbytes
        for graph in (model.graph, *model.graph.subgraphs())
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    if weights < _EMBEDDED_LIMIT:
        yield serialize(model)
        return
    with tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
        path = Path(folder) / "model.onnx"
        save_model(model.clone(), path, external_data=True)
        yield path


def with_outputs(model: ir.Model, names: tuple[str, ...]) -> ir.Model:
    """Return a copy of `model` that also returns the tensors called `names`, after its own outputs, each once.

    Raises:
        KeyError: The main graph has no such tensor.
    """
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    values.update({value.name: value for value in copy.graph.inputs})
    present = {value.name for value in copy.graph.outputs}
    for name in dict.fromkeys(names):
        if name in present:
            continue
        value = values[name]
        if value.is_graph_input():
            # A graph cannot return its input; an Identity can.
            node = ir.node("Identity", [value], outputs=[ir.Value(name=f"{name}__seen", type=value.type)])
            node.name = f"{name}__seen"
            copy.graph.append(node)
            value = node.outputs[0]
        copy.graph.outputs.append(value)
    return copy
