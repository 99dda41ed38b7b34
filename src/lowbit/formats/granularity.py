"""Granularity: which elements of a tensor share one scale and zero point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lowbit.exceptions import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Granularity", "PerBlock", "PerChannel", "PerTensor"]


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor."""

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the scale of a tensor of this shape: a scalar, `()`."""
        del shape
        return ()

    def broadcast(self, parameter: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
        """Reshape a scale or zero point so that it broadcasts against a tensor of this shape.

        Args:
            parameter: `[]`, any type.
            shape: Shape of the tensor.

        Raises:
            FormatError: The parameter is not a scalar.
        """
        return _checked(parameter, self.scale_shape(shape), shape)


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale for every index along one axis.

    Attributes:
        axis: Axis of the channels; negative counts from the back.
    """

    axis: int

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the scale of a tensor of this shape: `(C,)`.

        Raises:
            FormatError: The tensor has no such axis.
        """
        return (shape[_axis(self.axis, shape)],)

    def broadcast(self, parameter: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
        """Reshape a scale or zero point so that it broadcasts against a tensor of this shape.

        Args:
            parameter: `[C]`, any type.
            shape: Shape of the tensor.

        Returns:
            A view `[1, …, C, …, 1]`.

        Raises:
            FormatError: The parameter has another shape, or the tensor has no such axis.
        """
        axis = _axis(self.axis, shape)
        checked = _checked(parameter, self.scale_shape(shape), shape)
        return checked.reshape([size if index == axis else 1 for index, size in enumerate(shape)])


@dataclass(frozen=True, slots=True)
class PerBlock:
    """One scale for every run of `size` elements along one axis; the last run may be shorter.

    Attributes:
        axis: Axis that is cut into blocks, usually the one summed over; negative counts from the back.
        size: Elements of one block.

    Raises:
        FormatError: `size` is not positive.
    """

    axis: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise FormatError(f"A block of {self.size} elements is empty", remedy="Use a positive block size, e.g. 32")

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the scale of a tensor of this shape: `(D0, …, ceil(Di / size), …, Dn)`.

        Raises:
            FormatError: The tensor has no such axis.
        """
        axis = _axis(self.axis, shape)
        return tuple(-(-size // self.size) if index == axis else size for index, size in enumerate(shape))

    def broadcast(self, parameter: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
        """Repeat a scale or zero point so that it has the tensor's own shape.

        Args:
            parameter: `[D0, …, ceil(Di / size), …, Dn]`, any type.
            shape: Shape of the tensor.

        Returns:
            A copy with the tensor's shape.

        Raises:
            FormatError: The parameter has another shape, or the tensor has no such axis.
        """
        axis = _axis(self.axis, shape)
        checked = _checked(parameter, self.scale_shape(shape), shape)
        # take() also works for element types for which repeat() has no kernel, and never makes the longer array.
        return checked.take(np.arange(shape[axis]) // self.size, axis=axis)


Granularity: TypeAlias = PerTensor | PerChannel | PerBlock


def _axis(axis: int, shape: Sequence[int]) -> int:
    if not -len(shape) <= axis < len(shape):
        raise FormatError(f"A tensor of shape {tuple(shape)} has no axis {axis}", remedy="Choose another channel axis")
    return axis % len(shape)


def _checked(parameter: NDArray[Any], expected: tuple[int, ...], shape: Sequence[int]) -> NDArray[Any]:
    found = np.shape(parameter)
    if found != expected:
        raise FormatError(
            f"A scale or zero point of shape {found} does not fit a tensor of shape {tuple(shape)}",
            remedy=f"This granularity needs shape {expected}",
        )
    return np.asarray(parameter)
