"""Encoding and decoding, exactly as ONNX QuantizeLinear, DequantizeLinear and Gather compute in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import FormatError
from lowbit.formats.codebook import level_values, nearest_levels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lowbit.formats.format import Format
    from lowbit.formats.parameters import Parameters

__all__ = ["dequantize", "fake_quantize", "quantize"]


def quantize(values: ArrayLike, parameters: Parameters, fmt: Format) -> NDArray[Any]:
    """Encode values: `saturate(round_half_even(values / scale) + zero_point)`.

    `float8` and `float4` elements take `values / scale`, saturated and rounded half to even; `float16` and `bfloat16`
    are plain casts that overflow to infinity as ONNX Cast does. A codebook takes the level nearest to `values / scale`,
    the lower one of two that are equally near.

    Args:
        values: Any shape, converted to float32 first.
        parameters: Scale and zero point in the format's granularity.
        fmt: The format.

    Returns:
        Codes of the same shape, of `fmt.element.dtype`.

    Raises:
        FormatError: The parameters do not fit the format or the tensor, or an integer or codebook is asked to hold NaN.
    """
    x = np.asarray(values, dtype=np.float32)
    scale, zero_point = _fitted(parameters, fmt, x.shape)
    element = fmt.element
    # An overflow is no accident here: it saturates, or is what the plain cast of the spec does.
    with np.errstate(over="ignore", under="ignore"):
        if element.kind == "float" and element.bits == 16:
            return x.astype(element.dtype)
        # One buffer for all steps: on large weights, allocating takes longer than the arithmetic.
        y = np.empty(x.shape, dtype=np.float32)
        np.divide(x, scale, out=y)
    if element.kind == "codebook":
        return nearest_levels(y, fmt, parameters.levels)
    lowest, highest = fmt.code_range()
    if element.kind == "integer":
        np.rint(y, out=y)
        if zero_point is not None:
            y += zero_point
    np.clip(y, np.float32(lowest), np.float32(highest), out=y)
    if element.kind == "integer" and y.size and np.isnan(y.max()):
        raise FormatError(
            f"{element.name} cannot hold NaN",
            cause="The tensor holds NaN",
            remedy="Look for the operator that produces it, and check the data",
        )
    if element.kind == "integer" and element.bits < 8:
        return y.astype(np.int8).astype(element.dtype)
    return y.astype(element.dtype)


def dequantize(codes: NDArray[Any], parameters: Parameters, fmt: Format) -> NDArray[np.float32]:
    """Decode codes: `(codes - zero_point) * scale`, or of a codebook `levels[codes] * scale`, in float32.

    Args:
        codes: Any shape, of `fmt.element.dtype`.
        parameters: Scale and zero point in the format's granularity.
        fmt: The format.

    Returns:
        Values of the same shape.

    Raises:
        FormatError: The codes are of another type or beyond the levels, or the parameters do not fit the format or the
            tensor.
    """
    if codes.dtype != fmt.element.dtype:
        raise FormatError(f"Codes of type {codes.dtype} are not {fmt.element.name}", remedy="Encode with this format")
    scale, zero_point = _fitted(parameters, fmt, codes.shape)
    if fmt.element.kind == "codebook":
        y = level_values(codes, fmt, parameters.levels)
    else:
        y = np.asarray(codes.astype(np.float32))
    if zero_point is not None:
        y -= zero_point
    with np.errstate(over="ignore", under="ignore"):
        y *= scale
    return y


def fake_quantize(values: ArrayLike, parameters: Parameters, fmt: Format) -> NDArray[np.float32]:
    """Encode and decode: what remains of the values, `dequantize(quantize(values))`.

    Args:
        values: Any shape, converted to float32 first.
        parameters: Scale and zero point in the format's granularity.
        fmt: The format.

    Returns:
        Values of the same shape.

    Raises:
        FormatError: As `quantize`.
    """
    return dequantize(quantize(values, parameters, fmt), parameters, fmt)


def _fitted(
    parameters: Parameters, fmt: Format, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return scale and zero point so that they broadcast; no zero point where it is zero everywhere."""
    element = fmt.element
    if parameters.zero_point.dtype != element.dtype:
        raise FormatError(
            f"A zero point of type {parameters.zero_point.dtype} does not fit {element.name}",
            remedy=f"Make it {element.dtype}",
        )
    scale = fmt.granularity.broadcast(parameters.scale, shape)
    zero_point = parameters.zero_point.astype(np.float32)
    if not zero_point.any():
        return scale, None
    if element.kind != "integer":
        raise FormatError(f"{element.name} has a zero point other than 0", remedy="It has none: make it 0")
    return scale, fmt.granularity.broadcast(zero_point, shape)
