"""Range coding (Martin 1979) with carries: intervals of a 32-bit range to bytes, and back.

A coder is an array of five integers, one layout for both directions, so that a model is one function that encodes or
decodes: what it is told when it encodes, it returns when it decodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowbit.container.compiling import compiled

__all__ = [
    "code_bit",
    "code_uniform",
    "decoder",
    "encoder",
    "finish",
    "overrun",
]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

LOW = 0
"""Lower end of the interval when encoding; what is read minus the lower end when decoding."""
RANGE = 1
POSITION = 2
"""Next byte of the buffer to be written or read."""
END = 3
"""Bytes of the buffer."""
DECODING = 4

_TOP = 1 << 24
_FULL = 1 << 32


def encoder(buffer: Bytes) -> Ints:
    """Return a coder that writes into `buffer` from its start."""
    return np.array([0, _FULL - 1, 0, len(buffer), 0], dtype=np.int64)


def decoder(buffer: Bytes) -> Ints:
    """Return a coder that reads `buffer` from its start; behind its end there are zeros."""
    first = int.from_bytes(bytes(buffer[:4]).ljust(4, b"\0"), "big")
    return np.array([first, _FULL - 1, 4, len(buffer), 1], dtype=np.int64)


@compiled
def overrun(coder: Ints) -> bool:
    """Whether more was read or written than the buffer holds, which a whole file never needs."""
    return coder[POSITION] > coder[END] + (4 if coder[DECODING] else 0)


@compiled
def _renormalize(coder: Ints, buffer: Bytes) -> None:
    if coder[DECODING]:
        while coder[RANGE] < _TOP:
            byte = np.int64(buffer[coder[POSITION]]) if coder[POSITION] < coder[END] else 0
            coder[LOW] = (coder[LOW] << 8) | byte
            coder[RANGE] <<= 8
            coder[POSITION] += 1
        return
    if coder[LOW] >= _FULL:
        coder[LOW] -= _FULL
        place = min(coder[POSITION], coder[END]) - 1
        while place > 0 and buffer[place] == 255:
            buffer[place] = 0
            place -= 1
        buffer[place] += np.uint8(1)
    while coder[RANGE] < _TOP:
        if coder[POSITION] < coder[END]:
            buffer[coder[POSITION]] = np.uint8(coder[LOW] >> 24)
        coder[LOW] = (coder[LOW] << 8) & (_FULL - 1)
        coder[RANGE] <<= 8
        coder[POSITION] += 1


@compiled
def code_bit(coder: Ints, buffer: Bytes, chance: int, bit: int) -> int:
    """Code one bit; `chance`, 1 to 65535, is the probability of a one times 65536. Returns the bit."""
    bound = (coder[RANGE] >> 16) * chance
    if coder[DECODING]:
        bit = 1 if coder[LOW] < bound else 0
        if bit:
            coder[RANGE] = bound
        else:
            coder[LOW] -= bound
            coder[RANGE] -= bound
    elif bit:
        coder[RANGE] = bound
    else:
        coder[LOW] += bound
        coder[RANGE] -= bound
    if coder[RANGE] < _TOP or coder[LOW] >= _FULL:
        _renormalize(coder, buffer)
    return bit


@compiled
def _code_interval(coder: Ints, buffer: Bytes, start: int, size: int, unit: int) -> None:
    """Code the interval from `start` on, of `size` units."""
    if coder[DECODING]:
        coder[LOW] -= unit * start
    else:
        coder[LOW] += unit * start
    coder[RANGE] = unit * size
    if coder[RANGE] < _TOP or coder[LOW] >= _FULL:
        _renormalize(coder, buffer)


@compiled
def code_uniform(coder: Ints, buffer: Bytes, value: int, count: int) -> int:
    """Code `count` bytes of which nothing is known, the highest first. Returns the value."""
    found = 0
    for number in range(count):
        byte = (value >> (8 * (count - 1 - number))) & 255
        unit = coder[RANGE] >> 8
        if coder[DECODING]:
            byte = min(coder[LOW] // unit, 255)
        _code_interval(coder, buffer, byte, 1, unit)
        found = (found << 8) | byte
    return found


def finish(coder: Ints, buffer: Bytes) -> int:
    """Write as few bytes as tell the last interval from its neighbours, and return how many there are in all.

    Raises:
        ValueError: The buffer was too small.
    """
    low, size, position = int(coder[LOW]), int(coder[RANGE]), int(coder[POSITION])
    for free in (24, 16, 8, 0):
        value = -(-low >> free) << free
        if value < low + size:
            break
    if position + 4 > len(buffer):
        raise ValueError("the buffer is too small")
    if value >= _FULL:
        place = position - 1
        while buffer[place] == 255:
            buffer[place] = 0
            place -= 1
        buffer[place] += 1
    for byte in range((32 - free) // 8):
        buffer[position + byte] = value >> (24 - 8 * byte) & 255
    return position + (32 - free) // 8
