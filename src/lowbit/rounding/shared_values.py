"""Whether the weights of a layer share a few values, as clustering leaves them, so that rounding must not part them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["shares_values"]

# Each value is taken at least so often on average.
_TIMES = 8
# So many weights are looked at before all are.
_FEW = 1 << 14


def shares_values(weight: NDArray[np.floating], axis: int, codes: int) -> bool:
    """Return whether the weights that are not 0 take few values: all together, or those of every output channel.

    Args:
        weight: Any shape, of any size.
        axis: Which axis holds the output channels.
        codes: How many codes there are: more values than codes cannot all be kept.
    """
    if not weight.any():
        return False
    first = weight.reshape(-1)[:_FEW]
    if len(np.unique(first[first != 0])) <= codes and _few(weight.reshape(-1), codes):
        return True
    channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    return all(_few(channel, codes) for channel in channels)


def _few(weights: NDArray[np.floating], codes: int) -> bool:
    rest = weights[weights != 0]
    values = len(np.unique(rest))
    return values <= codes and _TIMES * values <= len(rest)
