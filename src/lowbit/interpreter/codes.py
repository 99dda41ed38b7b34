"""Codes of quantized tensors: their ranges, their rounding, and gradients through both.

Where a gradient is wanted, codes travel as floating-point tensors of whole numbers: PyTorch's integers carry none. Both
halves together, `quantized` and `dequantized`, have the gradients of learned step sizes (Esser et al. 2020): with
`v = x / s` and codes from `Q_n` to `Q_p` (zero point subtracted), `∂x̂/∂x` is 1 where `Q_n <= v <= Q_p` and 0 elsewhere;
`∂x̂/∂s` is `round(v) - v` there and `Q_n` or `Q_p` elsewhere.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from lowbit.interpreter.dtypes import to_dtype
from lowbit.interpreter.integers import along

__all__ = ["FLOATS", "as_declared", "broadcast", "code_type", "dequantized", "limits", "quantized"]

# Largest value of the small floating-point types that serve as codes.
FLOATS = {
    ir.DataType.FLOAT8E4M3FN: 448.0,
    ir.DataType.FLOAT8E4M3FNUZ: 240.0,
    ir.DataType.FLOAT8E5M2: 57344.0,
    ir.DataType.FLOAT8E5M2FNUZ: 57344.0,
    ir.DataType.FLOAT4E2M1: 6.0,
}
_FEW_BITS = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT2: (-2, 1),
    ir.DataType.UINT2: (0, 3),
}
_TYPES = {
    torch.uint8: ir.DataType.UINT8,
    torch.int8: ir.DataType.INT8,
    torch.uint16: ir.DataType.UINT16,
    torch.int16: ir.DataType.INT16,
    torch.int32: ir.DataType.INT32,
    torch.float8_e4m3fn: ir.DataType.FLOAT8E4M3FN,
    torch.float8_e4m3fnuz: ir.DataType.FLOAT8E4M3FNUZ,
    torch.float8_e5m2: ir.DataType.FLOAT8E5M2,
    torch.float8_e5m2fnuz: ir.DataType.FLOAT8E5M2FNUZ,
}


def code_type(known: ir.DataType | None, zero_point: torch.Tensor | None) -> ir.DataType:
    """Return the ONNX type of codes: what the model says, else that of the zero point, else uint8."""
    if known is not None:
        return known
    return ir.DataType.UINT8 if zero_point is None else _TYPES.get(zero_point.dtype, ir.DataType.UINT8)


def limits(kind: ir.DataType) -> tuple[float, float]:
    """Return the lowest and the highest code of a type."""
    if kind in FLOATS:
        return -FLOATS[kind], FLOATS[kind]
    if kind in _FEW_BITS:
        return _FEW_BITS[kind]
    info = torch.iinfo(to_dtype(int(kind)))
    return info.min, info.max


def broadcast(values: torch.Tensor, shape: torch.Size, axis: int, block: int) -> torch.Tensor:
    """Return scales or zero points so that they broadcast against a tensor.

    Args:
        values: `[]`, `[1]`, `[N]` along the axis, or of the tensor's rank with blocks along the axis.
        shape: Of the tensor.
        axis: The axis that scales differ along.
        block: Elements that share a scale; 0 without blocks.
    """
    if not shape:
        return values.reshape(())
    axis = axis % len(shape)
    if block and values.ndim == len(shape):
        return values.repeat_interleave(block, dim=axis).narrow(axis, 0, shape[axis])
    return along(values, len(shape), axis)


def quantized(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, kind: ir.DataType, *, saturate: bool = True
) -> torch.Tensor:
    """Return codes: `x / scale` to the nearest, halves to even, plus the zero point, within the type's range.

    Args:
        x: The tensor; its type is that of the division.
        scale: Broadcastable.
        zero_point: Broadcastable; 0 if left out.
        kind: ONNX type of the codes.
        saturate: Whether a float8 that overflows becomes the largest one, rather than infinite or no number.

    Returns:
        Codes of the type that holds `kind`; of the type of `x` where a gradient is wanted.
    """
    differentiable = torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad)
    ratio = x / scale
    zero = torch.zeros((), dtype=ratio.dtype, device=x.device) if zero_point is None else zero_point.to(ratio.dtype)
    low, high = limits(kind)
    if kind in FLOATS:
        bounded = (ratio + zero).clamp(low, high) if saturate else ratio + zero
        nearest = _nearest_float(bounded.detach(), kind)
        if not differentiable:
            return nearest if kind == ir.DataType.FLOAT4E2M1 else _stored(bounded, kind, saturate=saturate)
        return bounded + (nearest - bounded).detach()
    # The bounds are whole numbers less a whole number: rounding after them is rounding before.
    bounded = torch.minimum(torch.maximum(ratio, low - zero), high - zero)
    if not differentiable:
        return (torch.round(bounded) + zero).to(torch.int64).to(to_dtype(int(kind)))
    return bounded + (torch.round(bounded) - bounded).detach() + zero


def _stored(x: torch.Tensor, kind: ir.DataType, *, saturate: bool) -> torch.Tensor:
    from lowbit.interpreter.casting import converted

    return converted(x, int(kind), saturate=saturate)


def _nearest_float(x: torch.Tensor, kind: ir.DataType) -> torch.Tensor:
    """Return the nearest values of a small floating-point type, halves to even."""
    if kind != ir.DataType.FLOAT4E2M1:
        return x.to(torch.float32).to(to_dtype(int(kind))).to(x.dtype)
    size = x.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0)).to(x.dtype)
    return torch.round(x / step) * step


def dequantized(
    codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return `(codes - zero_point) · scale`.

    Args:
        codes: Codes, or whole numbers in floating point.
        scale: Broadcastable.
        zero_point: Broadcastable; 0 if left out.
        dtype: Type of the result.
    """
    # float16 scales compute in float32, as the engine does; float64 stays what it is.
    wide = torch.promote_types(scale.dtype, torch.float32)
    if codes.dtype in (torch.int32, torch.uint32) and zero_point is not None:
        # Whole numbers above 2^24 are subtracted before they are rounded to float32.
        centred = (codes.to(torch.int64) - zero_point.to(torch.int64)).to(wide)
    else:
        centred = codes.to(wide) if zero_point is None else codes.to(wide) - zero_point.to(wide)
    return (centred * scale.to(wide)).to(dtype)


def as_declared(value: object, dtype: torch.dtype) -> object:
    """Return an output of a graph; codes that travelled in floating point, for gradients, in their declared type."""
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    if is_float and not dtype.is_floating_point and not dtype.is_complex:
        assert isinstance(value, torch.Tensor)
        return value.detach().to(torch.int64).to(dtype)
    return value
