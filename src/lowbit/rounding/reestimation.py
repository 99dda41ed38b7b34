"""Re-estimation of a normalization: outputs of rounded weights get back the mean and spread that the float ones had.

BatchNorms hold the statistics of outputs that rounding has changed; measuring them again is the remedy of Sun et al.,
Hybrid 8-bit Floating Point (HFP8) Training and Inference for Deep Neural Networks (2019). Where they are folded, a
factor and a shift of every channel do the same. Correcting the mean alone is bias correction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["restoring_affine"]

# A channel whose spread changed by more than this was rounded away: a factor would only blow up its noise.
_MOST = 2.0


def restoring_affine(
    wanted_mean: NDArray[np.floating],
    wanted_deviation: NDArray[np.floating],
    mean: NDArray[np.floating],
    deviation: NDArray[np.floating],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what gives every channel its mean and standard deviation back: `factor · y + shift`.

    Args:
        wanted_mean: `[C]`, mean of the float outputs.
        wanted_deviation: `[C]`, their standard deviation.
        mean: `[C]`, mean of the outputs of the rounded layer.
        deviation: `[C]`, their standard deviation.

    Returns:
        Factor and shift, `[C]` float32 each. The factor is 1 for channels that are constant or changed beyond twice or
        half their spread; their mean is still restored.

    Raises:
        FormatError: The shapes differ, or a deviation is negative or not finite.
    """
    arrays = (wanted_mean, wanted_deviation, mean, deviation)
    shapes = {array.shape for array in arrays}
    fine = all(np.isfinite(array).all() for array in arrays) and bool(
        (deviation >= 0).all() and (wanted_deviation >= 0).all()
    )
    if len(shapes) != 1 or not fine:
        raise FormatError(
            f"Statistics of shapes {[array.shape for array in arrays]} are none of the same channels",
            remedy="Pass [C] four times, finite, deviations not negative",
        )
    factor = np.ones(mean.shape)
    alive = (deviation > 0) & (wanted_deviation > 0)
    factor[alive] = wanted_deviation[alive] / deviation[alive].astype(np.float64)
    factor[(factor > _MOST) | (factor < 1 / _MOST)] = 1.0
    shift = wanted_mean - factor * mean
    return factor.astype(np.float32), shift.astype(np.float32)
