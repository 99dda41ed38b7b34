"""How far the outputs of a changed model are from the original's, in the engine, on the same samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.runtime.session import open_session
from lowbit.runtime.staging import staged

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.data import Feed

__all__ = ["OutputError"]


class OutputError:
    """The error of all float outputs, relative to their size.

    Args:
        model: The original.
        feeds: The samples.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds
        self._exact = self._run(model)
        self._power = max(sum(float(np.square(array).sum()) for sample in self._exact for array in sample), 1e-30)

    def of(self, model: ir.Model) -> float:
        """Return the error of a model with the same inputs and outputs: 0 is none, 1 as large as the outputs."""
        lost = sum(
            float(np.square(got - exact).sum())
            for exacts, gots in zip(self._exact, self._run(model), strict=True)
            for exact, got in zip(exacts, gots, strict=True)
        )
        return float(np.sqrt(lost / self._power))

    def _run(self, model: ir.Model) -> list[list[NDArray[np.float64]]]:
        with staged(model) as source:
            session = open_session(source)
        return [
            [np.asarray(array, np.float64) for array in session.run(feed) if np.asarray(array).dtype.kind == "f"]
            for feed in self._feeds
        ]
