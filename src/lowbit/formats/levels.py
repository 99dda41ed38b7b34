"""Levels of the fixed codebooks: what the codes of a non-uniform element stand for, before the scale."""

from __future__ import annotations

import itertools
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["additive_powers_of_two", "evenly_spaced", "normal_float", "powers_of_two"]


def normal_float(bits: int) -> tuple[float, ...]:
    """Return the levels of NormalFloat: quantiles of a normal distribution, zero among them, from -1 to 1.

    Each level stands for about as many weights as any other where weights are normally distributed (Dettmers et al.,
    QLoRA: Efficient Finetuning of Quantized LLMs, 2023, section 3 and appendix E). The negative half has one level
    fewer, because zero is taken from it.

    Args:
        bits: Bits of one code; `2^bits` levels.
    """
    half = 2 ** (bits - 1)
    # The outermost quantile lies half a step inside, on average of both halves: one of half 2^bits - 1 levels, one of
    # half 2^bits.
    outermost = 1.0 - (1.0 / (2 * (2 * half - 1)) + 1.0 / (2 * (2 * half))) / 2.0
    positive = _quantiles(outermost, half + 1)
    negative = [-level for level in _quantiles(outermost, half)]
    largest = max(positive)
    return tuple(sorted(level / largest for level in (*negative, 0.0, *positive)))


def powers_of_two(bits: int) -> tuple[float, ...]:
    """Return zero and powers of two of both signs, from -1 to 1: products with them are shifts.

    One code is not used, so that every level has its opposite (Miyashita et al., Convolutional Neural Networks using
    Logarithmic Data Representation, 2016; the levels are those of equation 2 of Li et al., 2020).

    Args:
        bits: Bits of one code, the sign included.
    """
    return _mirrored(2.0**-exponent for exponent in range(2 ** (bits - 1) - 1))


def additive_powers_of_two(bits: int) -> tuple[float, ...]:
    """Return sums of powers of two of both signs, from -1 to 1: denser than powers of two where those are sparse.

    Li et al., Additive Powers-of-Two Quantization, 2020, equation 5 with base bit-width k = 2: a magnitude of 2n bits
    is the sum of n terms, the i-th one of `0, 2^-i, 2^-(i+n), 2^-(i+2n)`; one of 2n + 1 bits takes
    `0, 2^-i, 2^-(i+n), 2^-(i+2n+1)` and the further term `0, 2^-2n`.

    Args:
        bits: Bits of one code, the sign included; at 3 bits these are the powers of two.
    """
    n, odd = divmod(bits - 1, 2)
    terms = [(0.0, *(2.0**-shift for shift in (i, i + n, i + 2 * n + odd))) for i in range(n)]
    if odd:
        terms.append((0.0, 2.0 ** -(2 * n)))
    sums = {sum(term) for term in itertools.product(*terms)}
    largest = max(sums)
    return _mirrored(each / largest for each in sums)


def evenly_spaced(entries: int) -> tuple[float, ...]:
    """Return the levels of a signed integer of as many codes, from -1: what a codebook is before it has learned.

    Args:
        entries: How many; even, so that zero is among them.
    """
    half = entries // 2
    return tuple(code / half for code in range(-half, half))


def _quantiles(outermost: float, count: int) -> list[float]:
    """Return the normal quantiles of `count` evenly spaced probabilities from `outermost` to 1/2, without the last."""
    step = (outermost - 0.5) / (count - 1)
    return [NormalDist().inv_cdf(outermost - index * step) for index in range(count - 1)]


def _mirrored(magnitudes: Iterable[float]) -> tuple[float, ...]:
    positive = {each for each in magnitudes if each > 0.0}
    return tuple(sorted({0.0, *positive, *(-each for each in positive)}))
