"""com.microsoft: weights stored in a few bits, in blocks, and decoded where they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from lowbit.interpreter.operators.quantization import known_type
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []

_DOMAIN = "com.microsoft"


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """Return the codes in the bytes of the last axis, lowest bits first."""
    shifts = torch.arange(0, 8, bits, device=packed.device)
    codes = (packed.to(torch.int64)[..., None] >> shifts) & ((1 << bits) - 1)
    return codes.flatten(-2)


@operator("MatMulNBits", domain=_DOMAIN)
def matmul_nbits(
    call: Call,
    a: Tensor,
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    groups: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply by a matrix stored in 2, 4 or 8 bits: `[N, blocks of K, bytes]`, a scale and a zero point a block."""
    rows, depth, bits = call.get("N"), call.get("K"), call.get("bits", 4)
    size = call.get("block_size")
    blocks = -(-depth // size)
    codes = _unpacked(packed.reshape(rows, blocks, -1), bits).reshape(rows, -1)[:, :depth]
    scale = scales.reshape(rows, blocks)
    if zero_points is None:
        zero = torch.full_like(scale, 1 << (bits - 1))
    elif zero_points.is_floating_point():
        zero = zero_points.reshape(rows, blocks).to(scale.dtype)
    else:
        zero = _unpacked(zero_points.reshape(rows, -1), bits)[:, :blocks].to(scale.dtype)
    block = torch.arange(depth, device=a.device) // size if groups is None else groups[:depth].to(torch.int64)
    w = (codes.to(scale.dtype) - zero[:, block]) * scale[:, block]
    y = torch.matmul(a, w.to(a.dtype).t())
    return y if bias is None else y + bias


@operator("GatherBlockQuantized", domain=_DOMAIN)
def gather_block_quantized(
    call: Call, data: Tensor, indices: Tensor, scales: Tensor, zero_points: Tensor | None = None
) -> Tensor:
    """Look up rows of a table that is stored in blocks of a few bits."""
    bits, size = call.get("bits", 4), call.get("block_size", 128)
    is_packed = known_type(call, 0) in {ir.DataType.UINT8, None}
    if is_packed and bits < 8:
        data = _unpacked(data, bits)
        zero_points = None if zero_points is None else _unpacked(zero_points, bits)
    axis, along = call.get("quantize_axis", 1) % data.ndim, call.get("gather_axis", 0) % data.ndim

    def spread(blocks: Tensor) -> Tensor:
        return blocks.repeat_interleave(size, dim=axis).narrow(axis, 0, data.shape[axis])

    if zero_points is not None:
        zero_points = zero_points.narrow(axis, 0, scales.shape[axis])
        zero: Tensor | int = spread(zero_points.to(torch.int64))
    else:
        zero = 1 << (bits - 1) if is_packed else 0
    table = (data.to(torch.int64) - zero).to(scales.dtype) * spread(scales)
    index = indices.to(torch.int64)
    index = torch.where(index < 0, index + data.shape[along], index)
    picked = table.index_select(along, index.reshape(-1))
    return picked.reshape(*table.shape[:along], *index.shape, *table.shape[along + 1 :])
