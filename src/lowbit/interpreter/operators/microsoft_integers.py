"""com.microsoft: operators on codes, rounded as the engine's kernels round."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch.nn import functional

from lowbit.interpreter.integers import along, bounds, centred, product, requantized
from lowbit.interpreter.operators.pooling import average_pool
from lowbit.interpreter.operators.quantization import qlinear_conv, run_time_codes
from lowbit.interpreter.operators.recurrent import lstm_layer
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []

_DOMAIN = "com.microsoft"


def _real(codes: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """Return real values, float32."""
    wide = codes.to(torch.float32)
    return (wide if zero_point is None else wide - zero_point.to(torch.float32)) * scale


def _coded(x: Tensor, scale: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return codes of real values."""
    low, high = bounds(dtype)
    zero = 0 if zero_point is None else int(zero_point)
    return (torch.round((x / scale).clamp(low - zero, high - zero)) + zero).to(dtype)


def _type(zero_point: Tensor | None, codes: Tensor) -> torch.dtype:
    """Return the type of an operator's result; codes that travel in floating point do not tell it themselves."""
    if zero_point is not None:
        return zero_point.dtype
    return torch.uint8 if codes.is_floating_point() else codes.dtype


def _rounded(steps: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return codes of values in steps, as those kernels round that add the zero point first: ties go to even codes."""
    low, high = bounds(dtype)
    code = steps if zero_point is None else steps + zero_point.to(torch.float32)
    return torch.round(code).clamp(low, high).to(dtype)


@operator("QLinearAdd", domain=_DOMAIN)
def qlinear_add(
    _call: Call,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    c_scale: Tensor,
    c_zero: Tensor | None = None,
) -> Tensor:
    """Add codes of two scales."""
    # All zero points are one constant in the engine's kernel, and rounding is of the code, not of the value: a tie goes
    # to the even code. Its order of fused multiplications decides which sums are ties.
    p, q = a_scale / c_scale, b_scale / c_scale
    zeros = [
        torch.zeros((), device=a.device) if zero is None else zero.to(torch.float32)
        for zero in (a_zero, b_zero, c_zero)
    ]
    fixed = zeros[2] - _fused(zeros[0], p, q * zeros[1])
    low, high = bounds(_type(c_zero, a))
    return torch.round(_fused(a, p, _fused(b, q, fixed))).clamp(low, high).to(_type(c_zero, a))


def _fused(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """Return `x · factor + addend`, rounded once to float32."""
    return (x.to(torch.float64) * factor.to(torch.float64) + addend.to(torch.float64)).to(torch.float32)


@operator("QLinearMul", domain=_DOMAIN)
def qlinear_mul(
    _call: Call,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    c_scale: Tensor,
    c_zero: Tensor | None = None,
) -> Tensor:
    """Multiply codes."""
    products = (centred(a, a_zero, 0) * centred(b, b_zero, 0)).to(torch.float32)
    return _rounded(products * (a_scale * b_scale / c_scale), c_zero, _type(c_zero, a))


@operator("QLinearSigmoid", domain=_DOMAIN)
def qlinear_sigmoid(
    _call: Call, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    """Take the sigmoid of codes."""
    return _coded(torch.sigmoid(_real(x, x_scale, x_zero)), y_scale, y_zero, _type(y_zero, x))


@operator("QLinearLeakyRelu", domain=_DOMAIN)
def qlinear_leaky_relu(
    call: Call, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    """Take the LeakyRelu of codes."""
    return _coded(
        functional.leaky_relu(_real(x, x_scale, x_zero), call.get("alpha", 0.01)), y_scale, y_zero, _type(y_zero, x)
    )


@operator("QLinearSoftmax", domain=_DOMAIN)
def qlinear_softmax(
    call: Call, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    """Take the Softmax of codes; before operator set 13, over all axes from one on."""
    real = _real(x, x_scale, x_zero).to(torch.float64)
    axis = call.get("axis", -1) % x.ndim
    if call.get("opset", 13) < 13:
        y = torch.softmax(real.flatten(axis), dim=-1).reshape(x.shape)
    else:
        y = torch.softmax(real, dim=axis)
    # NOTE: The engine multiplies by the reciprocal of the scale, cut to a whole number: 254 for a scale of 1/255, which
    # is a little more than that in float32. Halves go up. Its sum is in float32: one code in a million differs.
    steps = torch.floor(torch.ones((), device=x.device) / y_scale).to(torch.float64)
    low, high = bounds(_type(y_zero, x))
    codes = torch.floor(y * steps + 0.5) + (0 if y_zero is None else y_zero.to(torch.float64))
    return codes.clamp(low, high).to(_type(y_zero, x))


@operator("QLinearGlobalAveragePool", domain=_DOMAIN)
def qlinear_global_average_pool(
    call: Call, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    """Average every channel of codes."""
    dims = list(range(1, x.ndim - 1)) if call.get("channels_last", 0) else list(range(2, x.ndim))
    count = 1
    for axis in dims:
        count *= x.shape[axis]
    sums = centred(x, x_zero, 0).sum(dim=dims, keepdim=True)
    return requantized(sums, x_scale / (y_scale * count), y_zero, _type(y_zero, x))


@operator("QLinearAveragePool", domain=_DOMAIN)
def qlinear_average_pool(
    call: Call, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    """Average windows of codes."""
    last = bool(call.get("channels_last", 0))
    real = _real(x.movedim(-1, 1) if last else x, x_scale, x_zero)
    codes = _rounded(cast("Tensor", average_pool(call, real)) / y_scale, y_zero, _type(y_zero, x))
    return codes.movedim(1, -1) if last else codes


@operator("QLinearReduceMean", domain=_DOMAIN)
def qlinear_reduce_mean(
    call: Call, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    """Average codes over axes."""
    dims = list(call.get("axes") or range(x.ndim))
    real = _real(x, x_scale, x_zero).mean(dim=dims, keepdim=bool(call.get("keepdims", 1)))
    return _coded(real, y_scale, y_zero, _type(y_zero, x))


@operator("QLinearConcat", domain=_DOMAIN)
def qlinear_concat(call: Call, y_scale: Tensor, y_zero: Tensor, *parts: Tensor) -> Tensor:
    """Join codes of several scales."""
    joined = [
        _coded(_real(parts[index], parts[index + 1], parts[index + 2]), y_scale, y_zero, y_zero.dtype)
        for index in range(0, len(parts), 3)
    ]
    return torch.cat(joined, dim=call.get("axis", 1))


@operator("QLinearWhere", domain=_DOMAIN)
def qlinear_where(
    _call: Call,
    condition: Tensor,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    y: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    z_scale: Tensor,
    z_zero: Tensor,
) -> Tensor:
    """Pick from codes of two scales."""
    one, other = _real(x, x_scale, x_zero), _real(y, y_scale, y_zero)
    return torch.where(
        condition, _coded(one, z_scale, z_zero, z_zero.dtype), _coded(other, z_scale, z_zero, z_zero.dtype)
    )


@operator("QLinearConv", domain=_DOMAIN)
def microsoft_qlinear_conv(call: Call, x: Tensor, *others: Tensor | None) -> Tensor:
    """Convolve codes, channels last if wanted; weights have channels second as ever."""
    last = bool(call.get("channels_last", 0))
    y = cast("Tensor", qlinear_conv(call, x.movedim(-1, 1) if last else x, *others))
    return y.movedim(1, -1) if last else y


@operator("QGemm", domain=_DOMAIN)
def qgemm(
    call: Call,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
) -> Tensor:
    """Multiply matrices of codes; the result is codes if it has a scale, else real."""
    left, right = centred(a, a_zero, 0), centred(b, b_zero, 0 if call.get("transB", 0) else 1)
    left = left.t() if call.get("transA", 0) else left
    right = right.t() if call.get("transB", 0) else right
    sums = product(left, right)
    sums = sums if c is None else sums + c.to(sums.dtype)
    factor = call.get("alpha", 1.0) * a_scale * b_scale
    if y_scale is None:
        return sums.to(torch.float32) * factor
    return requantized(sums, factor / y_scale, y_zero, _type(y_zero, a))


@operator("MatMulIntegerToFloat", domain=_DOMAIN)
def matmul_integer_to_float(
    _call: Call,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply matrices of codes; the result is real."""
    sums = product(centred(a, a_zero, -2), centred(b, b_zero, -1)).to(torch.float32)
    y = sums * (along(a_scale, a.ndim, -2) * along(b_scale, b.ndim, -1))
    return y if bias is None else y + bias


@operator("DynamicQuantizeMatMul", domain=_DOMAIN)
def dynamic_quantize_matmul(
    call: Call, a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Round a matrix to codes in its own range, then multiply."""
    codes, scale, zero_point = run_time_codes(a)
    return matmul_integer_to_float(call, codes, b, scale, b_scale, zero_point, b_zero, bias)


@operator("DynamicQuantizeLSTM", domain=_DOMAIN)
def dynamic_quantize_lstm(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    h: Tensor | None,
    c: Tensor | None,
    p: Tensor | None,
    w_scale: Tensor,
    w_zero: Tensor,
    r_scale: Tensor,
    r_zero: Tensor,
) -> tuple[Tensor, ...]:
    """Run an LSTM on codes: weights `[directions, input, 4 · hidden]`; inputs and states are rounded as they come."""

    def real(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        scale, zero = (value.reshape(codes.shape[0], 1, -1) for value in (scale, zero))
        return _real(codes, scale, zero).transpose(1, 2)

    def product(values: Tensor, weight: Tensor) -> Tensor:
        codes, scale, zero = run_time_codes(values)
        return functional.linear(_real(codes, scale, zero), weight)

    return lstm_layer(call, x, real(w, w_scale, w_zero), real(r, r_scale, r_zero), b, lengths, h, c, p, product)
