"""Quantization: codes of tensors, and the operators that compute on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from lowbit.interpreter.codes import broadcast, code_type, dequantized, quantized
from lowbit.interpreter.decomposed import decomposed_dequantize, decomposed_quantize
from lowbit.interpreter.dtypes import to_dtype
from lowbit.interpreter.integers import along, centred, convolution, product, requantized
from lowbit.interpreter.registry import operator
from lowbit.interpreter.windows import windows

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__ = ["known_type", "run_time_codes"]


def known_type(call: Call, position: int) -> ir.DataType | None:
    """Return the element type that the model gives an input, if it does."""
    return call.types[position] if position < len(call.types) else None


@operator("QuantizeLinear")
@operator("QuantizeLinear", domain="com.microsoft")
def quantize_linear(call: Call, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """Round to codes, straight through for gradients; per tensor, along an axis or in blocks."""
    wanted = call.get("output_dtype", 0)
    kind = ir.DataType(wanted) if wanted else code_type(known_type(call, 2), zero_point)
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    found = decomposed_quantize(x, scale, zero_point, kind, axis=axis, block=block)
    if found is not None:
        return found
    precision = call.get("precision", 0)
    wide = to_dtype(precision) if precision else scale.dtype
    # A division in float64 is that of a module in float64, whatever its scales are in.
    wide = torch.promote_types(wide, x.dtype) if x.dtype == torch.float64 else wide
    step = broadcast(scale, x.shape, axis, block).to(wide)
    zero = None if zero_point is None else broadcast(_whole(zero_point), x.shape, axis, block)
    return quantized(x.to(wide), step, zero, kind, saturate=bool(call.get("saturate", 1)))


@operator("DequantizeLinear")
@operator("DequantizeLinear", domain="com.microsoft")
def dequantize_linear(call: Call, codes: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """Return the real values of codes; per tensor, along an axis or in blocks."""
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    wanted = call.get("output_dtype", 0)
    found = decomposed_dequantize(codes, scale, zero_point, axis=axis, block=block)
    if found is not None:
        return found
    step = broadcast(scale, codes.shape, axis, block)
    zero = None if zero_point is None else broadcast(_whole(zero_point), codes.shape, axis, block)
    return dequantized(codes, step, zero, to_dtype(wanted) if wanted else scale.dtype)


def _whole(zero_point: Tensor) -> Tensor:
    """Return zero points in a type that all of PyTorch's functions take."""
    return zero_point.to(torch.float32) if zero_point.is_floating_point() else zero_point.to(torch.int64)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(_call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round to uint8 in the range of the tensor's own values and zero; return codes, scale and zero point."""
    return run_time_codes(x)


def run_time_codes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a tensor as uint8 codes, their scale and their zero point, from its own range."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round((0 - low.detach()) / scale.detach()).clamp(0, 255).to(torch.uint8)
    return quantized(x, scale, zero_point.to(torch.int64), ir.DataType.UINT8), scale, zero_point


@operator("QLinearConv")
def qlinear_conv(
    call: Call,
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor,
    b: Tensor | None = None,
) -> Tensor:
    """Convolve codes and round the sums to codes again; the bias is int32 at the scale of the sums."""
    place = windows(call, x.shape[2:], w.shape[2:])
    sums = convolution(centred(x, x_zero_point, 1), centred(w, w_zero_point, 0), place, call.get("group", 1))
    if b is not None:
        sums = sums + along(b, sums.ndim, 1).to(sums.dtype)
    multiplier = along(x_scale.reshape(()) * w_scale / y_scale.reshape(()), sums.ndim, 1)
    return requantized(sums, multiplier, y_zero_point, y_zero_point.dtype)


@operator("QLinearMatMul")
def qlinear_matmul(
    _call: Call,
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
) -> Tensor:
    """Multiply matrices of codes and round the sums to codes again; scales one a row of A and one a column of B."""
    sums = product(centred(a, a_zero_point, -2), centred(b, b_zero_point, -1))
    rows, columns = along(a_scale, a.ndim, -2), along(b_scale, b.ndim, -1)
    multiplier = rows.to(torch.float32) * columns.to(torch.float32) / y_scale.to(torch.float32).reshape(())
    return requantized(sums, multiplier, y_zero_point, y_zero_point.dtype)
