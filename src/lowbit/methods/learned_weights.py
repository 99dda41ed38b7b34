"""Weights of a plan as they can be learned, and as a plan stores them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowbit.formats import Format, PerBlock, PerChannel, parse_format
from lowbit.methods.rerounding import keeps_values
from lowbit.methods.weights import EncodedWeight, encode_weight, kernel_matrix, rerounded
from lowbit.plan.packed import pack_steps, unpack_floats
from lowbit.reconstruction.adaptive_rounding import AdaptiveRounding
from lowbit.reconstruction.learned_rounding import LearnedRounding
from lowbit.reconstruction.weight_grid import WeightGrid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from lowbit.methods.schedules import Learning
    from lowbit.plan.plan import ActivationPlan, SitePlan
    from lowbit.plan.sites import Site
    from lowbit.reconstruction.soft_weight import SoftWeight
    from lowbit.rounding import RangeMethod
    from lowbit.targets import Target

__all__ = ["WeightEncoder", "learnable", "rounds", "soft_weight"]

_INT8_MAXIMUM = 127


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightEncoder:
    """Encodes weights exactly as applying a plan does.

    Attributes:
        target: Where the model will run.
        method: How the range of a weight is chosen.
        tensors: Activations in codes, by name.
        moved: Scales of activations that were learned, by name.
    """

    target: Target
    method: RangeMethod
    tensors: Mapping[str, ActivationPlan]
    moved: Mapping[str, float]

    def planned(self, site: Site, entry: SitePlan) -> EncodedWeight:
        """Return the weight with the codes of its plan."""
        scale = unpack_floats(entry.scale) if entry.scale is not None else None
        return rerounded(site, self.nearest(site, entry, scale), entry.rounding)

    def nearest(self, site: Site, entry: SitePlan, scale: NDArray[np.float32] | None) -> EncodedWeight:
        """Return the weight rounded to nearest, with the given scale or with that of its range."""
        assert entry.weights is not None
        static = entry.execution == "static"
        read = site.node.inputs[0]
        tensor = self.tensors.get((read.name or "") if read is not None else "") if static else None
        return encode_weight(
            site,
            parse_format(entry.weights),
            saturates=static and self.target.saturates and tensor is not None and tensor.format.startswith("uint8"),
            input_scale=None if tensor is None else self.moved.get(tensor.tensor, tensor.scale),
            method=self.method,
            by_tap=self.target.pairs == "tap",
            scale=scale,
        )

    def stored(self, site: Site, entry: SitePlan, learned: SoftWeight) -> tuple[str, NDArray[np.float32]]:
        """Return what a plan stores: by how many steps codes differ from nearest, packed, and the scales."""
        # As applying the plan does it, which may widen scales until the bias fits into its integers.
        nearest = self.nearest(site, entry, learned.scale().numpy().astype(np.float32))
        codes, base = (kernel_matrix(site, array.astype(np.int8)) for array in (learned.codes().numpy(), nearest.codes))
        return pack_steps((codes.astype(np.int16) - base).astype(np.int8), base), nearest.parameters.scale


def learnable(site: Site, entry: SitePlan) -> bool:
    """Whether a site has a weight in integer codes that gradients reach."""
    if site.op_type not in {"Conv", "MatMul", "Gemm"} or site.weight_index is None or site.subgraph:
        return False
    if entry.weights is None or parse_format(entry.weights).element.kind != "integer":
        return False
    # What shares values keeps sharing them: single weights have nothing to learn.
    return not keeps_values(site, entry)


def rounds(encoded: EncodedWeight) -> bool:
    """Whether the codes of a weight may be learned: where pairs may saturate, they are bound to each other."""
    signed = encoded.fmt.symmetric and encoded.fmt.element.signed and encoded.fmt.element.maximum <= _INT8_MAXIMUM
    return signed and encoded.saturation is None


def soft_weight(site: Site, encoded: EncodedWeight, kind: Learning) -> SoftWeight:
    """Return a weight whose rounding is to be learned."""
    weight = torch.from_numpy(np.array(site.weight_array(), dtype=np.float32))
    fmt = encoded.fmt
    low, high = (int(code) for code in fmt.code_range())
    zero = encoded.parameters.zero_point.astype(np.float32)
    shape = tuple(weight.shape)
    scale = torch.from_numpy(np.array(encoded.parameters.scale, dtype=np.float32))
    zero_point = torch.from_numpy(np.array(zero)) if zero.any() else None

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        return _spread(tensor, fmt, shape)

    zeros = weight == 0
    grid = WeightGrid(
        scale=scale,
        spread=spread,
        low=low,
        high=high,
        zero_point=zero_point,
        zeros=zeros if bool(zeros.any()) else None,
    )
    if kind == "adaround":
        return AdaptiveRounding(weight, grid)
    return LearnedRounding(weight, torch.from_numpy(encoded.codes.astype(np.float32)), grid)


def _spread(tensor: torch.Tensor, fmt: Format, shape: tuple[int, ...]) -> torch.Tensor:
    """Broadcast what is shaped like a scale to a weight."""
    match fmt.granularity:
        case PerChannel(axis=axis):
            return tensor.reshape([-1 if index == axis % len(shape) else 1 for index in range(len(shape))])
        case PerBlock(axis=axis, size=size):
            return tensor.repeat_interleave(size, dim=axis)
    return tensor
