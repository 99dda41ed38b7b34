"""From scores to masks: any weights, N of every M along the inputs, or whole blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Pattern", "mask_of", "parse_pattern"]

_OF = re.compile(r"(\d+):(\d+)")
_BLOCK = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which weights go together.

    Attributes:
        kept: Of every `of` neighbouring inputs of an output, so many are kept; 0 where that is free.
        of: Number of neighbours.
        block: Inputs and outputs of what is kept or pruned as a whole.
    """

    kept: int = 0
    of: int = 0
    block: tuple[int, int] = (1, 1)

    def __str__(self) -> str:
        """Return the pattern as users write it."""
        if self.kept:
            return f"{self.kept}:{self.of}"
        return "any" if self.block == (1, 1) else f"{self.block[0]}x{self.block[1]}"


def parse_pattern(text: str) -> Pattern:
    """Read `any`, `2:4` (two of every four are kept) or `4x1` (blocks of 4 inputs by 1 output).

    Raises:
        RecipeError: It is none of these.
    """
    if text == "any":
        return Pattern()
    if found := _OF.fullmatch(text):
        kept, of = int(found[1]), int(found[2])
        if 0 < kept < of:
            return Pattern(kept=kept, of=of)
    if found := _BLOCK.fullmatch(text):
        block = int(found[1]), int(found[2])
        if min(block) > 0:
            return Pattern(block=block)
    raise RecipeError(
        f"the pattern is {text!r}", remedy="use any, N:M such as 2:4 with N less than M, or blocks such as 4x1"
    )


def mask_of(
    scores: NDArray[np.floating], amount: float, pattern: Pattern | None = None, *, per_output: bool = False
) -> NDArray[np.bool_]:
    """Return which weights are kept.

    Args:
        scores: `[K, N]`, inputs by outputs.
        amount: Fraction that is pruned, from 0 to below 1; an N:M pattern has its own.
        pattern: Which weights go together; any by default.
        per_output: Whether every output loses the same fraction.

    Returns:
        `[K, N]`, True where a weight is kept. Of equal scores the first are pruned.

    Raises:
        RecipeError: The amount is none, or the weight cannot be cut into the pattern.
    """
    pattern = pattern or Pattern()
    if pattern.kept:
        return _of_neighbours(scores, pattern)
    if not 0.0 <= amount < 1.0:
        raise RecipeError(f"the amount is {amount}", remedy="give the fraction to prune, from 0 to below 1")
    rows, columns = pattern.block
    if scores.shape[0] % rows or scores.shape[1] % columns:
        raise RecipeError(
            f"a weight of {scores.shape[0]} inputs and {scores.shape[1]} outputs has no blocks of {pattern}",
            remedy="choose blocks that divide both, or exclude the layer",
        )
    blocks = scores.reshape(scores.shape[0] // rows, rows, -1, columns).sum(axis=(1, 3))
    kept = np.ones(blocks.shape, dtype=bool)
    if per_output:
        order = np.argsort(blocks, axis=0, kind="stable")[: round(amount * len(blocks))]
        np.put_along_axis(kept, order, False, axis=0)
    else:
        kept.ravel()[np.argsort(blocks, axis=None, kind="stable")[: round(amount * blocks.size)]] = False
    return np.repeat(np.repeat(kept, rows, axis=0), columns, axis=1)


def _of_neighbours(scores: NDArray[np.floating], pattern: Pattern) -> NDArray[np.bool_]:
    depth, outputs = scores.shape
    if depth % pattern.of:
        raise RecipeError(
            f"a weight of {depth} inputs cannot keep {pattern}",
            cause=f"{depth} is no multiple of {pattern.of}",
            remedy="exclude the layer, or use another pattern",
        )
    groups = scores.reshape(depth // pattern.of, pattern.of, outputs)
    order = np.argsort(groups, axis=1, kind="stable")
    kept = np.ones(groups.shape, dtype=bool)
    np.put_along_axis(kept, order[:, : pattern.of - pattern.kept], False, axis=1)
    return kept.reshape(depth, outputs)
