"""The evenly spaced values that an integer format gives to a range."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.exceptions import FormatError

__all__ = ["Grid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The values `(code - zero_point) * scale` for `code` in `0 … codes - 1`; zero is one of them.

    Args:
        codes: Number of codes, e.g. 256 for 8 bits.
        scale: Distance of two neighbouring values, positive.
        zero_point: Code of zero, in `0 … codes - 1`.
    """

    codes: int
    scale: float
    zero_point: int

    @property
    def first(self) -> int:
        """Lowest value in units of the scale, at most 0."""
        return -self.zero_point

    @property
    def last(self) -> int:
        """Highest value in units of the scale, at least 0."""
        return self.codes - 1 - self.zero_point

    @classmethod
    def spanning(cls, low: float, high: float, codes: int) -> Grid:
        """Return the asymmetric grid of the ONNX spec for `low <= 0 <= high`, `low < high`: zero point rounded.

        Raises:
            FormatError: Fewer than two codes.
        """
        if codes < 2:
            raise FormatError(f"a grid of {codes} codes has no range", remedy="use at least 2 codes")
        scale = (high - low) / (codes - 1)
        return cls(codes=codes, scale=scale, zero_point=min(max(round(-low / scale), 0), codes - 1))

    @classmethod
    def around_zero(cls, magnitude: float, codes: int) -> Grid:
        """Return the symmetric grid whose highest value is `magnitude`, e.g. code units -128 … 127 for 256 codes.

        Raises:
            FormatError: Fewer than three codes, so that no positive value is left.
        """
        if codes < 3:
            raise FormatError(f"a symmetric grid of {codes} codes has no positive value", remedy="use at least 3 codes")
        return cls(codes=codes, scale=magnitude / ((codes - 1) // 2), zero_point=codes // 2)
