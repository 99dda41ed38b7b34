"""Means of what a layer reads, without data: from the BatchNormalization in front, through ReLU, as a clipped normal.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section 4.2.
A residual sum takes both sides to be independent; its mean is exact, its deviation an assumption.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.clean.normalized import Normalized, normalized_of
from lowbit.graph.clean.values import constant, is_op

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

__all__ = ["clipped_normal", "expected_mean"]

_DEEPEST = 64


def clipped_normal(
    mean: NDArray[np.float64], deviation: NDArray[np.float64], low: float, high: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of `clip(x, low, high)` of normal x.

    Args:
        mean: `[C]`.
        deviation: `[C]`, not negative; 0 stands for constants.
        low: Lower bound, or minus infinity.
        high: Upper bound, or infinity.
    """
    from scipy.special import ndtr

    safe = np.maximum(deviation, 1e-30)
    bounds = [(bound - mean) / safe for bound in (low, high)]
    below, upto = ndtr(bounds[0]), ndtr(bounds[1])
    densities = [np.exp(-0.5 * np.minimum(np.abs(bound), 1e3) ** 2) / np.sqrt(2 * np.pi) for bound in bounds]
    inside = upto - below
    # Centred, so that a far mean does not cost the digits of a small deviation; an infinite bound has no mass.
    lower = 0.0 if np.isneginf(low) else low - mean
    upper = 0.0 if np.isposinf(high) else high - mean
    first = lower * below + upper * (1 - upto) + safe * (densities[0] - densities[1])
    second = lower**2 * below + upper**2 * (1 - upto) + safe**2 * inside
    second = second + safe * (lower * densities[0] - upper * densities[1])
    return mean + first, np.sqrt(np.maximum(second - first**2, 0.0))


def expected_mean(value: ir.Value | None) -> NDArray[np.float32] | None:
    """Return the mean of every channel of a tensor, `[C]` float32, as far as folded BatchNormalizations tell it.

    Args:
        value: What a Conv or Gemm reads.

    Returns:
        `None` where something stands in front whose effect on a mean is not known.
    """
    found = _statistics(value, _DEEPEST)
    return None if found is None else found.mean.astype(np.float32)


def _statistics(value: ir.Value | None, depth: int) -> Normalized | None:
    node = value.producer() if value is not None else None
    if node is None or depth == 0:
        return None
    noted = normalized_of(node)
    if noted is not None:
        return noted
    if is_op(node, "Relu", "Clip"):
        bounds = _bounds(node)
        found = _statistics(node.inputs[0], depth - 1) if bounds is not None else None
        # What was averaged over has a mean, but no deviation that is known.
        if found is None or bounds is None or not np.isfinite(found.deviation).all():
            return None
        mean, deviation = clipped_normal(found.mean, found.deviation, *bounds)
        return Normalized(mean=mean, deviation=deviation)
    if is_op(node, "Add"):
        left, right = (_statistics(each, depth - 1) for each in node.inputs)
        if left is None or right is None or left.mean.shape != right.mean.shape or _rank(node, 0) != _rank(node, 1):
            return None
        return Normalized(mean=left.mean + right.mean, deviation=np.hypot(left.deviation, right.deviation))
    if is_op(node, "GlobalAveragePool") or _flattens_pooled(node):
        found = _statistics(node.inputs[0], depth - 1)
        return found and Normalized(mean=found.mean, deviation=np.full_like(found.mean, np.inf))
    return None


def _rank(node: ir.Node, index: int) -> int | None:
    read = node.inputs[index]
    return None if read is None or read.shape is None else read.shape.rank()


def _flattens_pooled(node: ir.Node) -> bool:
    """Whether a node makes `[N, C]` of what was averaged over all positions."""
    read = node.inputs[0] if is_op(node, "Flatten") else None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    return read is not None and axis == 1 and is_op(read.producer(), "GlobalAveragePool")


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    if node.op_type == "Relu":
        return 0.0, float("inf")
    found = []
    for index, default in ((1, float("-inf")), (2, float("inf"))):
        read = node.inputs[index] if index < len(node.inputs) else None
        array = constant(read)
        if read is not None and array is None:
            return None
        found.append(default if array is None else float(array.reshape(())))
    return found[0], found[1]
