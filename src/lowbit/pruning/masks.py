"""Which weights stay: masks from scores, True where a weight is kept. Of equal scores the first stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["block_mask", "largest_mask", "n_of_m_mask"]


def check_amount(amount: float) -> None:
    """Raise unless an amount is a share that leaves something.

    Raises:
        RecipeError: It is not in [0, 1).
    """
    if not 0.0 <= amount < 1.0:
        raise RecipeError(
            f"an amount of {amount} was asked for",
            cause="it is the share that is removed",
            remedy="give a number from 0 up to, but not including, 1",
        )


def largest_mask(scores: NDArray[np.floating], amount: float, *, axis: int | None = None) -> NDArray[np.bool_]:
    """Keep the weights with the largest scores.

    Args:
        scores: Of any shape.
        amount: Share of weights that go, in [0, 1); rounded to whole weights.
        axis: Compare only along this axis, as Wanda does among the inputs of an output; by default all at once.

    Raises:
        RecipeError: The amount is not in [0, 1).
    """
    check_amount(amount)
    rows = scores.reshape(1, -1) if axis is None else np.moveaxis(scores, axis, -1)
    count = round(amount * rows.shape[-1])
    # Sorted from the end, so that of equal scores the first is the last to go.
    order = rows.shape[-1] - 1 - np.argsort(rows[..., ::-1], axis=-1, kind="stable")
    mask = np.ones(rows.shape, dtype=bool)
    np.put_along_axis(mask, order[..., :count], False, axis=-1)
    return mask.reshape(scores.shape) if axis is None else np.moveaxis(mask, -1, axis)


def n_of_m_mask(scores: NDArray[np.floating], n: int, m: int, *, axis: int = 0) -> NDArray[np.bool_]:
    """Keep the `n` largest of every `m` scores that follow each other along an axis; a rest is kept whole.

    Args:
        scores: Of any shape.
        n: How many stay.
        m: Of how many.
        axis: The axis that sums run over: 2:4 of a sparse tensor core is along the inputs.

    Raises:
        RecipeError: Not 0 < n <= m.
    """
    if not 0 < n <= m:
        raise RecipeError(f"a pattern of {n}:{m} was asked for", remedy="keep at least 1 and at most m of m, e.g. 2:4")
    rows = np.moveaxis(scores, axis, -1)
    whole = rows.shape[-1] // m * m
    mask = np.ones(rows.shape, dtype=bool)
    parts = rows[..., :whole].reshape(*rows.shape[:-1], -1, m)
    order = np.argsort(-parts, axis=-1, kind="stable")
    kept = np.zeros(parts.shape, dtype=bool)
    np.put_along_axis(kept, order[..., :n], True, axis=-1)
    mask[..., :whole] = kept.reshape(*rows.shape[:-1], whole)
    return np.moveaxis(mask, -1, axis)


def block_mask(scores: NDArray[np.floating], amount: float, block: tuple[int, int]) -> NDArray[np.bool_]:
    """Keep whole blocks of a matrix, those with the largest sums of scores.

    Args:
        scores: `[K, N]`.
        amount: Share of blocks that go, in [0, 1).
        block: Rows and columns of a block; blocks at the end may be cut.

    Raises:
        RecipeError: The amount is not in [0, 1), or a block has no size.
    """
    rows, columns = block
    if rows < 1 or columns < 1:
        raise RecipeError(f"blocks of {rows}x{columns} were asked for", remedy="give two whole numbers from 1 on")
    padded = np.pad(scores.astype(np.float64), [(0, -scores.shape[0] % rows), (0, -scores.shape[1] % columns)])
    sums = padded.reshape(padded.shape[0] // rows, rows, -1, columns).sum(axis=(1, 3))
    kept = largest_mask(sums, amount)
    return kept.repeat(rows, axis=0).repeat(columns, axis=1)[: scores.shape[0], : scores.shape[1]]
