"""Bytes by tables of frequencies that both sides count: many times faster than mixing, for what is large.

A byte is coded at once, with the table of its context. A table is made anew from what was counted when its count has
doubled, later every 4096 bytes; no table is stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowbit.container.compiling import compiled
from lowbit.container.range_coder import DECODING, LOW, RANGE, code_interval, overrun

__all__ = ["code_tables"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Words = NDArray[np.int32]

_TOTAL_BITS = 16
_CONTEXTS = 16
_PERIOD = 4096
_FIRST = 16
"""Bytes of a context before its table is made for the first time."""
_SHARED = 48
"""Weight, in bytes, of what all contexts have counted in the table of one."""


@compiled
def _magnitudes(bits: int, centre: int) -> Ints:
    """Return for every byte how far its codes of `bits` bits are from the centre, in all."""
    found = np.zeros(256, dtype=np.int64)
    span = (1 << bits) - 1
    middle = 1 << (bits - 1)
    for byte in range(256):
        for lane in range(8 // bits):
            found[byte] += abs((((byte >> (lane * bits)) - centre + middle) & span) - middle)
    return found


@compiled
def _logarithms() -> Bytes:
    """Return 0 to 15 for 0 to 4095: about two steps an octave."""
    found = np.zeros(4096, dtype=np.uint8)
    for value in range(1, 4096):
        length = 0
        rest = value
        while rest > 1:
            rest >>= 1
            length += 1
        step = 2 * length + ((value >> (length - 1)) & 1 if length > 0 else 0)
        found[value] = min(max(step - 5, 0), 15)
    return found


@compiled
def _make(shared: Words, counts: Words, ends: Words, starts: Bytes, plane: int, context: int) -> None:
    """Make the table of a context: the ends of its bytes' intervals, and a byte for every 256th place in them."""
    own = np.int64(0)
    everyone = np.int64(0)
    for byte in range(256):
        own += counts[context * 256 + byte]
        everyone += shared[plane * 256 + byte]
    # The shared counts are smoothed by one byte of each value in 256; the sum of all shares is at most the total.
    scale = np.int64((1 << _TOTAL_BITS) - 256)
    place = np.int64(0)
    best = 0
    most = np.int64(-1)
    for byte in range(256):
        common = ((np.int64(shared[plane * 256 + byte]) << 16) + (1 << 11)) // (everyone + 8)
        size = ((np.int64(counts[context * 256 + byte]) << 16) + common * _SHARED) * scale // ((own + _SHARED) << 16)
        if size > most:
            most = size
            best = byte
        place += size + 1
        ends[context * 256 + byte] = place
    spare = (1 << _TOTAL_BITS) - place
    for byte in range(best, 256):
        ends[context * 256 + byte] += spare
    byte = 0
    for bucket in range(256):
        while ends[context * 256 + byte] <= bucket << 8:
            byte += 1
        starts[context * 256 + bucket] = byte


@compiled
def code_tables(coder: Ints, buffer: Bytes, data: Bytes, width: int, bits: int, centre: int) -> bool:
    """Code `data`; when decoding, it is filled in.

    Args:
        coder: Of `range_coder`.
        buffer: What the coder reads or writes.
        data: `[length]` bytes of numbers of `width` bytes, the highest first.
        width: Bytes of a number.
        bits: Of the codes in a byte, where `width` is 1: 2, 4 or 8.
        centre: The most frequent of these codes.

    Returns:
        Whether the buffer was long enough.
    """
    tables = width * _CONTEXTS
    counts = np.zeros(tables * 256, dtype=np.int32)
    shared = np.zeros(width * 256, dtype=np.int32)
    ends = np.zeros(tables * 256, dtype=np.int32)
    starts = np.zeros(tables * 256, dtype=np.uint8)
    left = np.full(tables, _FIRST, dtype=np.int64)
    made = np.full(tables, _FIRST, dtype=np.int64)
    for context in range(tables):
        _make(shared, counts, ends, starts, context // _CONTEXTS, context)
    sizes = _magnitudes(bits, centre)
    logarithms = _logarithms()
    near = np.int64(0)
    plane = 0
    decoding = coder[DECODING] == 1
    higher = np.int64(0)
    top = np.int64(0)
    for place in range(len(data)):
        if width == 1:
            context = np.int64(logarithms[min(near >> 2, 4095)])
        elif plane == 0:
            context = top & 15
        else:
            context = plane * _CONTEXTS + (higher & 15 if plane == 1 else higher >> 4)
        base = context * 256
        unit = coder[RANGE] >> _TOTAL_BITS
        if decoding:
            spot = min(np.int64(np.uint32(coder[LOW]) // np.uint32(unit)), (1 << _TOTAL_BITS) - 1)
            byte = np.int64(starts[base + (spot >> 8)])
            while ends[base + byte] <= spot:
                byte += 1
        else:
            byte = np.int64(data[place])
        start = np.int64(ends[base + byte - 1]) if byte > 0 else 0
        code_interval(coder, buffer, start, np.int64(ends[base + byte]) - start, unit)
        if decoding:
            data[place] = byte
            if overrun(coder):
                return False
        counts[base + byte] += 1
        shared[plane * 256 + byte] += 1
        left[context] -= 1
        if left[context] == 0:
            _make(shared, counts, ends, starts, plane, context)
            left[context] = min(made[context], _PERIOD)
            made[context] += left[context]
        if width == 1:
            near += ((sizes[byte] << 6) - near) >> 3
        else:
            if plane == 0:
                top = byte
            higher = byte
            plane = plane + 1 if plane + 1 < width else 0
    return not overrun(coder)
