"""Other element types for the same values, or for the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from lowbit.exceptions import ModelError
from lowbit.interpreter.casting import converted
from lowbit.interpreter.dtypes import element_of, to_dtype
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []


@operator("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    """Change the element type."""
    return _cast(call, x, call.get("to"))


@operator("CastLike")
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    """Change the element type to that of another tensor."""
    declared = call.types[1] if len(call.types) > 1 else None
    # A module in another precision than the file's has tensors that differ from their declaration.
    if declared is None or to_dtype(declared) != like.dtype:
        declared = element_of(like.dtype)
    return _cast(call, x, declared)


def _cast(call: Call, x: Tensor, code: int) -> Tensor:
    return converted(x, code, saturate=bool(call.get("saturate", 1)), round_mode=call.get("round_mode", "up"))


_BIT_FIELDS = {
    ir.DataType.INT4: (4, True),
    ir.DataType.UINT4: (4, False),
    ir.DataType.INT2: (2, True),
    ir.DataType.UINT2: (2, False),
}


@operator("BitCast")
def bit_cast(call: Call, x: Tensor) -> Tensor:
    """Take the bits of every element as those of another type.

    Raises:
        ModelError: The bits are those of a 4-bit float, which is not held as bits.
    """
    element = ir.DataType(call.get("to"))
    if ir.DataType.FLOAT4E2M1 in (element, call.types[0]):
        raise ModelError("BitCast of FLOAT4E2M1", remedy="run this graph in ONNX Runtime")
    if element not in _BIT_FIELDS:
        return x.view(to_dtype(element))
    bits, signed = _BIT_FIELDS[element]
    code = x.to(torch.int64) & ((1 << bits) - 1)
    return (torch.where(code >= 1 << (bits - 1), code - (1 << bits), code) if signed else code).to(to_dtype(element))
