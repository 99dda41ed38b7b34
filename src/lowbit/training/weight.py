"""A weight on its way through training: pruned, clustered and quantized, each only if asked for, in this order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from lowbit.training.fake_quantize import quantize_levels, quantize_signs, quantize_weight

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.training.clusters import Clusters

__all__ = ["Grid", "TrainableWeight", "WeightQuantizer"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """The grid that a weight is rounded to.

    Attributes:
        scale: Float32, positive, shaped as the format's granularity says.
        kind: `integer`, `levels` of a codebook, or `signs`.
        low: Lowest code of `integer`.
        high: Highest code of it.
        levels: `[k]`, ascending, of `levels`.
        spread: Makes of a tensor shaped like the scale one that broadcasts to the weight.
    """

    scale: torch.Tensor
    kind: Literal["integer", "levels", "signs"]
    low: float
    high: float
    spread: Callable[[torch.Tensor], torch.Tensor]
    levels: torch.Tensor | None = None


class WeightQuantizer(torch.nn.Module):
    """Rounds a weight to a grid whose scale is learned.

    Args:
        grid: The grid to start from.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.kind, self.low, self.high, self.spread = grid.kind, grid.low, grid.high, grid.spread
        self.log_scale = torch.nn.Parameter(torch.log(grid.scale))
        self.register_buffer("levels", grid.levels, persistent=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the decoded codes of the weight."""
        log_scale = self.spread(self.log_scale)
        if self.kind == "integer":
            return quantize_weight(weight, log_scale, self.low, self.high)
        if self.kind == "levels":
            return quantize_levels(weight, log_scale, self.levels)
        return quantize_signs(weight, log_scale)

    @torch.no_grad()
    def scale(self) -> torch.Tensor:
        """Return the scale that is computed with, shaped as it was given."""
        return self.log_scale.exp()

    def extra_repr(self) -> str:
        """Return the grid."""
        return f"{self.kind}, codes {self.low:g} … {self.high:g}, {self.log_scale.numel()} scales"


class TrainableWeight(torch.nn.Module):
    """One weight: a float tensor that learns, and what is made of it before the operator reads it.

    `y = quantize(mask · w)`, where `w` is the weight itself or, where it is clustered, its entry of a codebook.

    Args:
        weight: Any shape, float32.
        quantizer: Rounds it; `None` leaves it in float.
        clusters: Its codebook; the weight then learns through the entries alone.
        mask: Like the weight, 0 where it stays 0.

    Attributes:
        strength: Share of the rounding error that is added, from 0 (float) to 1 (what the engine computes).
        watch: Told the gradient of the masked weight at every step, also where the mask is 0; `None` if nobody asks.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        *,
        quantizer: WeightQuantizer | None = None,
        clusters: Clusters | None = None,
        mask: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.strength = 1.0
        self.watch: Callable[[torch.Tensor], None] | None = None
        self.shape = tuple(weight.shape)
        self.weight = torch.nn.Parameter(weight) if clusters is None else None
        self.clusters = clusters
        self.quantizer = quantizer
        self.register_buffer("mask", mask)

    def unmasked(self) -> torch.Tensor:
        """Return the weight as if no mask were on it, from its codebook if it has one."""
        weight: torch.Tensor = self.weight if self.clusters is None else self.clusters()
        return weight

    def latent(self) -> torch.Tensor:
        """Return the weight before it is rounded: masked, from its codebook if it has one."""
        weight = self.unmasked()
        return weight if self.mask is None else weight * self.mask

    def forward(self) -> torch.Tensor:
        """Return what the operator reads."""
        weight = self.latent()
        if self.watch is not None and weight.requires_grad:
            weight = weight.view_as(weight)  # A hook on the parameter itself would stay for the steps that follow.
            weight.register_hook(self.watch)
        if self.quantizer is None or self.strength == 0.0:
            return weight
        rounded: torch.Tensor = self.quantizer(weight)
        return rounded if self.strength == 1.0 else torch.lerp(weight, rounded, self.strength)

    @torch.no_grad()
    def set_mask(self, mask: torch.Tensor | None) -> None:
        """Choose which weights stay 0 from now on; the others continue from what they are.

        Args:
            mask: Like the weight, 0 where it stays 0; `None` sets all free.
        """
        self.mask = None if mask is None else mask.to(self.latent().dtype)

    @torch.no_grad()
    def decoded(self) -> torch.Tensor:
        """Return what the engine will read: fully rounded."""
        weight = self.latent()
        return weight.clone() if self.quantizer is None else self.quantizer(weight)
