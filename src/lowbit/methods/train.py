"""Training from samples in files: a model learns from some of them, and is judged by the others."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.data import input_specs, open_data
from lowbit.exceptions import DataError, RecipeError
from lowbit.graph import load_model
from lowbit.methods.distillation import Distillation
from lowbit.methods.qat import Training, qat
from lowbit.methods.rerounding import tells
from lowbit.methods.stages import Stages, silent

if TYPE_CHECKING:
    from pathlib import Path

    from lowbit.data import Dataset, Preprocessing
    from lowbit.methods.verify import Metric

__all__ = ["Held", "default_epochs", "hold_apart", "train_from_files"]

_LEARNED_SHARE = 0.8
_STEPS = 300
_EPOCHS = (5, 40)
_FEWEST = 5
_LABELS = ("labels", "label", "y", "targets", "target")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Held:
    """Samples, held apart by what they are for.

    Attributes:
        learned: What the model learns from.
        choosing: What chooses the epoch that is kept; `None` if there are too few samples for that.
        tests: What the artifact is judged by, seen by neither.
    """

    learned: Dataset
    choosing: Dataset | None
    tests: Dataset


def train_from_files(
    model: str | Path,
    data: Any,
    *,
    test_data: Any = None,
    labels: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    samples: int | None = None,
    metric: Metric | None = None,
    teacher: Any = "float",
    temperature: float = 2.0,
    features: tuple[str, ...] | str = (),
    label_weight: float = 0.0,
    epochs: int | None = None,
    batch: int = 32,
    threads: int = 1,
    measure_seconds: float = 2.0,
    seed: int = 0,
    stages: Stages = silent,
    **options: Any,
) -> Training:
    """Train a model so that it computes well with few bits, from samples as `lowbit.quantize` takes them.

    Four fifths of the samples are learned from. Of the others, one half chooses the epoch that is kept, and the other
    judges the artifact, which no step before has seen; with `test_data`, those judge, and all of the fifth chooses.

    Args:
        model: Path of an ONNX file.
        data: Samples, in any form that `lowbit.quantize` takes.
        test_data: Other samples to judge the artifact by.
        labels: A file of labels.
        preprocessing: What to do to pictures.
        samples: Learn from at most so many, chosen at random; `None` from all.
        metric: Judges the artifact; by default top-1 accuracy where there are labels of classes.
        teacher: As in `lowbit.distill`.
        temperature: Of the softened classes of the teacher.
        features: Inner tensors that are compared too, or `blocks`.
        label_weight: Weight of the labels beside the teacher in the loss; 0 learns from the teacher alone.
        epochs: Passes over the samples; by default as many as make 300 steps, from 5 to 40.
        batch: Size of batches.
        threads: Threads of latency and memory.
        measure_seconds: How long latency is measured.
        seed: Of everything random.
        stages: Shows progress.
        **options: What `lowbit.qat` takes.

    Returns:
        What `lowbit.qat` does.

    Raises:
        DataError: The data do not fit, are random numbers, or have no labels where they are to be learned from.
        RecipeError: An option is impossible.
        TrainingError: No gradient reaches a weight, or the loss is no number.
    """
    if not 0.0 <= label_weight <= 1.0:
        raise RecipeError(f"the weight of the labels is {label_weight}", remedy="give a share from 0 to 1")
    with stages("Read the samples", None):
        specs = input_specs(load_model(model))
        opened = open_data(data, specs, preprocessing=preprocessing, limit=samples, seed=seed, labels=labels)
        if not tells(opened):
            raise DataError("random numbers teach a model nothing", remedy="give samples; they need no labels")
        judged = None
        if test_data is not None:
            judged = open_data(test_data, specs, preprocessing=preprocessing, seed=seed, labels=labels)
        if label_weight > 0 and opened.labels is None:
            raise DataError(
                f"the labels have a weight of {label_weight}, but the data have none",
                remedy="give labels, or a weight of 0 to learn from the float model alone",
            )
        held = hold_apart(opened, judged, seed=seed)
        learned = _arrays(held.learned, labelled=label_weight > 0)
        validation = None if held.choosing is None else _arrays(held.choosing, labelled=True)
    count = held.learned.count()
    return qat(
        model,
        learned,
        validation=validation,
        epochs=default_epochs(count, batch) if epochs is None else epochs,
        batch=batch,
        distillation=Distillation(
            teacher=teacher, weight=1.0 - label_weight, temperature=temperature, features=features
        ),
        finalized={
            "test_data": held.tests,
            "labels": labels,
            "metric": metric,
            "threads": threads,
            "measure_seconds": measure_seconds,
        },
        seed=seed,
        stages=stages,
        test_data=held.tests,  # so that all that is learned from calibrates too
        **options,
    )


def hold_apart(data: Dataset, judged: Dataset | None = None, *, seed: int = 0) -> Held:
    """Part samples into what is learned from, what chooses and what judges, the same way for the same seed.

    Args:
        data: All samples.
        judged: Others that judge; `None` takes them from `data`.
        seed: Chooses which.

    Raises:
        DataError: There are too few.
    """
    if data.count() < 2 * data.unit:
        raise DataError(f"there are {data.count()} samples", remedy="give more: 100 are few, 1000 are better")
    learned, rest = data.split(_LEARNED_SHARE, seed=seed)
    if judged is not None:
        return Held(learned=learned, choosing=rest, tests=judged)
    if rest.count() < max(2 * _FEWEST, 2 * rest.unit):
        few = f"{rest.count()} samples are too few to choose the best epoch by: the last one is kept"
        return Held(learned=learned, choosing=None, tests=rest.warned(few))
    choosing, tests = rest.split(0.5, seed=seed)
    return Held(learned=learned, choosing=choosing, tests=tests)


def default_epochs(samples: int, batch: int) -> int:
    """Return how many passes over samples make 300 steps, from 5 to 40."""
    per_epoch = max(samples // batch, 1)
    return min(max(-(-_STEPS // per_epoch), _EPOCHS[0]), _EPOCHS[1])


def _arrays(data: Dataset, *, labelled: bool) -> dict[str, Any]:
    """Return all samples in memory, by input, with their labels if they have any and those are asked for.

    Labels that are no classes only mean something to the user's metric.
    """
    feeds = list(data)
    arrays: dict[str, Any] = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    labels = data.labels if labelled else None
    if labels is not None and labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
        arrays[next(name for name in _LABELS if name not in arrays)] = labels
    return arrays
