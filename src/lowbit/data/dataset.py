"""`Dataset`: the stream of feeds that calibration, verification and benchmarks iterate over."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, final

import numpy as np

from lowbit.data.inputs import InputSpec, batch_layout
from lowbit.data.source import Notes
from lowbit.exceptions import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from lowbit.data.cutting import Feed
    from lowbit.data.source import Source

__all__ = ["Dataset"]


@final
class Dataset:
    """A re-iterable stream of feeds `{input name: array}`; every pass gives the same.

    A feed is `batch_size` samples joined along the batch axis; the last may be smaller. Where the model fixes its
    batch, that is the batch size, and samples that do not fill the last batch are left out with a warning: they count
    nowhere. `labels[i]` belongs to sample `i`, counted along the concatenated feeds.

    Args:
        source: Where the samples come from.
        inputs: The model's inputs.
        batch_size: Samples a feed.
        selection: Which samples of the source, ascending; None for all.
        warnings: What the user should know already.

    Raises:
        RecipeError: The batch size is not positive.
    """

    def __init__(
        self,
        source: Source,
        inputs: Sequence[InputSpec],
        *,
        batch_size: int = 1,
        selection: tuple[int, ...] | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        if batch_size < 1:
            raise RecipeError(f"the batch size is {batch_size}", remedy="give at least 1")
        self.inputs = tuple(inputs)
        self._source = source
        self._selection = selection
        self._batch_size = batch_size
        self._layout = batch_layout(inputs)
        self._unit: int | None = None
        self._notes = Notes(*warnings)
        if self._layout.fixed is not None and batch_size not in (1, self._layout.fixed):
            self._notes.add(f"the model fixes its batch at {self._layout.fixed}: batch size {batch_size} is not used")

    @property
    def name(self) -> str:
        """What the data are called: a path, or a description."""
        return self._source.name

    @property
    def batch_size(self) -> int:
        """Samples a feed: the batch that the model fixes, or else the one that was asked for."""
        return self._layout.fixed or self._batch_size

    @property
    def unit(self) -> int:
        """Samples that cannot be parted: what fills the batch that the model fixes, or else 1."""
        if self._unit is None:
            fixed = self._layout.fixed or 1
            self._unit = fixed if fixed == 1 else max(fixed // self._rows(), 1)
        return self._unit

    @property
    def samples(self) -> int | None:
        """The number of samples, where it is known without reading them; else None, and `count` reads them."""
        return self.count() if self._selection is not None or self._source.counts_at_open else None

    @property
    def labels(self) -> NDArray[Any] | None:
        """One label per sample along axis 0, or None. Costs a pass over the data if they come from a stream."""
        labels = self._source.labels()
        if labels is not None and self._selection is not None:
            labels = labels[np.array(self._selection, np.int64)]
        return None if labels is None else labels[: self.count()]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was assumed or left out so far, for the user to read; complete after the first pass."""
        return (*self._notes, *self._source.notes)

    def count(self) -> int:
        """Return the number of samples, with a pass over the data if nothing else can tell.

        Raises:
            DataError: They do not fill one batch of a model that fixes its batch.
        """
        total = self._source.count() if self._selection is None else len(self._selection)
        if total < self.unit:
            raise DataError(
                f"{self.name} holds {total} samples, but the model's batch is fixed at {self._layout.fixed}",
                remedy=f"give at least {self.unit} samples, or export the model with a dynamic batch",
            )
        rest = total % self.unit
        if rest:
            self._notes.add(f"the last {rest} of {total} samples do not fill the model's fixed batch and are left out")
        return total - rest

    def __iter__(self) -> Iterator[Feed]:
        group = self.unit if self._layout.fixed is not None else self._batch_size
        samples = self._source.read(self._selection)
        number = 0
        while batch := list(islice(samples, group)):
            if self._layout.fixed is not None and len(batch) < group:
                self.count()  # warns or raises
                return
            yield {spec.name: self._join(spec, [feed[spec.name] for feed in batch], number) for spec in self.inputs}
            number += len(batch)

    def subset(self, start: int, stop: int | None = None) -> Dataset:
        """Return the samples `start` … `stop - 1` of this data set, as a slice does; `stop` None means the end."""
        return self.select(range(self.count())[start:stop])

    def select(self, positions: Sequence[int]) -> Dataset:
        """Return the samples at `positions` of this data set, in ascending order and each once.

        Raises:
            DataError: There are none, or one does not exist.
        """
        chosen = sorted(set(positions))
        count = self.count()
        if not chosen or chosen[0] < 0 or chosen[-1] >= count:
            asked = f"the samples {chosen[0]} … {chosen[-1]}" if chosen else "no samples"
            raise DataError(
                f"{asked} of {self.name} were asked for, which holds {count}",
                remedy=f"ask for samples from 0 to {count - 1}",
            )
        kept = chosen if self._selection is None else [self._selection[position] for position in chosen]
        return self._with(selection=tuple(kept))

    def batched(self, batch_size: int) -> Dataset:
        """Return the same samples in feeds of another size."""
        return Dataset(
            self._source, self.inputs, batch_size=batch_size, selection=self._selection, warnings=tuple(self._notes)
        )

    def warned(self, *warnings: str) -> Dataset:
        """Return the same data set with more warnings."""
        return self._with(selection=self._selection, warnings=warnings)

    def split(self, fraction: float, *, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Cut the samples in two at random, the same way for the same seed; neither part is empty.

        Args:
            fraction: Of the samples that go into the first part, between 0 and 1.
            seed: Chooses which.

        Raises:
            RecipeError: The fraction is not between 0 and 1.
            DataError: There are too few samples for two parts.
        """
        if not 0 < fraction < 1:
            raise RecipeError(f"the fraction is {fraction}", remedy="give a number between 0 and 1")
        return self.split_at(round(fraction * self.count()), seed=seed)

    def split_at(self, size: int, *, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Cut off about `size` random samples: whole fixed batches, and never none or all.

        Raises:
            DataError: There are too few samples for two parts.
        """
        count = self.count()
        if count < 2 * self.unit:
            raise DataError(
                f"{self.name} holds {count} samples, which cannot be split",
                remedy=f"give at least {2 * self.unit} samples",
            )
        size = min(max(size // self.unit, 1) * self.unit, count - self.unit)
        order = np.random.default_rng(seed).permutation(count).tolist()
        return self.select(order[:size]), self.select(order[size:])

    def close(self) -> None:
        """Delete temporary files, here and in every data set that was cut from the same source."""
        self._source.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _with(self, *, selection: tuple[int, ...] | None, warnings: Sequence[str] = ()) -> Dataset:
        return Dataset(
            self._source,
            self.inputs,
            batch_size=self._batch_size,
            selection=selection,
            warnings=(*self._notes, *warnings),
        )

    def _rows(self) -> int:
        """Return the size of a sample on the batch axis: more than 1 where the user handed over whole batches."""
        sample = next(self._source.read(None))
        rows: list[int] = [sample[name].shape[axis] for name, axis in self._layout.axes.items() if axis is not None]
        return max(rows)

    def _join(self, spec: InputSpec, arrays: list[NDArray[Any]], first: int) -> NDArray[Any]:
        if len(arrays) == 1:
            return arrays[0]
        axis = self._layout.axes[spec.name]
        where = f"samples {first} … {first + len(arrays) - 1} of {self.name}"
        if axis is None:
            if any(not np.array_equal(arrays[0], array) for array in arrays):
                raise DataError(
                    f"{where} have different values for the input {spec.name!r}, which has no batch axis",
                    remedy="use batch size 1",
                )
            return arrays[0]
        try:
            return np.concatenate(arrays, axis=axis)
        except ValueError as error:
            raise DataError(
                f"{where} have different shapes for the input {spec.name!r} and cannot form a batch",
                cause=str(error),
                remedy="use batch size 1",
            ) from error
