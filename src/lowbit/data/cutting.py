"""How an item's arrays are cut into single samples, decided from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lowbit.data.fitting import convert, fits, is_floating, misfit
from lowbit.exceptions import DataError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from lowbit.data.inputs import BatchLayout, InputSpec
    from lowbit.data.item import Item
    from lowbit.data.lazy_array import LazyArray

__all__ = ["Cut", "Feed", "cut_item"]

Feed = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """How one input gets its part of a sample: `index` array[i], `slice` array[i:i+1] on `axis`, `same` all of it."""

    spec: InputSpec
    array: LazyArray
    mode: Literal["index", "slice", "same"]
    axis: int | None
    count: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """An item with the way to its samples.

    Attributes:
        samples: How many samples it holds.
        labels: One entry per sample, or None.
        notes: What was assumed.
    """

    samples: int
    labels: NDArray[Any] | None
    notes: tuple[str, ...]
    pieces: tuple[_Piece, ...]
    name: str

    def first(self, samples: int) -> Cut:
        """Return the same item, cut off after `samples` samples."""
        if samples >= self.samples:
            return self
        return replace(self, samples=samples, labels=None if self.labels is None else self.labels[:samples])

    def feeds(self, indices: Sequence[int], *, first: int = 0) -> Iterator[Feed]:
        """Yield the samples at ascending `indices`, checked and of the inputs' types.

        Args:
            indices: Positions in this item.
            first: The number of the item's first sample in the whole data, for error messages.

        Raises:
            DataError: A sample holds NaN or infinity, or values that its input's type cannot hold.
        """
        streams = [_stream(piece, indices) for piece in self.pieces]
        try:
            for index in indices:
                where = f"sample {index} of {self.name}" + (f" (number {first + index} of all)" if first else "")
                yield {
                    piece.spec.name: convert(next(stream), piece.spec, where)
                    for piece, stream in zip(self.pieces, streams, strict=True)
                }
        finally:
            for stream in streams:
                stream.close()


def cut_item(item: Item, inputs: Sequence[InputSpec], layout: BatchLayout) -> Cut:
    """Decide how an item is cut into samples.

    An array with one axis more than its input is indexed; one of the input's rank is cut along the batch axis; one
    sample without the batch axis gets it. An array that has no batch axis, or size 1 there while others hold more,
    belongs to every sample.

    Raises:
        DataError: A shape does not fit its input, or the arrays disagree about the number of samples.
    """
    pieces = [_piece(item, spec, layout.axes[spec.name]) for spec in inputs]
    counts = {piece.spec.name: piece.count for piece in pieces if piece.count is not None}
    samples = max(counts.values(), default=1) if 0 not in counts.values() else 0
    notes = [*item.notes, *(note for piece in pieces for note in _unscaled(piece, item))]
    for position, piece in enumerate(pieces):
        if piece.count is None or piece.count == samples:
            if piece.mode == "same" and piece.spec.shape and samples > 1:
                notes.append(_shared(piece))
            continue
        if piece.count != 1:
            raise DataError(
                f"the arrays of {item.name} disagree about the number of samples: {counts}",
                remedy="give every input the same number of samples; where axis 0 is not the batch, "
                "add a leading axis: array[None] is one sample",
            )
        pieces[position] = _Piece(spec=piece.spec, array=piece.array, mode=piece.mode, axis=piece.axis, count=None)
        notes.append(_shared(piece))
    return Cut(
        samples=samples,
        labels=_labels(item, samples),
        notes=tuple(notes),
        pieces=tuple(pieces),
        name=item.name,
    )


def _shared(piece: _Piece) -> str:
    return f"the array {list(piece.array.shape)} for the input {piece.spec.name!r} is fed as it is to every sample"


def _unscaled(piece: _Piece, item: Item) -> Iterator[str]:
    if piece.array.dtype.kind in "iu" and is_floating(piece.spec.dtype):
        yield (
            f"the {piece.array.dtype} values of {item.given[piece.spec.name]!r} are fed as {piece.spec.dtype} without "
            "scaling"
        )


def _piece(item: Item, spec: InputSpec, axis: int | None) -> _Piece:
    array = item.arrays[spec.name]
    shape, rank = array.shape, len(spec.shape)
    if fits(shape[1:], spec.shape) and len(shape) == rank + 1:
        return _Piece(spec=spec, array=array, mode="index", axis=axis, count=shape[0])
    if fits(shape, spec.shape, free=axis):
        count = None if axis is None else shape[axis]
        return _Piece(spec=spec, array=array, mode="same" if axis is None else "slice", axis=axis, count=count)
    if axis == 0 and fits(shape, spec.shape[1:]):
        return _Piece(spec=spec, array=array, mode="same", axis=axis, count=None)
    raise misfit(shape, array.dtype, spec, f"{item.name} has the array {item.given[spec.name]!r}", axis=axis)


def _stream(piece: _Piece, indices: Sequence[int]) -> Generator[NDArray[Any], None, None]:
    """Yield one input's part of the samples at `indices`, still of the user's dtype."""
    array, axis = piece.array, piece.axis
    if piece.count is None:
        value = next(iter(array.take([0]))) if piece.mode == "index" else array.whole()
        yield from repeat(value if value.ndim == len(piece.spec.shape) else value[None])
    elif piece.mode == "index":
        yield from array.take(indices)
    elif axis == 0:
        for part in array.take(indices):
            yield part[None]
    else:
        whole = array.whole()
        for index in indices:
            yield np.take(whole, [index], axis=axis)


def _labels(item: Item, samples: int) -> NDArray[Any] | None:
    if item.labels is None:
        return None
    labels = item.labels
    if samples == 1 and (labels.ndim == 0 or labels.shape[0] != 1):
        labels = labels[None]
    if labels.ndim == 0 or labels.shape[0] != samples:
        raise DataError(
            f"{item.name} has labels of shape {list(labels.shape)} for {samples} samples",
            remedy="give one label per sample along axis 0",
        )
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
