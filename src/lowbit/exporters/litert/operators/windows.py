"""Padding of sliding windows: ONNX writes it out, LiteRT knows `SAME` and `VALID`."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SAME", "VALID", "Window", "fitted"]

SAME, VALID = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A window that slides along one axis.

    Attributes:
        size: Elements of the input.
        kernel: Taps.
        stride: Elements between two positions.
        dilation: Elements between two taps.
        low: Padding before the first element.
        out: Positions.
    """

    size: int
    kernel: int
    stride: int
    dilation: int
    low: int
    out: int

    @property
    def high(self) -> int:
        """Padding behind the last element that a position really reads."""
        return max((self.out - 1) * self.stride + self._extent - self.size - self.low, 0)

    @property
    def fits_same(self) -> bool:
        """Whether `SAME` puts the window at the same places."""
        if self.out != -(-self.size // self.stride):
            return False
        return self.low == max((self.out - 1) * self.stride + self._extent - self.size, 0) // 2

    @property
    def fits_valid(self) -> bool:
        """Whether `VALID` puts the window at the same places."""
        return self.low == 0 and self.out == (self.size - self._extent) // self.stride + 1

    @property
    def _extent(self) -> int:
        return (self.kernel - 1) * self.dilation + 1


def fitted(windows: tuple[Window, ...]) -> tuple[int, list[tuple[int, int]]]:
    """Return LiteRT's padding of a window in several axes, and what has to be padded before, low and high of each."""
    nothing = [(0, 0)] * len(windows)
    if all(window.fits_valid for window in windows):
        return VALID, nothing
    if all(window.fits_same for window in windows):
        return SAME, nothing
    return VALID, [(window.low, window.high) for window in windows]
