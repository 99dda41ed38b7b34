"""How the bytes of a tensor become symbols, and which model codes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["BITS", "Layout", "Mode", "dictionary_of", "layout", "reversed_bytes", "symbols", "unsymbols"]

Bytes = NDArray[np.uint8]

BITS = {
    1: 32,  # FLOAT
    2: 8,  # UINT8
    3: 8,  # INT8
    4: 16,  # UINT16
    5: 16,  # INT16
    6: 32,  # INT32
    7: 64,  # INT64
    9: 8,  # BOOL
    10: 16,  # FLOAT16
    11: 64,  # DOUBLE
    12: 32,  # UINT32
    13: 64,  # UINT64
    14: 64,  # COMPLEX64
    15: 128,  # COMPLEX128
    16: 16,  # BFLOAT16
    17: 8,  # FLOAT8E4M3FN
    18: 8,  # FLOAT8E4M3FNUZ
    19: 8,  # FLOAT8E5M2
    20: 8,  # FLOAT8E5M2FNUZ
    21: 4,  # UINT4
    22: 4,  # INT4
    23: 4,  # FLOAT4E2M1
    24: 8,  # FLOAT8E8M0
    25: 2,  # UINT2
    26: 2,  # INT2
}
"""Bits of one number of each `TensorProto.DataType`."""

TABLES, CODES, PLANES, STORED = 0, 1, 2, 3
_WIDTHS = (2, 4, 8, 16, 32, 64)
_MOST_LEVELS = 256
_GLANCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the neighbours of a number are.

    Attributes:
        inner: Numbers from one input channel to the next.
        row: Numbers from one output channel to the next.
    """

    inner: int
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """How a payload is coded, in one byte of the file.

    Attributes:
        model: `TABLES`, `CODES`, `PLANES` or `STORED`.
        bits: Of one number: 2, 4, 8, 16, 32 or 64.
        levels: Whether the numbers are given as places in a list of those that occur.
    """

    model: int
    bits: int
    levels: bool = False

    def to_byte(self) -> int:
        """Return model, width and levels in 2, 3 and 1 bits, the lowest first."""
        return self.model | _WIDTHS.index(self.bits) << 2 | self.levels << 5

    @classmethod
    def from_byte(cls, byte: int) -> Mode:
        """Return what `to_byte` gave.

        Raises:
            ValueError: There is no such mode.
        """
        model, width, levels = byte & 3, byte >> 2 & 7, bool(byte >> 5)
        if byte >> 6 or width >= len(_WIDTHS):
            raise ValueError(f"there is no mode {byte}")
        mode = cls(model=model, bits=_WIDTHS[width], levels=levels)
        if mode not in _MODES:
            raise ValueError(f"there is no mode {byte}")
        return mode


_MODES = (
    {Mode(model=model, bits=bits, levels=True) for model in (TABLES, CODES) for bits in (16, 32, 64)}
    | {Mode(model=TABLES, bits=bits) for bits in _WIDTHS}
    | {Mode(model=CODES, bits=bits) for bits in (2, 4, 8)}
    | {Mode(model=PLANES, bits=bits) for bits in (8, 16, 32, 64)}
    | {Mode(model=STORED, bits=8)}
)


def layout(dims: Sequence[int]) -> Layout:
    """Return where neighbours are in a tensor of this shape, read as `[out, in, ...]`."""
    count = math.prod(dims)
    if not 0 < count <= 1 << 40 or len(dims) < 2:
        return Layout(inner=1, row=1)
    return Layout(inner=math.prod(dims[2:]), row=math.prod(dims[1:]))


def candidates(length: int, bits: int, *, mixed: bool) -> Iterator[Mode]:
    """Yield the modes that are worth trying for a payload.

    Args:
        length: In bytes.
        bits: Of one number; 0 if they are of different lengths.
        mixed: Whether the models that mix may be used.
    """
    bits = bits if bits in _WIDTHS else 8
    if length * 8 % bits:
        bits = 8
    yield Mode(model=TABLES, bits=bits)
    if mixed:
        yield Mode(model=CODES if bits < 8 else PLANES, bits=bits)
        if bits == 8:
            yield Mode(model=CODES, bits=8)
    if bits > 8:
        yield Mode(model=TABLES, bits=bits, levels=True)
        if mixed:
            yield Mode(model=CODES, bits=bits, levels=True)


def dictionary_of(data: Bytes, bits: int) -> tuple[NDArray[Any], Bytes] | None:
    """Return the numbers that occur, ascending, and for each number its place among them; None if they are many."""
    numbers = data.view(f"<u{bits // 8}")
    if np.unique(numbers[:_GLANCE]).size > _MOST_LEVELS:
        return None
    levels, places = np.unique(numbers, return_inverse=True)
    if levels.size > _MOST_LEVELS:
        return None
    # Sign and magnitude as floats have them: those below zero come first, the largest magnitude ahead.
    order = np.argsort(np.where(levels >> np.asarray(bits - 1, levels.dtype), ~levels, levels | _sign(levels, bits)))
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return levels[order], rank[places].astype(np.uint8)


def _sign(levels: NDArray[Any], bits: int) -> NDArray[Any]:
    return np.asarray(1 << (bits - 1)).astype(levels.dtype)


def symbols(data: Bytes, bits: int) -> Bytes:
    """Return codes of 2, 4 or 8 bits one a byte; the first of several in a byte is in its low bits."""
    if bits == 8:
        return data
    lanes = [data >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
    return np.stack(lanes, axis=-1).reshape(-1)


def unsymbols(codes: Bytes, bits: int) -> Bytes:
    """Return what `symbols` was given."""
    if bits == 8:
        return codes
    lanes = codes.reshape(-1, 8 // bits)
    found = lanes[:, 0].copy()
    for lane in range(1, 8 // bits):
        found |= lanes[:, lane] << np.uint8(lane * bits)
    return found


def reversed_bytes(data: Bytes, width: int) -> Bytes:
    """Return numbers of `width` bytes in the other byte order."""
    return np.ascontiguousarray(data.reshape(-1, width)[:, ::-1]).reshape(-1)
