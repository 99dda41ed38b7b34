"""The version of every kernel that a program needs: an engine without it refuses the file instead of guessing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowbit.exporters.litert.tensors import Operator

__all__ = ["version_of"]

# Since when each kernel computes in int8, from the versioning rules of TensorFlow Lite; 1 for all others.
_INT8 = {
    **dict.fromkeys(
        (
            *("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "CONCATENATION", "MAX_POOL_2D", "AVERAGE_POOL_2D"),
            *("SOFTMAX", "MEAN", "REDUCE_MAX", "LOGISTIC", "TANH", "RELU", "RELU6", "PAD", "PADV2", "TRANSPOSE"),
            *("STRIDED_SLICE", "SLICE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "BATCH_MATMUL", "GATHER"),
            *("SPACE_TO_DEPTH", "DEQUANTIZE", "RSQRT"),
        ),
        2,
    ),
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"), 3),
    "FULLY_CONNECTED": 4,
}
# The same for int16 with any scale.
_INT16 = {"ADD": 3, "SUB": 5, "MUL": 4, "MEAN": 3, "RSQRT": 3}
_FIFTH_AXIS = {"TRANSPOSE": 4, "STRIDED_SLICE": 4, "SLICE": 5, "PAD": 4, "PADV2": 4}
_BROADCAST_IN_FIVE = {"MAXIMUM": 3, "MINIMUM": 3, "SUB": 3}
_FOUR = 4


def version_of(operator: Operator) -> int:
    """Return the version that an operator needs."""
    first = operator.inputs[0]
    assert first is not None
    if operator.kind == "ADD" and first.dtype == "int32":
        return 1
    if operator.kind == "QUANTIZE":
        return 2 if operator.outputs[0].dtype == "int16" else 1
    if first.dtype == "int16":
        return _INT16.get(operator.kind, 1)
    if operator.kind == "CONV_2D":
        weight = operator.inputs[1]
        assert weight is not None
        if weight.shape[3] != first.shape[3]:
            return 6
    if operator.kind == "FULLY_CONNECTED" and operator.options["keepNumDims"]:
        return 5
    if operator.kind in {"RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"}:
        options = operator.options
        if options["halfPixelCenters"] or (options["alignCorners"] and operator.kind == "RESIZE_NEAREST_NEIGHBOR"):
            return 3
    if operator.kind == "MUL" and _rescales_up(operator):
        return 3
    if len(first.shape) > _FOUR:
        if operator.kind in _FIFTH_AXIS:
            return _FIFTH_AXIS[operator.kind]
        if operator.kind in _BROADCAST_IN_FIVE:
            return _BROADCAST_IN_FIVE[operator.kind]
    return _INT8.get(operator.kind, 1)


def _rescales_up(operator: Operator) -> bool:
    scales = [tensor.scale for tensor in (*operator.inputs[:2], operator.outputs[0]) if tensor is not None]
    if any(scale is None for scale in scales):
        return False
    left, right, out = (float(scale[0]) for scale in scales if scale is not None)
    return left * right / out >= 1
