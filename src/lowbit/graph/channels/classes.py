"""Channels as numbers, and which of them are one: a union-find in which a class can be frozen with a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]

__all__ = ["ChannelClasses"]


class ChannelClasses:
    """Disjoint sets of channels; channels of one set are removed together or not at all."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> Ids:
        """Return `[count]` int64 channels that are in no set with others."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def find(self, channel: int) -> int:
        """Return the channel that stands for the set of `channel`."""
        root = channel
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[channel] != root:
            self._parent[channel], channel = root, self._parent[channel]
        return root

    def roots(self, channels: Ids) -> Ids:
        """Return the representatives of channels, in the same shape."""
        return np.array([self.find(int(channel)) for channel in channels.reshape(-1)], np.int64).reshape(channels.shape)

    def join(self, first: Ids, second: Ids) -> None:
        """Unite channels pairwise; a set is frozen if either part was."""
        for one, other in zip(first.reshape(-1).tolist(), second.reshape(-1).tolist(), strict=True):
            kept, lost = sorted((self.find(one), self.find(other)))
            if kept != lost:
                self._parent[lost] = kept
                reason = self._reasons.pop(lost, None)
                if reason is not None:
                    self._reasons.setdefault(kept, reason)

    def freeze(self, channels: Ids, reason: str) -> None:
        """Keep channels for good; the first reason of a set stays."""
        for root in np.unique(self.roots(channels)).tolist():
            self._reasons.setdefault(root, reason)

    def reason(self, channel: int) -> str:
        """Return why a channel has to stay, the empty text if it need not."""
        return self._reasons.get(self.find(channel), "")
