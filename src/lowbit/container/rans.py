"""Bytes by range asymmetric numeral systems (Duda 2013, "Asymmetric numeral systems"), interleaved (Giesen 2014).

What is likely is `table_model`'s. The encoder goes over a block of bytes forwards to find each one's interval, and
backwards to code it, so that the decoder, which goes forwards, knows as much.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowbit.container.compiling import compiled
from lowbit.container.cursor import Cursor, Damage
from lowbit.container.table_model import (
    CONTEXT_OF,
    CONTEXTS,
    FULL,
    PROBABILITY_BITS,
    magnitudes,
    moved,
    prepare,
)
from lowbit.container.wire import varint

__all__ = ["decode_tables", "encode_tables"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Words = NDArray[np.int32]

_BLOCK = 1 << 17
"""Bytes of the data that are coded backwards together."""
_FEW = 1 << 14
"""Bytes of the data from which on there are four states instead of one, which a processor computes side by side."""
_LOWEST = 1 << 31
"""A state is at least this and less than 2^63."""
_NEAR = 3
_COLUMN = 2
"""A running mean takes over this negative power of two of what is new."""


class _Model:
    """The arrays of `table_model`, and where it is: the mean, the column, and for each column its mean."""

    def __init__(self, alphabet: Bytes, bits: int, centre: int, row: int, *, decoding: bool) -> None:
        self.alphabet = alphabet.astype(np.int64)
        self.sizes = magnitudes(bits, centre)
        self.counts = np.zeros(CONTEXTS * 256, dtype=np.int32)
        self.shared = np.zeros(256, dtype=np.int64)
        self.supposed = np.zeros(CONTEXTS * 256, dtype=np.int32)
        self.table = np.zeros(CONTEXTS * 256, dtype=np.int32)
        self.slots = np.empty(CONTEXTS << PROBABILITY_BITS if decoding else 0, dtype=np.uint8)
        self.pace = np.zeros(2 * CONTEXTS, dtype=np.int64)
        self.columns = np.zeros(row, dtype=np.int32)
        self.place = np.zeros(2, dtype=np.int64)

    @property
    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        """What the loops take."""
        return (
            self.alphabet,
            self.sizes,
            self.supposed,
            self.counts,
            self.shared,
            self.pace,
            self.table,
            self.slots,
            self.columns,
            self.place,
        )


@compiled
def _intervals(
    data: Bytes,
    found: Words,
    alphabet: Ints,
    sizes: Ints,
    supposed: Words,
    counts: Words,
    shared: Ints,
    pace: Ints,
    table: Words,
    slots: Bytes,
    columns: Words,
    place: Ints,
) -> None:
    """Find the interval of each byte: its start, times 65536, plus its size."""
    near = place[0]
    column = place[1]
    for number in range(len(data)):
        mean = near >> 2
        if len(columns) > 0:
            mean = (near + np.int64(columns[column])) >> 3
        context = np.int64(CONTEXT_OF[min(mean, 1024)])
        if pace[2 * context] == 0:
            prepare(context, alphabet, sizes, supposed, counts, shared, pace, table, slots)
        byte = np.int64(data[number])
        found[number] = table[context * 256 + byte]
        counts[context * 256 + byte] += 1
        shared[byte] += 1
        pace[2 * context] -= 1
        near = moved(near, sizes[byte], _NEAR)
        if len(columns) > 0:
            columns[column] = moved(np.int64(columns[column]), sizes[byte], _COLUMN)
            column = column + 1 if column + 1 < len(columns) else 0
    place[0] = near
    place[1] = column


@compiled
def _push(intervals: Words, states: Ints, words: NDArray[np.uint32]) -> int:
    """Code intervals backwards; fill `words` from its end, and return where they start."""
    position = len(words)
    lanes = len(states)
    for number in range(len(intervals) - 1, -1, -1):
        size = np.int64(intervals[number]) & 0xFFFF
        state = states[number & (lanes - 1)]
        if state >= size << (63 - PROBABILITY_BITS):
            position -= 1
            words[position] = np.uint32(state & 0xFFFFFFFF)
            state >>= 32
        whole = np.int64(np.uint64(state) // np.uint64(size))
        start = np.int64(intervals[number]) >> 16
        states[number & (lanes - 1)] = (whole << PROBABILITY_BITS) + (state - whole * size) + start
    return position


@compiled
def _pop(
    data: Bytes,
    states: Ints,
    words: NDArray[np.uint32],
    alphabet: Ints,
    sizes: Ints,
    supposed: Words,
    counts: Words,
    shared: Ints,
    pace: Ints,
    table: Words,
    slots: Bytes,
    columns: Words,
    place: Ints,
) -> int:
    """Fill in `data`; return how many words that took, which may be more than there are."""
    near = place[0]
    column = place[1]
    position = 0
    lanes = len(states)
    for number in range(len(data)):
        mean = near >> 2
        if len(columns) > 0:
            mean = (near + np.int64(columns[column])) >> 3
        context = np.int64(CONTEXT_OF[min(mean, 1024)])
        if pace[2 * context] == 0:
            prepare(context, alphabet, sizes, supposed, counts, shared, pace, table, slots)
        state = states[number & (lanes - 1)]
        spot = state & (FULL - 1)
        byte = np.int64(slots[(context << PROBABILITY_BITS) + spot])
        interval = np.int64(table[context * 256 + byte])
        state = (interval & 0xFFFF) * (state >> PROBABILITY_BITS) + spot - (interval >> 16)
        if state < _LOWEST:
            state = (state << 32) | (np.int64(words[position]) if position < len(words) else 0)
            position += 1
        states[number & (lanes - 1)] = state
        data[number] = byte
        counts[context * 256 + byte] += 1
        shared[byte] += 1
        pace[2 * context] -= 1
        near = moved(near, sizes[byte], _NEAR)
        if len(columns) > 0:
            columns[column] = moved(np.int64(columns[column]), sizes[byte], _COLUMN)
            column = column + 1 if column + 1 < len(columns) else 0
    place[0] = near
    place[1] = column
    return position


def encode_tables(data: Bytes, alphabet: Bytes, bits: int, centre: int, row: int) -> bytes:
    """Return the blocks of some bytes.

    Args:
        data: `[length]`.
        alphabet: At least two bytes: those that occur, ascending.
        bits: Of the codes in a byte: 2, 4 or 8.
        centre: The most frequent of these codes.
        row: Bytes in a row, 0 if columns tell nothing.
    """
    model = _Model(alphabet, bits, centre, min(row, len(data)), decoding=False)
    intervals = np.empty(min(_BLOCK, len(data)), dtype=np.int32)
    words = np.empty(len(intervals), dtype=np.uint32)
    found = bytearray()
    for start in range(0, len(data), _BLOCK):
        block = data[start : start + _BLOCK]
        _intervals(block, intervals, *model.arrays)
        states = np.full(_lanes(len(data)), _LOWEST, dtype=np.int64)
        position = _push(intervals[: len(block)], states, words)
        found += varint(len(words) - position)
        found += states.astype("<u8").tobytes() + words[position:].astype("<u4").tobytes()
    return bytes(found)


def decode_tables(cursor: Cursor, length: int, alphabet: Bytes, bits: int, centre: int, row: int) -> Bytes:
    """Return the bytes of which `encode_tables` made blocks.

    Raises:
        Damage: They are none.
    """
    model = _Model(alphabet, bits, centre, min(row, length), decoding=True)
    data = np.empty(length, dtype=np.uint8)
    for start in range(0, length, _BLOCK):
        count = cursor.varint()
        lanes = _lanes(length)
        states = np.frombuffer(cursor.take(8 * lanes), dtype="<u8").astype(np.int64) & ((1 << 63) - 1)
        words = np.frombuffer(cursor.take(4 * count), dtype="<u4").astype(np.uint32)
        used = _pop(data[start : start + _BLOCK], states, words, *model.arrays)
        if used != count or (states != _LOWEST).any():
            raise Damage("its numbers do not end where they should")
    return data


def _lanes(length: int) -> int:
    return 4 if length >= _FEW else 1
