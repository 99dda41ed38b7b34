"""Names that a user recognises: inputs and outputs as `forward` calls them, operators after the module they are in."""

from __future__ import annotations

import ast
from collections import Counter
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["forget_origin", "name_operators", "name_outputs", "output_names"]

_SCOPES = "pkg.torch.onnx.name_scopes"


def output_names(outputs: Any) -> list[str]:
    """Return a name for every tensor that a module returned: keys of a dict, fields of a data class, positions.

    One tensor alone is `output`; the second of a tuple is `output_1`; `logits` in a dict is `logits`.
    """
    import torch
    from torch.utils import _pytree as pytree

    names = []
    for path, leaf in pytree.tree_flatten_with_path(outputs)[0]:
        if isinstance(leaf, torch.Tensor):
            words = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
            text = "_".join(word for word in words if word)
            names.append(f"output_{text}" if text[:1].isdigit() else text or "output")
    return names


def name_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Rename the graph's outputs in place; one that is an input, a constant or given twice gets a node of its own."""
    graph = model.graph
    if len(names) != len(graph.outputs) or len(set(names)) != len(names):
        names = [f"output_{number}" for number in range(len(graph.outputs))]
    taken = {value.name for value in graph.inputs} | set(graph.initializers)
    seen: set[int] = set()
    for index, (value, name) in enumerate(zip(list(graph.outputs), names, strict=True)):
        if id(value) in seen or value.producer() is None:
            copied = ir.node("Identity", [value])
            copied.outputs[0].shape, copied.outputs[0].type = value.shape, value.type
            graph.append(copied)
            graph.outputs[index] = copied.outputs[0]
        seen.add(id(value))
        name = f"{name}_output" if name in taken else name
        for node in graph:
            for other in node.outputs:
                if other.name == name and other is not graph.outputs[index]:
                    other.name = f"{name}_inner"
        graph.outputs[index].name = name


def name_operators(model: ir.Model) -> None:
    """Name every operator after its module and what it is, e.g. `layer1.0.conv1/Conv`, in place."""
    counts: Counter[str] = Counter()
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        scopes = [scope for scope in scopes if scope and not scope.startswith("_empty_nn_module")]
        place = scopes[-2] if len(scopes) > 1 else ""
        name = f"{place}/{node.op_type}" if place else node.op_type
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"


def forget_origin(model: ir.Model) -> None:
    """Drop the exporter's remarks: they name files on this machine, and the same module must give the same bytes."""
    model.metadata_props.clear()
    roots: list[Any] = [*model.graphs(), *model.functions.values()]
    for root in roots:
        root.metadata_props.clear()
        root.doc_string = None
        for node in root:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in [*root.inputs, *getattr(root, "initializers", {}).values()]:
            value.metadata_props.clear()
