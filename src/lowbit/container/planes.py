"""Numbers of several bytes, byte by byte: all of their highest bytes, then all of the next.

Floats are rotated left by one bit, so that the highest byte holds nothing but the exponent and the sign is with the low
bits of the mantissa, which are noise too. Numbers whose highest byte is zero are, after pruning, all zero: their other
bytes are apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lowbit.container.compiling import compiled
from lowbit.container.streams import decode_stream, encode_stream

if TYPE_CHECKING:
    from lowbit.container.cursor import Cursor

__all__ = ["decode_planes", "encode_planes", "rotated_left", "rotated_right"]

Bytes = NDArray[np.uint8]


@compiled
def _apart(data: Bytes, planes: NDArray[np.uint8], rotated: bool) -> None:
    """Take numbers apart: `planes` is `[width, count]`, the highest byte first."""
    width = planes.shape[0]
    for number in range(planes.shape[1]):
        first = number * width
        carry = np.int64(data[first + width - 1]) >> 7 if rotated else np.int64(0)
        for place in range(width):
            byte = np.int64(data[first + place])
            if rotated:
                planes[width - 1 - place, number] = np.uint8(((byte << 1) | carry) & 255)
                carry = byte >> 7
            else:
                planes[width - 1 - place, number] = np.uint8(byte)


@compiled
def _together(data: Bytes, planes: NDArray[np.uint8], rotated: bool) -> None:
    """Undo `_apart`."""
    width = planes.shape[0]
    for number in range(planes.shape[1]):
        first = number * width
        carry = np.int64(planes[width - 1, number]) & 1 if rotated else np.int64(0)
        for plane in range(width):
            byte = np.int64(planes[plane, number])
            if rotated:
                data[first + width - 1 - plane] = np.uint8((byte >> 1) | (carry << 7))
                carry = byte & 1
            else:
                data[first + width - 1 - plane] = np.uint8(byte)


def encode_planes(
    data: Bytes, width: int, row: int, *, rotated: bool, only_highest: bool = False, highest: bytes | None = None
) -> bytes:
    """Return numbers of `width` bytes as streams.

    Args:
        data: `[length]`: the numbers, little endian.
        width: 2, 4 or 8.
        row: Numbers in a row if columns tell something, otherwise 0.
        rotated: Whether the numbers are floats.
        only_highest: Whether the other bytes are left out, for a look at what the highest take.
        highest: What that gave for all of the numbers.
    """
    planes = np.empty((width, len(data) // width), dtype=np.uint8)
    _apart(data, planes, rotated)
    found = bytearray(encode_stream(planes[0], 8, row) if highest is None else highest)
    if only_highest:
        return bytes(found)
    for group in _groups(planes[0]):
        for plane in planes[1:]:
            found += encode_stream(plane if group is None else plane[group])
    return bytes(found)


def decode_planes(cursor: Cursor, length: int, width: int, row: int, *, rotated: bool) -> Bytes:
    """Return what `encode_planes` was given.

    Raises:
        Damage: There is none.
    """
    count = length // width
    planes = np.empty((width, count), dtype=np.uint8)
    planes[0] = decode_stream(cursor, count, 8, row)
    for group in _groups(planes[0]):
        for plane in planes[1:]:
            if group is None:
                plane[:] = decode_stream(cursor, count)
            else:
                plane[group] = decode_stream(cursor, int(np.count_nonzero(group)))
    data = np.empty(length, dtype=np.uint8)
    _together(data, planes, rotated)
    return data


def _groups(highest: Bytes) -> list[NDArray[np.bool_] | None]:
    """Return which numbers are together: those with a highest byte other than zero, then the others."""
    some = highest != 0
    return [None] if some.all() or not some.any() else [some, ~some]


def rotated_left(data: Bytes, bits: int) -> Bytes:
    """Return numbers of `bits` bits, little endian, with the highest bit moved behind the lowest."""
    numbers = data.view(f"<u{bits // 8}")
    return (numbers << 1 | numbers >> (bits - 1)).view(np.uint8)


def rotated_right(data: Bytes, bits: int) -> Bytes:
    """Return what `rotated_left` was given."""
    numbers = data.view(f"<u{bits // 8}")
    return (numbers >> 1 | numbers << (bits - 1)).view(np.uint8)
