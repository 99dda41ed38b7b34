"""Bytes of one kind in a row: all the same, as they are, or by tables, whichever is smallest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lowbit.container.compiling import compiled
from lowbit.container.cursor import Damage
from lowbit.container.numbers import symbols
from lowbit.container.rans import decode_tables, encode_tables

if TYPE_CHECKING:
    from lowbit.container.cursor import Cursor

__all__ = ["decode_stream", "encode_stream"]

Bytes = NDArray[np.uint8]

_SAME, _RAW, _TABLES, _TABLES_OF_INTERVAL = 0, 1, 2, 3
_LIST = 31
"""Bytes from which on an alphabet is a set of 256 bits instead of a list."""
_SPARSE = 2
"""Times as many bytes as occur that an interval may have, to be said instead of the bytes themselves."""
_FILL = 16
"""A zero stands for this power of two of bytes that are the same, so that no small file claims endless memory."""
_FEW = 1 << 12
"""Bytes below which it counts how tables begin."""
_HEAD = 11
"""Bytes that few bytes by tables take at least, beside their alphabet and their entropy."""
_INCOMPRESSIBLE = 0.995


@compiled
def _survey(data: Bytes) -> tuple[NDArray[np.int64], Bytes, float]:
    """Return how often each byte occurs, those that do, and the entropy of one in bits."""
    counts = np.zeros(1024, dtype=np.int64)  # four tables, so that one count need not wait for the other
    for number in range(len(data)):
        counts[((number & 3) << 8) + data[number]] += 1
    counts = counts[:256] + counts[256:512] + counts[512:768] + counts[768:]
    alphabet = np.empty(256, dtype=np.uint8)
    size = 0
    entropy = 0.0
    for byte in range(256):
        if counts[byte] > 0:
            entropy -= counts[byte] * np.log2(counts[byte] / len(data))
            alphabet[size] = byte
            size += 1
    return counts, alphabet[:size].copy(), entropy / len(data)


def encode_stream(data: Bytes, bits: int = 8, row: int = 0) -> bytes:
    """Return bytes in the fewest bytes.

    Args:
        data: `[length]`; nothing becomes nothing.
        bits: Of the codes in a byte: 2, 4 or 8.
        row: Bytes in a row if columns tell something, otherwise 0.
    """
    if not len(data):
        return b""
    counts, alphabet, entropy = _survey(data)
    if len(alphabet) == 1:
        return bytes([_SAME, alphabet[0]]) + bytes(len(data) >> _FILL)
    raw = bytes([_RAW]) + data.tobytes()
    if entropy > 8 * _INCOMPRESSIBLE and not row:
        return raw
    if len(data) < _FEW and len(data) * entropy / 8 + min(len(alphabet), 32) // 2 + _HEAD > len(data):
        return raw
    centre = _most_frequent(counts, bits)
    first, size = _interval(alphabet)
    if size <= _SPARSE * len(alphabet) and len(data) < _FEW:
        alphabet = _bytes_from(first, size)
        head = bytes([_TABLES_OF_INTERVAL, centre, size - 1, first])
    else:
        head = bytes([_TABLES, centre, len(alphabet) - 1]) + _alphabet_bytes(alphabet)
    return min(raw, head + encode_tables(data, alphabet, bits, centre, row).tobytes(), key=len)


def decode_stream(cursor: Cursor, length: int, bits: int = 8, row: int = 0) -> Bytes:
    """Return what `encode_stream` was given.

    Raises:
        Damage: There is none.
    """
    if not length:
        return np.empty(0, dtype=np.uint8)
    kind = cursor.byte()
    if kind == _SAME:
        value = cursor.byte()
        cursor.take(length >> _FILL)
        return np.full(length, value, dtype=np.uint8)
    if kind == _RAW:
        return np.frombuffer(cursor.take(length), dtype=np.uint8)
    if kind > _TABLES_OF_INTERVAL:
        raise Damage(f"there is no kind {kind} of bytes")
    centre, size = cursor.byte(), cursor.byte() + 1
    if kind == _TABLES_OF_INTERVAL:
        alphabet = _bytes_from(cursor.byte(), size)
    elif size < _LIST:
        alphabet = np.frombuffer(cursor.take(size), dtype=np.uint8)
    else:
        alphabet = np.flatnonzero(np.unpackbits(_set(cursor), bitorder="little")).astype(np.uint8)
    if size < 2 or len(alphabet) != size or (np.diff(alphabet.astype(np.int64)) <= 0).any():
        raise Damage("its alphabet is none")
    data = np.empty(length, dtype=np.uint8)
    used = decode_tables(np.frombuffer(cursor.rest, dtype=np.uint8), data, alphabet, bits, centre, row)
    if used < 0:
        raise Damage("its numbers do not end where they should")
    cursor.take(used)
    return data


def _set(cursor: Cursor) -> Bytes:
    return np.frombuffer(cursor.take(32), dtype=np.uint8)


@compiled
def _interval(alphabet: Bytes) -> tuple[int, int]:
    """Return the first byte and the size of the shortest interval with these bytes, which may go on from 255 at 0."""
    widest = 0
    first = 0
    for place in range(len(alphabet)):
        after = np.int64(alphabet[place + 1 if place + 1 < len(alphabet) else 0])
        gap = (after - np.int64(alphabet[place])) & 255
        if gap > widest:
            widest = gap
            first = after
    return first, 257 - widest


def _bytes_from(first: int, size: int) -> Bytes:
    """Return the bytes of an interval, ascending."""
    return np.sort((first + np.arange(size)) % 256).astype(np.uint8)


def _alphabet_bytes(alphabet: Bytes) -> bytes:
    if len(alphabet) < _LIST:
        return alphabet.tobytes()
    found = np.zeros(256, dtype=np.uint8)
    found[alphabet] = 1
    return np.packbits(found, bitorder="little").tobytes()


def _most_frequent(counts: NDArray[np.int64], bits: int) -> int:
    """Return the most frequent code, the smallest of several."""
    if bits == 8:
        return int(np.argmax(counts))
    every = symbols(np.arange(256, dtype=np.uint8), bits)
    totals = np.bincount(every, weights=np.repeat(counts, 8 // bits), minlength=256)
    return int(np.argmax(totals))
