"""Does an imported graph compute what the module computes? Both are run, and their outputs compared."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.graph import save_model
from lowbit.runtime import open_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

__all__ = ["ENOUGH_DB", "agreement_db", "run_graph"]

ENOUGH_DB = 50.0
"""Less than this is no rounding: float32 kernels that add up in another order agree to about 100 dB."""


def run_graph(model: ir.Model, feeds: Sequence[dict[str, NDArray[Any]]]) -> list[list[NDArray[Any]]]:
    """Run a graph in the default engine, exactly as written, on several feeds.

    Raises:
        EngineError: The engine does not load it, or fails on a feed.
    """
    with tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
        path = Path(folder) / "imported.onnx"
        save_model(model, path)
        session = open_session(path, optimized=False)
        return [session.run({name: feed[name] for name in session.inputs}) for feed in feeds]


def agreement_db(expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]) -> float:
    """Return the least signal-to-noise ratio of the outputs in dB; minus infinity where shapes differ.

    Whole numbers and booleans count as signal where they are equal. Entries that are infinite or not a number on both
    sides are left out.
    """
    if len(expected) != len(found):
        return -np.inf
    worst = np.inf
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return -np.inf
        if one.size == 0:
            continue
        first, second = one.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(first)
        if not np.array_equal(finite, np.isfinite(second)):
            return -np.inf
        noise = float(np.sum((first[finite] - second[finite]) ** 2))
        power = float(np.sum(first[finite] ** 2))
        if noise > 0:
            worst = min(worst, 10 * np.log10(power / noise) if power > 0 else -np.inf)
    return float(worst)
