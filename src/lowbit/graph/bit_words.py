"""Codes of 2 or 3 bits in 64-bit words, and the standard operators that take them out again.

ONNX has no type of 3 bits, and its types of 2 bits came with opset 25, which few engines read. Words need BitShift and
BitwiseAnd of opset 18; engines fold them at load time like any computation on constants.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.graph.constant_chain import ConstantChain

__all__ = ["pack_words", "unpacked_words"]

_WORD = 64


def pack_words(codes: NDArray[Any], bits: int) -> NDArray[np.uint64]:
    """Pack codes into words, the first one in the lowest bits; bits that no whole code fits into stay 0.

    Args:
        codes: Any shape, unsigned codes below `2^bits`, read in row-major order.
        bits: Bits of one code.

    Returns:
        `[W, 1]` words of `64 // bits` codes each.
    """
    per_word = _WORD // bits
    lanes = np.zeros(-(-codes.size // per_word) * per_word, dtype=np.uint64)
    lanes[: codes.size] = codes.astype(np.uint8).reshape(-1)
    shifts = np.arange(per_word, dtype=np.uint64) * np.uint64(bits)
    return np.bitwise_or.reduce(lanes.reshape(-1, per_word) << shifts, axis=1, keepdims=True)


def unpacked_words(chain: ConstantChain, words: NDArray[np.uint64], bits: int, shape: tuple[int, ...]) -> ir.Value:
    """Return the int32 codes that words hold, computed by standard operators.

    Args:
        chain: Takes the nodes.
        words: What `pack_words` returned.
        bits: Bits of one code.
        shape: Shape of the codes.
    """
    count, per_word = math.prod(shape), _WORD // bits
    shifts = (np.arange(per_word, dtype=np.uint64) * np.uint64(bits))[None, :]
    stored, places = chain.constant("codes", words), chain.constant("places", shifts)
    shifted = chain.add("BitShift", [stored, places], ir.DataType.UINT64, {"direction": "RIGHT"})
    mask = chain.constant("mask", np.array(2**bits - 1, dtype=np.uint64))
    lanes = chain.add("BitwiseAnd", [shifted, mask], ir.DataType.UINT64)
    codes = chain.add("Cast", [lanes], ir.DataType.INT32, {"to": int(ir.DataType.INT32)})
    if words.size * per_word != count:
        codes = chain.reshape(codes, (-1,))
        ends = [chain.constant(end, np.array([at], dtype=np.int64)) for end, at in (("first", 0), ("end", count))]
        codes = chain.add("Slice", [codes, *ends], ir.DataType.INT32)
    return chain.reshape(codes, shape)
