"""An activation's codes, with learned scale and zero point, and the operator through which a graph calls them."""

from __future__ import annotations

import math
from typing import Any

import torch

from lowbit.interpreter.registry import Call, operator
from lowbit.training.fake_quantize import quantize_activation

__all__ = ["DOMAIN", "OPERATOR", "LearnedActivation"]

DOMAIN = "ai.lowbit"
OPERATOR = "Apply"


@operator(OPERATOR, domain=DOMAIN)
def apply_module(_call: Call, x: torch.Tensor, module: Any) -> torch.Tensor:
    """Apply a module that is an input of the graph."""
    result: torch.Tensor = module(x)
    return result


class LearnedActivation(torch.nn.Module):
    """Quantizes and dequantizes the tensors of one scale: `y = (clip(round(x / s) + z) - z) · s`.

    Args:
        scale: Scale to start from.
        zero_point: Zero point, a code.
        low: Lowest code.
        high: Highest code.
        learned: Whether the scale is learned.
        learned_zero_point: Whether the zero point is; only useful where values of both signs occur.

    Attributes:
        readers: How many tensors of the graph have these codes.
        clips: Lower and upper end of the activation function before it that its codes clip alike, and that the graph
            therefore has no more; `None` if there was none.
        strength: Share of the quantization error that is added, from 0 (float) to 1 (what the engine computes).
    """

    def __init__(
        self, scale: float, zero_point: int, *, low: int, high: int, learned: bool, learned_zero_point: bool
    ) -> None:
        super().__init__()
        self.low, self.high = float(low), float(high)
        self.strength = 1.0
        self.readers = 1
        self.clips: tuple[float | None, float | None] | None = None
        start = torch.tensor(math.log(scale), dtype=torch.float32)
        if learned:
            self.log_scale = torch.nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)
        self.learned_zero_point = learned and learned_zero_point
        # As a share of all codes, so that one learning rate fits zero points and logarithms of scales.
        self.span = self.high - self.low
        offset = torch.tensor(float(zero_point) / self.span)
        if self.learned_zero_point:
            self.zero_point = torch.nn.Parameter(offset)
        else:
            self.register_buffer("zero_point", offset)
            self.fixed_zero_point = float(zero_point)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the decoded codes of a tensor of any shape."""
        if self.strength != 1.0 and self.clips is not None:
            x = torch.relu(x) if self.clips == (0.0, None) else torch.clamp(x, *self.clips)
        if self.strength == 0.0:
            return x
        offset = self.zero_point * self.span if self.learned_zero_point else self.fixed_zero_point
        y = quantize_activation(x, self.log_scale, offset, self.low, self.high)
        return y if self.strength == 1.0 else torch.lerp(x, y, self.strength)

    @torch.no_grad()
    def parameters_of_codes(self) -> tuple[float, int]:
        """Return the scale and the zero point that are computed with."""
        scale = float(self.log_scale.exp())
        return scale, int((self.zero_point * self.span).round().clamp(self.low, self.high))

    def extra_repr(self) -> str:
        """Return the codes and the scale."""
        scale, zero_point = self.parameters_of_codes()
        return f"codes {self.low:g} … {self.high:g}, scale {scale:.4g}, zero point {zero_point}"
