"""Bytes by context mixing: the model's structure, and numbers of several bytes.

Every bit is predicted by adaptive counters in several contexts and by the longest match with what came before; two
mixers weigh them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowbit.container.compiling import compiled
from lowbit.container.mixing import SQUASH, STRETCH, learn, mix, refine
from lowbit.container.range_coder import code_bit, overrun

__all__ = ["code_bytes", "table_bits"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_CONTEXTS = 8
_INPUTS = _CONTEXTS + 2
_MASK = (1 << 32) - 1
_MINIMUM = 5
"""Bytes that have to agree before a match predicts."""
_MATCH_BITS = 16


def table_bits(length: int) -> int:
    """Return how many bits number the counters of each context, for `length` bytes."""
    return min(max((16 * length).bit_length(), 12), 20)


@compiled
def _hash(value: int, salt: int) -> int:
    value = ((value & _MASK) * 0x9E3779B1 + salt * 0x85EBCA77) & _MASK
    value ^= value >> 15
    value = (value * 0xC2B2AE3D) & _MASK
    return value ^ (value >> 13)


@compiled
def _order_contexts(history: Bytes, place: int, word: int, contexts: Ints) -> None:
    """Hash what stands before `place`: orders 1 to 6, the word, and the bytes two and three back."""
    value = np.int64(0)
    for order in range(1, 7):
        byte = np.int64(history[place - order]) if place >= order else 0
        value = (value * 271 + byte + 1) & _MASK
        if order <= 4:
            contexts[order - 1] = _hash(value, order)
        elif order == 6:
            contexts[4] = _hash(value, order)
    contexts[5] = _hash(word, 7)
    two = np.int64(history[place - 2]) if place >= 2 else 0
    three = np.int64(history[place - 3]) if place >= 3 else 0
    contexts[6] = _hash(two * 256 + three, 8)
    contexts[7] = _hash(0, 9)


@compiled
def _plane_contexts(history: Bytes, place: int, start: int, width: int, row: int, contexts: Ints) -> None:
    """Hash what is known of a byte of a number: higher bytes of it, and the neighbours' bytes of the same weight."""
    plane = (place - start) % width
    above = np.int64(history[place - 1]) if plane > 0 else 256
    above2 = np.int64(history[place - 2]) if plane > 1 else 256
    left = np.int64(history[place - width]) if place - start >= width else 256
    left2 = np.int64(history[place - 2 * width]) if place - start >= 2 * width else 256
    up = np.int64(history[place - row * width]) if place - start >= row * width else 256
    contexts[0] = _hash(above, plane * 16 + 1)
    contexts[1] = _hash(above * 257 + above2, plane * 16 + 2)
    contexts[2] = _hash(left, plane * 16 + 3)
    contexts[3] = _hash(up, plane * 16 + 4)
    contexts[4] = _hash(left * 257 + above, plane * 16 + 5)
    contexts[5] = _hash(left * 257 + left2, plane * 16 + 6)
    contexts[6] = _hash(((place - start) // width) % row, plane * 16 + 7)
    contexts[7] = _hash(0, plane * 16 + 8)


@compiled
def code_bytes(
    coder: Ints, buffer: Bytes, history: Bytes, primed: int, start: int, width: int, row: int, bits: int
) -> bool:
    """Code `history[start:]`; when decoding, those bytes are filled in.

    Args:
        coder: Of `range_coder`.
        buffer: What the coder reads or writes.
        history: `[start + length]` bytes.
        primed: From here on to `start`, bytes that both sides know are learned first.
        start: First byte to be coded.
        width: 0 for the structure; otherwise bytes of a number, the highest first.
        row: Numbers in a row of the tensor.
        bits: Of `table_bits`.

    Returns:
        Whether the buffer was long enough.
    """
    size = 1 << bits
    chances = np.full(_CONTEXTS * size, 32768, dtype=np.int32)
    counts = np.zeros(_CONTEXTS * size, dtype=np.uint8)
    checks = np.zeros(_CONTEXTS * size, dtype=np.uint8)
    matched = np.zeros(1 << _MATCH_BITS, dtype=np.int64)
    match_chances = np.full(64, 49152, dtype=np.int32)
    match_counts = np.zeros(64, dtype=np.uint8)
    by_match = np.full(20 * _INPUTS, 20000 if width == 0 else 8000, dtype=np.int32)
    by_bits = np.full(256 * _INPUTS, 20000 if width == 0 else 8000, dtype=np.int32)
    correction = np.zeros(1024 * 33, dtype=np.int32)
    for number in range(1024 * 33):
        correction[number] = SQUASH[min((number % 33) * 128, 4095)]
    contexts = np.zeros(_CONTEXTS, dtype=np.int64)
    slots = np.zeros(_CONTEXTS, dtype=np.int64)
    logits = np.zeros(_INPUTS, dtype=np.int64)
    word = np.int64(0)
    candidate = np.int64(0)
    length = np.int64(0)
    limit = 127 if width == 0 else 255
    # What was seen once tells much of a structure and little of numbers, whose low bits are noise.
    doubt = 0 if width == 0 else 3
    rate = 6 if width == 0 else 2
    for place in range(primed, len(history)):
        known = place < start
        if width == 0:
            _order_contexts(history, place, word, contexts)
        else:
            _plane_contexts(history, place, start, width, row, contexts)
        byte = np.int64(history[place])
        node = 1
        for number in range(8):
            bit = (byte >> (7 - number)) & 1
            for context in range(_CONTEXTS):
                key = _hash(contexts[context] + node * 0x3D4D51CB, 11)
                slot = context * size + (key & (size - 1))
                check = np.uint8(key >> 24)
                if checks[slot] != check:
                    checks[slot] = check
                    chances[slot] = 32768
                    counts[slot] = 0
                slots[context] = slot
                seen = np.int64(counts[slot])
                logits[context] = np.int64(STRETCH[chances[slot] >> 4]) * seen // (seen + doubt) if seen > 0 else 0
            expected = -1
            bucket = 0
            if length > 0 and ((np.int64(history[candidate]) | 256) >> (8 - number)) == node:
                expected = (np.int64(history[candidate]) >> (7 - number)) & 1
                bucket = min(length, 15) if length < 16 else min(15 + (length >> 4), 19)
                strength = np.int64(STRETCH[match_chances[bucket] >> 4])
                logits[_CONTEXTS] = strength if expected else -strength
            else:
                logits[_CONTEXTS] = 0
                if width > 0:
                    plane = (place - start) % width
                    bucket = 2 * plane + (1 if plane > 0 and history[place - 1] == 0 else 0)
            logits[_CONTEXTS + 1] = 256
            first = mix(logits, by_match, bucket, _INPUTS)
            second = mix(logits, by_bits, node, _INPUTS)
            logit = (first + second) >> 1
            chance = np.int64(SQUASH[logit + 2048])
            plane = (place - start) % width if width > 0 else 0
            before = np.int64(history[place - 1]) & 3 if place > 0 and width == 0 else plane & 3
            cell = (before * 256 + node) * 33 + ((logit + 2048 + 64) >> 7)
            chance = (chance * 3 + np.int64(correction[cell])) >> 2
            chance = min(max(chance, 16), 65520)
            if not known:
                bit = code_bit(coder, buffer, chance, bit)
            correction[cell] += ((bit * 65535 - np.int64(correction[cell])) * 2) >> 7
            for context in range(_CONTEXTS):
                learn(chances, counts, slots[context], bit, limit)
            if expected >= 0:
                learn(match_chances, match_counts, bucket, 1 if bit == expected else 0, 255)
            refine(logits, by_match, bucket, _INPUTS, first, bit, rate)
            refine(logits, by_bits, node, _INPUTS, second, bit, rate)
            node = (node << 1) | bit
        byte = node & 255
        history[place] = byte
        if width == 0:
            lower = byte | 32
            word = (word * 0x2F0B4C47 + byte + 1) & _MASK if 97 <= lower <= 122 else np.int64(0)
            if length > 0 and history[candidate] == byte:
                length = min(length + 1, 65535)
                candidate += 1
            else:
                length = np.int64(0)
            if place - primed >= _MINIMUM:
                key = np.int64(0)
                for back in range(_MINIMUM):
                    key = (key * 271 + np.int64(history[place - back]) + 1) & _MASK
                key = _hash(key, 12) & ((1 << _MATCH_BITS) - 1)
                if length == 0 and matched[key] > 0:
                    candidate = matched[key]
                    while length < 32 and length < candidate - primed:
                        if history[candidate - 1 - length] != history[place - length]:
                            break
                        length += 1
                matched[key] = place + 1
        if not known and overrun(coder):
            return False
    return True
