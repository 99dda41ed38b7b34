"""Types that PyTorch computes in, for those that it can only store: wide unsigned integers and eight-bit floats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FLOAT8", "from_bits", "from_ordered", "from_wide", "to_bits", "to_ordered", "to_wide"]

FLOAT8 = frozenset(
    {
        torch.float8_e4m3fn,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2,
        torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
    }
)
_WIDE = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
_BITS = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
    **dict.fromkeys(FLOAT8, torch.uint8),
}
_LOWEST = torch.iinfo(torch.int64).min


def to_wide(x: Tensor) -> Tensor:
    """Return numbers in a type that has arithmetic; the same tensor where its own has.

    Sums, differences and products of uint64 are right in int64, which has the same bits; for order see `to_ordered`.
    """
    if x.dtype in FLOAT8:
        return x.to(torch.float32)
    return x.to(_WIDE[x.dtype]) if x.dtype in _WIDE else x


def from_wide(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return results in the type of the operands; `to_wide`'s way back."""
    return x if x.dtype == dtype else x.to(dtype)


def to_ordered(x: Tensor) -> Tensor:
    """Return values in a type that PyTorch compares, in the same order."""
    return x.view(torch.int64) ^ _LOWEST if x.dtype == torch.uint64 else to_wide(x)


def from_ordered(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what `to_ordered` made into the type it came from."""
    return (x ^ _LOWEST).view(dtype) if dtype == torch.uint64 else from_wide(x, dtype)


def to_bits(x: Tensor) -> Tensor:
    """Return elements in a type that PyTorch moves about; their bits, where it does not know their own."""
    return x.view(_BITS[x.dtype]) if x.dtype in _BITS else x


def from_bits(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what `to_bits` made as the type it came from."""
    return x.view(dtype) if dtype in _BITS else x
