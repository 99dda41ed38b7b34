"""Columns of windows, put together to images again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lowbit.interpreter.operators.shapes import integers
from lowbit.interpreter.registry import operator
from lowbit.interpreter.windows import windows

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []


@operator("Col2Im")
def columns_to_image(call: Call, x: Tensor, image_shape: Tensor, block_shape: Tensor) -> Tensor:
    """Add up windows where they lie: from `[N, C · taps, windows]` to `[N, C, *image]`, of any rank."""
    image, block = integers(image_shape), integers(block_shape)
    place = windows(call, image, block)
    space = [size + first + last for size, first, last in zip(image, place.before, place.after, strict=True)]
    positions = torch.zeros((), dtype=torch.int64, device=x.device)
    for axis, size in enumerate(space):
        taps = torch.arange(block[axis], device=x.device) * place.dilations[axis]
        starts = torch.arange(place.sizes[axis], device=x.device) * place.strides[axis]
        # Taps of all axes before windows of all axes, as the columns have them.
        shape = [1] * (2 * len(space))
        shape[axis], shape[axis + len(space)] = len(taps), len(starts)
        positions = positions * size + (taps[:, None] + starts).reshape(shape)
    parts = x.reshape(x.shape[0], -1, math.prod(block) * x.shape[2])
    whole = parts.new_zeros(x.shape[0], parts.shape[1], math.prod(space))
    whole = whole.index_add(2, positions.reshape(-1), parts).reshape(*parts.shape[:2], *space)
    for axis, size in enumerate(image):
        whole = whole.narrow(axis + 2, place.before[axis], size)
    return whole
