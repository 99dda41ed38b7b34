"""A weight whose codes and scale are learned, from codes that are good already.

As in Cheng et al., Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs (SignRound), 2023,
every weight has a position between codes that moves against its gradient, and its code is the nearest one. What is
computed is always what the codes give, so that nothing is lost when learning ends. Deviations: the positions start at
codes that may have been chosen by other means, and move by Adam, which a noisy gradient moves less than a steady one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lowbit.reconstruction.weight_grid import WeightGrid

__all__ = ["LearnedRounding"]

# How far from its weight, or from the code that it started with, a position may move, in steps.
_REACH = 1.0
_MARGIN = 0.25


class LearnedRounding(torch.nn.Module):
    """Codes at positions that can be learned.

    Args:
        weight: Any shape, float32.
        codes: Codes to start from, float32 that hold integers.
        grid: The codes that it may take; its scale is where the learned one starts.
    """

    bottom: torch.Tensor
    top: torch.Tensor

    def __init__(self, weight: torch.Tensor, codes: torch.Tensor, grid: WeightGrid) -> None:
        super().__init__()
        self.grid = grid
        exact = grid.position(weight)
        # Towards the weight, but far enough from the next code that only a steady gradient leads there.
        margin = _MARGIN
        start = torch.minimum(torch.maximum(exact, codes - margin), codes + margin)
        self.register_buffer("bottom", torch.minimum(exact, start) - _REACH)
        self.register_buffer("top", torch.maximum(exact, start) + _REACH)
        self.position = torch.nn.Parameter(start)
        self.log_scale = torch.nn.Parameter(torch.log(grid.scale))

    def forward(self) -> torch.Tensor:
        """Return the decoded weight; gradients pass through rounding to the positions, and to the scale."""
        codes: torch.Tensor = _Codes.apply(self.position, float(self.grid.low), float(self.grid.high))
        return self.grid.decode(codes, torch.exp(self.log_scale))

    def scales(self) -> list[torch.nn.Parameter]:
        """Return the logarithm of the scale, which is learned too."""
        return [self.log_scale]

    def undecided(self, progress: float) -> None:
        """Return nothing: what is computed is always what the codes give."""

    @torch.no_grad()
    def codes(self) -> torch.Tensor:
        """Return the codes: float32 that hold integers from `low` to `high`."""
        return self.grid.clamp(torch.round(self.position))

    @torch.no_grad()
    def scale(self) -> torch.Tensor:
        """Return the scale that decodes, in the shape that it was given in."""
        return torch.exp(self.log_scale)

    @torch.no_grad()
    def decoded(self) -> torch.Tensor:
        """Return the decoded weight."""
        return self.grid.decode(self.codes(), self.scale())

    @torch.no_grad()
    def confine(self) -> None:
        """Move positions that went too far back."""
        self.position.copy_(torch.minimum(torch.maximum(self.position, self.bottom), self.top))


class _Codes(torch.autograd.Function):
    """Rounding whose gradient is that of the identity, within the ends."""

    @staticmethod
    def forward(context: Any, position: torch.Tensor, low: float, high: float) -> torch.Tensor:
        context.save_for_backward(position)
        context.ends = (low, high)
        return torch.round(position).clamp_(low, high)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (position,) = context.saved_tensors
        low, high = context.ends
        return gradient * ((position >= low) & (position <= high)), None, None
