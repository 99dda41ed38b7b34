"""The order in which a matrix kernel reads the weights of a convolution.

Integer convolutions run as matrix products: for every output channel, K runs over (kernel row, kernel column, input
channel) with the input channel fastest, because activations are stored channels last. Neighbours in this order are what
a kernel adds first, which decides whether they can saturate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["conv_to_kn", "kn_to_conv"]


def conv_to_kn(weight: NDArray[Any]) -> NDArray[Any]:
    """Bring a convolution's weight into the kernel's order.

    A grouped convolution needs nothing special: each output channel sums over the inputs of its own group, which is
    exactly what its column holds.

    Args:
        weight: `[M, C/g, k1, …]` as in ONNX Conv, any type.

    Returns:
        `[K, M]` with `K = k1 · … · C/g`, input channel fastest.

    Raises:
        FormatError: The weight has fewer than two axes.
    """
    if weight.ndim < 2:
        raise FormatError(f"A weight of shape {weight.shape} is none of a convolution", remedy="Pass [M, C/g, k1, …]")
    return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1).T


def kn_to_conv(matrix: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Bring a matrix in the kernel's order back into a convolution's weight, the inverse of `conv_to_kn`.

    Args:
        matrix: `[K, M]`, any type.
        shape: Shape of the weight, `[M, C/g, k1, …]`.

    Returns:
        A contiguous array of this shape.

    Raises:
        FormatError: The matrix does not have as many elements as the shape, or another number of channels.
    """
    outputs, inputs, *kernel = shape
    if matrix.shape != (int(np.prod([inputs, *kernel])), outputs):
        raise FormatError(
            f"A matrix of shape {matrix.shape} is not a convolution's weight of shape {tuple(shape)}",
            remedy="Pass the shape of the weight it was made from",
        )
    return np.ascontiguousarray(np.moveaxis(matrix.T.reshape(outputs, *kernel, inputs), -1, 1))
