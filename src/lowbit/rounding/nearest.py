"""Rounding to nearest: every weight by itself, half to even."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowbit.exceptions import FormatError
from lowbit.formats import Parameters, choose_parameters, quantize
from lowbit.rounding.weight_range import weight_range

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lowbit.formats import Format

__all__ = ["round_nearest"]


def round_nearest(
    weight: NDArray[Any],
    fmt: Format,
    parameters: Parameters | None = None,
    *,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
) -> NDArray[Any]:
    """Round weights to the nearest codes, saturating.

    Args:
        weight: Any shape, float32.
        fmt: The format.
        parameters: Scale and zero point; or give the range that they follow from, or nothing for the full range.
        low: Lowest weight to keep, shaped like the scale.
        high: Highest weight to keep, shaped like the scale.

    Returns:
        Codes of the weight's shape, of `fmt.element.dtype`.

    Raises:
        FormatError: Both parameters and a range were given or half a range, or as `choose_parameters` and `quantize`.
    """
    if (low is None) != (high is None) or (parameters is not None and low is not None):
        raise FormatError(
            "Rounding needs either parameters or both ends of a range", remedy="Pass one of them, or neither"
        )
    if parameters is None:
        if low is None or high is None:
            low, high = weight_range(weight, fmt)
        parameters = choose_parameters(low, high, fmt)
    return quantize(weight, parameters, fmt)
