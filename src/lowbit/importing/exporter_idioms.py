"""What PyTorch's exporter computes at run time although the types and shapes that it wrote down say it already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["settle_casts", "settle_reshapes"]


def settle_casts(model: ir.Model) -> None:
    """Replace `CastLike` by `Cast` where the type is known, in place, so that what hangs on it can be folded."""
    for graph in model.graphs():
        for node in list(graph):
            like = node.inputs[1] if node.op_type == "CastLike" and not node.domain else None
            if like is None or like.dtype is None or node.inputs[0] is None:
                continue
            cast = ir.node("Cast", [node.inputs[0]], {"to": int(like.dtype)}, name=node.name)
            _replace(graph, node, cast)


def settle_reshapes(model: ir.Model) -> None:
    """Give `Reshape` a constant shape where at most one size is neither a number nor copied from its input, in place.

    The exporter takes each open size from the input with Shape and Gather; ONNX says the same with 0 (copy this axis)
    and −1 (what remains).
    """
    for graph in model.graphs():
        for node in list(graph):
            if node.op_type != "Reshape" or node.domain or node.inputs[0] is None or node.inputs[1] is None:
                continue
            if node.inputs[1].const_value is not None:
                continue
            shape, before = node.outputs[0].shape, node.inputs[0].shape
            if shape is None or before is None:
                continue
            sizes = _sizes(tuple(shape), tuple(before))
            if sizes is None:
                continue
            name = f"{node.outputs[0].name}_shape"
            constant = ir.Value(name=name, const_value=ir.Tensor(np.array(sizes, np.int64), name=name))
            constant.type, constant.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(sizes)])
            model.graph.register_initializer(constant)
            node.replace_input_with(1, constant)
            node.attributes.pop("allowzero", None)


def _sizes(shape: Sequence[int | ir.SymbolicDim], before: Sequence[int | ir.SymbolicDim]) -> list[int] | None:
    sizes: list[int] = []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            if dim == 0:
                return None
            sizes.append(dim)
        elif axis < len(before) and not isinstance(before[axis], int) and dim.value and dim == before[axis]:
            sizes.append(0)
        else:
            sizes.append(-1)
    return sizes if sizes.count(-1) <= 1 else None


def _replace(graph: ir.Graph, node: ir.Node, new: ir.Node) -> None:
    old, result = node.outputs[0], new.outputs[0]
    result.name, result.shape, result.type = (
        old.name,
        old.shape,
        ir.TensorType(ir.DataType(new.attributes["to"].as_int())),
    )
    new.metadata_props.update(node.metadata_props)
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
