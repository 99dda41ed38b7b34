"""Codes of few bits by context mixing: quantized, pruned and clustered weights.

The binarization is that of DeepCABAC (Wiedemann et al. 2020): whether a code is the centre, its sign, then its distance
from the centre in Exp-Golomb form. Here all of its bits are predicted, by mixing counters in several contexts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowbit.container.compiling import compiled
from lowbit.container.mixing import SQUASH, STRETCH, learn, mix, refine
from lowbit.container.range_coder import code_bit, overrun

__all__ = ["code_codes"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_CONTEXTS = 9
_INPUTS = _CONTEXTS + 1
_NODES = 512
"""Decisions: 0 the centre or not, 1 the sign, 2 to 9 the length of the distance, 256 to 511 its bits by prefix."""


@compiled
def _level(value: int) -> int:
    """Return a coarse logarithm, 0 to 15: exact to 3, then two steps an octave."""
    if value < 4:
        return value
    length = 0
    rest = value
    while rest > 1:
        rest >>= 1
        length += 1
    return min(2 * length + ((value >> (length - 1)) & 1), 15)


@compiled
def code_codes(coder: Ints, buffer: Bytes, codes: Bytes, centre: int, inner: int, row: int, bits: int) -> bool:
    """Code `codes`; when decoding, they are filled in.

    Args:
        coder: Of `range_coder`.
        buffer: What the coder reads or writes.
        codes: `[length]`, 0 to 255.
        centre: The code that is most frequent.
        inner: Codes from one input channel to the next.
        row: Codes from one output channel to the next.
        bits: Of `table_bits`: how many bits number the counters of each context.

    Returns:
        Whether the buffer was long enough.
    """
    slots = np.zeros(_CONTEXTS, dtype=np.int64)
    chances = np.full(_CONTEXTS << bits, 32768, dtype=np.int32)
    counts = np.zeros(_CONTEXTS << bits, dtype=np.uint8)
    weights = np.full(_NODES * _INPUTS, 8000, dtype=np.int32)
    weights2 = np.full(16 * 16 * _INPUTS, 8000, dtype=np.int32)
    columns = np.zeros(min(row, len(codes)), dtype=np.int64)
    values = np.zeros(len(codes), dtype=np.int16)
    logits = np.zeros(_INPUTS, dtype=np.int64)
    contexts = np.zeros(_CONTEXTS, dtype=np.int64)
    near = np.int64(0)
    wide = np.int64(0)
    for place in range(len(codes)):
        column = place % row
        left = np.int64(values[place - 1]) if place >= 1 else 0
        left2 = np.int64(values[place - 2]) if place >= 2 else 0
        back = np.int64(values[place - inner]) if place >= inner else 0
        up = np.int64(values[place - row]) if place >= row else 0
        contexts[0] = 0
        contexts[1] = _level(abs(left)) * 16 + _level(abs(left2))
        contexts[2] = _level(abs(back)) * 16 + _level(abs(up))
        contexts[3] = _level(2 * abs(left) + abs(left2) + 2 * abs(back) + 2 * abs(up))
        contexts[4] = left + 255
        contexts[5] = up + 255
        contexts[6] = _level(columns[column] >> 4) * 16 + _level(near >> 5)
        contexts[7] = _level(wide >> 6) * 16 + _level(near >> 4)
        contexts[8] = back + 255
        activity = _level((near >> 4) + (columns[column] >> 4) + abs(up))
        target = np.int64(codes[place]) - centre
        size = abs(target)
        value = np.int64(0)
        # 0: centre or not; 1: sign; 2: length in unary; 3: the bits below the highest
        stage = 0
        length = 0
        done = 0
        distance = np.int64(1)
        negative = 0
        top = 0
        rest = size
        while rest > 1:
            rest >>= 1
            top += 1
        while True:
            if stage == 0:
                node = 0
                bit = 1 if size > 0 else 0
            elif stage == 1:
                node = 1
                bit = 1 if target < 0 else 0
            elif stage == 2:
                node = 2 + length
                bit = 1 if top > length else 0
            else:
                node = 256 + ((distance << (length - done)) | ((1 << (length - done)) >> 1))
                bit = (size >> (length - done - 1)) & 1
            for context in range(_CONTEXTS):
                key = ((contexts[context] * _NODES + node) * 0x9E3779B1) & 0xFFFFFFFF
                slot = (context << bits) + (key >> (32 - bits))
                slots[context] = slot
                logits[context] = STRETCH[chances[slot] >> 4]
            logits[_CONTEXTS] = 256
            kind = min(node, 12)
            first = mix(logits, weights, node, _INPUTS)
            second = mix(logits, weights2, kind * 16 + activity, _INPUTS)
            logit = (first + second) >> 1
            chance = np.int64(SQUASH[logit + 2048])
            bit = code_bit(coder, buffer, chance, bit)
            for context in range(_CONTEXTS):
                learn(chances, counts, slots[context], bit, 255)
            refine(logits, weights, node, _INPUTS, first, bit, 2)
            refine(logits, weights2, kind * 16 + activity, _INPUTS, second, bit, 2)
            if stage == 0:
                if bit == 0:
                    break
                stage = 1
            elif stage == 1:
                negative = bit
                stage = 2
            elif stage == 2:
                if bit == 1 and length < 7:
                    length += 1
                    if length == 7:
                        stage = 3
                elif length == 0:
                    value = np.int64(1)
                    break
                else:
                    stage = 3
            else:
                distance = (distance << 1) | bit
                done += 1
                if done == length:
                    value = distance
                    break
        if negative:
            value = -value
        value = min(max(value, -centre), 255 - centre)
        codes[place] = np.uint8(value + centre)
        values[place] = value
        columns[column] += ((abs(value) << 6) - columns[column]) >> 2
        near += ((abs(value) << 8) - near) >> 3
        wide += ((abs(value) << 8) - wide) >> 6
        if overrun(coder):
            return False
    return True
