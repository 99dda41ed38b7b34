"""Probabilities of bits: adaptive counters, mixed in the logistic domain (Mahoney 2005, "Adaptive weighing").

All of it in integers, so that every machine computes the same: a probability is a 16-bit integer, its logit
`ln(p / (1 - p))` an integer in steps of 12 / 2048.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lowbit.container.compiling import compiled

__all__ = ["RATES", "SQUASH", "STRETCH", "learn", "mix", "refine"]

Ints = NDArray[np.int64]
Words = NDArray[np.int32]

_STEP = 12 / 2048
FLOOR = 16
"""The least probability times 65536 that is ever coded."""

SQUASH = np.array(
    [
        min(max(math.floor(65536 / (1 + math.exp(-_STEP * (place - 2048))) + 0.5), FLOOR), 65536 - FLOOR)
        for place in range(4096)
    ],
    dtype=np.int32,
)
"""Probability of the logit `place - 2048`."""

STRETCH = np.array(
    [math.floor(math.log((place + 0.5) / (4095.5 - place)) / _STEP + 0.5) for place in range(4096)], dtype=np.int32
)
"""Logit of the probability `(place + 0.5) / 4096`."""

RATES = np.array([math.floor(65536 / (count + 1.5) + 0.5) for count in range(256)], dtype=np.int32)
"""How far a counter moves towards a bit, times 65536, after `count` bits."""


@compiled
def learn(chances: Words, counts: NDArray[np.uint8], slot: int, bit: int, limit: int) -> None:
    """Move a counter towards a bit, ever more slowly until it has seen `limit` bits."""
    count = counts[slot]
    chances[slot] += ((bit * 65535 - np.int64(chances[slot])) * RATES[count]) >> 16
    if count < limit:
        counts[slot] = count + np.uint8(1)


@compiled
def mix(logits: Ints, weights: Words, row: int, inputs: int) -> int:
    """Return the logit that the weights of `row` make of the inputs' logits, -2047 to 2047."""
    total = np.int64(0)
    for number in range(inputs):
        total += logits[number] * np.int64(weights[row * inputs + number])
    return min(max(total >> 16, -2047), 2047)


@compiled
def refine(logits: Ints, weights: Words, row: int, inputs: int, logit: int, bit: int, rate: int) -> None:
    """Move the weights of `row` along the gradient of the coding cost; `logit` is what `mix` returned."""
    error = (bit * 65535 - np.int64(SQUASH[logit + 2048])) * rate
    for number in range(inputs):
        place = row * inputs + number
        change = (logits[number] * error + (1 << 17)) >> 18
        weights[place] = min(max(np.int64(weights[place]) + change, -(1 << 20)), 1 << 20)
