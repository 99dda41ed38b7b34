"""Reading constant tensors of a graph: initializers, `Constant` nodes, and weights behind a `DequantizeLinear`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

__all__ = ["constant_array", "constant_weight", "is_constant", "is_stored_quantized"]


def is_constant(value: ir.Value | None) -> bool:
    """Whether `value` is known before the model runs: an initializer or the output of a `Constant` node."""
    return value is not None and value.const_value is not None and not value.is_graph_input()


def constant_array(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the array of a constant value, `None` if it is not constant."""
    if value is None or not is_constant(value):
        return None
    assert value.const_value is not None
    return value.const_value.numpy()


def is_stored_quantized(value: ir.Value | None) -> bool:
    """Whether `value` is a weight that arrived quantized: `DequantizeLinear` of constants."""
    producer = value.producer() if value is not None else None
    return (
        producer is not None
        and producer.op_type == "DequantizeLinear"
        and all(is_constant(source) for source in producer.inputs if source is not None)
    )


def constant_weight(value: ir.Value | None) -> NDArray[np.float32] | None:
    """Return the float32 array of a weight, dequantized if it is stored behind a `DequantizeLinear`.

    Returns:
        The weight in its own shape, or `None` if it is not constant or not float32.
    """
    if value is not None and is_stored_quantized(value):
        return _dequantized(value)
    array = constant_array(value)
    return array if array is not None and array.dtype == np.float32 else None


def _dequantized(value: ir.Value) -> NDArray[np.float32] | None:
    """Compute a constant `DequantizeLinear` as the ONNX specification says."""
    node = value.producer()
    assert node is not None
    inputs = [constant_array(source) for source in node.inputs]
    codes, scale = inputs[0], inputs[1]
    assert codes is not None
    assert scale is not None
    if scale.dtype != np.float32:
        return None
    zero_point = inputs[2] if len(inputs) > 2 else None
    axis_attribute = node.attributes.get("axis")
    axis = axis_attribute.as_int() if axis_attribute is not None else 1
    block = node.attributes.get("block_size")
    shift = np.zeros_like(scale) if zero_point is None else zero_point.astype(np.float32)
    if block is not None and block.as_int():
        size = block.as_int()
        scale = np.repeat(scale, size, axis=axis).take(range(codes.shape[axis]), axis=axis)
        shift = np.repeat(shift, size, axis=axis).take(range(codes.shape[axis]), axis=axis)
    elif scale.size > 1:
        shape = [1] * codes.ndim
        shape[axis] = scale.size
        scale, shift = scale.reshape(shape), shift.reshape(shape)
    return np.asarray((codes.astype(np.float32) - shift) * scale, dtype=np.float32)
