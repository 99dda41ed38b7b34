"""How many units every group keeps: the same share everywhere, or those that matter least for what they cost."""

from __future__ import annotations

import heapq
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lowbit.graph.channels import ChannelGroup

__all__ = ["cheapest", "step_of", "uniform"]


def step_of(group: ChannelGroup, round_to: int) -> int:
    """Return how many units have to be kept together so that the channels left are a multiple of `round_to`."""
    return round_to // gcd(round_to, group.width)


def uniform(groups: Sequence[ChannelGroup], amount: float, round_to: int) -> NDArray[np.int64]:
    """Return the units that each group keeps, `[G]` int64, if each loses the same share.

    The nearest multiple is kept, and never none.
    """
    kept = []
    for group in groups:
        count, step = len(group.units), step_of(group, round_to)
        wanted = max(round(count * (1.0 - amount) / step), 1) * step
        kept.append(min(wanted, count))
    return np.array(kept, np.int64)


def cheapest(
    groups: Sequence[ChannelGroup],
    scores: Sequence[NDArray[np.float64]],
    cost: Callable[[NDArray[np.int64]], float],
    target: float,
    round_to: int,
    *,
    most: float = 0.9,
) -> NDArray[np.int64]:
    """Remove the units that matter least for what they cost, until the whole costs no more than `target`.

    Args:
        groups: The groups.
        scores: `[U]` of each; comparable between groups.
        cost: Of the whole, for the units that each group keeps, `[G]`.
        target: In the unit of `cost`.
        round_to: Channels left are a multiple of this.
        most: No group loses more than this share.

    Returns:
        `[G]` int64. It costs more than `target` if no group has anything left to give.
    """
    kept = np.array([len(group.units) for group in groups], np.int64)
    ordered = [np.sort(score) for score in scores]

    def offer(number: int) -> tuple[float, int, int] | None:
        count, step = len(groups[number].units), step_of(groups[number], round_to)
        left = (kept[number] - 1) // step * step
        if left < max(step, int(np.ceil(count * (1.0 - most)))):
            return None
        lost = ordered[number][count - kept[number] : count - left].sum()
        after = kept.copy()
        after[number] = left
        return float(lost / max(cost(kept) - cost(after), 1e-12)), number, int(left)

    queue = [found for number in range(len(groups)) if (found := offer(number)) is not None]
    heapq.heapify(queue)
    while queue and cost(kept) > target:
        _, number, _ = heapq.heappop(queue)
        fresh = offer(number)
        if fresh is None:
            continue
        # What a step saves shrinks as others are taken: the offer is renewed, and waits if it is no longer the best.
        if queue and fresh[0] > queue[0][0]:
            heapq.heappush(queue, fresh)
            continue
        kept[number] = fresh[2]
        following = offer(number)
        if following is not None:
            heapq.heappush(queue, following)
    return kept
