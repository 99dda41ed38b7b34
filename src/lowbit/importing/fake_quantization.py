"""Fake quantizers of PyTorch as pairs of operators that can be captured with an open batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["is_fake_quantizer", "pairs_instead", "settled"]


def is_fake_quantizer(module: torch.nn.Module) -> bool:
    """Return whether a module is one of `torch.ao.quantization`'s fake quantizers."""
    return any(base.__name__ == "FakeQuantizeBase" for base in type(module).__mro__)


def settled(quantizer: torch.nn.Module) -> torch.nn.Module:
    """Return a module that quantizes with the present scale and zero point of a fake quantizer, without observing."""
    import torch

    enabled = bool(quantizer.fake_quant_enabled.reshape(-1)[0])
    low, high = int(quantizer.quant_min), int(quantizer.quant_max)
    axis = int(quantizer.ch_axis) if quantizer.is_per_channel else None

    class Settled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", quantizer.scale.detach().clone())
            self.register_buffer("zero_point", quantizer.zero_point.detach().to(torch.int64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not enabled:
                return x
            scale, zero_point = one if axis is None else (self.scale, self.zero_point)
            return _pair(x, scale, zero_point, low, high, axis)

    # A quantizer per tensor has one of each, maybe in a vector; plain numbers can always be captured.
    one: tuple[Any, Any] = (float(quantizer.scale.reshape(-1)[0]), int(quantizer.zero_point.reshape(-1)[0]))
    result = Settled()
    result.training = False
    return result


def pairs_instead() -> Any:
    """Return a context in which `torch.fake_quantize_*` are pairs: they themselves cannot be captured."""
    import torch
    from torch.overrides import TorchFunctionMode

    class PairsInstead(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            if func is torch.fake_quantize_per_tensor_affine:
                return _per_tensor(*args, **(kwargs or {}))
            if func is torch.fake_quantize_per_channel_affine:
                return _per_channel(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))

    return PairsInstead()


def _per_tensor(
    input: Any,  # noqa: A002 - as PyTorch calls it
    scale: Any,
    zero_point: Any,
    quant_min: int,
    quant_max: int,
) -> Any:
    return _pair(input, scale, zero_point, quant_min, quant_max, None)


def _per_channel(
    input: Any,  # noqa: A002
    scale: Any,
    zero_point: Any,
    axis: int,
    quant_min: int,
    quant_max: int,
) -> Any:
    return _pair(input, scale, zero_point, quant_min, quant_max, axis)


def _pair(x: Any, scale: Any, zero_point: Any, low: int, high: int, axis: int | None) -> Any:
    """Round to codes and back; what no 8-bit code holds by the formula that PyTorch documents."""
    import torch
    import torch.ao.quantization.fx._decomposed  # registers the operators

    operators = torch.ops.quantized_decomposed
    stored = torch.uint8 if low >= 0 else torch.int8
    if low < torch.iinfo(stored).min or high > torch.iinfo(stored).max:
        if axis is not None:
            shape = [-1 if place == axis else 1 for place in range(x.ndim)]
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        return (torch.clamp(torch.round(x / scale) + zero_point, low, high) - zero_point) * scale
    if axis is not None:
        zero_point = zero_point.to(torch.int64)
        codes = operators.quantize_per_channel(x, scale, zero_point, axis, low, high, stored)
        return operators.dequantize_per_channel(codes, scale, zero_point, axis, low, high, stored)
    if isinstance(scale, torch.Tensor):
        scale, zero_point = scale.reshape(()), zero_point.reshape(()).to(torch.int64)
        codes = operators.quantize_per_tensor.tensor(x, scale, zero_point, low, high, stored)
        return operators.dequantize_per_tensor.tensor(codes, scale, zero_point, low, high, stored)
    codes = operators.quantize_per_tensor(x, scale, zero_point, low, high, stored)
    return operators.dequantize_per_tensor(codes, scale, zero_point, low, high, stored)
