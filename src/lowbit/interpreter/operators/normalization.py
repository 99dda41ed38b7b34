"""Normalization of batches, layers, groups and neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from lowbit.interpreter.dtypes import to_dtype
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__ = ["layer_normalized", "rms_normalized"]


def _per_channel(values: Tensor, rank: int) -> Tensor:
    return values.reshape(-1, *[1] * (rank - 2)) if rank > 1 else values


@operator("BatchNormalization")
def batch_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor | tuple[Tensor, ...]:
    """Normalize channels by what was seen before or, in training, by this batch (Ioffe and Szegedy 2015).

    A graph for training says `training_mode`, or asks for the statistics, and returns the new running ones. In a graph
    for inference that is trained all the same, those that it holds are updated in place.
    """
    declared = bool(call.get("training_mode", 0)) if call.version >= 14 else call.outputs > 1
    dtype = x.dtype
    wide = torch.promote_types(dtype, mean.dtype)
    x = x.to(wide)
    if not declared and not call.training:
        return _batch_normalized(call, x, scale, bias, mean, variance).to(dtype)
    momentum = call.get("momentum", 0.9)
    others = [axis for axis in range(x.ndim) if axis != 1]
    seen, spread = x.mean(dim=others), x.var(dim=others, unbiased=False)
    y = _batch_normalized(call, x, scale, bias, seen, spread).to(dtype)
    means = mean * momentum + seen * (1 - momentum)
    spreads = variance * momentum + spread * (1 - momentum)
    if not declared:
        # Statistics that are computed, or have been made parameters, are not the module's to overwrite.
        for running, new in ((mean, means), (variance, spreads)):
            if not running.requires_grad:
                running.copy_(new.detach())
        return y
    return (y, means, spreads, seen, spread)[: max(call.outputs, 1)]


def _batch_normalized(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    factor = scale.to(x.dtype) / torch.sqrt(variance.to(x.dtype) + call.get("epsilon", 1e-5))
    centred = x - _per_channel(mean.to(x.dtype), x.ndim)
    return centred * _per_channel(factor, x.ndim) + _per_channel(bias.to(x.dtype), x.ndim)


def layer_normalized(
    x: Tensor, scale: Tensor | None, bias: Tensor | None, dims: list[int], epsilon: float, wide: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a tensor normalized over some axes, its mean and the reciprocal of its deviation.

    Args:
        x: The tensor.
        scale: Factor of the normalized tensor, broadcastable; 1 if left out.
        bias: What is added then; 0 if left out.
        dims: The axes.
        epsilon: Added to the variance.
        wide: Type to compute in.
    """
    values = x.to(wide)
    mean = values.mean(dim=dims, keepdim=True)
    centred = values - mean
    inverse = torch.rsqrt((centred * centred).mean(dim=dims, keepdim=True) + epsilon)
    y = (centred * inverse).to(x.dtype)
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias), mean, inverse


def rms_normalized(
    x: Tensor, scale: Tensor | None, dims: list[int], epsilon: float, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return a tensor over its root mean square, and the reciprocal of that (Zhang and Sennrich 2019).

    Args:
        x: The tensor.
        scale: Factor of the result, broadcastable; 1 if left out.
        dims: The axes.
        epsilon: Added to the mean square.
        wide: Type to compute in.
    """
    values = x.to(wide)
    inverse = torch.rsqrt((values * values).mean(dim=dims, keepdim=True) + epsilon)
    y = (values * inverse).to(x.dtype)
    return (y if scale is None else y * scale), inverse


def _last(call: Call, x: Tensor) -> list[int]:
    return list(range(call.get("axis", -1) % x.ndim, x.ndim))


@operator("LayerNormalization")
def layer_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize every sample over its last axes (Ba et al. 2016)."""
    wide = torch.promote_types(to_dtype(call.get("stash_type", 1)), torch.float32)
    wide = x.dtype if x.dtype == torch.float64 else wide
    return layer_normalized(x, scale, bias, _last(call, x), call.get("epsilon", 1e-5), wide)


@operator("RMSNormalization")
def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """Divide every sample by the root mean square over its last axes."""
    wide = x.dtype if x.dtype == torch.float64 else to_dtype(call.get("stash_type", 1))
    return rms_normalized(x, scale, _last(call, x), call.get("epsilon", 1e-5), wide)[0].to(scale.dtype)


@operator("InstanceNormalization")
def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalize every channel of every sample (Ulyanov et al. 2016)."""
    dims = list(range(2, x.ndim))
    factor, shift = _per_channel(scale, x.ndim), _per_channel(bias, x.ndim)
    return layer_normalized(x, factor, shift, dims, call.get("epsilon", 1e-5), x.dtype)[0]


@operator("GroupNormalization")
def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalize groups of channels (Wu and He 2018); scales are one a group, from operator set 21 on one a channel."""
    groups = call.get("num_groups")
    wide = x.dtype if x.dtype == torch.float64 else to_dtype(call.get("stash_type", 1))
    parts = x.reshape(x.shape[0], groups, -1)
    normal = layer_normalized(parts, None, None, [2], call.get("epsilon", 1e-5), wide)[0].reshape(x.shape)
    if call.version < 21:
        each = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return normal * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)


@operator("LRN")
def local_response_normalization(call: Call, x: Tensor) -> Tensor:
    """Divide by the energy of neighbouring channels (Krizhevsky et al. 2012)."""
    size = call.get("size")
    before = (size - 1) // 2
    flat = (x * x).reshape(x.shape[0], 1, x.shape[1], -1)
    energy = functional.avg_pool2d(
        functional.pad(flat, (0, 0, before, size - 1 - before)), (size, 1), 1, divisor_override=1
    )
    alpha, beta = call.get("alpha", 1e-4), call.get("beta", 0.75)
    return x / (call.get("bias", 1.0) + alpha / size * energy.reshape(x.shape)) ** beta


@operator("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """Divide by the norm along an axis; zeros stay zeros."""
    axis = call.get("axis", -1)
    norm = x.abs().sum(axis, keepdim=True) if call.get("p", 2) == 1 else (x * x).sum(axis, keepdim=True).sqrt()
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    """Subtract the mean and divide by the standard deviation."""
    axes = list(call.get("axes") or [0, 2, 3])
    mean = x.mean(dim=axes, keepdim=True)
    deviation = torch.sqrt((x * x).mean(dim=axes, keepdim=True) - mean * mean)
    return (x - mean) / (deviation + 1e-9)
