"""What detectors do with boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []


@operator("NonMaxSuppression")
def non_max_suppression(
    call: Call,
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
) -> Tensor:
    """Select boxes by score and leave out what overlaps a selected one; `[selected, 3]`: batch, class and box."""
    limit = int(most) if most is not None and most.numel() else 0
    highest = float(iou_threshold) if iou_threshold is not None and iou_threshold.numel() else 0.0
    least = float(score_threshold) if score_threshold is not None and score_threshold.numel() else None
    selected: list[tuple[int, int, int]] = []
    if limit > 0:
        for batch in range(boxes.shape[0]):
            corners = _corners(boxes[batch].detach(), centres=bool(call.get("center_point_box", 0)))
            for kind in range(scores.shape[1]):
                found = _kept(corners, scores[batch, kind].detach(), limit, highest, least)
                selected += [(batch, kind, box) for box in found]
    return torch.tensor(selected, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _corners(boxes: Tensor, *, centres: bool) -> Tensor:
    """Return boxes as `[boxes, 4]`: lowest and highest of both axes."""
    if centres:
        middle, half = boxes[:, :2], boxes[:, 2:] / 2
        return torch.cat([middle - half, middle + half], dim=1)
    one, other = boxes[:, :2], boxes[:, 2:]
    return torch.cat([torch.minimum(one, other), torch.maximum(one, other)], dim=1)


def _kept(boxes: Tensor, scores: Tensor, limit: int, highest: float, least: float | None) -> list[int]:
    """Return the indices of the boxes that are kept, best first; among equal scores the first one is better."""
    order = torch.sort(scores, descending=True, stable=True).indices
    if least is not None:
        order = order[scores[order] > least]
    sizes = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    kept: list[int] = []
    while order.numel() and len(kept) < limit:
        best, order = order[0], order[1:]
        kept.append(int(best))
        low = torch.maximum(boxes[best, :2], boxes[order, :2])
        high = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        union = sizes[best] + sizes[order] - shared
        # Boxes without an area overlap nothing.
        overlap = torch.where(shared > 0, shared / union, torch.zeros_like(shared))
        order = order[overlap <= highest]
    return kept
