"""A bias that the engine adds to sums of products of codes: a whole multiple of the product of both scales."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lowbit.training.activation import LearnedActivation
    from lowbit.training.weight import TrainableWeight

__all__ = ["TrainableBias"]


class TrainableBias(torch.nn.Module):
    """A bias, rounded to `s_x · s_w`; with few bits that is so coarse that training has to see it.

    Args:
        bias: `[N]` float32, or of a shape that broadcasts like that.
        weight: The weight of the operator; its scale is `[N]` or `[]`.
        codes: The codes that the operator reads.
    """

    def __init__(self, bias: torch.Tensor, weight: TrainableWeight, codes: LearnedActivation) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(bias)
        # Not as parts of this module: their parameters are the model's already.
        self._of = (weight, codes)

    def forward(self) -> torch.Tensor:
        """Return the bias as it is added."""
        weight, codes = self._of
        if weight.quantizer is None or codes.strength != 1.0:
            return self.bias
        scale = (weight.quantizer.log_scale.detach() + codes.log_scale.detach()).exp()
        result: torch.Tensor = _Rounded.apply(self.bias, scale)
        return result


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, bias: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.round(bias / scale).mul_(scale)

    @staticmethod
    def backward(_context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None
