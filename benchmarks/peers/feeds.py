"""Calibration data on disk, one small file a sample, so that no tool pays for samples it does not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["FeedFolder", "save_feeds"]


def save_feeds(feeds: Iterable[Mapping[str, NDArray[Any]]], folder: Path) -> int:
    """Write each feed to `folder/00000.npz` and so on; return how many there were."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for feed in feeds:
        np.savez(folder / f"{count:05d}.npz", allow_pickle=False, **feed)
        count += 1
    return count


class FeedFolder:
    """The feeds of a folder, read one at a time, as often as wanted.

    Args:
        folder: Folder that `save_feeds` wrote.
        limit: Number of feeds to use; all by default.

    Iterating yields `{input name: array}`; the order is that of saving.
    """

    def __init__(self, folder: Path, *, limit: int | None = None) -> None:
        self._files = sorted(folder.glob("*.npz"))[:limit]

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        for file in self._files:
            with np.load(file) as arrays:
                yield {name: arrays[name] for name in arrays.files}
