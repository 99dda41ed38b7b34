"""Numbers of which few are different, as places in a list of those: codebooks, and codes that are stored wide."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowbit.container.compiling import compiled

__all__ = ["levels_of"]

Bytes = NDArray[np.uint8]

_MOST = 256
_CELLS = 1024


@compiled
def _places(numbers: NDArray[Any]) -> tuple[NDArray[np.uint64], Bytes]:
    """Return the levels as they come, and for each number its place among them; no levels if they are too many."""
    levels = np.empty(_MOST, dtype=np.uint64)
    places = np.empty(len(numbers), dtype=np.uint8)
    cells = np.full(_CELLS, -1, dtype=np.int64)
    count = 0
    for number in range(len(numbers)):
        value = np.uint64(numbers[number])
        cell = np.int64((value * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(54))
        while cells[cell] >= 0 and levels[cells[cell]] != value:
            cell = (cell + 1) & (_CELLS - 1)
        if cells[cell] < 0:
            if count == _MOST:
                return levels[:0], places
            levels[count] = value
            cells[cell] = count
            count += 1
        places[number] = cells[cell]
    return levels[:count], places


def levels_of(data: Bytes, bits: int) -> tuple[NDArray[Any], Bytes] | None:
    """Return the numbers that occur, ascending, and for each number its place among them; None if they are many.

    Args:
        data: `[length]`: numbers, little endian.
        bits: 16, 32 or 64.
    """
    numbers = data.view(f"<u{bits // 8}")
    levels, places = _places(numbers)
    if not levels.size:
        return None
    found = levels.astype(numbers.dtype)
    # Sign and magnitude as floats have them: those below zero come first, the largest magnitude ahead.
    sign = np.asarray(1 << (bits - 1)).astype(found.dtype)
    order = np.argsort(np.where(found & sign, ~found, found | sign))
    rank = np.empty(_MOST, dtype=np.uint8)
    rank[order] = np.arange(order.size)
    return found[order], rank[places]
