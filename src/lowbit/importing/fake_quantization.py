"""Fake quantizers of PyTorch, held still: they quantize as they stand and observe nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["is_fake_quantizer", "settled"]


def is_fake_quantizer(module: torch.nn.Module) -> bool:
    """Return whether a module is one of `torch.ao.quantization`'s fake quantizers."""
    return any(base.__name__ == "FakeQuantizeBase" for base in type(module).__mro__)


def settled(quantizer: torch.nn.Module) -> torch.nn.Module:
    """Return a module that quantizes with the present scale and zero point of a fake quantizer, without observing."""
    import torch

    # What exported programs quantize with; unlike `torch.fake_quantize_*`, these can be captured with an open batch.
    import torch.ao.quantization.fx._decomposed

    pairs = torch.ops.quantized_decomposed
    enabled = bool(quantizer.fake_quant_enabled.reshape(-1)[0])
    low, high = int(quantizer.quant_min), int(quantizer.quant_max)
    stored = torch.uint8 if low >= 0 else torch.int8
    narrow = torch.iinfo(stored).min <= low and high <= torch.iinfo(stored).max
    scale, zero_point = quantizer.scale.detach().clone(), quantizer.zero_point.detach().to(torch.int64)
    axis = int(quantizer.ch_axis)

    class Settled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", scale)
            self.register_buffer("zero_point", zero_point)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not enabled:
                return x
            if not narrow:
                shape = [-1 if quantizer.is_per_channel and place == axis else 1 for place in range(x.ndim)]
                step, zero = self.scale.reshape(shape), self.zero_point.reshape(shape)
                return (torch.clamp(torch.round(x / step) + zero, low, high) - zero) * step
            if quantizer.is_per_channel:
                codes = pairs.quantize_per_channel(x, self.scale, self.zero_point, axis, low, high, stored)
                return pairs.dequantize_per_channel(codes, self.scale, self.zero_point, axis, low, high, stored)
            one, zero = one_scale, one_zero_point
            codes = pairs.quantize_per_tensor(x, one, zero, low, high, stored)
            return pairs.dequantize_per_tensor(codes, one, zero, low, high, stored)

    one_scale, one_zero_point = float(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0])
    result = Settled()
    result.training = False
    return result
