"""How the bytes of a tensor become symbols, and which model codes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "BASE64",
    "BITS",
    "Kind",
    "Layout",
    "Mode",
    "candidates",
    "kind_of",
    "layout",
    "reversed_bytes",
    "symbols",
    "unsymbols",
]

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

_FLOATS = (1, 10, 11, 16)
"""FLOAT, FLOAT16, DOUBLE and BFLOAT16."""

TABLES, CODES, PLANES, STORED = 0, 1, 2, 3
BASE64 = 6
_WIDTHS = (2, 4, 8, 16, 32, 64, BASE64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the neighbours of a number are.

    Attributes:
        inner: Numbers from one input channel to the next.
        row: Numbers from one output channel to the next.
    """

    inner: int
    row: int

    def bytes_in_row(self, bits: int) -> int:
        """Return the bytes in a row of codes, where each number of more than 8 bits is one; 0 if they are no whole."""
        if bits >= 8:
            return self.row
        return 0 if self.row * bits % 8 else self.row * bits // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What the numbers of a payload are.

    Attributes:
        bits: Of one number; 0 if they are of different lengths, 6 if they are a text in base64.
        floats: Whether their highest bit is a sign, and their next ones are an exponent.
    """

    bits: int
    floats: bool = False

    def bits_in(self, length: int) -> int:
        """Return of how many bits numbers in `length` bytes are coded."""
        return self.bits if self.bits in _WIDTHS and self.bits != BASE64 and length * 8 % self.bits == 0 else 8


def kind_of(data_type: int, bits: int | None) -> Kind:
    """Return what numbers are.

    Args:
        data_type: Of `TensorProto.DataType`.
        bits: Of one number where the field says so.
    """
    return Kind(bits=BITS.get(data_type, 8) if bits is None else bits, floats=data_type in _FLOATS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """How a payload is coded, in one byte of the file.

    Attributes:
        model: `TABLES`, `CODES`, `PLANES` or `STORED`.
        bits: Of one number: 2, 4, 8, 16, 32 or 64; or 6, for a text in base64 that is stored as what it stands for.
        levels: Whether the numbers are given as places in a list of those that occur.
        rotated: Whether the highest bit of a number, a float's sign, is moved behind the lowest.
        columns: Whether tables look at the column of a number.
    """

    model: int
    bits: int
    levels: bool = False
    rotated: bool = False
    columns: bool = False

    def to_byte(self) -> int:
        """Return model, width and the three choices in 2, 3 and three times 1 bits, the lowest first."""
        choices = self.levels | self.rotated << 1 | self.columns << 2
        return self.model | _WIDTHS.index(self.bits) << 2 | choices << 5

    @classmethod
    def from_byte(cls, byte: int) -> Mode:
        """Return what `to_byte` gave.

        Raises:
            ValueError: There is no such mode.
        """
        model, width = byte & 3, byte >> 2 & 7
        if width >= len(_WIDTHS):
            raise ValueError(f"there is no mode {byte}")
        choices = {"levels": bool(byte >> 5 & 1), "rotated": bool(byte >> 6 & 1), "columns": bool(byte >> 7)}
        mode = cls(model=model, bits=_WIDTHS[width], **choices)
        if not mode._exists:
            raise ValueError(f"there is no mode {byte}")
        return mode

    @property
    def _exists(self) -> bool:
        if self.model == STORED:
            return self in {Mode(model=STORED, bits=8), Mode(model=STORED, bits=BASE64)}
        if self.bits == BASE64:
            return False
        if (self.levels or self.rotated) and (self.bits < 16 or self.levels == self.rotated):
            return False
        if self.columns and self.model != TABLES:
            return False
        if self.model == CODES:
            return self.bits <= 8 or self.levels
        if self.model == PLANES:
            return self.bits >= 8 and not self.levels
        return True


def layout(dims: Sequence[int]) -> Layout:
    """Return where neighbours are in a tensor of this shape, read as `[out, in, ...]`."""
    count = math.prod(dims)
    if not 0 < count <= 1 << 40 or len(dims) < 2:
        return Layout(inner=1, row=1)
    return Layout(inner=math.prod(dims[2:]), row=math.prod(dims[1:]))


def candidates(length: int, kind: Kind, layout: Layout) -> Iterator[Mode]:
    """Yield the modes that are worth trying for a small payload of `length` bytes."""
    bits = kind.bits_in(length)
    rotated = kind.floats and bits >= 16
    for columns in (False, True) if layout.row > 1 else (False,):
        yield Mode(model=TABLES, bits=bits, rotated=rotated, columns=columns)
    yield Mode(model=CODES if bits < 8 else PLANES, bits=bits)
    if bits == 8:
        yield Mode(model=CODES, bits=8)
    if rotated:
        yield Mode(model=PLANES, bits=bits, rotated=True)
    if bits > 8:
        yield Mode(model=TABLES, bits=bits, levels=True)
        yield Mode(model=CODES, bits=bits, levels=True)


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
