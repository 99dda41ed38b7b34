"""Constants of a Q/DQ graph: codes with their scales, whether a tool stored them as codes or left a Q before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exporters.litert.refusal import Refusal
from lowbit.exporters.litert.tensors import Grid
from lowbit.graph.constants import constant_array

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

__all__ = ["Codes", "grid_of", "plain_constant", "stored_codes"]

_PER_TENSOR = 1


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """A constant as `(codes - zero_point) * scale`.

    Attributes:
        codes: Integers of any width.
        scale: `[]` or `[channels]` float32.
        zero_point: Shaped as the scale.
        axis: The axis of the channels; meaningless for one scale.
    """

    codes: NDArray[np.int64]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int

    def real(self) -> NDArray[np.float64]:
        """Return the numbers."""
        if self.scale.size == _PER_TENSOR:
            return np.asarray((self.codes - self.zero_point.reshape(())) * float(self.scale.reshape(())))
        shape = [1] * self.codes.ndim
        shape[self.axis] = -1
        return np.asarray((self.codes - self.zero_point.reshape(shape)) * self.scale.astype(np.float64).reshape(shape))


def stored_codes(value: ir.Value | None) -> Codes | None:
    """Return the codes behind a constant `DequantizeLinear`, `None` for anything else.

    Raises:
        Refusal: They are scaled block by block, which LiteRT has not.
    """
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    scale = constant_array(node.inputs[1])
    if scale is None:
        return None
    zero_point = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    block = node.attributes.get("block_size")
    codes = _codes(node.inputs[0])
    if codes is None:
        return None
    if block is not None and block.as_int():
        raise Refusal("its weight has one scale for every block, LiteRT has one for every channel")
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    zeros = np.zeros(scale.shape, dtype=np.int64) if zero_point is None else zero_point.astype(np.int64)
    return Codes(codes, scale.astype(np.float32), zeros, axis % max(codes.ndim, 1))


def _codes(value: ir.Value | None) -> NDArray[np.int64] | None:
    """Return constant codes: stored ones, stored ones that a Cast widens, or a float constant behind a Q."""
    array = constant_array(value)
    if array is not None:
        return array.astype(np.int64)
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if node.op_type == "Cast":
        return _codes(node.inputs[0])
    if node.op_type != "QuantizeLinear":
        return None
    real = plain_constant(node.inputs[0])
    scale, zero_point = constant_array(node.inputs[1]), _zero_point(node)
    if real is None or scale is None:
        return None
    shape = [1] * real.ndim
    if scale.size > 1:
        shape[node.attributes["axis"].as_int() if "axis" in node.attributes else 1] = -1
    info = np.iinfo(zero_point.dtype)
    codes = np.rint(real / scale.reshape(shape)) + zero_point.astype(np.int64).reshape(shape)
    return np.asarray(np.clip(codes, info.min, info.max), dtype=np.int64)


def plain_constant(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the numbers of a constant, decoded if it is stored as codes; `None` if it is computed."""
    array = constant_array(value)
    if array is not None:
        return array
    codes = stored_codes(value)
    return None if codes is None else codes.real().astype(np.float32)


def grid_of(node: ir.Node) -> Grid:
    """Return the grid of a Q or DQ node: codes of uint8 become int8 by subtracting 128 from the zero point.

    Raises:
        Refusal: Its parameters are computed, there is more than one scale, or the codes have another width.
    """
    scale, zero_point = constant_array(node.inputs[1]), _zero_point(node)
    if scale is None:
        raise Refusal("its scale is computed while the model runs")
    if scale.size != _PER_TENSOR:
        raise Refusal(f"its activation has {scale.size} scales, LiteRT has one")
    if zero_point.dtype == np.int16 and not zero_point.any():
        return Grid(float(np.float32(scale.reshape(()))), 0, "int16")
    if zero_point.dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
        raise Refusal(f"its activation is {zero_point.dtype}, LiteRT's integer kernels take int8, or int16 around 0")
    shift = 128 if zero_point.dtype == np.uint8 else 0
    return Grid(float(np.float32(scale.reshape(()))), int(zero_point.reshape(())) - shift)


def _zero_point(node: ir.Node) -> NDArray[Any]:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros((), dtype=np.uint8)
    found = constant_array(node.inputs[2])
    if found is None:
        raise Refusal("its zero point is computed while the model runs")
    return found
