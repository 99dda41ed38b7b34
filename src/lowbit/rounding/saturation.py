"""Saturation of integer kernels that add two products in 16 bits, and weights that cannot cause it.

On x86 without VNNI the instruction `vpmaddubsw` multiplies unsigned 8-bit activation codes by signed 8-bit weight codes
and adds two neighbouring products in a signed 16-bit lane, silently saturating. Rows `2i` and `2i + 1` of a weight
`[K, N]` in the kernel's order form such a pair; the last row of an odd K is alone and always safe. The arithmetic here
is exact, so that "safe" is a proof for every input whose codes lie in the given range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit.exceptions import FormatError
from lowbit.rounding.kernel_layout import conv_to_kn, kn_to_conv

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SaturationReport", "conv_to_kn", "hazards", "kn_to_conv", "make_safe", "pair_matrix"]

_REMEDY = "Pass [K, N] in the kernel's order, int8 if they are codes, with one scale for every column"
_LANE_LOW, _LANE_HIGH = -32768, 32767
_STEPS = 16  # of the scale between unchanged and grown until nothing needs clipping
_CACHED = 1 << 20  # weights repaired at a time, which bounds the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class SaturationReport:
    """What `make_safe` found and did.

    Attributes:
        pairs: Pairs of weights, over all channels.
        hazards: Pairs that could saturate before.
        channels: Output channels.
        clipped: Channels repaired by reducing the codes of the offending pairs.
        scaled: Channels repaired by a larger scale.
        scaled_and_clipped: Channels repaired by some of both.
        error_before: Sum over all weights of the squared rounding error before, in squared units of the weight.
        error_after: The same after the repair.
    """

    pairs: int
    hazards: int
    channels: int
    clipped: int
    scaled: int
    scaled_and_clipped: int
    error_before: float
    error_after: float

    @property
    def repaired(self) -> int:
        """Channels that were changed in any way."""
        return self.clipped + self.scaled + self.scaled_and_clipped


def pair_matrix(codes: NDArray[np.int8], layout: Literal["kn", "conv"] = "kn") -> NDArray[np.int8]:
    """Bring weight codes into the pairs that the kernel adds.

    Args:
        codes: `[K, N]` of a matrix product (`kn`), or `[M, C/g, k1, …]` of a convolution (`conv`), int8.
        layout: Which of the two.

    Returns:
        `[ceil(K / 2), 2, N]` int8; the partner of an odd last row is 0.
    """
    matrix = conv_to_kn(codes) if layout == "conv" else codes
    if len(matrix) % 2:
        matrix = np.pad(matrix, ((0, 1), (0, 0)))
    return matrix.reshape(-1, 2, matrix.shape[1])


def hazards(codes_kn: NDArray[np.int8], activation_low: int = 0, activation_high: int = 255) -> NDArray[np.bool_]:
    """Find the pairs of weights that can saturate for some activation codes of the given range.

    A pair `(w0, w1)` is a hazard if and only if the maximum of `a0 * w0 + a1 * w1` over all `a0, a1` in
    `[activation_low, activation_high]` exceeds 32767, or the minimum is below -32768.

    Args:
        codes_kn: `[K, N]` int8, in the kernel's order.
        activation_low: Lowest activation code that occurs.
        activation_high: Highest activation code that occurs.

    Returns:
        `[ceil(K / 2), N]`.

    Raises:
        FormatError: The codes are not int8, or the activation codes not a range of uint8.
    """
    _check_activation(activation_low, activation_high)
    if codes_kn.dtype != np.int8 or codes_kn.ndim != 2:
        raise FormatError(f"Weights of type {codes_kn.dtype} and shape {codes_kn.shape} have no pairs", remedy=_REMEDY)
    pairs = pair_matrix(codes_kn)
    positive = np.maximum(pairs, 0).sum(axis=1, dtype=np.int32)
    negative = np.minimum(pairs, 0).sum(axis=1, dtype=np.int32)
    highest = activation_high * positive + activation_low * negative
    lowest = activation_high * negative + activation_low * positive
    found: NDArray[np.bool_] = (highest > _LANE_HIGH) | (lowest < _LANE_LOW)
    return found


def make_safe(
    weight_kn: NDArray[np.float32],
    scale: NDArray[np.float32],
    activation_low: int = 0,
    activation_high: int = 255,
    *,
    narrow: bool = False,
) -> tuple[NDArray[np.int8], NDArray[np.float32], SaturationReport]:
    """Round weights to symmetric int8 codes that no activation in the given range can saturate.

    A channel without a hazard keeps the codes of rounding to nearest, bit for bit, and its scale. Any other gets, of 17
    scales between its own and the smallest one that leaves no hazard, the one with the least squared error of its
    weights, after the pairs that are still hazards were reduced to the nearest safe pair.

    Args:
        weight_kn: `[K, N]` float32, in the kernel's order.
        scale: `[N]` float32, of rounding to nearest; the zero point is 0.
        activation_low: Lowest activation code that occurs.
        activation_high: Highest activation code that occurs.
        narrow: Whether the code -128 is left out.

    Returns:
        Codes `[K, N]` int8, scale `[N]` float32, and what was done.

    Raises:
        FormatError: The shapes do not match, a weight is NaN or infinite, or the activation codes are not a range of
            uint8.
    """
    _check_activation(activation_low, activation_high)
    scale = np.asarray(scale, dtype=np.float32)
    if weight_kn.ndim != 2 or scale.shape != weight_kn.shape[1:]:
        raise FormatError(
            f"A scale of shape {scale.shape} does not fit weights of shape {weight_kn.shape}", remedy=_REMEDY
        )
    if not np.isfinite(weight_kn).all():
        raise FormatError("The weight holds NaN or infinity", remedy="Check the model: it was not trained to the end")
    limits = _Limits(
        lowest=-127 if narrow else -128,
        # Codes of opposite sign never add up to a hazard (255 * 128 fits), so that the sums below decide alone.
        sum_low=-(-_LANE_LOW // max(activation_high, 1)),
        sum_high=_LANE_HIGH // max(activation_high, 1),
    )
    codes = _round(weight_kn, scale, limits)
    found = hazards(codes, activation_low, activation_high)
    unit = scale.astype(np.float64) ** 2
    error_before = (_squared_error(weight_kn, codes, scale, scale) * unit).sum()
    safe_scale = scale.copy()
    clipped = scaled = both = 0
    offending = np.flatnonzero(found.any(axis=0))
    step = max(1, _CACHED // max(len(weight_kn), 1))
    for start in range(0, len(offending), step):
        part = offending[start : start + step]
        codes[:, part], safe_scale[part], needed_clip = _repair(weight_kn[:, part], scale[part], limits)
        grown = safe_scale[part] > scale[part]
        clipped += int((~grown).sum())
        scaled += int((grown & ~needed_clip).sum())
        both += int((grown & needed_clip).sum())
    # The proof: whatever the search did, what leaves this function is safe.
    assert not hazards(codes, activation_low, activation_high).any()
    report = SaturationReport(
        pairs=found.size,
        hazards=int(found.sum()),
        channels=found.shape[1],
        clipped=clipped,
        scaled=scaled,
        scaled_and_clipped=both,
        error_before=float(error_before),
        error_after=float((_squared_error(weight_kn, codes, safe_scale, scale) * unit).sum()),
    )
    return codes, safe_scale, report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """Codes from `lowest` to 127; sums of two codes of one sign from `sum_low` to `sum_high`."""

    lowest: int
    sum_low: int
    sum_high: int


def _check_activation(low: int, high: int) -> None:
    if not 0 <= low <= high <= 255:
        raise FormatError(f"Activation codes {low} … {high} are no range of uint8", remedy="Use 0 … 255")


def _round(weight: NDArray[np.float32], scale: NDArray[np.float32], limits: _Limits) -> NDArray[np.int8]:
    y = weight / scale
    np.rint(y, out=y)
    np.clip(y, np.float32(limits.lowest), np.float32(127.0), out=y)
    return y.astype(np.int8)


def _squared_error(
    weight: NDArray[np.float32], codes: NDArray[np.int8], scale: NDArray[np.float32], unit: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the squared error of each channel, `[N]`, in squared units `[N]`, so that nothing over- or underflows."""
    difference = codes * (scale / unit)
    difference -= weight / unit
    error: NDArray[np.float64] = np.square(difference, out=difference).sum(axis=0, dtype=np.float64)
    return error


