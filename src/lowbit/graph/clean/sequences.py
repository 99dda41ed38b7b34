"""Sequences of tensors that only hold the parts of a Split.

PyTorch's exporter writes `chunk` and `split` as SplitToSequence and one SequenceAt for each part. No engine computes a
sequence in integers, so that these stand between the projections of an attention and its products.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from lowbit.graph.clean.opset import opset_of
from lowbit.graph.clean.values import all_nodes, constant, fresh_name, is_op, new_initializer, replace_value

__all__ = ["split_without_sequences"]

# Before, Split has its sizes in an attribute.
_SIZES_AS_INPUT = 13


def split_without_sequences(model: ir.Model) -> Counter[str]:
    """Rewrite SplitToSequence and the SequenceAt behind it as one Split.

    Refused where sizes or positions are not constant, where a part is as long as an open axis says, and where the
    sequence is used as a whole.
    """
    changes: Counter[str] = Counter()
    if opset_of(model) < _SIZES_AS_INPUT:
        return changes
    for graph, node in all_nodes(model):
        if not is_op(node, "SplitToSequence") or node.inputs[0] is None:
            continue
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        sizes = _sizes(node, axis)
        readers = None if sizes is None else _readers(node, len(sizes), graph)
        if sizes is None or readers is None:
            continue
        split = ir.node(
            "Split",
            [node.inputs[0], new_initializer(model, graph, f"{node.outputs[0].name}_sizes", np.array(sizes, np.int64))],
            attributes={"axis": axis},
            num_outputs=len(sizes),
            name=node.name,
        )
        split.metadata_props.update(node.metadata_props)
        for index, (part, size) in enumerate(zip(split.outputs, sizes, strict=True)):
            part.name = fresh_name(model, f"{node.outputs[0].name}_{index}")
            part.type = node.inputs[0].type
            part.shape = _cut(node.inputs[0].shape, axis, size)
        graph.insert_before(node, split)
        for reader, position in readers:
            part = split.outputs[position]
            if not replace_value(reader.outputs[0], part):
                # The graph returns one part under two names.
                copy = ir.node("Identity", [part], name=f"{reader.name}/Identity")
                copy.outputs[0].type, copy.outputs[0].shape = part.type, part.shape
                graph.insert_before(reader, copy)
                replace_value(reader.outputs[0], copy.outputs[0])
            graph.remove(reader, safe=True)
        graph.remove(node, safe=True)
        changes["{n} Split{s} that went through a sequence made direct"] += 1
    return changes


def _sizes(node: ir.Node, axis: int) -> list[int] | None:
    """Return how long the parts are, or None where only the run says it."""
    split = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if split is None:
        return None
    if split.ndim == 1:
        return [int(size) for size in split]
    shape, size = node.inputs[0].shape if node.inputs[0] is not None else None, int(split)
    length = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    if not isinstance(length, int) or size <= 0 or length <= 0:
        return None
    return [min(size, length - start) for start in range(0, length, size)]


def _readers(node: ir.Node, parts: int, graph: ir.Graph) -> list[tuple[ir.Node, int]] | None:
    """Return every SequenceAt with the position that it reads, or None where somebody reads otherwise."""
    sequence = node.outputs[0]
    if sequence.is_graph_output():
        return None
    found = []
    for use in sequence.uses():
        position = constant(use.node.inputs[1]) if is_op(use.node, "SequenceAt") else None
        if position is None or use.node.graph is not graph or not -parts <= int(position.item()) < parts:
            return None
        found.append((use.node, int(position.item()) % parts))
    return found


def _cut(shape: ir.Shape | None, axis: int, size: int) -> ir.Shape | None:
    if shape is None:
        return None
    dims = list(shape)
    dims[axis] = size
    return ir.Shape(dims)
