"""The codes that a weight whose rounding is learned may take, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WeightGrid"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightGrid:
    """`weight = (code - zero_point) · scale` for integers `code` from `low` to `high`.

    Attributes:
        scale: Positive float32, shaped as the format's granularity says.
        spread: Broadcasts a tensor shaped like the scale to the weight.
        low: Lowest code.
        high: Highest code.
        zero_point: In codes, shaped like the scale; `None` is 0.
        zeros: Which weights stay exactly 0, as pruning left them; `None` if none do.
    """

    scale: torch.Tensor
    spread: Callable[[torch.Tensor], torch.Tensor]
    low: int
    high: int
    zero_point: torch.Tensor | None = None
    zeros: torch.Tensor | None = None

    @property
    def offset(self) -> torch.Tensor:
        """The zero point, for every weight or for all at once."""
        return torch.zeros(()) if self.zero_point is None else self.spread(self.zero_point)

    def position(self, weight: torch.Tensor) -> torch.Tensor:
        """Return where a weight lies, in codes that are not rounded."""
        return weight / self.spread(self.scale) + self.offset

    def clamp(self, codes: torch.Tensor) -> torch.Tensor:
        """Return codes within the ends; those of weights that stay 0 are the zero point."""
        within = codes.clamp(float(self.low), float(self.high))
        return within if self.zeros is None else torch.where(self.zeros, self.offset, within)

    def decode(self, codes: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Return the weight of codes, with the grid's scale or another one of the same shape."""
        decoded = (codes - self.offset) * self.spread(self.scale if scale is None else scale)
        return decoded if self.zeros is None else decoded.masked_fill(self.zeros, 0.0)
