"""PyTorch's quantization operators as the standard's QuantizeLinear and DequantizeLinear.

The exporter reads the annotations of the functions here: `float` and `int` come as Python numbers, `TensorType` as
values. Imported only where a module is exported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op
from onnxscript.onnx_types import TensorType  # noqa: TC002 - the exporter resolves the annotations

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["translations"]

_FULL = {ir.DataType.UINT8: (0, 255), ir.DataType.INT8: (-128, 127)}


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what stands for PyTorch's quantization operators, for `custom_translation_table`.

    A range of codes that is narrower than its type, such as −127 … 127 or the 0 … 127 of `reduce_range`, becomes a Clip
    in front of the pair. Ranges wider than 8 bits are computed in float, by the formula that PyTorch documents.
    """
    aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed
    table: dict[Any, Callable[..., Any]] = {
        aten.fake_quantize_per_tensor_affine.default: _fake_per_tensor,
        aten.fake_quantize_per_tensor_affine.tensor_qparams: _fake_per_tensor_learned,
        aten.fake_quantize_per_channel_affine.default: _fake_per_channel,
    }
    for name, overload, function in (
        ("quantize_per_tensor", "default", _quantize_per_tensor),
        ("quantize_per_tensor", "tensor", _quantize_per_tensor_learned),
        ("dequantize_per_tensor", "default", _dequantize_per_tensor),
        ("dequantize_per_tensor", "tensor", _dequantize_per_tensor_learned),
        ("quantize_per_channel", "default", _quantize_per_channel),
        ("dequantize_per_channel", "default", _dequantize_per_channel),
    ):
        # These exist only once a module that uses them was made: their library registers them when imported.
        packet = getattr(decomposed, name, None)
        if packet is not None and overload in packet.overloads():
            table[getattr(packet, overload)] = function
    return table


def _fake_per_tensor(x: TensorType, scale: float, zero_point: int, quant_min: int, quant_max: int) -> TensorType:
    return _pair(x, _real(scale), _whole(zero_point), quant_min, quant_max)


def _fake_per_tensor_learned(
    x: TensorType, scale: TensorType, zero_point: TensorType, quant_min: int, quant_max: int
) -> TensorType:
    return _pair(x, _scalar(scale), _scalar(zero_point), quant_min, quant_max)


def _fake_per_channel(
    x: TensorType, scale: TensorType, zero_point: TensorType, axis: int, quant_min: int, quant_max: int
) -> TensorType:
    return _pair(x, scale, zero_point, quant_min, quant_max, axis=axis)


def _quantize_per_tensor(
    x: TensorType, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: int
) -> TensorType:
    return _codes(x, _real(scale), _whole(zero_point), quant_min, quant_max, _stored(dtype))


def _quantize_per_tensor_learned(
    x: TensorType, scale: TensorType, zero_point: TensorType, quant_min: int, quant_max: int, dtype: int
) -> TensorType:
    return _codes(x, _scalar(scale), _scalar(zero_point), quant_min, quant_max, _stored(dtype))


def _quantize_per_channel(
    x: TensorType,
    scales: TensorType,
    zero_points: TensorType,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: int,
) -> TensorType:
    return _codes(x, scales, zero_points, quant_min, quant_max, _stored(dtype), axis=axis)


def _dequantize_per_tensor(
    codes: TensorType,
    scale: float,
    zero_point: int,
    quant_min: int,  # noqa: ARG001 - the codes lie in their range
    quant_max: int,  # noqa: ARG001
    dtype: int,
    out_dtype: int = -1,  # noqa: ARG001 - left at float32 by every quantizer
) -> TensorType:
    return _values(codes, _real(scale), _whole(zero_point), _stored(dtype))


def _dequantize_per_tensor_learned(
    codes: TensorType,
    scale: TensorType,
    zero_point: TensorType,
    quant_min: int,  # noqa: ARG001
    quant_max: int,  # noqa: ARG001
    dtype: int,
    out_dtype: int = -1,  # noqa: ARG001
) -> TensorType:
    return _values(codes, _scalar(scale), _scalar(zero_point), _stored(dtype))


def _dequantize_per_channel(
    codes: TensorType,
    scales: TensorType,
    zero_points: TensorType,
    axis: int,
    quant_min: int,  # noqa: ARG001
    quant_max: int,  # noqa: ARG001
    dtype: int,
    out_dtype: int = -1,  # noqa: ARG001
) -> TensorType:
    return _values(codes, scales, zero_points, _stored(dtype), axis=axis)


def _pair(x: Any, scale: Any, zero_point: Any, low: int, high: int, *, axis: int | None = None) -> Any:
    """Round `x` to the grid of a scale and a zero point and back."""
    if low >= 0 and high <= 255:
        stored = ir.DataType.UINT8
    elif low >= -128 and high <= 127:
        stored = ir.DataType.INT8
    else:
        zero = op.Cast(_spread(zero_point, x, axis), to=ir.DataType.FLOAT)
        step = _spread(scale, x, axis)
        codes = op.Clip(op.Add(op.Round(op.Div(x, step)), zero), _real(float(low)), _real(float(high)))
        return op.Mul(op.Sub(codes, zero), step)
    return _values(_codes(x, scale, zero_point, low, high, stored, axis=axis), scale, zero_point, stored, axis=axis)


def _codes(
    x: Any, scale: Any, zero_point: Any, low: int, high: int, stored: ir.DataType, *, axis: int | None = None
) -> Any:
    if (low, high) != _FULL.get(stored, (low, high)):
        step, zero = _spread(scale, x, axis), op.Cast(_spread(zero_point, x, axis), to=ir.DataType.FLOAT)
        least = op.Mul(op.Sub(_real(float(low)), zero), step)
        x = op.Min(op.Max(x, least), op.Mul(op.Sub(_real(float(high)), zero), step))
    return op.QuantizeLinear(x, scale, op.Cast(zero_point, to=stored), axis=1 if axis is None else axis)


def _values(codes: Any, scale: Any, zero_point: Any, stored: ir.DataType, *, axis: int | None = None) -> Any:
    return op.DequantizeLinear(codes, scale, op.Cast(zero_point, to=stored), axis=1 if axis is None else axis)


def _spread(value: Any, x: Any, axis: int | None) -> Any:
    """Shape what there is one of per channel so that it broadcasts against `x`."""
    if axis is None:
        return value
    rank = len(x.shape)
    shape = [1] * rank
    shape[axis] = -1
    return op.Reshape(value, op.Constant(value=ir.tensor(shape, dtype=ir.DataType.INT64)))


def _scalar(value: Any) -> Any:
    return op.Reshape(value, op.Constant(value=ir.tensor([], dtype=ir.DataType.INT64)))


def _real(value: float) -> Any:
    return op.Constant(value=ir.tensor(value, dtype=ir.DataType.FLOAT))


def _whole(value: int) -> Any:
    return op.Constant(value=ir.tensor(value, dtype=ir.DataType.INT32))


def _stored(dtype: int) -> ir.DataType:
    """Return the type of codes; the exporter hands over ONNX's numbers of element types."""
    kind = ir.DataType(dtype)
    if kind not in _FULL and kind not in {ir.DataType.INT32, ir.DataType.INT16, ir.DataType.UINT16}:
        raise NotImplementedError(f"QuantizeLinear does not store codes as {kind.name}")
    return kind
