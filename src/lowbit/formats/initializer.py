"""Codes as tensors of an ONNX graph, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.exceptions import FormatError
from lowbit.formats.element import element_of_storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.formats.format import Format

__all__ = ["from_ir_tensor", "to_ir_tensor"]


def to_ir_tensor(codes: NDArray[Any], fmt: Format, name: str) -> ir.TensorProtocol:
    """Wrap codes (or a zero point) as an ONNX initializer of the format's storage type.

    Args:
        codes: Any shape, of `fmt.element.dtype`.
        fmt: The format.
        name: Name of the initializer.

    Raises:
        FormatError: The codes are of another type.
    """
    if codes.dtype != fmt.element.dtype:
        raise FormatError(
            f"Codes of type {codes.dtype} for {name!r} are not {fmt.element.name}", remedy="Encode with this format"
        )
    return ir.Tensor(np.ascontiguousarray(codes).reshape(codes.shape), dtype=fmt.element.storage, name=name)


def from_ir_tensor(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """Read the codes of an ONNX initializer, unpacked.

    Args:
        tensor: A tensor of one of the elements' storage types.

    Returns:
        Codes of the tensor's shape, of the element's `dtype`.

    Raises:
        FormatError: The tensor's type stores no known element.
    """
    element = element_of_storage(tensor.dtype)
    return np.asarray(tensor.numpy()).astype(element.dtype, copy=False)
