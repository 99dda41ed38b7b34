"""Sampling of images at places that are computed: grids and regions of interest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from lowbit.interpreter.operators.shapes import integers
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []

_SAMPLING = {"linear": "bilinear", "cubic": "bicubic"}


@operator("GridSample")
def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    """Sample an image, or a volume, at the places of a grid (Jaderberg et al. 2015)."""
    mode = call.get("mode", "linear")
    return functional.grid_sample(
        x,
        grid.to(x.dtype),
        mode=_SAMPLING.get(mode, mode),
        padding_mode=call.get("padding_mode", "zeros"),
        align_corners=bool(call.get("align_corners", 0)),
    )


@operator("AffineGrid")
def affine_grid(call: Call, theta: Tensor, size: Tensor) -> Tensor:
    """Return the grid of an affine map."""
    return functional.affine_grid(theta, integers(size), align_corners=bool(call.get("align_corners", 0)))


@operator("RoiAlign")
def roi_align(call: Call, x: Tensor, rois: Tensor, batch: Tensor) -> Tensor:
    """Pool regions at interpolated places, without rounding their corners (He et al. 2017)."""
    height, width = call.get("output_height", 1), call.get("output_width", 1)
    default = "half_pixel" if call.version >= 16 else "output_half_pixel"
    half_pixel = call.get("coordinate_transformation_mode", default) == "half_pixel"
    corners = rois * call.get("spatial_scale", 1.0) - (0.5 if half_pixel else 0.0)
    results = []
    for corner, image in zip(corners, integers(batch), strict=True):
        spans = corner[2:] - corner[:2]
        spans = spans if half_pixel else spans.clamp(min=1)
        ratio = call.get("sampling_ratio", 0)
        across = ratio or max(math.ceil(float(spans[0]) / width), 0)
        down = ratio or max(math.ceil(float(spans[1]) / height), 0)
        y = _samples(corner[1], spans[1], height, down)
        z = _samples(corner[0], spans[0], width, across)
        results.append(_pooled(x[image], y, z, largest=call.get("mode", "avg") == "max"))
    if not results:
        return x.new_zeros((0, x.shape[1], height, width))
    return torch.stack(results)


def _samples(start: Tensor, span: Tensor, bins: int, samples: int) -> Tensor:
    """Return where a region is sampled along an axis, `[bins, samples]`."""
    at = torch.arange(samples, device=start.device, dtype=start.dtype)
    number = torch.arange(bins, device=start.device, dtype=start.dtype)
    step = span / bins
    return start + number[:, None] * step + (at + 0.5) * (step / max(samples, 1))


def _pooled(image: Tensor, y: Tensor, z: Tensor, *, largest: bool) -> Tensor:
    """Return bins of samples of an image, averaged or their largest part: `[C, bins of y, bins of z]`."""
    rows, columns = _taps(y, image.shape[1]), _taps(z, image.shape[2])
    parts = []
    for row, row_share in rows:
        for column, column_share in columns:
            picked = image[:, row[:, :, None, None], column[None, None]]
            parts.append(picked * (row_share[:, :, None, None] * column_share[None, None]).to(image.dtype))
    # NOTE: The specification's maximum is that of the four weighted neighbours, not of their sums.
    if largest:
        return torch.stack(parts).amax(dim=(0, 3, 5))
    return sum(parts[1:], parts[0]).sum(dim=(2, 4)) / max(y.shape[1] * z.shape[1], 1)


def _taps(at: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return both neighbours of places along an axis and their shares; nothing counts that lies outside by over 1."""
    inside = (at >= -1) & (at <= size)
    near = at.clamp(0, size - 1)
    low = torch.floor(near).clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    share = torch.where(low >= size - 1, torch.zeros_like(near), near - low)
    nothing = torch.zeros_like(share)
    return [
        (low.to(torch.int64), torch.where(inside, 1 - share, nothing)),
        (high.to(torch.int64), torch.where(inside, share, nothing)),
    ]


@operator("MaxRoiPool")
def max_roi_pool(call: Call, x: Tensor, rois: Tensor) -> Tensor:
    """Take the largest element of every bin of a region whose corners are rounded (Girshick 2015)."""
    bins = call.get("pooled_shape")
    scale = call.get("spatial_scale", 1.0)
    space = x.shape[2:]
    results = []
    for roi in rois.tolist():
        first = [math.floor(roi[index] * scale + 0.5) for index in (2, 1)]
        last = [math.floor(roi[index] * scale + 0.5) for index in (4, 3)]
        edges = []
        for axis in (0, 1):
            step = max(last[axis] - first[axis] + 1, 1) / bins[axis]
            edges.append(
                [
                    (
                        min(max(math.floor(index * step) + first[axis], 0), space[axis]),
                        min(max(math.ceil((index + 1) * step) + first[axis], 0), space[axis]),
                    )
                    for index in range(bins[axis])
                ]
            )
        image = x[int(roi[0])]
        empty = image.new_zeros(image.shape[0])
        rows = [
            torch.stack(
                [
                    image[:, top:bottom, left:right].amax(dim=(1, 2)) if bottom > top and right > left else empty
                    for left, right in edges[1]
                ],
                dim=1,
            )
            for top, bottom in edges[0]
        ]
        results.append(torch.stack(rows, dim=1))
    return torch.stack(results) if results else x.new_zeros((0, x.shape[1], *bins))
