"""Calibration: one streaming pass over the data that watches every tensor which may become codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.exceptions import DataError
from lowbit.runtime.session import Feed, open_session
from lowbit.runtime.staging import staged, with_outputs
from lowbit.statistics import Histogram, Moments, histogram_init, histogram_update, moments_init, moments_update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

__all__ = ["Calibration", "Watch", "calibrate", "observed_shapes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What calibration watches.

    Attributes:
        tensors: Names of the tensors whose distribution is wanted.
        means: Names of the tensors whose mean per channel is wanted, with their channel axis.
    """

    tensors: tuple[str, ...]
    means: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What calibration saw.

    Attributes:
        histograms: Distribution by tensor.
        means: Mean per channel, `[C]` float32, by tensor.
        samples: How many feeds were seen.
    """

    histograms: dict[str, Histogram]
    means: dict[str, NDArray[np.float32]]
    samples: int


def calibrate(
    model: ir.Model,
    feeds: Iterable[Feed],
    watch: Watch,
    *,
    threads: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Calibration:
    """Run the float model over the data once and watch its tensors; memory does not depend on the number of samples.

    Args:
        model: The cleaned float model.
        feeds: The samples.
        watch: What to watch.
        threads: Threads of the engine; 0 takes all.
        advance: Called after every sample, for a progress bar.

    Raises:
        DataError: There is no sample, or a tensor becomes NaN or infinite.
        EngineError: The engine cannot run the model.
    """
    histograms = {name: histogram_init() for name in watch.tensors}
    means: dict[str, Moments] = {name: moments_init(channel_axis=axis) for name, axis in watch.means.items()}
    names = tuple(dict.fromkeys((*watch.tensors, *watch.means)))
    inputs = {value.name for value in model.graph.inputs}
    wanted = tuple(name for name in names if name not in inputs)
    samples = 0
    with staged(with_outputs(model, wanted)) as source:
        session = open_session(source, threads=threads)
    for feed in feeds:
        arrays = dict(zip(wanted, session.run(feed, list(wanted)) if wanted else [], strict=True))
        arrays.update({name: feed[name] for name in names if name in inputs})
        for name, array in arrays.items():
            try:
                if name in histograms:
                    histograms[name] = histogram_update(histograms[name], array)
                if name in means:
                    means[name] = moments_update(means[name], array)
            except DataError as error:
                raise DataError(
                    f"tensor {name!r} is not finite for sample {samples}",
                    cause=error.what,
                    remedy="check the sample and the model's preprocessing, or exclude the operator that computes it",
                ) from error
        samples += 1
        advance()
    if samples == 0:
        raise DataError("the calibration data are empty", remedy="give at least one sample, better 100 to 300")
    return Calibration(
        histograms=histograms,
        means={name: state.mean.astype(np.float32) for name, state in means.items()},
        samples=samples,
    )


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
