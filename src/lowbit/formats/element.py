"""Elements: what one number of a tensor may be, and how it is stored."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from lowbit.exceptions import FormatError
from lowbit.formats.levels import additive_powers_of_two, evenly_spaced, normal_float, powers_of_two

__all__ = ["ELEMENTS", "Element", "element", "element_of_storage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """The type of one code.

    Attributes:
        name: Name as users write it, e.g. `int8`.
        bits: Bits of one code; `int3` and the like have those of the next wider type that ONNX has.
        storage: ONNX type of a tensor of codes, of as many bits or more.
        dtype: numpy type of an array of codes; one code takes at least a byte in memory.
        kind: `integer`, `float`, or `codebook`: codes that are indices of levels.
        signed: Whether negative values exist.
        minimum: Lowest code of an integer, lowest finite value of a float, lowest level of a codebook.
        maximum: Highest of them.
        levels: What the codes 0, 1, … of a codebook stand for before the scale, ascending, none of them beyond ±1;
            empty for the other kinds.
        learned: Whether each tensor learns levels of its own (`Parameters.levels`); `levels` is then where it starts.
    """

    name: str
    bits: int
    storage: ir.DataType
    dtype: np.dtype[Any]
    kind: Literal["integer", "float", "codebook"]
    signed: bool
    minimum: float
    maximum: float
    levels: tuple[float, ...] = ()
    learned: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def code_count(self) -> int:
        """Number of codes of an integer."""
        return int(self.maximum - self.minimum) + 1


def _integer(name: str, storage: ir.DataType, dtype: object) -> Element:
    information = ml_dtypes.iinfo(dtype)
    return Element(
        name=name,
        bits=storage.bitwidth,
        storage=storage,
        dtype=np.dtype(dtype),  # type: ignore[call-overload]
        kind="integer",
        signed=int(information.min) < 0,
        minimum=float(information.min),
        maximum=float(information.max),
    )


def _float(name: str, storage: ir.DataType, dtype: object) -> Element:
    information = ml_dtypes.finfo(dtype)
    return Element(
        name=name,
        bits=storage.bitwidth,
        storage=storage,
        dtype=np.dtype(dtype),  # type: ignore[call-overload]
        kind="float",
        signed=True,
        minimum=float(information.min),
        maximum=float(information.max),
    )


def _within(width: int, storage: ir.DataType, dtype: object) -> Element:
    """Return the signed integer of `width` bits whose codes are stored in a wider type."""
    return dataclasses.replace(
        _integer(f"int{width}", storage, dtype), minimum=float(-(2 ** (width - 1))), maximum=float(2 ** (width - 1) - 1)
    )


def _codebook(name: str, levels: tuple[float, ...], *, learned: bool = False) -> Element:
    bits = (len(levels) - 1).bit_length()
    # ONNX has no unsigned type of 3 bits; graphs pack such codes by themselves.
    storage, dtype = next((storage, dtype) for storage, dtype in _INDICES if storage.bitwidth >= bits)
    return Element(
        name=name,
        bits=bits,
        storage=storage,
        dtype=np.dtype(dtype),
        kind="codebook",
        signed=True,
        minimum=levels[0],
        maximum=levels[-1],
        levels=levels,
        learned=learned,
    )


_INDICES: tuple[tuple[ir.DataType, Any], ...] = (
    (ir.DataType.UINT2, ml_dtypes.uint2),
    (ir.DataType.UINT4, ml_dtypes.uint4),
    (ir.DataType.UINT8, np.uint8),
)

ELEMENTS: dict[str, Element] = {
    each.name: each
    for each in (
        _integer("int2", ir.DataType.INT2, ml_dtypes.int2),
        _integer("int4", ir.DataType.INT4, ml_dtypes.int4),
        _integer("int8", ir.DataType.INT8, np.int8),
        _integer("int16", ir.DataType.INT16, np.int16),
        _integer("uint2", ir.DataType.UINT2, ml_dtypes.uint2),
        _integer("uint4", ir.DataType.UINT4, ml_dtypes.uint4),
        _integer("uint8", ir.DataType.UINT8, np.uint8),
        _integer("uint16", ir.DataType.UINT16, np.uint16),
        _float("float16", ir.DataType.FLOAT16, np.float16),
        _float("bfloat16", ir.DataType.BFLOAT16, ml_dtypes.bfloat16),
        _float("float8_e4m3", ir.DataType.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        _float("float8_e5m2", ir.DataType.FLOAT8E5M2, ml_dtypes.float8_e5m2),
        _float("float4_e2m1", ir.DataType.FLOAT4E2M1, ml_dtypes.float4_e2m1fn),
        _within(3, ir.DataType.INT4, ml_dtypes.int4),
        _within(5, ir.DataType.INT8, np.int8),
        _within(6, ir.DataType.INT8, np.int8),
        _within(7, ir.DataType.INT8, np.int8),
        _codebook("nf2", normal_float(2)),
        _codebook("nf3", normal_float(3)),
        _codebook("nf4", normal_float(4)),
        _codebook("pot3", powers_of_two(3)),
        _codebook("pot4", powers_of_two(4)),
        _codebook("apot4", additive_powers_of_two(4)),
        _codebook("codebook4", evenly_spaced(4), learned=True),
        _codebook("codebook8", evenly_spaced(8), learned=True),
        _codebook("codebook16", evenly_spaced(16), learned=True),
        _codebook("codebook256", evenly_spaced(256), learned=True),
    )
}
"""Every element that lowbit knows, by name."""


def element(name: str) -> Element:
    """Look up an element by its name.

    Args:
        name: E.g. `int8`.

    Raises:
        FormatError: There is no such element.
    """
    try:
        return ELEMENTS[name]
    except KeyError:
        raise FormatError(f"{name!r} is not a number format", remedy=f"Use one of {', '.join(ELEMENTS)}") from None


def element_of_storage(storage: ir.DataType) -> Element:
    """Look up the integer or float whose codes a model stores as `storage`.

    Args:
        storage: ONNX type of a tensor of codes.

    Raises:
        FormatError: No element is stored like this.
    """
    plain = [each for each in ELEMENTS.values() if each.kind != "codebook"]
    for each in plain:
        if each.storage == storage:
            return each
    raise FormatError(
        f"No number format is stored as {storage.name}",
        remedy=f"Known are {', '.join(each.storage.name for each in plain)}",
    )
