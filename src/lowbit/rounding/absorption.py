"""What moving a bias behind an activation function is expected to gain, from statistics alone.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (2019), section 4.1.3. The paper
moves every bias that it can. What it wins is a smaller range of the activations, and what it costs are the few values
that the function would have clipped elsewhere; both are noise at the outputs of the layer that reads them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["expected_absorption", "tail_power"]


def tail_power(sigmas: float) -> float:
    """Return the mean square of what a standard normal lacks below `-sigmas`, `E[max(-sigmas - z, 0)²]`."""
    below = 0.5 * math.erfc(sigmas / math.sqrt(2.0))
    density = math.exp(-0.5 * sigmas**2) / math.sqrt(2.0 * math.pi)
    return (1.0 + sigmas**2) * below - sigmas * density


def expected_absorption(
    mean: NDArray[np.floating],
    deviation: NDArray[np.floating],
    amounts: NDArray[np.floating],
    energy: NDArray[np.floating],
    *,
    high: float = math.inf,
    sigmas: float = 3.0,
    steps: int = 255,
) -> tuple[float, float]:
    """Return the noise at the outputs of the layer behind, before and after amounts are absorbed.

    Args:
        mean: `[C]`, of each channel before the activation function.
        deviation: `[C]`, its standard deviation.
        amounts: `[C]`, what is absorbed of each, not negative.
        energy: `[C]`, sum of squares of the weights that read each channel.
        high: Upper bound of the activation function.
        sigmas: How many standard deviations the range and the amounts reach.
        steps: How many steps a range has.

    Returns:
        Two powers in squared units of the outputs: that of rounding the activations to codes of one range, then the
        same over the smaller range with what absorption itself changes.

    Raises:
        FormatError: The shapes differ, or an amount is negative.
    """
    shapes = {array.shape for array in (mean, deviation, amounts, energy)}
    if len(shapes) != 1 or bool((amounts < 0).any()):
        raise FormatError(
            "Amounts to absorb do not fit their channels", remedy="Pass [C] four times, amounts not negative"
        )
    reach = mean.astype(np.float64) + sigmas * deviation
    ranges = (np.minimum(reach, high).max(initial=0.0), np.minimum(reach - amounts, high).max(initial=0.0))
    before, after = (max(float(each), 0.0) ** 2 / (12.0 * steps**2) * float(energy.sum()) for each in ranges)
    changed = np.where(amounts > 0, energy * np.square(deviation.astype(np.float64)), 0.0)
    return before, after + tail_power(sigmas) * float(changed.sum())
