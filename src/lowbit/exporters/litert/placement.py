"""Where an ONNX tensor is in the LiteRT program: its order of axes, its grid, and what is still to be padded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from lowbit.exporters.litert.tensors import Grid, Tensor

__all__ = ["NHWC", "Placed", "identity", "moved", "reshaped_order", "without_axes"]

NHWC = (0, 2, 3, 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placed:
    """An ONNX tensor in the program.

    Attributes:
        tensor: What holds its codes.
        order: Which axis of the ONNX tensor each stored axis is: `(0, 2, 3, 1)` for NCHW stored as NHWC.
        grid: What its codes stand for; `None` for plain integers.
        pads: Zeros that the ONNX tensor has around what is stored, low and high of every ONNX axis.
        shuffle: Which element of the ONNX tensor's last axis each stored one is, where they are out of order.
    """

    tensor: Tensor
    order: tuple[int, ...]
    grid: Grid | None
    pads: tuple[tuple[int, int], ...] | None = None
    shuffle: NDArray[np.int64] | None = None

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape of what is stored, in the order of the ONNX tensor's axes."""
        return tuple(self.tensor.shape[self.order.index(axis)] for axis in range(len(self.order)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the ONNX tensor."""
        if self.pads is None:
            return self.stored
        return tuple(size + low + high for size, (low, high) in zip(self.stored, self.pads, strict=True))


def identity(rank: int) -> tuple[int, ...]:
    """Return the order of a tensor that is stored as ONNX has it."""
    return tuple(range(rank))


def moved(order: Sequence[int], permutation: Sequence[int]) -> tuple[int, ...]:
    """Return the order of the same stored tensor, seen through ONNX's `Transpose` with `permutation`."""
    return tuple(list(permutation).index(axis) for axis in order)


def without_axes(order: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """Return the order that is left when axes go."""
    left = [axis for axis in range(len(order)) if axis not in axes]
    return tuple(left.index(axis) for axis in order if axis not in axes)


def reshaped_order(shape: Sequence[int], order: Sequence[int], target: Sequence[int]) -> tuple[int, ...] | None:
    """Return the order in which a reshaped tensor lies in memory, if its stored elements need not move.

    Axes that a reshape merges must lie behind one another in memory; those that it splits then do.

    Args:
        shape: Shape before, in ONNX's axes.
        order: Which of them each stored axis is.
        target: Shape after, in ONNX's axes.
    """
    groups = _groups([a for a, size in enumerate(shape) if size != 1], shape, target)
    if groups is None:
        return None
    stored = [axis for axis in order if shape[axis] != 1]
    result: list[int] = []
    position = 0
    while position < len(stored):
        group = next((group for group in groups if group[0][0] == stored[position]), None)
        if group is None or stored[position : position + len(group[0])] != group[0]:
            return None
        result += group[1]
        position += len(group[0])
    if result == sorted(result) and not (len(target) == len(NHWC) and result == [1]):
        return identity(len(target))
    return (*(axis for axis in range(len(target)) if axis not in result), *result)


def _groups(
    axes: Sequence[int], shape: Sequence[int], target: Sequence[int]
) -> list[tuple[list[int], list[int]]] | None:
    """Return which axes become which: the finest groups of equal products, without axes of size 1."""
    left, right = list(axes), [axis for axis, size in enumerate(target) if size != 1]
    groups: list[tuple[list[int], list[int]]] = []
    while left or right:
        if not left or not right:
            return None
        mine, other = [left.pop(0)], [right.pop(0)]
        a, b = shape[mine[0]], target[other[0]]
        while a != b:
            if a < b and left:
                mine.append(left.pop(0))
                a *= shape[mine[-1]]
            elif b < a and right:
                other.append(right.pop(0))
                b *= target[other[-1]]
            else:
                return None
        groups.append((mine, other))
    return groups
