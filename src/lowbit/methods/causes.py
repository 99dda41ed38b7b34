"""Causes of bad layers that lie in ranges, each told from the numbers of one tensor: detectors that know no graphs.

Every detector returns a `Cause` with its evidence, or `None` where the numbers do not show it. Thresholds are where the
bulk of the values is left with about 5 of 8 bits: below that, the cause dominates what the format itself costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.plan.diagnosis import Cause

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from lowbit.plan.diagnosis import CauseKind
    from lowbit.statistics import Histogram

__all__ = [
    "clipped_range",
    "long_tail",
    "outlier_channel",
    "shared_range",
    "silent_channels",
    "softmax_mask",
]

# From this ratio on, the median channel loses three bits to the largest one.
_OUTLIER = 8.0
# Fewer channels than this have no typical one.
_FEWEST_CHANNELS = 4
# The values that count as the bulk: all but so many at either end, as a fraction.
_TAIL = 0.001
_FEWEST_VALUES = 1000
# The bulk should get at least this fraction of the codes.
_ENOUGH = 1.0 / 8.0
# Exporters write masks of -1e4 and below; scores themselves do not reach this.
_MASK = -1000.0
# Clipping that costs so many times what rounding does is no longer a fair exchange of one for the other.
_UNFAIR = 2.0


def outlier_channel(
    node: str, tensor: str, maxima: NDArray[Any], *, codes: int = 256, kind: CauseKind = "outlier channel"
) -> Cause | None:
    """Tell whether one channel is so much larger than the others that a range for all leaves these few codes.

    Args:
        node: The operator that suffers.
        tensor: The activation, or a weight with one scale.
        maxima: `[C]`, largest magnitude of every channel.
        codes: Number of codes of the format.
        kind: `outlier channel`, `outlier weights`, or `LayerNorm outliers` if a normalization writes the tensor.
    """
    live = maxima[maxima > 0]
    if live.size < _FEWEST_CHANNELS:
        return None
    median, largest = float(np.median(live)), float(live.max())
    ratio = largest / median
    if ratio < _OUTLIER:
        return None
    channel = int(np.argmax(maxima))
    left = codes / ratio
    remedy = {
        "outlier weights": "give every output channel its own scale (per-channel)",
        "LayerNorm outliers": "move scales to the weights (smooth: smoothquant), or find ranges at run time (dynamic)",
    }.get(kind, "equalize the channels, move scales to the weights (smooth), or find ranges at run time")
    return Cause(
        kind=kind,
        node=node,
        tensor=tensor,
        evidence={"channel": channel, "largest": largest, "median": median, "ratio": ratio, "codes": left},
        text=(
            f"channel {channel} of {tensor} reaches {largest:.3g}, the median channel {median:.3g} ({ratio:.0f}×), "
            f"which gets {left:.0f} of {codes} codes"
        ),
        remedy=remedy,
    )


def long_tail(node: str, tensor: str, histogram: Histogram, *, step: float, codes: int = 256) -> Cause | None:
    """Tell whether a few large values stretch the range so far that nearly all others share few codes.

    Args:
        node: The operator that suffers.
        tensor: The activation.
        histogram: Its values; exact zeros, which every grid has, do not count.
        step: Distance between neighbouring codes in units of the tensor: what was planned, so that ranges which leave
            the tail out already are no cause.
        codes: Number of codes of the format.
    """
    counts = histogram.nonzero_counts()
    total = int(counts.sum())
    if total < _FEWEST_VALUES or step <= 0:
        return None
    reached = np.cumsum(counts) / total
    edges = histogram.edges()
    first = int(np.searchsorted(reached, _TAIL, side="right"))
    last = min(int(np.searchsorted(reached, 1.0 - _TAIL)), counts.size - 1)
    low, high = max(float(edges[first]), histogram.low), min(float(edges[last + 1]), histogram.high)
    # One-sided values begin at zero.
    low, high = min(low, 0.0), max(high, 0.0)
    bulk = (high - low) / step
    largest = max(abs(histogram.low), abs(histogram.high))
    if bulk >= codes * _ENOUGH or largest < 2.0 * max(high, -low):
        return None
    return Cause(
        kind="long tail",
        node=node,
        tensor=tensor,
        evidence={"largest": largest, "low": low, "high": high, "codes": bulk},
        text=(
            f"{1 - 2 * _TAIL:.1%} of {tensor} lie in {low:.3g} … {high:.3g}, the largest is {largest:.3g}: "
            f"the bulk gets {bulk:.0f} of {codes} codes"
        ),
        remedy="leave the tail out of the range (calibration: mse or percentile), or find ranges at run time",
    )


def clipped_range(
    node: str, tensor: str, histogram: Histogram, *, low: float, high: float, step: float
) -> Cause | None:
    """Tell whether a range leaves out so much that clipping costs more than rounding.

    Args:
        node: The operator that reads the clipped tensor.
        tensor: The activation.
        histogram: Its values.
        low: Lowest value that has a code.
        high: Highest value that has a code.
        step: Distance between neighbouring codes.
    """
    counts, edges = histogram.counts, histogram.edges()
    count = histogram.count
    if not count or step <= 0:
        return None
    # Of every bin, its middle: bins are much narrower than what is clipped where clipping matters.
    middles = (edges[:-1] + edges[1:]) / 2
    beyond = np.maximum(middles - high, 0.0) + np.maximum(low - middles, 0.0)
    # Half a step beyond the last code still rounds to it.
    outside = beyond > step / 2
    clipped = float(np.sum(counts[outside] * np.square(beyond[outside]))) / count
    rounded = step * step / 12.0
    if clipped < _UNFAIR * rounded:
        return None
    fraction = float(counts[outside].sum()) / count
    return Cause(
        kind="clipped range",
        node=node,
        tensor=tensor,
        evidence={"low": low, "high": high, "fraction": fraction, "ratio": clipped / rounded},
        text=(
            f"{fraction:.2%} of {tensor} lie outside {low:.3g} … {high:.3g}, up to "
            f"{max(histogram.high, -histogram.low):.3g}; clipping costs {clipped / rounded:.0f}× what rounding does"
        ),
        remedy="take a wider range (calibration: mse or minmax)",
    )


def softmax_mask(node: str, tensor: str, histogram: Histogram, *, step: float, codes: int = 256) -> Cause | None:
    """Tell whether a mask among the scores that a Softmax reads leaves the scores themselves hardly any codes.

    Args:
        node: The Softmax.
        tensor: What it reads.
        histogram: Its values.
        step: Distance between neighbouring codes.
        codes: Number of codes of the format.
    """
    if histogram.low > _MASK or step <= 0:
        return None
    edges = histogram.edges()
    # A score lies near zero, a mask near the lowest value: between them there is nothing.
    scores = np.flatnonzero((histogram.counts > 0) & (edges[:-1] > histogram.low / 2))
    if not scores.size:
        return None
    low, high = float(edges[scores[0]]), histogram.high
    left = (high - low) / step
    if left >= codes * _ENOUGH:
        return None
    return Cause(
        kind="Softmax mask",
        node=node,
        tensor=tensor,
        evidence={"mask": histogram.low, "low": low, "high": high, "codes": left},
        text=(
            f"a mask of {histogram.low:.0f} in {tensor}, whose scores lie in {low:.3g} … {high:.3g}, "
            f"leaves these {left:.1f} of {codes} codes"
        ),
        remedy="leave the Softmax in float",
    )


def shared_range(
    node: str, tensor: str, branches: Mapping[str, tuple[float, float]], *, step: float, codes: int = 256
) -> Cause | None:
    """Tell whether a Concat or Add joins branches so unlike that the narrow one gets few codes.

    Args:
        node: The Concat or Add.
        tensor: What it writes.
        branches: Lowest and highest value of every branch, by the tensor's name.
        step: Distance between neighbouring codes of what it writes.
        codes: Number of codes of the format.
    """
    widths = {name: high - low for name, (low, high) in branches.items() if high > low}
    if len(widths) < 2 or step <= 0:
        return None
    narrow, wide = min(widths, key=lambda name: widths[name]), max(widths, key=lambda name: widths[name])
    ratio, left = widths[wide] / widths[narrow], widths[narrow] / step
    if ratio < _OUTLIER or left >= codes * _ENOUGH:
        return None
    return Cause(
        kind="shared range",
        node=node,
        tensor=tensor,
        evidence={"narrow": widths[narrow], "wide": widths[wide], "ratio": ratio, "codes": left},
        text=(
            f"{wide} spans {widths[wide]:.3g}, {narrow} {widths[narrow]:.3g} ({ratio:.0f}× less), "
            f"which gets {left:.0f} of {codes} codes in {tensor}"
        ),
        remedy="leave what joins them in float, or find ranges at run time",
    )


def silent_channels(
    node: str, tensor: str, minima: NDArray[Any], maxima: NDArray[Any], *, samples: int
) -> Cause | None:
    """Tell whether channels are zero, or some other constant, in all that was seen.

    Args:
        node: The operator that reads them.
        tensor: The activation.
        minima: `[C]`, smallest value of every channel.
        maxima: `[C]`, largest value.
        samples: In how many samples.
    """
    still = minima == maxima
    dead = int(np.count_nonzero(still & (maxima == 0)))
    constant = int(np.count_nonzero(still)) - dead
    # A tensor of one channel, or of constants only, is not a matter of channels.
    if not (dead or constant) or minima.size < _FEWEST_CHANNELS:
        return None
    text = f"{dead or constant} of {minima.size} channels of {tensor} are {'zero' if dead else 'constant'}"
    return Cause(
        kind="dead channels" if dead else "constant channels",
        node=node,
        tensor=tensor,
        evidence={"dead": dead, "constant": constant, "channels": minima.size, "samples": samples},
        text=f"{text} in all {samples} samples" + (f", {constant} more constant" if dead and constant else ""),
        remedy="none for accuracy: they cost time only; prune them, or calibrate on data that make them move",
    )
