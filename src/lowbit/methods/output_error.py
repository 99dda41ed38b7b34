"""How far the outputs of a changed model are from the original's, in the engine, on the same samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.runtime.session import open_session
from lowbit.runtime.staging import staged

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from lowbit.data import Feed

__all__ = ["OutputError"]


class OutputError:
    """The error of all float outputs: the root of the summed squares of differences over that of the original's.

    Args:
        model: The original, or the path of its file.
        feeds: The samples, which are held in memory with what the original makes of them.

    Raises:
        EngineError: The engine cannot run the model.
    """

    def __init__(self, model: ir.Model | Path, feeds: Iterable[Feed]) -> None:
        self._feeds = list(feeds)
        self._exact = self._run(model)
        self._power = max(sum(float(np.square(array).sum()) for sample in self._exact for array in sample), 1e-30)

    def of(self, model: ir.Model | Path) -> float:
        """Return the error of a model with the same inputs and outputs: 0 is none, 1 as large as the outputs."""
        lost = sum(
            float(np.square(got - exact).sum())
            for exacts, gots in zip(self._exact, self._run(model), strict=True)
            for exact, got in zip(exacts, gots, strict=True)
        )
        return float(np.sqrt(lost / self._power))

    def _run(self, model: ir.Model | Path) -> list[list[NDArray[np.float64]]]:
        if isinstance(model, ir.Model):
            with staged(model) as source:
                session = open_session(source)
        else:
            session = open_session(model)
        return [
            [np.asarray(array, np.float64) for array in session.run(feed) if np.asarray(array).dtype.kind == "f"]
            for feed in self._feeds
        ]
