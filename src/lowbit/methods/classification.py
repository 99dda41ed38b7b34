"""Top-1 accuracy: the metric of models that give scores of classes, where labels are at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import DataError
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from lowbit.data import Dataset
    from lowbit.methods.verify import Metric

__all__ = ["default_metric", "metric_name", "top1_accuracy"]


def top1_accuracy(outputs: list[list[NDArray[Any]]], labels: NDArray[Any] | None) -> float:
    """Return the fraction of samples whose highest score is the label's.

    Args:
        outputs: For each feed the model's outputs, the first of them `[batch, classes]`, or with more
            axes of length 1.
        labels: `[samples]` integer.

    Raises:
        DataError: The first output does not hold scores of classes, or the labels do not fit it.
    """
    scores = [np.asarray(arrays[0]) for arrays in outputs]
    if any(not _classes(array) for array in scores):
        raise DataError(
            f"the model's first output has the shape {list(scores[0].shape)}, which are not scores of classes",
            remedy="say with your own metric what the labels mean (--metric module:function)",
        )
    joined = np.concatenate([array.reshape(array.shape[0], array.shape[1]) for array in scores])
    if labels is None or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        kind = "missing" if labels is None else f"{list(labels.shape)} {labels.dtype}"
        raise DataError(
            f"the labels are {kind}",
            remedy="give one integer per sample, or your own metric (--metric module:function)",
        )
    if labels.shape[0] != joined.shape[0]:
        raise DataError(f"there are {labels.shape[0]} labels for {joined.shape[0]} samples", remedy="give one for each")
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < joined.shape[1]:
        raise DataError(
            f"the labels go from {labels.min()} to {labels.max()}, but the model has {joined.shape[1]} classes",
            remedy="number the classes from 0 as the model does, or give your own metric",
        )
    return float((joined.argmax(axis=1) == labels).mean())


def metric_name(metric: Metric | None) -> str:
    """Return what a metric is called in tables."""
    return "top-1 accuracy" if metric is top1_accuracy else getattr(metric, "__name__", "metric")


def default_metric(dataset: Dataset, float_path: Path, *, required: bool) -> Metric | None:
    """Return top-1 accuracy if there are labels and the first output holds scores of classes."""
    labels = dataset.labels
    if labels is None:
        return None
    if required:
        return top1_accuracy
    outputs = open_session(float_path).run(next(iter(dataset)))
    fits = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) and _classes(outputs[0])
    return top1_accuracy if fits and 0 <= labels.min() <= labels.max() < outputs[0].shape[1] else None


def _classes(array: NDArray[Any]) -> bool:
    """Whether an array is `[batch, classes]`, with axes of length 1 behind at most."""
    return array.ndim >= 2 and array.shape[1] >= 2 and all(size == 1 for size in array.shape[2:])
