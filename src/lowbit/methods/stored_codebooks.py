"""Reading the formats of weights back that are stored as indices of levels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lowbit.formats import ELEMENTS
from lowbit.graph.constants import constant_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

__all__ = ["lookup_format", "stored_lookup"]


def stored_lookup(chain: Sequence[ir.Node]) -> ir.Node | None:
    """Return the node that looks levels up by computed indices, `None` if a weight is not stored like this.

    Args:
        chain: The nodes from which the weight is computed.
    """
    for node in chain:
        if node.op_type in {"Gather", "GatherElements"}:
            levels = constant_array(node.inputs[0])
            if levels is not None and levels.dtype == np.float32 and constant_array(node.inputs[1]) is None:
                return node
    return None


def lookup_format(lookup: ir.Node, chain: Sequence[ir.Node]) -> str:
    """Return the format of a weight that is stored as indices of levels, as text.

    Args:
        lookup: What `stored_lookup` returned.
        chain: The nodes from which the weight is computed.
    """
    levels = constant_array(lookup.inputs[0])
    assert levels is not None
    if lookup.op_type == "GatherElements":
        axis = lookup.attributes.get("axis")
        return f"codebook{levels.shape[axis.as_int() if axis is not None else 0]}:per-channel"
    name = _name(levels)
    scale = _scale(lookup, chain)
    shape = _shape(lookup.inputs[1])
    if scale is None or scale.size == 1:
        return name
    if shape is not None and len(shape) == scale.ndim:
        shared = [length for length, scales in zip(shape, scale.shape, strict=True) if scales == 1]
        # Blocks share along one axis of several, channels along all but one.
        if math.prod(shape) // scale.size == shared[0] and scale.ndim > 2:
            return f"{name}:block={shared[0]}"
    return f"{name}:per-channel"


def _name(levels: NDArray[np.float32]) -> str:
    """Return the element whose levels these are; those of nobody have been learned."""
    for element in ELEMENTS.values():
        if (
            element.levels
            and not element.learned
            and np.array_equal(np.array(element.levels, dtype=np.float32), levels)
        ):
            return element.name
    return f"codebook{levels.size}"


def _scale(lookup: ir.Node, chain: Sequence[ir.Node]) -> NDArray[np.float32] | None:
    """Return what the levels are multiplied with."""
    for node in chain:
        if node.op_type == "Mul" and node.inputs[0] is lookup.outputs[0]:
            return constant_array(node.inputs[1])
    return None


def _shape(indices: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape of indices: that of the codes that are cast, or the one that those from words are given."""
    producer = indices.producer() if indices is not None else None
    if producer is None:
        return None
    if producer.op_type == "Reshape":
        target = constant_array(producer.inputs[1])
        return None if target is None else tuple(int(size) for size in target)
    codes = constant_array(producer.inputs[0])
    return None if codes is None else codes.shape
