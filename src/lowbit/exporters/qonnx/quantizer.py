"""What a QONNX `Quant` node says of a tensor: scale, zero point, width, sign, and whether its range is narrow.

Follows "QONNX: Representing Arbitrary-Precision Quantized Neural Networks" (Pappalardo et al., 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Quantizer", "fitted", "spanning"]

_WIDEST = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quantizer:
    """`y = (clip(round(x / scale + zero_point)) - zero_point) * scale`.

    Attributes:
        scale: float32, of a shape that broadcasts to the tensor's.
        zero_point: float32, whole numbers, likewise.
        bits: Width of the codes, 1 … 32.
        signed: Whether codes are signed: from `-2^(bits - 1)`, otherwise from 0.
        narrow: Whether the lowest code of signed ones is not used.
        bipolar: Whether codes are -1 and 1 alone; then there is no zero point and no width.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.float32]
    bits: int
    signed: bool
    narrow: bool = False
    bipolar: bool = False

    def limits(self) -> tuple[int, int]:
        """Return the lowest and the highest code."""
        if self.bipolar:
            return -1, 1
        if not self.signed:
            return 0, 2**self.bits - 1
        return -(2 ** (self.bits - 1)) + self.narrow, 2 ** (self.bits - 1) - 1

    def __call__(self, real: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return numbers as the node gives them out, computed in float32 as it does."""
        if self.bipolar:
            return np.where(real >= 0, self.scale, -self.scale).astype(np.float32)
        lowest, highest = self.limits()
        codes = np.rint(np.clip(real / self.scale + self.zero_point, np.float32(lowest), np.float32(highest)))
        return np.asarray((codes - self.zero_point) * self.scale, dtype=np.float32)


def fitted(codes: NDArray[Any], scale: NDArray[np.float32], zero_point: NDArray[Any], *, signed: bool) -> Quantizer:
    """Return the narrowest quantizer that has all codes of a constant.

    Args:
        codes: Integers.
        scale: float32, broadcasts to the codes.
        zero_point: Integers, likewise.
        signed: Whether the codes' type is signed.
    """
    zeros = zero_point.astype(np.float32)
    lowest, highest = int(codes.min(initial=0)), int(codes.max(initial=0))
    if not zeros.any() and codes.size and bool(np.all(np.abs(codes.astype(np.int64)) == 1)):
        return Quantizer(scale=scale, zero_point=np.zeros((), np.float32), bits=1, signed=True, bipolar=True)
    if not signed:
        bits = max(highest.bit_length(), 1)
        return Quantizer(scale=scale, zero_point=zeros, bits=bits, signed=False)
    bits = max(highest.bit_length(), (-lowest - 1).bit_length() if lowest < 0 else 0) + 1
    bits = max(bits, 2)
    return Quantizer(scale=scale, zero_point=zeros, bits=bits, signed=True, narrow=lowest > -(2 ** (bits - 1)))


def spanning(lowest: int, highest: int, scale: NDArray[np.float32], zero_point: NDArray[Any]) -> Quantizer | None:
    """Return the quantizer whose codes are a range, shifted where that makes it one; `None` if there is none.

    Args:
        lowest: Lowest code.
        highest: Highest code.
        scale: float32, broadcasts to the tensor.
        zero_point: Integers, likewise.
    """
    count = highest - lowest + 1
    shift = zero_point.astype(np.int64)
    for narrow in (False, True):
        bits = (count + narrow - 1).bit_length()
        if not 1 <= bits <= _WIDEST or 2**bits != count + narrow:
            continue
        if lowest == -(2 ** (bits - 1)) + narrow and bits > 1:
            return Quantizer(scale=scale, zero_point=shift.astype(np.float32), bits=bits, signed=True, narrow=narrow)
        if not narrow:
            return Quantizer(scale=scale, zero_point=(shift - lowest).astype(np.float32), bits=bits, signed=False)
        middle = lowest + 2 ** (bits - 1) - 1
        return Quantizer(
            scale=scale, zero_point=(shift - middle).astype(np.float32), bits=bits, signed=True, narrow=True
        )
    return None
