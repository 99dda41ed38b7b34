"""ONNX element types as PyTorch knows them.

PyTorch has no arithmetic for elements of less than eight bits. Integers of 4 and 2 bits are held one code an element,
in int8 or uint8; floats of 4 bits as float32 values. `Call.types` tells them from the types they are held in.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from lowbit.exceptions import ModelError

__all__ = ["element_of", "from_array", "to_array", "to_dtype"]

_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    ir.DataType.FLOAT8E8M0: torch.float8_e8m0fnu,
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.FLOAT4E2M1: torch.float32,
}
# numpy's name of a type whose bits PyTorch takes over as they are.
_BITS = {
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e4m3fnuz": torch.float8_e4m3fnuz,
    "float8_e5m2": torch.float8_e5m2,
    "float8_e5m2fnuz": torch.float8_e5m2fnuz,
    "float8_e8m0fnu": torch.float8_e8m0fnu,
}
_UNPACKED: dict[str, type[np.generic]] = {
    "int4": np.int8,
    "uint4": np.uint8,
    "int2": np.int8,
    "uint2": np.uint8,
    "float4_e2m1fn": np.float32,
}


def to_dtype(code: int) -> torch.dtype:
    """Return the PyTorch type that holds elements of an ONNX type.

    Raises:
        ModelError: PyTorch has no such type.
    """
    found = _DTYPES.get(ir.DataType(int(code)))
    if found is None:
        raise ModelError(
            f"PyTorch has no element type {ir.DataType(int(code)).name}", remedy="run this graph in ONNX Runtime"
        )
    return found


def element_of(dtype: torch.dtype) -> ir.DataType:
    """Return the ONNX element type of the same name as a PyTorch type."""
    return next(element for element, found in _DTYPES.items() if found == dtype)


def from_array(array: np.ndarray) -> torch.Tensor:
    """Return a copy of a numpy array as a tensor, exact to the bit.

    Raises:
        ModelError: PyTorch has no such type.
    """
    name = array.dtype.name
    if name in _BITS:
        width = np.uint8 if array.dtype.itemsize == 1 else np.uint16
        return torch.from_numpy(np.array(array, order="C").view(width).copy()).view(_BITS[name])
    if name in _UNPACKED:
        return torch.from_numpy(np.array(array).astype(_UNPACKED[name]))
    if array.dtype.kind not in "fiubc":
        raise ModelError(f"PyTorch has no tensors of {name}", remedy="run this graph in ONNX Runtime")
    return torch.from_numpy(np.array(array, order="C"))


def to_array(tensor: torch.Tensor, element: ir.DataType | None = None) -> np.ndarray:
    """Return a tensor as a numpy array, exact to the bit: the inverse of `from_array`.

    Args:
        tensor: Of any type, on any device.
        element: ONNX element type; by default the one of the same name. Needed for elements of less than eight bits.
    """
    kept = tensor.detach().cpu().contiguous()
    name = next((name for name, dtype in _BITS.items() if dtype == kept.dtype), None)
    if name is None:
        array = kept.numpy()
    else:
        width = torch.uint8 if kept.element_size() == 1 else torch.uint16
        array = kept.view(width).numpy().view(np.dtype(getattr(ml_dtypes, name)))
    converted: np.ndarray = array if element is None else array.astype(element.numpy(), copy=False)
    return converted
