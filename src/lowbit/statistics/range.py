"""The interval of real values that a format should cover."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowbit.exceptions import DataError

__all__ = ["Range"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Interval `[low, high]` of real values to be covered by the codes of a format; it always contains zero.

    Zero belongs to every range because padding, ReLU and masks produce it exactly, and a grid that cannot hold it
    would add a bias to all of them.

    Args:
        low: Lower end, at most 0.
        high: Upper end, at least 0.

    Raises:
        DataError: An end is not finite, or zero lies outside.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise DataError(f"range [{self.low}, {self.high}] is not finite")
        if not self.low <= 0.0 <= self.high:
            raise DataError(f"range [{self.low}, {self.high}] does not contain zero")

    @property
    def magnitude(self) -> float:
        """Largest absolute value in the range."""
        return max(-self.low, self.high)

    @classmethod
    def covering(cls, low: float, high: float, *, symmetric: bool = False) -> Range:
        """Return the smallest range that covers `[low, high]` and zero.

        Args:
            low: Smallest value to cover.
            high: Largest value to cover.
            symmetric: Widen the shorter side so that `low == -high`.

        Raises:
            DataError: An end is not finite.
        """
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        if symmetric:
            high = max(-low, high)
            low = -high
        # `+ 0.0` turns -0.0 into 0.0, so that equal ranges also print and serialize equally.
        return cls(low=low + 0.0, high=high + 0.0)
