"""AdaRound: every weight learns whether it is rounded down or up.

Nagel, Amjad, van Baalen, Louizos and Blankevoort, Up or Down? Adaptive Rounding for Post-Training Quantization (2020).
Symbols are the paper's: `V` is learned, `h(V)` the rectified sigmoid, and the regularizer `1 - |2 h(V) - 1|^β` drives
`h` to 0 or 1 while β is annealed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lowbit.reconstruction.weight_grid import WeightGrid

__all__ = ["AdaptiveRounding", "rectified_sigmoid"]

# Stretch of the rectified sigmoid, ζ and γ of the paper's equation 23.
_ZETA, _GAMMA = 1.1, -0.1
# Nothing is decided in the first steps; then β falls along a cosine.
_WARM_UP = 0.2
_FIRST_BETA, _LAST_BETA = 20.0, 2.0


def rectified_sigmoid(V: torch.Tensor) -> torch.Tensor:
    """Return `h(V) = clip(sigmoid(V) (ζ - γ) + γ, 0, 1)`, any shape."""
    return (torch.sigmoid(V) * (_ZETA - _GAMMA) + _GAMMA).clamp(0.0, 1.0)


class AdaptiveRounding(torch.nn.Module):
    """A weight between the two codes next to it; its scale stays. It starts at the weight itself, decoded at nearest.

    Args:
        weight: Any shape, float32.
        grid: The codes that it may take.
    """

    floor: torch.Tensor

    def __init__(self, weight: torch.Tensor, grid: WeightGrid) -> None:
        super().__init__()
        self.grid = grid
        exact = grid.position(weight)
        self.register_buffer("floor", torch.floor(exact))
        fraction = exact - self.floor
        # h(V) = fraction at the start: the inverse of the stretched sigmoid, which no fraction takes to infinity.
        self.position = torch.nn.Parameter(torch.logit((fraction - _GAMMA) / (_ZETA - _GAMMA)))

    def forward(self) -> torch.Tensor:
        """Return the weight between its codes; gradients reach V, but not where both codes lie beyond the ends."""
        return self.grid.decode(self.grid.clamp(self.floor + rectified_sigmoid(self.position)))

    def scales(self) -> list[torch.nn.Parameter]:
        """Return nothing: AdaRound leaves scales as they are."""
        return []

    @torch.no_grad()
    def codes(self) -> torch.Tensor:
        """Return the codes: float32 that hold integers from `low` to `high`."""
        return self.grid.clamp(self.floor + (self.position >= 0))

    @torch.no_grad()
    def scale(self) -> torch.Tensor:
        """Return the scale that decodes, in the shape that it was given in."""
        return self.grid.scale

    @torch.no_grad()
    def decoded(self) -> torch.Tensor:
        """Return the decoded weight."""
        return self.grid.decode(self.codes())

    def confine(self) -> None:
        """Do nothing: a rectified sigmoid is confined."""

    def undecided(self, progress: float) -> torch.Tensor | None:
        """Return the regularizer `Σ 1 - |2 h(V) - 1|^β`, `[]`; 0 in the first fifth of the steps."""
        if progress < _WARM_UP:
            return torch.zeros(())
        done = (progress - _WARM_UP) / (1 - _WARM_UP)
        beta = _LAST_BETA + 0.5 * (_FIRST_BETA - _LAST_BETA) * (1 + math.cos(math.pi * done))
        return (1 - (2 * rectified_sigmoid(self.position) - 1).abs().pow(beta)).sum()
