"""Constants that a graph stores as integers: behind a DequantizeLinear, or as `(Cast(codes) - zero_point) · scale`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.graph.constants import constant_array

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

__all__ = ["Stored", "along_axis", "stored_constant"]


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A constant as `(codes - zero_point) * scale`.

    Attributes:
        codes: int64.
        scale: float32, broadcasts to the codes.
        zero_point: int64, likewise.
        signed: Whether the type of the codes is signed.
        bits: Width of that type.
    """

    codes: NDArray[np.int64]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    signed: bool
    bits: int

    def real(self) -> NDArray[np.float32]:
        """Return the numbers, computed as ONNX does."""
        shifted = (self.codes - self.zero_point).astype(np.float32)
        return np.asarray(shifted * self.scale, dtype=np.float32)


def along_axis(array: NDArray[Any], node: ir.Node, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a scale or zero point of a Q or DQ node in a shape that broadcasts to its tensor.

    Args:
        array: One number, one for every channel, or one for every block.
        node: The node, with `axis` and `block_size`.
        shape: Of the tensor.
    """
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    if array.size == 1:
        return array.reshape(())
    axis %= len(shape)
    if block:
        return np.repeat(array, block, axis=axis).take(range(shape[axis]), axis=axis)
    return array.reshape([-1 if index == axis else 1 for index in range(len(shape))])


def stored_constant(value: ir.Value | None) -> Stored | None:
    """Return what a constant is stored as, `None` for anything that is no integer on a grid."""
    node = value.producer() if value is not None else None
    if node is None:
        return None
    match node.op_type:
        case "DequantizeLinear":
            return _dequantized(node)
        case "Mul":
            return _scaled(node)
        case "Reshape":
            inner, shape = stored_constant(node.inputs[0]), constant_array(node.inputs[1])
            if inner is None or shape is None:
                return None
            target = tuple(int(size) for size in shape)
            scale = _reshaped(inner.scale, inner.codes.shape, target)
            zero_point = _reshaped(inner.zero_point, inner.codes.shape, target)
            return Stored(inner.codes.reshape(target), scale, zero_point, inner.signed, inner.bits)
    return None


def _reshaped(array: NDArray[Any], full: tuple[int, ...], target: tuple[int, ...]) -> NDArray[Any]:
    return array.reshape(()) if array.size == 1 else np.broadcast_to(array, full).reshape(target)


def _dequantized(node: ir.Node) -> Stored | None:
    found = _codes(node.inputs[0])
    scale = constant_array(node.inputs[1])
    zero_point = constant_array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if found is None or scale is None or scale.dtype != np.float32:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and zero_point is None:
        return None
    codes, dtype = found
    zeros = np.zeros((), np.int64) if zero_point is None else zero_point.astype(np.int64)
    return Stored(
        codes,
        along_axis(scale, node, codes.shape),
        along_axis(zeros, node, codes.shape),
        dtype.is_signed(),
        dtype.bitwidth,
    )


def _scaled(node: ir.Node) -> Stored | None:
    scale = constant_array(node.inputs[1])
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if scale is None or scale.dtype != np.float32 or source is None:
        return None
    zero_point = np.zeros((), np.float32)
    if source.op_type == "Sub":
        shift = constant_array(source.inputs[1])
        if shift is None or not np.all(shift == np.rint(shift)):
            return None
        zero_point = shift
        source = source.inputs[0].producer() if source.inputs[0] is not None else None
    if source is None or source.op_type != "Cast":
        return None
    found = _codes(source.inputs[0])
    if found is None or np.broadcast_shapes(scale.shape, found[0].shape) != found[0].shape:
        return None
    return Stored(found[0], scale, zero_point.astype(np.int64), found[1].is_signed(), found[1].bitwidth)


def _codes(value: ir.Value | None) -> tuple[NDArray[np.int64], ir.DataType] | None:
    """Return constant integers, widened by a Cast or not, and the type that they are stored in."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Cast":
        return _codes(node.inputs[0])
    array = constant_array(value)
    if value is None or array is None or value.const_value is None or not value.const_value.dtype.is_integer():
        return None
    return array.astype(np.int64), value.const_value.dtype
