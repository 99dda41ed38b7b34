"""Q/DQ nodes as `quantized_decomposed` operators: the form in which PyTorch's own exported programs are quantized.

XNNPACK's delegate of ExecuTorch and Inductor's x86 kernels look for these. Unlike ONNX, they multiply by the reciprocal
of a scale before they round.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from lowbit.interpreter.dtypes import to_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["as_decomposed", "decomposed_dequantize", "decomposed_quantize", "register_decomposed"]

_KINDS = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
_ACTIVE: ContextVar[bool] = ContextVar("as_decomposed", default=False)


def register_decomposed() -> None:
    """Make `torch.ops.quantized_decomposed` known, which a program that has such operators needs to be loaded."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401


@contextlib.contextmanager
def as_decomposed() -> Iterator[None]:
    """Let Q/DQ nodes be `quantized_decomposed` operators wherever those can say them."""
    register_decomposed()
    token = _ACTIVE.set(True)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def decomposed_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, kind: ir.DataType, *, axis: int, block: int
) -> Tensor | None:
    """Return codes by a `quantized_decomposed` operator, `None` where none fits or nobody asked for one."""
    if not _ACTIVE.get() or kind not in _KINDS or block:
        return None
    dtype = to_dtype(int(kind))
    limits = torch.iinfo(dtype)
    operators = torch.ops.quantized_decomposed
    if scale.numel() == 1:
        zero = torch.zeros((), dtype=torch.int64) if zero_point is None else zero_point.to(torch.int64)
        return operators.quantize_per_tensor.tensor(x, scale, zero, limits.min, limits.max, dtype)
    zeros = torch.zeros(scale.shape, dtype=torch.int64) if zero_point is None else zero_point.to(torch.int64)
    return operators.quantize_per_channel(x, scale, zeros, axis % x.ndim, limits.min, limits.max, dtype)


def decomposed_dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, *, axis: int, block: int
) -> Tensor | None:
    """Return decoded codes by a `quantized_decomposed` operator, `None` where none fits or nobody asked for one."""
    if not _ACTIVE.get() or codes.dtype not in {torch.int8, torch.uint8} or block or scale.dtype != torch.float32:
        return None
    limits = torch.iinfo(codes.dtype)
    operators = torch.ops.quantized_decomposed
    if scale.numel() == 1:
        zero = torch.zeros((), dtype=torch.int64) if zero_point is None else zero_point.to(torch.int64)
        return operators.dequantize_per_tensor.tensor(codes, scale, zero, limits.min, limits.max, codes.dtype)
    zeros = torch.zeros(scale.shape, dtype=torch.int64) if zero_point is None else zero_point.to(torch.int64)
    return operators.dequantize_per_channel(codes, scale, zeros, axis % codes.ndim, limits.min, limits.max, codes.dtype)
