"""Resizing, axis by axis: every output is a weighted sum of a few inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lowbit.exceptions import ModelError
from lowbit.interpreter.operators.shapes import integers
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """One axis to resize.

    Attributes:
        axis: Its index.
        size: What it is to be.
        scale: Output size over input size; float32 as the model writes it, not always the quotient.
        roi: Start and end of the region, as fractions; only for `tf_crop_and_resize`.
    """

    axis: int
    size: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


@operator("Resize")
def resize(
    call: Call, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """Resize by nearest element, linearly or by cubic splines."""
    if call.version < 11:
        return _upsampled(call, x, roi)
    along = [axis % x.ndim for axis in call.get("axes") or range(x.ndim)]
    if scales is not None and scales.numel() == 0:
        scales = None
    if scales is not None:
        factors = [float(factor) for factor in scales.tolist()]
        lengths = [math.floor(x.shape[axis] * factor) for axis, factor in zip(along, factors, strict=True)]
    elif sizes is not None:
        lengths = integers(sizes)
        factors = [length / x.shape[axis] for axis, length in zip(along, lengths, strict=True)]
        policy = call.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            lengths = [math.floor(x.shape[axis] * factor + 0.5) for axis in along]
            factors = [factor] * len(along)
    else:
        raise ModelError("a Resize has neither scales nor sizes", remedy="give one of them")
    regions = roi.tolist() if roi is not None and roi.numel() else [0.0] * len(along) + [1.0] * len(along)
    axes = [
        _Axis(axis=axis, size=length, scale=factor, roi=(regions[index], regions[index + len(along)]))
        for index, (axis, length, factor) in enumerate(zip(along, lengths, factors, strict=True))
    ]
    return _resized(call, x, axes)


@operator("Upsample")
def upsample(call: Call, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """Resize as the first operator sets did."""
    return _upsampled(call, x, scales)


def _upsampled(call: Call, x: Tensor, scales: Tensor | None) -> Tensor:
    factors = [float(factor) for factor in (call.get("scales") if scales is None else scales.tolist())]
    axes = [
        _Axis(axis=axis, size=math.floor(x.shape[axis] * factor), scale=factor) for axis, factor in enumerate(factors)
    ]
    return _resized(call, x, axes, coordinates="asymmetric", nearest="simple")


def _resized(
    call: Call, x: Tensor, axes: list[_Axis], *, coordinates: str | None = None, nearest: str | None = None
) -> Tensor:
    how = coordinates or call.get("coordinate_transformation_mode", "half_pixel")
    mode = call.get("mode", "nearest")
    crops = how == "tf_crop_and_resize"
    outside: list[tuple[int, Tensor]] = []
    kept = x.dtype
    # Sums of weighted codes need room; integers come back by truncation, as the engine casts.
    if mode != "nearest" and not x.is_floating_point():
        x = x.to(torch.float32)
    for axis in axes:
        length = x.shape[axis.axis]
        if axis.size == length and axis.scale == 1 and not crops:
            continue
        where = _coordinates(axis, length, how)
        if crops:
            outside.append((axis.axis, ((where < 0) | (where > length - 1)).to(x.device)))
        if mode == "nearest":
            index = _nearest(where, axis.scale, nearest or call.get("nearest_mode", "round_prefer_floor"))
            x = x.index_select(axis.axis, index.clamp(0, length - 1).to(x.device))
            continue
        x = _weighted(call, x, axis, where, cubic=mode == "cubic")
    for index, beyond in outside:
        shape = [1] * x.ndim
        shape[index] = -1
        filling = torch.tensor(call.get("extrapolation_value", 0.0), dtype=x.dtype, device=x.device)
        x = torch.where(beyond.reshape(shape), filling, x)
    return x.to(kept)


def _coordinates(axis: _Axis, length: int, how: str) -> Tensor:
    """Return where in the input every output element lies, `[size]` float32: the engine's precision decides ties."""
    at = torch.arange(axis.size, dtype=torch.float32)
    scale = torch.tensor(axis.scale, dtype=torch.float32)
    match how:
        case "half_pixel":
            return (at + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            # The output's true size is seldom the whole number it was cut to: both centres are to coincide.
            adjustment = axis.size / (axis.scale * length)
            return length / 2 * (1 - adjustment) + (at + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (at + 0.5) / scale - 0.5 if axis.size > 1 else torch.zeros_like(at)
        case "align_corners":
            # The specification means the length before it was cut to a whole number.
            last = axis.scale * length - 1
            return at * (length - 1) / last if axis.size > 1 else torch.zeros_like(at)
        case "asymmetric":
            return at / scale
        case "tf_half_pixel_for_nn":
            return (at + 0.5) / scale
        case "tf_crop_and_resize":
            start, end = axis.roi
            if axis.size > 1:
                return start * (length - 1) + at * ((end - start) * (length - 1) / (axis.size - 1))
            return torch.full_like(at, 0.5 * (start + end) * (length - 1))
    raise ModelError(f"Resize has no coordinate_transformation_mode {how!r}", remedy="use one of the specification's")


def _nearest(where: Tensor, scale: float, rounding: str) -> Tensor:
    match rounding:
        case "round_prefer_floor":
            return torch.ceil(where - 0.5).to(torch.int64)
        case "round_prefer_ceil":
            return torch.floor(where + 0.5).to(torch.int64)
        case "floor":
            return torch.floor(where).to(torch.int64)
        case "ceil":
            return torch.ceil(where).to(torch.int64)
        case "simple":
            return (torch.ceil(where) if scale < 1 else where).to(torch.int64)
    raise ModelError(f"Resize has no nearest_mode {rounding!r}", remedy="use one of the specification's")


def _weighted(call: Call, x: Tensor, axis: _Axis, where: Tensor, *, cubic: bool) -> Tensor:
    """Return `x` with one axis resized linearly or by cubic splines (Keys 1981)."""
    length = x.shape[axis.axis]
    # Downscaling with antialiasing widens the kernel so that it covers all that is merged.
    squeeze = min(axis.scale, 1.0) if call.get("antialias", 0) else 1.0
    radius = (2 if cubic else 1) / squeeze
    taps = 2 * math.ceil(radius)
    first = torch.floor(where) - (math.ceil(radius) - 1)
    index = first[:, None] + torch.arange(taps)
    distance = ((where[:, None] - index) * squeeze).abs()
    weights = _cubic(distance, call.get("cubic_coeff_a", -0.75)) if cubic else (1 - distance).clamp(min=0)
    if call.get("exclude_outside", 0):
        weights = torch.where((index < 0) | (index > length - 1), torch.zeros_like(weights), weights)
    if call.get("exclude_outside", 0) or call.get("antialias", 0):
        weights = weights / weights.sum(dim=1, keepdim=True)
    picked = x.index_select(axis.axis, index.clamp(0, length - 1).to(torch.int64).reshape(-1).to(x.device))
    shape = [1] * (x.ndim + 1)
    shape[axis.axis], shape[axis.axis + 1] = axis.size, taps
    parts = picked.unflatten(axis.axis, (axis.size, taps))
    return (parts * weights.to(x.dtype).to(x.device).reshape(shape)).sum(dim=axis.axis + 1)


def _cubic(distance: Tensor, a: float) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