def _repair(
    weight: NDArray[np.float32], scale: NDArray[np.float32], limits: _Limits
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.bool_]]:
    """Find the best safe codes and scale of each channel, and whether pairs were clipped."""
    sufficient = _sufficient_growth(weight, scale, limits)
    best_codes = np.empty(weight.shape, dtype=np.int8)
    best_scale = scale.copy()
    best_error = np.full(scale.shape, np.inf)
    best_clipped = np.zeros(scale.shape, dtype=np.bool_)
    for fraction in np.linspace(0.0, 1.0, _STEPS + 1):
        trial = (scale * (1.0 + fraction * (sufficient - 1.0))).astype(np.float32)
        codes, clipped = _clip_pairs(weight, trial, limits)
        error = _squared_error(weight, codes, trial, scale)
        better = error < best_error
        best_codes[:, better] = codes[:, better]
        best_scale[better], best_error[better] = trial[better], error[better]
        best_clipped[better] = clipped[better]
    return best_codes, best_scale, best_clipped


def _sufficient_growth(weight: NDArray[np.float32], scale: NDArray[np.float32], limits: _Limits) -> NDArray[np.float64]:
    """Return the smallest factor found for each channel's scale, `[N]`, that leaves no hazard without clipping."""
    growth = np.ones(scale.shape)
    active = np.arange(len(scale))
    while active.size:
        trial = (scale[active] * growth[active]).astype(np.float32)
        codes = _round(weight[:, active], trial, limits)
        positive, negative = _extreme_sums(codes)
        unsafe = (positive > limits.sum_high) | (negative < limits.sum_low)
        active, trial = active[unsafe], trial[unsafe]
        # Two roundings move a sum by one at most: a scale that leaves the real sum beyond that is hopeless, skip it.
        real = np.clip(weight[:, active] / trial, limits.lowest, 127.0)
        positive, negative = _extreme_sums(real)
        required = np.maximum(positive / (limits.sum_high + 1), negative / (limits.sum_low - 1))
        growth[active] *= np.maximum(required, 1.002)  # a quarter of a code at 127
    return growth


