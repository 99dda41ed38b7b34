"""Calibration: one streaming pass over the data that watches every tensor which may become codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.exceptions import DataError
from lowbit.methods.checkpoint import Checkpoint, Progressed
from lowbit.runtime.session import Feed, open_session
from lowbit.runtime.staging import staged, with_outputs
from lowbit.statistics import (
    Histogram,
    Range,
    histogram_init,
    histogram_update,
    moments_init,
    moments_update,
    moving_average_finalize,
    moving_average_init,
    moving_average_update,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from lowbit.methods.output_ranges import OutputRange
    from lowbit.methods.rerounding import Rerounding

__all__ = ["Calibration", "Watch", "calibrate", "observed_shapes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What calibration watches.

    Attributes:
        tensors: Names of the tensors whose distribution is wanted.
        means: Names of the tensors whose mean per channel is wanted, with their channel axis.
        moving_average: Whether the averaged range of `tensors` is wanted too.
    """

    tensors: tuple[str, ...]
    means: dict[str, int] = field(default_factory=dict)
    moving_average: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What calibration saw.

    Attributes:
        histograms: Distribution by tensor.
        averages: Averaged range by tensor, if it was wanted.
        means: Mean per channel, `[C]` float32, by tensor.
        samples: How many feeds were seen.
        roundings: By site, how its codes are rounded; see `lowbit.methods.rerounding`.
        ranges: By tensor, the range that its readers' outputs chose; see `lowbit.methods.output_ranges`.
    """

    histograms: dict[str, Histogram]
    averages: dict[str, Range]
    means: dict[str, NDArray[np.float32]]
    samples: int
    roundings: Mapping[str, Rerounding] = field(default_factory=dict)
    ranges: Mapping[str, OutputRange] = field(default_factory=dict)


def calibrate(
    model: ir.Model,
    feeds: Iterable[Feed],
    watch: Watch,
    *,
    threads: int = 0,
    checkpoint: Checkpoint | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Calibration:
    """Run the float model over the data once and watch its tensors; memory does not depend on the number of samples.

    Args:
        model: The cleaned float model.
        feeds: The samples.
        watch: What to watch.
        threads: Threads of the engine; 0 takes all.
        checkpoint: Where to store the state every few seconds, and on Ctrl-C; samples that it holds are not run again.
        advance: Called after every sample, for a progress bar.

    Raises:
        DataError: There is no sample, or a tensor becomes NaN or infinite.
        EngineError: The engine cannot run the model.
    """
    names = tuple(dict.fromkeys((*watch.tensors, *watch.means)))
    inputs = {value.name for value in model.graph.inputs}
    wanted = tuple(name for name in names if name not in inputs)
    with staged(with_outputs(model, wanted)) as source:
        session = open_session(source, threads=threads)
    state = (checkpoint.load() if checkpoint is not None else None) or _fresh(watch)
    done = state.samples
    try:
        for index, feed in enumerate(feeds):
            if index >= done:
                arrays = dict(zip(wanted, session.run(feed, list(wanted)) if wanted else [], strict=True))
                arrays.update({name: feed[name] for name in names if name in inputs})
                _update(state, arrays)
                if checkpoint is not None:
                    checkpoint.save(state)
            advance()
    except KeyboardInterrupt:
        if checkpoint is not None:
            checkpoint.save(state, now=True)
        raise
    if state.samples == 0:
        raise DataError("the calibration data are empty", remedy="give at least one sample, better 100 to 300")
    if checkpoint is not None:
        checkpoint.save(state, now=True)
    return Calibration(
        histograms=state.histograms,
        averages={name: moving_average_finalize(average) for name, average in state.averages.items()},
        means={name: moments.mean.astype(np.float32) for name, moments in state.means.items()},
        samples=state.samples,
    )


def _fresh(watch: Watch) -> Progressed:
    return Progressed(
        samples=0,
        histograms={name: histogram_init() for name in watch.tensors},
        averages={name: moving_average_init() for name in watch.tensors} if watch.moving_average else {},
        means={name: moments_init(channel_axis=axis) for name, axis in watch.means.items()},
    )


def _update(state: Progressed, arrays: dict[str, NDArray[Any]]) -> None:
    """Add one sample to the state; all of it or, on Ctrl-C in between, none."""
    histograms, averages, means = {}, {}, {}
    for name, array in arrays.items():
        try:
            if name in state.histograms:
                histograms[name] = histogram_update(state.histograms[name], array)
            if name in state.averages:
                averages[name] = moving_average_update(state.averages[name], array)
            if name in state.means:
                means[name] = moments_update(state.means[name], array)
        except DataError as error:
            raise DataError(
                f"tensor {name!r} is not finite for sample {state.samples}",
                cause=error.what,
                remedy="check the sample and the model's preprocessing, or exclude the operator that computes it",
            ) from error
    state.histograms, state.averages, state.means = histograms, averages, means
    state.samples += 1


def observed_shapes(model: ir.Model, feed: Feed, *, threads: int = 0) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the main graph for one sample, by running it.

    Raises:
        EngineError: The engine cannot run the model.
    """
    names = tuple(
        value.name
        for node in model.graph
        for value in node.outputs
        if value.name and (value.type is None or isinstance(value.type, ir.TensorType))
    )
    with staged(with_outputs(model, names)) as source:
        session = open_session(source, threads=threads, optimized=False)
    arrays = session.run(feed, list(names))
    shapes = {name: tuple(np.shape(array)) for name, array in zip(names, arrays, strict=True)}
    shapes.update({name: tuple(array.shape) for name, array in feed.items()})
    return shapes
