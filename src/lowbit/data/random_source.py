"""Random samples, for trying a tool out; only ever used when asked for by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np

from lowbit.data.fitting import is_floating
from lowbit.data.inputs import InputSpec, batch_layout
from lowbit.data.source import Notes, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from lowbit.data.cutting import Feed

__all__ = ["RandomSource"]

_DYNAMIC_SIZE = 32


@final
class RandomSource(Source):
    """Standard normal floats, and integers 0 or 1, which every vocabulary, mask and segment embedding can take.

    Args:
        inputs: The model's inputs. Dynamic axes other than the batch get 32 entries.
        samples: How many samples.
        seed: Sample i depends on this and i alone.
    """

    name = "random data"
    counts_at_open = True

    def __init__(self, inputs: Sequence[InputSpec], *, samples: int, seed: int) -> None:
        self.notes = Notes()
        self._inputs = inputs
        self._samples = samples
        self._seed = seed
        axes = batch_layout(inputs).axes
        self._shapes = {
            spec.name: tuple(
                1 if axis == axes[spec.name] else dim if isinstance(dim, int) else _DYNAMIC_SIZE
                for axis, dim in enumerate(spec.shape)
            )
            for spec in inputs
        }
        self.notes.add(
            f"the data are random ({samples} samples, seed {seed}): ranges and quality measured on them say little "
            "about real data"
        )
        guessed = [
            f"{spec.name!r} {list(self._shapes[spec.name])}"
            for spec in inputs
            if any(not isinstance(dim, int) for axis, dim in enumerate(spec.shape) if axis != axes[spec.name])
        ]
        if guessed:
            self.notes.add(f"dynamic axes of random data were set to {_DYNAMIC_SIZE}: {', '.join(guessed)}")

    def count(self) -> int:
        """Return the number of samples."""
        return self._samples

    def labels(self) -> NDArray[Any] | None:
        """Return one label per sample, or None."""
        return None

    def read(self, indices: Sequence[int] | None) -> Iterator[Feed]:
        """Yield the samples at ascending `indices`, or all."""
        for index in range(self._samples) if indices is None else indices:
            generator = np.random.default_rng([self._seed, index])
            feed = {}
            for spec in self._inputs:
                shape = self._shapes[spec.name]
                values = (
                    generator.standard_normal(shape) if is_floating(spec.dtype) else generator.integers(0, 2, shape)
                )
                feed[spec.name] = np.asarray(values).astype(spec.dtype)
            yield feed

    def close(self) -> None:
        """Nothing is held open."""
