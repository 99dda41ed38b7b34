"""A one-shot stream of items made repeatable: each item is written to a temporary file when it is first seen."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from lowbit.data.item import Item
from lowbit.data.lazy_array import LazyArray, MemoryArray, reading
from lowbit.exceptions import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Spool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What is kept in memory of a spooled item: everything but its numbers."""

    given: dict[str, str]
    dtypes: tuple[np.dtype[Any], ...]
    labelled: bool
    name: str
    notes: tuple[str, ...]


@final
class Spool:
    """Items of an iterator that is consumed once, as far as any pass has come, and replayed from disk after that.

    Passes may be broken off and may overlap. Memory holds one item at a time. The directory is deleted by `close`,
    when the spool is collected, and when Python exits.
    """

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._broken = False
        self._closed = False
        self._entries: list[_Entry] = []
        self._directory: Path | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def __iter__(self) -> Iterator[Item]:
        position = 0
        while True:
            if position < len(self._entries):
                self._check()
                yield self._replay(position)
            else:
                self._check()
                self._broken = True  # until the item is safely stored: a generator that raised cannot go on
                item = next(self._items, None)
                if item is not None:
                    self._write(item)
                self._broken = False
                if item is None:
                    return
                yield item
            position += 1

    def close(self) -> None:
        """Delete the temporary directory; the items cannot be read any more."""
        self._closed = True
        if self._finalizer is not None:
            self._finalizer()

    def _check(self) -> None:
        if self._closed:
            raise DataError("the data were closed", remedy="open them again, with a fresh generator")
        if self._broken:
            raise DataError(
                "the data stream broke off on an earlier pass",
                cause="it raised an error, or was interrupted, and cannot be resumed",
                remedy="open the data again, with a fresh generator",
            )

    def _write(self, item: Item) -> None:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="lowbit-data-"))
            self._finalizer = weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        arrays = [array.whole() for array in item.arrays.values()]
        parts = arrays if item.labels is None else [*arrays, item.labels]
        with self._path(len(self._entries)).open("wb") as stream:
            for array in parts:
                np.lib.format.write_array(stream, _storable(array), allow_pickle=False)
        self._entries.append(
            _Entry(
                given=item.given,
                dtypes=tuple(array.dtype for array in parts),
                labelled=item.labels is not None,
                name=item.name,
                notes=item.notes,
            )
        )

    def _replay(self, position: int) -> Item:
        entry = self._entries[position]
        path = self._path(position)
        with reading(path), path.open("rb") as stream:
            parts = [np.lib.format.read_array(stream, allow_pickle=False).view(dtype) for dtype in entry.dtypes]
        labels = parts.pop() if entry.labelled else None
        arrays: dict[str, LazyArray] = {
            name: MemoryArray(array) for name, array in zip(entry.given, parts, strict=True)
        }
        return Item(arrays=arrays, labels=labels, given=entry.given, name=entry.name, notes=entry.notes)

    def _path(self, position: int) -> Path:
        assert self._directory is not None
        return self._directory / f"{position:08d}.npy"


def _storable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return plain bytes in place of the `ml_dtypes` types, which the .npy format does not know."""
    return array.view(np.dtype(f"V{array.dtype.itemsize}")) if array.dtype.kind == "V" else array
