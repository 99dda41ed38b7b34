"""Packing: codes as the bytes of an ONNX file, and back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowbit.formats.element import Element

__all__ = ["pack", "packed_bytes", "unpack"]


def packed_bytes(shape: Sequence[int], element: Element) -> int:
    """Return how many bytes a tensor of codes takes in a model file.

    Args:
        shape: Shape of the tensor; `()` is one code.
        element: Type of one code.
    """
    return -(-math.prod(shape) * element.storage.bitwidth // 8)


def pack(codes: NDArray[Any], element: Element) -> NDArray[np.uint8]:
    """Pack codes as ONNX stores them: little endian, the first of several codes in the low bits of a byte.

    Args:
        codes: Any shape, of `element.dtype`, read in row-major order.
        element: Type of one code.

    Returns:
        `[packed_bytes(codes.shape, element)]`; bits after the last code are 0.

    Raises:
        FormatError: The codes are of another type.
    """
    if codes.dtype != element.dtype:
        raise FormatError(f"Codes of type {codes.dtype} are not {element.name}", remedy="Encode with this format")
    flat = np.ascontiguousarray(codes).reshape(-1)
    if element.storage.bitwidth >= 8:
        # A byte-swapped view is a no-op on every little endian machine.
        flat = flat.view(f"u{element.storage.bitwidth // 8}").astype(f"<u{element.storage.bitwidth // 8}", copy=False)
        return flat.view(np.uint8)
    per_byte = 8 // element.storage.bitwidth
    padded = np.zeros(packed_bytes(flat.shape, element) * per_byte, dtype=np.uint8)
    padded[: flat.size] = flat.view(np.uint8) & np.uint8(2**element.storage.bitwidth - 1)
    lanes = padded.reshape(-1, per_byte)
    packed = lanes[:, 0].copy()
    for lane in range(1, per_byte):
        packed |= lanes[:, lane] << np.uint8(lane * element.storage.bitwidth)
    return packed


def unpack(data: NDArray[np.uint8], element: Element, count: int) -> NDArray[Any]:
    """Unpack the bytes of an ONNX file.

    Args:
        data: `[packed_bytes((count,), element)]` bytes.
        element: Type of one code.
        count: Number of codes.

    Returns:
        `[count]` codes of `element.dtype`.

    Raises:
        FormatError: The number of bytes does not fit the number of codes.
    """
    data = np.ascontiguousarray(data, dtype=np.uint8).reshape(-1)
    expected = packed_bytes((count,), element)
    if data.size != expected:
        raise FormatError(
            f"{count} codes of {element.name} do not fit {data.size} bytes", remedy=f"Pass {expected} bytes"
        )
    if element.storage.bitwidth >= 8:
        word = f"u{element.storage.bitwidth // 8}"
        return data.view(f"<{word}").astype(word, copy=False).view(element.dtype).copy()
    per_byte = 8 // element.storage.bitwidth
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(element.storage.bitwidth)
    lanes = (data[:, None] >> shifts) & np.uint8(2**element.storage.bitwidth - 1)
    return lanes.reshape(-1)[:count].view(element.dtype).copy()
