"""`Dataset`: the stream of feeds that calibration, verification and benchmarks iterate over."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, final

import numpy as np

from lowbit.data.inputs import InputSpec, batch_layout
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
    batch, that is the batch size, and samples that do not fill the last batch are left out with a warning.

    Args:
        source: Where the samples come from.
        inputs: The model's inputs.
        batch_size: Samples a feed.
        selection: Which samples of the source, ascending; None for all.

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
        warnings: tuple[str, ...] = (),
    ) -> None:
        if batch_size < 1:
            raise RecipeError(f"the batch size is {batch_size}", remedy="give at least 1")
        self.inputs = tuple(inputs)
        self._source = source
        self._selection = selection
        self._batch_size = batch_size
        self._layout = batch_layout(inputs)
        self._warnings = warnings
        if self._layout.fixed is not None and batch_size not in (1, self._layout.fixed):
            self._warnings += (
                f"the model fixes its batch at {self._layout.fixed}: batch size {batch_size} is not used",
            )

    @property
    def name(self) -> str:
        """What the data are called: a path, or a description."""
        return self._source.name

    @property
    def batch_size(self) -> int:
        """Samples a feed: the batch that the model fixes, or else the one that was asked for."""
        return self._layout.fixed or self._batch_size

    @property
    def samples(self) -> int | None:
        """The number of samples, where it is known without reading them; else None, and `count` reads them."""
        if self._selection is not None:
            return len(self._selection)
        return self._source.count() if self._source.counts_at_open else None

    @property
    def labels(self) -> NDArray[Any] | None:
        """One label per sample along axis 0, or None. Costs a pass over the data if they come from a stream."""
        labels = self._source.labels()
        return labels if labels is None or self._selection is None else labels[np.array(self._selection, np.int64)]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was assumed or left out so far, for the user to read; complete after the first pass."""
        return (*self._warnings, *self._source.notes)

    def count(self) -> int:
        """Return the number of samples, with a pass over the data if nothing else can tell."""
        return len(self._selection) if self._selection is not None else self._source.count()

    def __iter__(self) -> Iterator[Feed]:
        samples = self._source.read(self._selection)
        first = next(samples, None)
        if first is None:
            raise DataError(f"{self.name} holds no samples", remedy="give at least one sample")
        group = self._group(first)
        if group == 1:
            yield first
            yield from samples
            return
        number = 0
        batch = [first, *islice(samples, group - 1)]
        while batch:
            if self._layout.fixed is not None and len(batch) < group:
                self._leave_out(len(batch), number, group)
                return
            yield {spec.name: self._join(spec, [feed[spec.name] for feed in batch], number) for spec in self.inputs}
            number += len(batch)
            batch = list(islice(samples, group))

    def subset(self, start: int, stop: int | None = None) -> Dataset:
        """Return the samples `start` … `stop - 1` of this data set; `stop` None means the end."""
        return self.select(range(self.count())[start:stop])

    def select(self, positions: Sequence[int]) -> Dataset:
        """Return the samples at `positions` of this data set, in ascending order and each once.

        Raises:
            DataError: There are none, or one does not exist.
        """
        chosen = sorted(set(positions))
        count = self.count()
        if not chosen or chosen[0] < 0 or chosen[-1] >= count:
            raise DataError(
                f"the samples {chosen[:3]} … of {self.name} were asked for, but it holds {count}"
                if chosen
                else f"no samples were asked for of the {count} of {self.name}",
                remedy=f"ask for samples between 0 and {count - 1}",
            )
        kept = chosen if self._selection is None else [self._selection[position] for position in chosen]
        return Dataset(
            self._source,
            self.inputs,
            batch_size=self._batch_size,
            selection=tuple(kept),
            warnings=self._warnings,
        )

    def batched(self, batch_size: int) -> Dataset:
        """Return the same samples in feeds of another size."""
        return Dataset(
            self._source, self.inputs, batch_size=batch_size, selection=self._selection, warnings=self._warnings
        )

    def warned(self, *warnings: str) -> Dataset:
        """Return the same data set with more warnings."""
        return Dataset(
            self._source,
            self.inputs,
            batch_size=self._batch_size,
            selection=self._selection,
            warnings=(*self._warnings, *warnings),
        )

    def split(self, fraction: float, *, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Cut the samples in two at random, the same way for the same seed; neither part is empty.

        Args:
            fraction: Of the samples that go into the first part, between 0 and 1.
            seed: Chooses which.

        Raises:
            RecipeError: The fraction is not between 0 and 1.
            DataError: There is only one sample.
        """
        if not 0 < fraction < 1:
            raise RecipeError(f"the fraction is {fraction}", remedy="give a number between 0 and 1")
        count = self.count()
        if count < 2:
            raise DataError(f"{self.name} holds {count} sample, which cannot be split", remedy="give more samples")
        size = min(max(round(fraction * count), 1), count - 1)
        order = np.random.default_rng(seed).permutation(count).tolist()
        return self.select(order[:size]), self.select(order[size:])

    def close(self) -> None:
        """Delete temporary files, here and in every data set that was cut from the same source."""
        self._source.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _group(self, sample: Feed) -> int:
        """Return how many samples make a feed; one if a sample is a whole batch already."""
        if self._layout.fixed is None:
            return self._batch_size
        rows: list[int] = [sample[name].shape[axis] for name, axis in self._layout.axes.items() if axis is not None]
        return max(self._layout.fixed // max(rows), 1)

    def _join(self, spec: InputSpec, arrays: list[NDArray[Any]], first: int) -> NDArray[Any]:
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

    def _leave_out(self, rest: int, used: int, group: int) -> None:
        if used == 0:
            raise DataError(
                f"{self.name} holds {rest} samples, but the model's batch is fixed at {self._layout.fixed}",
                remedy=f"give at least {group} samples, or export the model with a dynamic batch",
            )
        self._warnings += (f"the last {rest} samples do not fill the model's fixed batch of {group} and are left out",)
