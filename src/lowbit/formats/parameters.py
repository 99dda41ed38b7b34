"""Parameters: the scale and zero point of a tensor, and how they follow from its range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import FormatError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lowbit.formats.format import Format

__all__ = ["Parameters", "choose_parameters"]

_FLOAT32 = np.finfo(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """Scale and zero point of one tensor: `real = (code - zero_point) * scale`, of a codebook `levels[code] * scale`.

    Attributes:
        scale: `[]`, `[C]` or blocked, float32, finite and positive, in units of the tensor.
        zero_point: The same shape, of the codes' type; the code that means zero. Codebooks have none: all 0.
        levels: Levels that this tensor has learned: `[k]`, or `[C, k]` for k of each channel's own; float32,
            ascending. `None` takes the element's.

    Raises:
        FormatError: A scale is not a positive number, the shapes differ, or levels are not in order.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    levels: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale)
        if scale.dtype != np.float32 or not np.isfinite(scale).all() or not (scale > 0).all():
            raise FormatError(f"{_shown(scale)} is no scale", remedy="Scales are finite, positive and float32")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", np.asarray(self.zero_point))
        if self.zero_point.shape != scale.shape:
            raise FormatError(
                f"The zero point has shape {self.zero_point.shape} and the scale {scale.shape}",
                remedy="Give every scale its own zero point",
            )
        if self.levels is not None:
            levels = np.asarray(self.levels)
            if levels.dtype != np.float32 or not np.isfinite(levels).all() or (np.diff(levels, axis=-1) < 0).any():
                raise FormatError(f"{_shown(levels)} are no levels", remedy="Levels are finite, ascending and float32")
            object.__setattr__(self, "levels", levels)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Parameters):
            return NotImplemented
        return (
            np.array_equal(self.scale, other.scale)
            and self.zero_point.dtype == other.zero_point.dtype
            and np.array_equal(self.zero_point, other.zero_point)
            and (self.levels is None) == (other.levels is None)
            and (self.levels is None or other.levels is None or np.array_equal(self.levels, other.levels))
        )

    def __hash__(self) -> int:
        levels = b"" if self.levels is None else self.levels.tobytes()
        zero_point = self.zero_point
        return hash((self.scale.shape, self.scale.tobytes(), zero_point.dtype.name, zero_point.tobytes(), levels))


def choose_parameters(low: ArrayLike, high: ArrayLike, fmt: Format) -> Parameters:
    """Choose the scale and zero point that map the range `low … high` onto the format's codes.

    The range is first widened to hold zero, so that zero is exact (padding and ReLU rely on it). A symmetric format
    takes the smallest scale that reaches both ends, and so does a codebook. A range of only zero gets scale 1. Scales
    are at least the smallest normal float32, and small enough that every code decodes to a finite float32.

    Args:
        low: Lowest value, shaped like the scale, in units of the tensor.
        high: Highest value, shaped like the scale.
        fmt: The format.

    Returns:
        Parameters shaped like `low`; `float16` and `bfloat16` are plain casts with scale 1.

    Raises:
        FormatError: A bound is NaN, infinite or beyond float32, `low` exceeds `high`, or `float16` cannot hold them.
    """
    # float64, so that the difference of two large float32 numbers is finite.
    bottom, top = np.broadcast_arrays(np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64))
    _check_range(bottom, top)
    bottom, top = np.minimum(bottom, 0.0), np.maximum(top, 0.0)
    lowest, highest = fmt.code_range()
    if fmt.element.kind == "float":
        return _float_parameters(np.maximum(-bottom, top), fmt)
    if fmt.element.kind == "codebook":
        return _codebook_parameters(bottom, top, fmt)

    if fmt.symmetric:
        middle = 0.0 if fmt.element.signed else (lowest + highest + 1.0) / 2.0
        exact = np.maximum(top / (highest - middle), bottom / (lowest - middle))
    else:
        middle = 0.0
        exact = (top - bottom) / (highest - lowest)
    scale = np.maximum(np.where(exact == 0.0, 1.0, exact), float(_FLOAT32.tiny)).astype(np.float32)
    if fmt.symmetric:
        zero_point = np.full(scale.shape, middle)
    else:
        zero_point = np.clip(np.rint(lowest - bottom / scale.astype(np.float64)), lowest, highest)
        zero_point = np.where(exact == 0.0, 0.0, zero_point)
    reach = np.maximum(highest - zero_point, zero_point - lowest)
    return Parameters(_decodable(scale, reach), zero_point.astype(np.int32).astype(fmt.element.dtype))


def _float_parameters(magnitude: NDArray[np.float64], fmt: Format) -> Parameters:
    zero_point = np.zeros(magnitude.shape, dtype=fmt.element.dtype)
    if fmt.element.bits == 16:
        if magnitude.size and magnitude.max() > fmt.element.maximum:
            raise FormatError(
                f"{fmt.element.name} cannot hold {_shown(magnitude.max())}",
                cause=f"Its largest value is {fmt.element.maximum:g}",
                remedy="Use bfloat16, or keep this tensor in float32",
            )
        return Parameters(np.ones(magnitude.shape, dtype=np.float32), zero_point)
    exact = np.where(magnitude == 0.0, 1.0, magnitude / fmt.element.maximum)
    scale = np.maximum(exact, float(_FLOAT32.tiny)).astype(np.float32)
    return Parameters(_decodable(scale, np.full(scale.shape, fmt.element.maximum)), zero_point)


def _codebook_parameters(bottom: NDArray[np.float64], top: NDArray[np.float64], fmt: Format) -> Parameters:
    exact = np.maximum(top / fmt.element.maximum, bottom / fmt.element.minimum)
    scale = np.clip(np.where(exact == 0.0, 1.0, exact), float(_FLOAT32.tiny), float(_FLOAT32.max)).astype(np.float32)
    reach = np.full(scale.shape, max(fmt.element.maximum, -fmt.element.minimum))
    return Parameters(_decodable(scale, reach), np.zeros(scale.shape, dtype=fmt.element.dtype))


def _decodable(scale: NDArray[np.float32], reach: NDArray[np.float64]) -> NDArray[np.float32]:
    """Cap the scale so that `reach` steps of it are still a finite float32."""
    cap = (float(_FLOAT32.max) / reach).astype(np.float32)
    return np.minimum(scale, np.nextafter(cap, np.float32(0.0)), dtype=np.float32)


def _check_range(low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
    largest = float(_FLOAT32.max)
    for bound in (low, high):
        if not (np.abs(bound) <= largest).all():
            raise FormatError(
                f"{_shown(bound[~(np.abs(bound) <= largest)].ravel()[0])} is no bound of a range",
                cause="The tensor holds NaN, infinity or a number beyond float32",
                remedy="Look for the operator that produces it, and check the calibration data",
            )
    if (low > high).any():
        raise FormatError("The lowest value of a range is above its highest", remedy="Pass low and high in this order")


def _shown(value: object) -> str:
    return np.array2string(np.asarray(value), threshold=8)
