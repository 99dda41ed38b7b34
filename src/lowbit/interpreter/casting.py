"""Conversions between element types, rounded and out of range as the ONNX standard says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from lowbit.interpreter.carriers import FLOAT8
from lowbit.interpreter.dtypes import to_dtype

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["converted"]

_FEW_BITS = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT2: (-2, 1),
    ir.DataType.UINT2: (0, 3),
}
# Halfway from the largest value to what would be the next; a tie goes to the even one of them.
_OVERFLOW = {
    torch.float8_e4m3fn: 464.0,
    torch.float8_e4m3fnuz: 248.0,
    torch.float8_e5m2: 61440.0,
    torch.float8_e5m2fnuz: 61440.0,
}
_E8M0_BIAS, _E8M0_NAN = 127, 255


def converted(x: Tensor, code: int, *, saturate: bool = True, round_mode: str = "up") -> Tensor:
    """Return a tensor in another element type; gradients pass between floats.

    Args:
        x: Of any type.
        code: ONNX element type.
        saturate: Whether values beyond a float8's range become its largest, and not infinite or no number.
        round_mode: To a power of two (float8e8m0): `up`, `down` or `nearest`.

    Raises:
        ModelError: PyTorch has no such type.
    """
    element = ir.DataType(int(code))
    dtype = to_dtype(element)
    if x.dtype in FLOAT8 and dtype != x.dtype:
        x = x.to(torch.float32)
    if element in _FEW_BITS:
        return _few_bits(x, *_FEW_BITS[element]).to(dtype)
    if element == ir.DataType.FLOAT4E2M1:
        return _float4(x.to(torch.float32))
    if element == ir.DataType.FLOAT8E8M0:
        return _power_of_two(x.to(torch.float32), saturate=saturate, round_mode=round_mode)
    if dtype in FLOAT8 and dtype != x.dtype:
        return _float8(x.to(torch.float32), dtype, saturate=saturate)
    if x.is_floating_point() and dtype in (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.uint32):
        # Out of range is undefined in C; by way of int64 it is the same on every processor.
        return x.to(torch.int64).to(dtype)
    return x.to(dtype)


def _few_bits(x: Tensor, low: int, high: int) -> Tensor:
    """Return whole numbers, the bits beyond those of the type discarded."""
    return (x.to(torch.int64) - low) % (high - low + 1) + low


def _float4(x: Tensor) -> Tensor:
    """Return the nearest of ±{0, 0.5, 1, 1.5, 2, 3, 4, 6}, halves to even; for NaN, zero, as ml_dtypes does."""
    size = x.detach().abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    bounded = x.clamp(-6, 6)
    nearest = torch.round(bounded.detach() / step) * step
    return torch.where(torch.isnan(x), -0.0, bounded + (nearest - bounded).detach())


def _float8(x: Tensor, dtype: torch.dtype, *, saturate: bool) -> Tensor:
    limit = torch.finfo(dtype).max
    bounded = torch.where(torch.isnan(x), x, x.clamp(-limit, limit))
    if not saturate:
        # PyTorch's own conversion saturates for some of the types and not for others.
        edge = _OVERFLOW[dtype]
        beyond = x.abs() > edge if dtype == torch.float8_e4m3fn else x.abs() >= edge
        overflow = torch.inf if dtype == torch.float8_e5m2 else torch.nan
        bounded = torch.where(beyond, torch.sign(x) * overflow, bounded)
    return bounded.to(dtype)


def _power_of_two(x: Tensor, *, saturate: bool, round_mode: str) -> Tensor:
    fraction, exponent = torch.frexp(x)
    # x = fraction · 2^exponent with a fraction in [0.5, 1); at 0.5 it is a power of two already.
    edge = {"up": 0.5, "nearest": 0.75, "down": 1.0}[round_mode]
    above = fraction > edge if round_mode == "up" else fraction >= edge
    code = exponent - 1 + above.to(exponent.dtype) + _E8M0_BIAS
    code = torch.where(torch.isinf(x), _E8M0_NAN, torch.where(x == 0, -1, code))
    if saturate:
        code = code.clamp(0, _E8M0_NAN - 1)
    code = torch.where(torch.isnan(x) | (code < 0) | (code > _E8M0_NAN), _E8M0_NAN, code)
    return code.to(torch.uint8).view(torch.float8_e8m0fnu)
