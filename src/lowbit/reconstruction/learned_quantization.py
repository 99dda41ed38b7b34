"""An activation's Q/DQ pair whose scale is learned, as an operator of the interpreter.

Esser et al., Learned Step Size Quantization, 2020, for the gradient of the scale; Wei et al., QDrop, 2022, for leaving
a part in float at random, so that weights do not adapt to the very errors of the calibration samples.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from lowbit.interpreter.registry import Call, operator

__all__ = ["DOMAIN", "OPERATOR", "learned_quantize"]

DOMAIN = "ai.lowbit"
OPERATOR = "LearnedQuantize"


@operator(OPERATOR, domain=DOMAIN)
def learned_quantize(
    call: Call, x: torch.Tensor, log_scale: torch.Tensor, zero_point: torch.Tensor, dropped: torch.Tensor
) -> torch.Tensor:
    """Encode and decode, with gradients for the tensor and for its scale.

    Args:
        call: Has the attributes `low` and `high`, the ends of the codes.
        x: Any shape, float32.
        log_scale: `[]`, natural logarithm of the scale.
        zero_point: `[]`, a code, as float32.
        dropped: `[]`, share of the rows along the last axis that stay in float.
    """
    keep = None
    if torch.is_grad_enabled() and float(dropped) > 0 and x.ndim > 1:
        # NOTE: QDrop drops single elements; whole rows take a hundredth of the random numbers, which cost the most.
        keep = (torch.rand(*x.shape[:-1], 1, device=x.device) < dropped).to(x.dtype)
    low, high = float(call.get("low")), float(call.get("high"))
    result: torch.Tensor = _Quantize.apply(x, log_scale, zero_point, keep, low, high)
    return result


class _Quantize(torch.autograd.Function):
    """Q/DQ in few passes over memory: `y = (clamp(round(x / s) + z) - z) · s`, and `y = x` where `keep` is 1."""

    @staticmethod
    def forward(
        context: Any,
        x: torch.Tensor,
        log_scale: torch.Tensor,
        zero_point: torch.Tensor,
        keep: torch.Tensor | None,
        low: float,
        high: float,
    ) -> torch.Tensor:
        scale, offset = math.exp(float(log_scale.detach())), float(zero_point)
        y = torch.round_(x / scale).clamp_(low - offset, high - offset).mul_(scale)
        if keep is not None:
            y.lerp_(x, keep)
        context.save_for_backward(x, y, keep)
        context.ends = ((low - offset) * scale, (high - offset) * scale)
        return y

    @staticmethod
    def backward(
        context: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, None, None, None, None]:
        x, y, keep = context.saved_tensors
        bottom, top = context.ends
        # The gradient of a clamp in one pass; at the very ends it is 0, where that of ReLU is 0 too.
        through = torch.ops.aten.hardtanh_backward(gradient, x, bottom, top)
        if keep is not None:
            through.lerp_(gradient, keep)
        scale = None
        if context.needs_input_grad[1]:
            # ∂y/∂ln s is y - x inside of the range, y outside and 0 where nothing is quantized.
            scale = torch.dot(gradient.reshape(-1), y.reshape(-1)) - torch.dot(through.reshape(-1), x.reshape(-1))
        return through, scale, None, None, None, None
