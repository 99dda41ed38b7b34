"""Tables of frequencies that both sides count: what a byte is likely to be, from how large the ones before it were.

A byte is coded at once, with the table of its context. A table is made anew from what was counted when its count has
doubled, later every 4096 bytes; no table is stored. Before anything is counted, codes of a context are thought to fall
off geometrically from the centre, with the mean that the context stands for: so that small tensors learn little.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowbit.container.compiling import compiled

__all__ = ["CONTEXTS", "CONTEXT_OF", "FALLING", "FULL", "PROBABILITY_BITS", "magnitudes", "moved", "prepare"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Words = NDArray[np.int32]

PROBABILITY_BITS = 15
FULL = 1 << PROBABILITY_BITS
CONTEXTS = 16
_FIRST = 16
"""Bytes of a context before its table is made for the second time."""
_PERIOD = 4096
_SHARED = 16
"""Weight, in bytes, of what all contexts have counted in the table of one; ..."""
_SUPPOSED = 96
"""... and of what is supposed before anything is counted."""
_COUNTED = 8
"""Weight, in bytes, of a supposition that all bytes are equally likely, in what all contexts have counted."""
_FINE = 8
"""Fractional bits of a weight."""


def _falling() -> Ints:
    """Return how likely distances from the centre are in each context, `[16, 129]`, up to a factor."""
    found = np.zeros((CONTEXTS, 129), dtype=np.int64)
    found[:, 0] = 1 << 24
    for context in range(CONTEXTS):
        step = context + 5
        mean = 2 if context == 0 else ((5 + 2 * (step & 1)) << (step >> 1)) >> 2
        for size in range(128):
            found[context, size + 1] = found[context, size] * mean // (mean + 16)
    return found


FALLING = _falling()


@compiled
def magnitudes(bits: int, centre: int) -> Ints:
    """Return for every byte how far its codes of `bits` bits are from the centre, in all: 0 to 128."""
    found = np.zeros(256, dtype=np.int64)
    span = (1 << bits) - 1
    middle = 1 << (bits - 1)
    for byte in range(256):
        for lane in range(8 // bits):
            found[byte] += abs((((byte >> (lane * bits)) - centre + middle) & span) - middle)
    return found


CONTEXT_OF = np.array(
    [0] * 8 + [2 * mean.bit_length() - 7 + (mean >> (mean.bit_length() - 2) & 1) for mean in range(8, 1025)], np.uint8
).clip(max=CONTEXTS - 1)
"""Context, 0 to 15, for a running mean in sixteenths, at most 1024: two steps an octave."""


@compiled
def moved(mean: int, size: int, shift: int) -> int:
    """Return a running mean, in units of 1/64, after another value."""
    return mean + (((size << 6) - mean) >> shift)


@compiled
def _suppose(context: int, alphabet: Ints, sizes: Ints, supposed: Words) -> None:
    """Fill in the weights of the bytes in a context before anything is counted; their sum is at most `_SUPPOSED`."""
    total = np.int64(1)
    for byte in alphabet:
        total += FALLING[context, sizes[byte]]
    share = (np.int64(_SUPPOSED << _FINE) << 32) // total
    for byte in alphabet:
        supposed[context * 256 + byte] = (FALLING[context, sizes[byte]] * share) >> 32


@compiled
def _make(
    context: int, alphabet: Ints, supposed: Words, counts: Words, shared: Ints, table: Words, slots: Bytes
) -> None:
    """Make the table of a context: for a byte its start, times 65536, plus its frequency; and the byte of each slot.

    `slots` is empty when encoding.
    """
    base = context * 256
    own = np.int64(0)
    everyone = np.int64(0)
    for byte in alphabet:
        own += counts[base + byte]
        everyone += shared[byte]
    flat = (_COUNTED << _FINE) // len(alphabet)
    share = (np.int64(_SHARED) << 32) // (everyone + _COUNTED)
    scale = (np.int64(FULL - len(alphabet)) << 32) // ((own + _SHARED + _SUPPOSED) << _FINE)
    left = np.int64(FULL)
    best = alphabet[0]
    for byte in alphabet:
        weight = (np.int64(counts[base + byte]) << _FINE) + supposed[base + byte]
        weight += (((shared[byte] << _FINE) + flat) * share) >> 32
        frequency = 1 + ((weight * scale) >> 32)
        table[base + byte] = frequency
        left -= frequency
        if frequency > table[base + best]:
            best = byte
    table[base + best] += left
    start = np.int64(0)
    for byte in alphabet:
        frequency = np.int64(table[base + byte])
        table[base + byte] = (start << 16) | frequency
        if len(slots) > 0:
            first = (context << PROBABILITY_BITS) + start
            slots[first : first + frequency] = byte
        start += frequency


@compiled
def prepare(
    context: int,
    alphabet: Ints,
    sizes: Ints,
    supposed: Words,
    counts: Words,
    shared: Ints,
    pace: Ints,
    table: Words,
    slots: Bytes,
) -> None:
    """Make the table of a context, because it is time.

    `pace` has for each context how many bytes are left until its table is made anew, and how many it has then seen.
    """
    if pace[2 * context + 1] == 0:
        _suppose(context, alphabet, sizes, supposed)
        pace[2 * context + 1] = _FIRST
        pace[2 * context] = _FIRST
    else:
        pace[2 * context] = min(pace[2 * context + 1], _PERIOD)
        pace[2 * context + 1] += pace[2 * context]
    _make(context, alphabet, supposed, counts, shared, table, slots)
