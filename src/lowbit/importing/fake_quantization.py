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

    enabled = bool(quantizer.fake_quant_enabled.reshape(-1)[0])

    class Settled(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            if enabled:
                self.register_buffer("scale", quantizer.scale.detach().clone())
                self.register_buffer("zero_point", quantizer.zero_point.detach().to(torch.int32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not enabled:
                return x
            low, high = int(quantizer.quant_min), int(quantizer.quant_max)
            if quantizer.is_per_channel:
                return torch.fake_quantize_per_channel_affine(
                    x, self.scale, self.zero_point, quantizer.ch_axis, low, high
                )
            return torch.fake_quantize_per_tensor_affine(
                x, self.scale.reshape(()), self.zero_point.reshape(()), low, high
            )

    result = Settled()
    result.training = False
    return result
