"""What a LiteRT file consists of, before it is bytes: tensors, operators, and the program that they form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Grid", "Operator", "Program", "Tensor"]


@dataclass(frozen=True, slots=True)
class Grid:
    """The numbers that the codes of a tensor stand for: `real = (code - zero_point) * scale`.

    Attributes:
        scale: One step.
        zero_point: The code of 0; itself 0 with int16.
        dtype: `int8` or `int16`.
    """

    scale: float
    zero_point: int
    dtype: str = "int8"

    def encode(self, real: NDArray[Any]) -> NDArray[Any]:
        """Return the nearest codes, saturated."""
        codes = np.rint(np.asarray(real, dtype=np.float64) / self.scale) + self.zero_point
        info = np.iinfo(self.dtype)
        return np.asarray(np.clip(codes, info.min, info.max), dtype=self.dtype)

    def decode(self, codes: NDArray[Any]) -> NDArray[np.float64]:
        """Return what codes stand for."""
        return np.asarray((codes.astype(np.float64) - self.zero_point) * self.scale, dtype=np.float64)

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest number."""
        info = np.iinfo(self.dtype)
        return (info.min - self.zero_point) * self.scale, (info.max - self.zero_point) * self.scale


@dataclass(slots=True, eq=False)
class Tensor:
    """A tensor of a LiteRT file.

    Attributes:
        name: Its name, for tools that show the file.
        shape: As stored, every dimension known.
        dtype: `int8`, `int16`, `int32` or `float32`.
        scale: `[1]` or `[channels]` float32 of a quantized tensor, `None` for plain numbers.
        zero_point: Of all channels.
        axis: The axis of the channels.
        data: The values of a constant.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "int8"
    scale: NDArray[np.float32] | None = None
    zero_point: int = 0
    axis: int = 0
    data: NDArray[Any] | None = None

    @property
    def bytes(self) -> int:
        """Its size."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(slots=True, eq=False)
class Operator:
    """One kernel call.

    Attributes:
        kind: Name in the schema's `BuiltinOperator`.
        inputs: Its inputs; `None` for an optional one that is left out.
        outputs: Its outputs.
        options: Fields of the operator's options table, by the schema's names.
        source: The ONNX operator that it comes from.
    """

    kind: str
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(slots=True, eq=False)
class Program:
    """A whole model.

    Attributes:
        operators: In the order in which they run.
        inputs: Name in the ONNX model and tensor.
        outputs: Name in the ONNX model and tensor.
        orders: For every input and output, which axis of the ONNX tensor each stored axis is.
    """

    operators: list[Operator] = field(default_factory=list)
    inputs: list[tuple[str, Tensor]] = field(default_factory=list)
    outputs: list[tuple[str, Tensor]] = field(default_factory=list)
    orders: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def float_operators(self) -> list[Operator]:
        """Return the operators that compute in float: none, or those that convert at the edges."""
        return [
            operator
            for operator in self.operators
            if any(tensor is not None and tensor.dtype == "float32" for tensor in (*operator.inputs, *operator.outputs))
        ]
