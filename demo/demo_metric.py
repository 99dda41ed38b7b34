"""The demo's own measure of quality, which `lowbit quantize --metric demo_metric:character_accuracy` calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["character_accuracy", "read"]


def read(scores: NDArray[np.float32]) -> list[int]:
    """Return the characters that the recognizer saw: the best of each column, repeats and blanks (0) dropped (CTC).

    Args:
        scores: `[columns, characters]` float32; the last character is the space, and margins are not text.
    """
    best = scores.argmax(axis=-1)
    changed = np.append(True, best[1:] != best[:-1])
    seen = [int(number) for number in best[changed & (best != 0)]]
    space = scores.shape[-1] - 1
    inner = [index for index, number in enumerate(seen) if number != space]
    return seen[inner[0] : inner[-1] + 1] if inner else []


def character_accuracy(outputs: Sequence[Sequence[NDArray[np.float32]]], labels: NDArray[Any]) -> float:
    """Return the fraction of characters that are right: 1 - edit distance / length, over all lines.

    Args:
        outputs: For each line the model's outputs, of which the first is `[1, columns, characters]` float32.
        labels: `[lines, longest]` integer, the numbers of the characters of each line, 0 behind its end.
    """
    wrong = total = 0
    for (scores,), label in zip(outputs, labels, strict=True):
        expected = [int(number) for number in label if number != 0]
        wrong += _edit_distance(read(scores[0]), expected)
        total += len(expected)
    return 1.0 - wrong / total


def _edit_distance(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the fewest insertions, deletions and substitutions between two sequences (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]
