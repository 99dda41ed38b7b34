"""Where samples come from: the abstract `Source`, and the one over a known list of items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, final

import numpy as np

from lowbit.data.cutting import Feed, cut_item
from lowbit.data.inputs import InputSpec, batch_layout
from lowbit.exceptions import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from lowbit.data.item import Item

__all__ = ["ItemSource", "Notes", "Source", "join_labels"]


class Notes:
    """What was assumed about the data, each thing once, in the order it was met."""

    def __init__(self, *notes: str) -> None:
        self._notes: dict[str, None] = dict.fromkeys(notes)

    def add(self, *notes: str) -> None:
        """Remember notes."""
        self._notes.update(dict.fromkeys(notes))

    def __iter__(self) -> Iterator[str]:
        return iter(self._notes)


class Source(ABC):
    """Samples in a fixed order that can be read any number of times.

    A sample is a feed of the smallest batch: the arrays of all inputs, of the inputs' types, with size 1 on the batch
    axis unless the user handed over whole batches with one axis more.
    """

    name: str
    notes: Notes
    counts_at_open: bool
    """Whether `count` is free; if not, it costs a pass over the data."""

    @abstractmethod
    def count(self) -> int:
        """Return the number of samples, reading all data if nothing else can tell."""

    @abstractmethod
    def labels(self) -> NDArray[Any] | None:
        """Return one label per sample along axis 0, or None; may need a pass like `count`."""

    @abstractmethod
    def read(self, indices: Sequence[int] | None) -> Iterator[Feed]:
        """Yield the samples at ascending `indices`, or all of them in order."""

    @abstractmethod
    def close(self) -> None:
        """Delete temporary files."""


@final
class ItemSource(Source):
    """Samples of a known list of items, each opened when its samples are needed.

    Args:
        openers: One function per item; called again on every pass.
        inputs: The model's inputs.
        name: What error messages call the whole.

    Raises:
        DataError: An item does not fit the inputs, only some items have labels, or there is no sample.
    """

    counts_at_open = True

    def __init__(self, openers: Sequence[Callable[[], Item]], inputs: Sequence[InputSpec], *, name: str) -> None:
        self.name = name
        self.notes = Notes()
        self._openers = openers
        self._inputs = inputs
        self._layout = batch_layout(inputs)
        self._ends: list[int] = []
        labels = []
        total = 0
        for opener in openers:
            cut = cut_item(opener(), inputs, self._layout)
            total += cut.samples
            self._ends.append(total)
            self.notes.add(*cut.notes)
            labels.append(cut.labels)
        if total == 0:
            raise DataError(f"{name} holds no samples", remedy="give at least one sample")
        self._labels = join_labels(labels, name)

    def count(self) -> int:
        """Return the number of samples."""
        return self._ends[-1]

    def labels(self) -> NDArray[Any] | None:
        """Return one label per sample, or None."""
        return self._labels

    def read(self, indices: Sequence[int] | None) -> Iterator[Feed]:
        """Yield the samples at ascending `indices`, or all."""
        wanted = range(self.count()) if indices is None else indices
        low = 0
        for position, (opener, end) in enumerate(zip(self._openers, self._ends, strict=True)):
            start = self._ends[position - 1] if position else 0
            high = bisect_left(wanted, end, lo=low)
            if high > low:
                local = [index - start for index in wanted[low:high]]
                yield from cut_item(opener(), self._inputs, self._layout).feeds(local, first=start)
            low = high

    def close(self) -> None:
        """Nothing is held open."""


def join_labels(labels: Sequence[NDArray[Any] | None], name: str) -> NDArray[Any] | None:
    """Join the labels of items along axis 0; None if there are none.

    Raises:
        DataError: Only some items have labels, or their shapes differ.
    """
    present = [part for part in labels if part is not None]
    if not present:
        return None
    if len(present) != len(labels):
        raise DataError(
            f"only {len(present)} of {len(labels)} parts of {name} have labels",
            remedy="give labels for all samples or for none",
        )
    try:
        return np.concatenate(present)
    except ValueError as error:
        raise DataError(f"the labels of {name} have different shapes", cause=str(error)) from error
