"""Weights stored as indices of levels: `levels[indices] · scale` in standard operators that engines fold at load time.

NOTE: DequantizeLinear has no levels, and engines that have blocks of NF4 have them in operators of their own. Gather
and Mul load everywhere; what engines make of them is a float weight, at float speed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.formats import Format, Parameters, PerBlock, PerChannel, levels_of
from lowbit.graph.bit_words import pack_words, unpacked_words
from lowbit.graph.constant_chain import ConstantChain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.graph.editor import Editor

__all__ = ["looked_up_at_load"]

# Up to so many bits, codes are kept in words.
_FEW_BITS = 3


def looked_up_at_load(
    editor: Editor,
    before: ir.Node,
    name: str,
    codes: NDArray[Any],
    parameters: Parameters,
    fmt: Format,
    *,
    shape: tuple[int, ...] | None = None,
) -> ir.Value:
    """Store a weight as indices of levels and return the float weight that engines compute once, at load time.

    Args:
        editor: Editor of the model.
        before: The node that reads the weight.
        name: Name of the float weight.
        codes: Indices in the weight's shape. Cut into blocks, the axis must be a multiple of the block.
        parameters: Scale, and the levels that the weight has learned; those of channels only along the first or last
            axis.
        fmt: Format of a codebook.
        shape: Shape that the reader expects, if it is not the codes' own.
    """
    chain = ConstantChain(editor, before, name)
    levels = levels_of(fmt, parameters.levels)
    own, scale = codes.shape, parameters.scale
    stored, granularity = own, fmt.granularity
    if levels.ndim > 1:
        stored = _matrix(own, fmt)
    elif isinstance(granularity, PerBlock):
        axis = granularity.axis % len(own)
        stored = (*own[:axis], own[axis] // granularity.size, granularity.size, *own[axis + 1 :])
        scale = np.expand_dims(scale, axis + 1)
    else:
        scale = granularity.broadcast(scale, own)
    indices = _indices(chain, codes.reshape(stored), fmt)
    if levels.ndim == 1:
        weight = chain.add("Gather", [chain.constant("levels", levels), indices], ir.DataType.FLOAT)
    else:
        first = _is_first(own, fmt)
        table = chain.constant("levels", levels if first else np.ascontiguousarray(levels.T))
        weight = chain.add("GatherElements", [table, indices], ir.DataType.FLOAT, {"axis": int(first)})
    if (scale != 1).any():
        weight = chain.add("Mul", [weight, chain.constant("scale", scale)], ir.DataType.FLOAT)
    if stored != (shape or own):
        weight = chain.reshape(weight, shape or own)
    chain.insert()
    return weight


def _indices(chain: ConstantChain, codes: NDArray[Any], fmt: Format) -> ir.Value:
    """Store codes as small as their bits are and return them as int32."""
    if fmt.element.bits <= _FEW_BITS:
        return unpacked_words(chain, pack_words(codes, fmt.element.bits), fmt.element.bits, codes.shape)
    stored = chain.constant("codes", codes, fmt)
    return chain.add("Cast", [stored], ir.DataType.INT32, {"to": int(ir.DataType.INT32)})


def _is_first(shape: tuple[int, ...], fmt: Format) -> bool:
    assert isinstance(fmt.granularity, PerChannel)
    return fmt.granularity.axis % len(shape) == 0


def _matrix(shape: tuple[int, ...], fmt: Format) -> tuple[int, int]:
    """Return the shape of a weight as a matrix of its channels, which are its first or last axis."""
    rest = math.prod(shape) // shape[0 if _is_first(shape, fmt) else -1]
    return (shape[0], rest) if _is_first(shape, fmt) else (rest, shape[-1])
