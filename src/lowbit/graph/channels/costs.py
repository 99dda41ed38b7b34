"""What a graph costs with so many channels left: multiplications and weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.constants import constant_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowbit.graph.channels.groups import ChannelGroup
    from lowbit.graph.channels.trace import Trace

__all__ = ["ChannelCosts"]


class ChannelCosts:
    """Products over axes, each with a number of channels that is affine in the units that each group keeps.

    Args:
        trace: The channels.
        groups: Groups in the order in which the numbers of kept units are given.
    """

    def __init__(self, trace: Trace, groups: Sequence[ChannelGroup]) -> None:
        self._full = np.array([len(group.units) for group in groups], np.float64)
        owner = {root: number for number, group in enumerate(groups) for root in group.units.tolist()}
        counted: dict[int, tuple[float, NDArray[np.float64]]] = {}

        def axis(channels: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
            if id(channels) not in counted:
                share = np.zeros(len(groups))
                base = 0.0
                for root in trace.channels.roots(channels).tolist():
                    if root in owner:
                        share[owner[root]] += 1 / self._full[owner[root]]
                    else:
                        base += 1
                counted[id(channels)] = (base, share)
            return counted[id(channels)]

        self._macs = [(product.fixed, [axis(channels) for channels in product.axes]) for product in trace.products]
        self._weights = []
        for name, value in trace.model.graph.initializers.items():
            array = constant_array(value)
            if array is None or array.dtype.kind != "f":
                continue
            tracked = {number: trace.parameters.get((name, number)) for number in range(array.ndim)}
            rest = float(np.prod([array.shape[number] for number, found in tracked.items() if found is None]))
            self._weights.append((rest, [axis(found) for found in tracked.values() if found is not None]))

    def macs(self, kept: NDArray[np.int64]) -> float:
        """Return the multiplications of a sample; `kept` holds the units that each group keeps, `[G]`."""
        return _total(self._macs, kept)

    def weights(self, kept: NDArray[np.int64]) -> float:
        """Return the number of weights; `kept` holds the units that each group keeps, `[G]`."""
        return _total(self._weights, kept)


def _total(
    terms: Sequence[tuple[float, Sequence[tuple[float, NDArray[np.float64]]]]], kept: NDArray[np.int64]
) -> float:
    total = 0.0
    for fixed, axes in terms:
        value = fixed
        for base, share in axes:
            value *= base + float(share @ kept)
        total += value
    return total
