"""Task scores shared by several models. All return a fraction, higher is better."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.zoo.case import Array, Outputs

__all__ = ["agreement", "edit_distance", "mask_iou", "top1"]


def top1(labels: Sequence[int]) -> Callable[[Outputs], float]:
    """Return a metric: fraction of samples whose first output has its arg max at the label.

    Args:
        labels: Class of each test sample.
    """

    def metric(outputs: Outputs) -> float:
        hits = [int(np.argmax(sample[0])) == label for sample, label in zip(outputs, labels, strict=True)]
        return float(np.mean(hits))

    return metric


def agreement(reference: Outputs) -> Callable[[Outputs], float]:
    """Return a metric: fraction of samples whose first output has the same arg max as the float model's."""
    return top1([int(np.argmax(sample[0])) for sample in reference])


def mask_iou(reference: Outputs, *, threshold: float) -> Callable[[Outputs], float]:
    """Return a metric: intersection over union of `output > threshold` with the float model's mask.

    Args:
        reference: The float model's outputs; the first output of each sample is a probability map.
        threshold: Probability above which a pixel counts.

    The counts of all samples are added up before the division, so that an empty image weighs nothing.
    """
    masks = [sample[0] > threshold for sample in reference]

    def metric(outputs: Outputs) -> float:
        both = either = 0
        for mask, sample in zip(masks, outputs, strict=True):
            found: Array = sample[0] > threshold
            both += int(np.count_nonzero(mask & found))
            either += int(np.count_nonzero(mask | found))
        return both / either if either else 1.0

    return metric


def edit_distance(first: str, second: str) -> int:
    """Return the Levenshtein distance: the fewest insertions, deletions and substitutions between two strings."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]
