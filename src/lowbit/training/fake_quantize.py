"""Rounding to a grid of learned size, forwards exactly as an engine does it, backwards straight through.

Esser et al., Learned Step Size Quantization (LSQ), 2020: with `v = x / s`, `y = s · clip(round(v), Qn, Qp)` and

    ∂y/∂x = 1 where Qn <= v <= Qp, else 0
    ∂y/∂s = round(v) - v there, else Qn or Qp.

Scales are kept as logarithms, so that no step of an optimizer makes one negative: `∂y/∂ln s = s · ∂y/∂s = y - x` inside
and `y` outside. The zero point is learned too (Bhalgat et al., LSQ+, 2020, in codes): `∂y/∂z = -s` outside and 0
inside. Each function reads a tensor as few times as it can, because activations are larger than caches.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["quantize_activation", "quantize_levels", "quantize_signs", "quantize_weight"]


def quantize_activation(
    x: torch.Tensor, log_scale: torch.Tensor, zero_point: torch.Tensor | float, low: float, high: float
) -> torch.Tensor:
    """Encode and decode a tensor at one scale.

    Args:
        x: Any shape, float32.
        log_scale: `[]`, natural logarithm of the scale.
        zero_point: A code; a tensor `[]` if it is learned, which is rounded here.
        low: Lowest code.
        high: Highest code.
    """
    learned = zero_point if isinstance(zero_point, torch.Tensor) else None
    offset = float(zero_point) if learned is None else float(learned.detach().round().clamp(low, high))
    result: torch.Tensor = _Activation.apply(x, log_scale, learned, low - offset, high - offset)
    return result


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        x: torch.Tensor,
        log_scale: torch.Tensor,
        _zero_point: torch.Tensor | None,
        low: float,
        high: float,
    ) -> torch.Tensor:
        scale = log_scale.exp()
        v = x / scale
        # The ends are whole numbers, so that clipping before rounding is clipping after.
        y = torch.clamp(v, low, high).round_().mul_(scale)
        context.save_for_backward(v, y, scale)
        context.ends = (low, high)
        # LSQ, section 2.2: balances the gradient of one scale against those of many weights.
        context.pace = 1.0 / (max(x.numel() // max(x.shape[0] if x.ndim else 1, 1), 1) * max(high, -low, 1.0)) ** 0.5
        return y

    @staticmethod
    def backward(
        context: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, None, None]:
        v, y, scale = context.saved_tensors
        low, high = context.ends
        if gradient.stride() != v.stride():
            gradient = torch.empty_like(v).copy_(gradient)
        # The gradient of a clamp in one pass; at the very ends it is 0, where that of ReLU is 0 too.
        through = torch.ops.aten.hardtanh_backward(gradient, v, low, high)
        log_scale = zero_point = None
        if context.needs_input_grad[1]:
            log_scale = (_dot(gradient, y) - _dot(through, v) * scale) * context.pace
        if context.needs_input_grad[2]:
            zero_point = (through.sum() - gradient.sum()) * scale * context.pace
        return through, log_scale, zero_point, None, None


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the sum of the products of two tensors of one shape, without a tensor of products if they allow it."""
    if a.stride() == b.stride() and (a.is_contiguous() or (a.ndim > 1 and a.is_contiguous(memory_format=_layout(a)))):
        flat = (a.numel(),), (1,)
        return torch.dot(a.as_strided(*flat, a.storage_offset()), b.as_strided(*flat, b.storage_offset()))
    return (a * b).sum()


def _layout(tensor: torch.Tensor) -> torch.memory_format:
    if tensor.ndim == 5:
        return torch.channels_last_3d
    return torch.channels_last if tensor.ndim == 4 else torch.contiguous_format


def quantize_weight(weight: torch.Tensor, log_scale: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Encode and decode a weight on a symmetric integer grid.

    Args:
        weight: Any shape, float32.
        log_scale: Broadcasts to it.
        low: Lowest code.
        high: Highest code.
    """
    result: torch.Tensor = _Weight.apply(weight, log_scale, low, high)
    return result


def _summed(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over the elements that share an element of `like`."""
    return tensor.sum_to_size(like.shape)


def _pace(weight: torch.Tensor, scale: torch.Tensor, high: float) -> float:
    return float((max(weight.numel() // max(scale.numel(), 1), 1) * max(high, 1.0)) ** -0.5)


class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: torch.Tensor, log_scale: torch.Tensor, low: float, high: float) -> torch.Tensor:
        scale = log_scale.exp()
        v = weight / scale
        y = torch.clamp(v, low, high).round_().mul_(scale)
        context.save_for_backward(v, y, scale)
        context.ends = (low, high)
        return y

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        v, y, scale = context.saved_tensors
        low, high = context.ends
        through = gradient * ((v >= low) & (v <= high))
        log_scale = None
        if context.needs_input_grad[1]:
            log_scale = _summed(gradient * y, scale) - _summed(through * v, scale) * scale
            log_scale = log_scale * _pace(v, scale, high)
        return through, log_scale, None, None


def quantize_levels(weight: torch.Tensor, log_scale: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Replace every weight by its nearest level.

    Args:
        weight: Any shape, float32.
        log_scale: Broadcasts to it.
        levels: `[k]`, ascending, before the scale.
    """
    result: torch.Tensor = _Levels.apply(weight, log_scale, levels)
    return result


class _Levels(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, weight: torch.Tensor, log_scale: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        scale = log_scale.exp()
        v = weight / scale
        middles = levels[:-1] * 0.5 + levels[1:] * 0.5
        y = levels[torch.searchsorted(middles, v.contiguous())].mul_(scale)
        context.save_for_backward(v, y, scale, levels)
        return y

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        v, y, scale, levels = context.saved_tensors
        through = gradient * ((v >= levels[0]) & (v <= levels[-1]))
        log_scale = None
        if context.needs_input_grad[1]:
            log_scale = _summed(gradient * y, scale) - _summed(through * v, scale) * scale
            log_scale = log_scale * _pace(v, scale, 1.0)
        return through, log_scale, None


def quantize_signs(weight: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """Replace every weight by plus or minus the scale (Rastegari et al., XNOR-Net, 2016, with a learned scale).

    Weights that are exactly 0 stay 0. The gradient passes where a weight is within twice the scale.

    Args:
        weight: Any shape, float32.
        log_scale: Broadcasts to it.
    """
    result: torch.Tensor = _Signs.apply(weight, log_scale)
    return result


class _Signs(torch.autograd.Function):
    REACH = 2.0

    @staticmethod
    def forward(context: Any, weight: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        scale = log_scale.exp()
        y = torch.sign(weight) * scale
        context.save_for_backward(weight / scale, y, scale)
        return y

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        v, y, scale = context.saved_tensors
        through = gradient * (v.abs() <= _Signs.REACH)
        log_scale = None
        if context.needs_input_grad[1]:
            log_scale = _summed(gradient * y, scale) * _pace(v, scale, 1.0)
        return through, log_scale
