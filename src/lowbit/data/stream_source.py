"""Samples of a Python iterable of unknown length: a generator, a DataLoader, or a function that makes one."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, final

from lowbit.data.cutting import Cut, Feed, cut_item
from lowbit.data.inputs import InputSpec, batch_layout
from lowbit.data.item import Item, bind_value
from lowbit.data.source import Notes, Source, join_labels
from lowbit.data.spool import Spool
from lowbit.exceptions import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["StreamSource", "checked_calls", "spooled"]


@final
class StreamSource(Source):
    """Samples of items that can only be read from the start.

    Args:
        items: Yields the same items on every pass.
        close: Deletes what was stored for that.
        inputs: The model's inputs.
        name: What error messages call the whole.
        limit: Read no further than this many samples, so that an endless stream ends; None for no limit.
    """

    counts_at_open = False

    def __init__(
        self,
        items: Iterable[Item],
        close: Callable[[], None],
        inputs: Sequence[InputSpec],
        *,
        name: str,
        limit: int | None,
    ) -> None:
        self.name = name
        self.notes = Notes()
        self._items = items
        self._close = close
        self._inputs = inputs
        self._limit = limit
        self._layout = batch_layout(inputs)
        self._count: int | None = None
        self._labels: NDArray[Any] | None = None

    def count(self) -> int:
        """Return the number of samples."""
        if self._count is None:
            for _ in self._cuts():
                pass
        assert self._count is not None
        return self._count

    def labels(self) -> NDArray[Any] | None:
        """Return one label per sample, or None."""
        self.count()
        return self._labels

    def read(self, indices: Sequence[int] | None) -> Iterator[Feed]:
        """Yield the samples at ascending `indices`, or all."""
        low = 0
        for start, cut in self._cuts():
            if indices is None:
                yield from cut.feeds(range(cut.samples), first=start)
                continue
            rest = indices[low : low + cut.samples]
            local = [index - start for index in rest if index < start + cut.samples]
            yield from cut.feeds(local, first=start)
            low += len(local)
            if low == len(indices):
                return

    def close(self) -> None:
        """Delete what was stored."""
        self._close()

    def _cuts(self) -> Iterator[tuple[int, Cut]]:
        """Yield every item, cut, with its first sample's number; learn the count and the labels at the end."""
        start = 0
        labels = []
        for item in self._items:
            cut = cut_item(item, self._inputs, self._layout)
            self.notes.add(*cut.notes)
            if self._limit is not None:
                cut = cut.first(self._limit - start)
            labels.append(cut.labels)
            yield start, cut
            start += cut.samples
            if start == self._limit:
                break
        if start == 0:
            raise DataError(
                f"{self.name} holds no samples",
                cause="the iterable was empty, or had been consumed before",
                remedy="give at least one sample; a fresh generator, or a function that returns one",
            )
        if self._count is None:
            self._labels = join_labels(labels, self.name)
            self._count = start


def spooled(values: Iterable[object], inputs: Sequence[InputSpec], *, name: str, limit: int | None) -> StreamSource:
    """Return the samples of an iterable that is read once and kept on disk from then on.

    NOTE: iterables that could be read twice are spooled too: a DataLoader that shuffles or augments gives other data
    on every pass, and calibration and comparison must see the same.

    Args:
        values: Dicts, arrays or tuples, as `bind_value` takes them.
        inputs: The model's inputs.
        name: What error messages call it.
        limit: Read no further than this many samples.
    """
    bound = (bind_value(value, inputs, f"element {i} of {name}") for i, value in enumerate(values))
    spool = Spool(bound)
    return StreamSource(spool, spool.close, inputs, name=name, limit=limit)


def checked_calls(
    make: Callable[[], Iterable[object]], inputs: Sequence[InputSpec], *, name: str, limit: int | None
) -> StreamSource:
    """Return the samples of a function that makes a fresh iterable for every pass.

    Nothing is stored but one checksum per element, with which a pass that differs from an earlier one is refused.
    """
    return StreamSource(_Calls(make, inputs, name), lambda: None, inputs, name=name, limit=limit)


@final
class _Calls:
    """The items of a function's iterables, the same on every pass."""

    def __init__(self, make: Callable[[], Iterable[object]], inputs: Sequence[InputSpec], name: str) -> None:
        self._make = make
        self._inputs = inputs
        self._name = name
        self._checksums: list[int] = []
        self._length: int | None = None

    def __iter__(self) -> Iterator[Item]:
        length = 0
        for position, value in enumerate(self._make()):
            item = bind_value(value, self._inputs, f"element {position} of {self._name}")
            checksum = _checksum(item)
            if position == len(self._checksums):
                self._checksums.append(checksum)
            elif self._checksums[position] != checksum:
                raise self._changed(f"its element {position} has changed")
            length = position + 1
            yield item
        if length < len(self._checksums) or (self._length is not None and length != self._length):
            raise self._changed(f"it gave {length} elements, not {self._length or len(self._checksums)}")
        self._length = length

    def _changed(self, how: str) -> DataError:
        return DataError(
            f"{self._name} gave other data than on an earlier pass: {how}",
            cause="it shuffles, augments or continues where it stopped",
            remedy="fix its random seed and start anew on every call, or hand over the iterable itself",
        )


def _checksum(item: Item) -> int:
    checksum = 0
    for array in item.arrays.values():
        checksum = zlib.crc32(array.whole().tobytes(), checksum)
    return checksum
