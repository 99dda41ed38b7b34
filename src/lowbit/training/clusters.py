"""A weight that shares its values: indices into a codebook whose entries learn.

Han et al., Deep Compression, 2016, section 3.3: the gradient of an entry is the sum of the gradients of all weights
that share it. With `soft`, every weight is a mixture of entries, by its distance to them (Cho et al., DKM:
Differentiable K-Means Clustering Layer, 2022), and assignments learn as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clusters"]


class Clusters(torch.nn.Module):
    """Codebooks of one weight: `w = entries[group, index] · scale`.

    Args:
        weight: Any shape, float32: where weights lie, before the scale.
        entries: `[G, k]` float32, a codebook for every group.
        groups: Number of the group of every weight, of a shape that broadcasts to the weight; int64.
        scale: Positive float32 that entries are multiplied with, learned; `None` for none.
        spread: Makes of a tensor shaped like the scale one that broadcasts to the weight.
        soft: Temperature of soft assignments, in units of the mean squared weight; 0 keeps assignments as they are.
        zero: Whether an entry that is exactly 0 stays 0.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        entries: torch.Tensor,
        groups: torch.Tensor,
        *,
        scale: torch.Tensor | None = None,
        spread: Callable[[torch.Tensor], torch.Tensor] | None = None,
        soft: float = 0.0,
        zero: bool = True,
    ) -> None:
        super().__init__()
        self.soft, self.spread = soft, spread
        self.log_scale = None if scale is None else torch.nn.Parameter(torch.log(scale))
        self.entries = torch.nn.Parameter(entries.clone())
        self.register_buffer("free", (entries != 0).to(entries.dtype) if zero else torch.ones_like(entries))
        self.register_buffer("groups", groups.expand(weight.shape).contiguous())
        self.register_buffer("indices", _nearest(weight, entries, self.groups))
        # Only soft assignments have something of their own to learn.
        self.position = torch.nn.Parameter(weight.clone()) if soft else None

    def forward(self) -> torch.Tensor:
        """Return the weight."""
        weight = self._unscaled(self.entries * self.free)
        if self.log_scale is None or self.spread is None:
            return weight
        return weight * self.spread(self.log_scale.exp())

    def _unscaled(self, entries: torch.Tensor) -> torch.Tensor:
        if self.position is not None and self.training:
            return self._mixed(entries)
        if self.position is not None:
            return _looked_up(entries, _nearest(self.position.detach(), entries.detach(), self.groups), self.groups)
        return _looked_up(entries, self.indices, self.groups)

    def _mixed(self, entries: torch.Tensor) -> torch.Tensor:
        assert self.position is not None
        own = entries[self.groups]  # [..., k]
        distance = (self.position[..., None] - own).square()
        unit = self.position.detach().square().mean().clamp_min(1e-12)
        share = torch.softmax(-distance / (self.soft * unit), dim=-1)
        return (share * own).sum(-1)

    @torch.no_grad()
    def levels(self) -> torch.Tensor:
        """Return the entries as they are now, `[G, k]`."""
        return self.entries * self.free

    @torch.no_grad()
    def assignment(self) -> torch.Tensor:
        """Return the entry of every weight, int64."""
        if self.position is None:
            return self.indices
        return _nearest(self.position, self.entries * self.free, self.groups)


def _looked_up(entries: torch.Tensor, indices: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    # One long row of entries: the gradient of `index_select` sums by entry.
    flat = (indices + groups * entries.shape[1]).reshape(-1)
    return entries.reshape(-1).index_select(0, flat).reshape(indices.shape)


def _nearest(weight: torch.Tensor, entries: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    indices = torch.empty(weight.shape, dtype=torch.int64, device=weight.device)
    for group in range(len(entries)):
        inside = groups == group
        distance = (weight[inside][:, None] - entries[group][None]).abs()
        indices[inside] = distance.argmin(dim=1)
    return indices
