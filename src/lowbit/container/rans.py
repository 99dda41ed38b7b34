"""Bytes by range asymmetric numeral systems (Duda 2013, "Asymmetric numeral systems"), interleaved (Giesen 2014).

What is likely is `table_model`'s. The encoder goes over a block of bytes forwards to find each one's interval, and
backwards to code it, so that the decoder, which goes forwards, knows as much.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowbit.container.compiling import compiled
from lowbit.container.table_model import (
    CONTEXT_OF,
    CONTEXTS,
    FULL,
    PROBABILITY_BITS,
    magnitudes,
    moved,
    prepare,
)

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
_FAR = len(CONTEXT_OF) - 1
_NEAR = 3
_COLUMN = 2
"""A running mean takes over this negative power of two of what is new."""


@compiled
def _write(found: Bytes, position: int, value: int, count: int) -> int:
    """Write a number of `count` bytes, the lowest first; return where the next byte is."""
    for byte in range(count):
        found[position + byte] = np.uint8((value >> (8 * byte)) & 255)
    return position + count


@compiled
def _read(packed: Bytes, position: int, count: int) -> int:
    """Return a number of `count` bytes, the lowest first."""
    value = np.int64(0)
    for byte in range(count):
        value |= np.int64(packed[position + byte]) << (8 * byte)
    return value


@compiled
def _write_varint(found: Bytes, position: int, value: int) -> int:
    """Write seven bits a byte, the lowest first; return where the next byte is."""
    while value > 127:
        found[position] = np.uint8(value & 127 | 128)
        value >>= 7
        position += 1
    found[position] = np.uint8(value)
    return position + 1


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
def encode_tables(data: Bytes, alphabet: Bytes, bits: int, centre: int, row: int) -> Bytes:
    """Return the blocks of some bytes.

    Args:
        data: `[length]`.
        alphabet: At least two bytes, ascending, among them all that occur.
        bits: Of the codes in a byte: 2, 4 or 8.
        centre: The most frequent of these codes.
        row: Bytes in a row, 0 if columns tell nothing.
    """
    letters = alphabet.astype(np.int64)
    sizes = magnitudes(bits, centre)
    counts = np.zeros(CONTEXTS * 256, dtype=np.int32)
    shared = np.zeros(256, dtype=np.int64)
    supposed = np.zeros(CONTEXTS * 256, dtype=np.int32)
    table = np.zeros(CONTEXTS * 256, dtype=np.int32)
    slots = np.zeros(0, dtype=np.uint8)
    pace = np.zeros(2 * CONTEXTS, dtype=np.int64)
    columns = np.zeros(min(row, len(data)), dtype=np.int32)
    near = np.int64(0)
    column = 0
    lanes = 4 if len(data) >= _FEW else 1
    intervals = np.empty(min(_BLOCK, len(data)), dtype=np.int32)
    words = np.empty(len(intervals), dtype=np.uint32)
    found = np.empty(2 * len(data) + (len(data) // _BLOCK + 1) * 48, dtype=np.uint8)
    position = 0
    for first in range(0, len(data), _BLOCK):
        length = min(len(data) - first, _BLOCK)
        for number in range(length):
            mean = near >> 2
            if len(columns) > 0:
                mean = (near + np.int64(columns[column])) >> 3
            context = np.int64(CONTEXT_OF[min(mean, _FAR)])
            if pace[2 * context] == 0:
                prepare(context, letters, sizes, supposed, counts, shared, pace, table, slots)
            byte = np.int64(data[first + number])
            intervals[number] = table[context * 256 + byte]
            counts[context * 256 + byte] += 1
            shared[byte] += 1
            pace[2 * context] -= 1
            near = moved(near, sizes[byte], _NEAR)
            if len(columns) > 0:
                columns[column] = moved(np.int64(columns[column]), sizes[byte], _COLUMN)
                column = column + 1 if column + 1 < len(columns) else 0
        states = np.full(lanes, _LOWEST, dtype=np.int64)
        start = _push(intervals[:length], states, words)
        position = _write_varint(found, position, len(words) - start)
        for lane in range(lanes):
            position = _write(found, position, states[lane], 8)
        for number in range(start, len(words)):
            position = _write(found, position, np.int64(words[number]), 4)
    return found[:position]


@compiled
def decode_tables(packed: Bytes, data: Bytes, alphabet: Bytes, bits: int, centre: int, row: int) -> int:
    """Fill in what `encode_tables` was given; return how many bytes of `packed` that took, -1 if it is damaged."""
    letters = alphabet.astype(np.int64)
    sizes = magnitudes(bits, centre)
    counts = np.zeros(CONTEXTS * 256, dtype=np.int32)
    shared = np.zeros(256, dtype=np.int64)
    supposed = np.zeros(CONTEXTS * 256, dtype=np.int32)
    table = np.zeros(CONTEXTS * 256, dtype=np.int32)
    slots = np.empty(CONTEXTS << PROBABILITY_BITS, dtype=np.uint8)
    pace = np.zeros(2 * CONTEXTS, dtype=np.int64)
    columns = np.zeros(min(row, len(data)), dtype=np.int32)
    near = np.int64(0)
    column = 0
    lanes = 4 if len(data) >= _FEW else 1
    states = np.zeros(lanes, dtype=np.int64)
    position = np.int64(0)
    for first in range(0, len(data), _BLOCK):
        count = np.int64(0)
        shift = 0
        while position < len(packed) and shift < 28:
            count |= np.int64(packed[position] & 127) << shift
            shift += 7
            position += 1
            if packed[position - 1] < 128:
                break
        end = position + 8 * lanes + 4 * count
        if end > len(packed):
            return -1
        for lane in range(lanes):
            states[lane] = _read(packed, position + 8 * lane, 8) & ((1 << 63) - 1)
        position += 8 * lanes
        for number in range(min(len(data) - first, _BLOCK)):
            mean = near >> 2
            if len(columns) > 0:
                mean = (near + np.int64(columns[column])) >> 3
            context = np.int64(CONTEXT_OF[min(mean, _FAR)])
            if pace[2 * context] == 0:
                prepare(context, letters, sizes, supposed, counts, shared, pace, table, slots)
            state = states[number & (lanes - 1)]
            spot = state & (FULL - 1)
            byte = np.int64(slots[(context << PROBABILITY_BITS) + spot])
            interval = np.int64(table[context * 256 + byte])
            state = (interval & 0xFFFF) * (state >> PROBABILITY_BITS) + spot - (interval >> 16)
            if state < _LOWEST:
                if position == end:
                    return -1
                state = (state << 32) | _read(packed, position, 4)
                position += 4
            states[number & (lanes - 1)] = state
            data[first + number] = byte
            counts[context * 256 + byte] += 1
            shared[byte] += 1
            pace[2 * context] -= 1
            near = moved(near, sizes[byte], _NEAR)
            if len(columns) > 0:
                columns[column] = moved(np.int64(columns[column]), sizes[byte], _COLUMN)
                column = column + 1 if column + 1 < len(columns) else 0
        if position != end:
            return -1
        for lane in range(lanes):
            if states[lane] != _LOWEST:
                return -1
    return position