def _extreme_sums(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the largest sum of two positive partners and the smallest of two negative ones, each `[N]`."""
    even = values[0 : len(values) // 2 * 2 : 2].astype(np.result_type(values, np.int16))
    odd = values[1::2]
    # The sum of partners of opposite sign is nearer to zero than the larger one, which is legal by itself.
    total = even + odd
    return total.max(axis=0, initial=0), total.min(axis=0, initial=0)


def _clip_pairs(
    weight: NDArray[np.float32], scale: NDArray[np.float32], limits: _Limits
) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Round to nearest, then reduce each hazardous pair to the nearest safe one; also which channels needed it.

    The nearest safe pair of `(t0, t1)`, in real codes, lies where the sum meets its limit L, and there the squared
    error is `2 (c0 - (L + t0 - t1) / 2)**2` plus a constant: the nearest integer in the box of legal codes is optimal.
    """
    codes = _round(weight, scale, limits)
    pairs = pair_matrix(codes).astype(np.int16)
    total = pairs.sum(axis=1)
    needed = np.zeros(codes.shape[1], dtype=np.bool_)
    for hazard, limit, lowest, highest in (
        (total > limits.sum_high, limits.sum_high, max(limits.sum_high - 127, 0), 127),
        (total < limits.sum_low, limits.sum_low, limits.lowest, min(limits.sum_low - limits.lowest, 0)),
    ):
        pair, channel = np.nonzero(hazard)
        t0 = weight[2 * pair, channel] / scale[channel]
        t1 = weight[2 * pair + 1, channel] / scale[channel]
        first = np.clip(np.rint((limit + t0 - t1) / 2.0), lowest, highest).astype(np.int8)
        codes[2 * pair, channel] = first
        codes[2 * pair + 1, channel] = limit - first.astype(np.int16)
        needed[channel] = True
    return codes, needed
