"""What importing gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.graph import save_model

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

__all__ = ["Imported"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imported:
    """A model of another framework as an ONNX graph.

    Attributes:
        model: The graph. Its weights are copies: what becomes of the original later does not reach it.
        notes: What was found and decided on the way, one sentence each.
    """

    model: ir.Model
    notes: tuple[str, ...] = ()

    def save(self, path: str | Path) -> list[Path]:
        """Write the graph as ONNX, atomically; above 2 GB with a data file beside it.

        Returns:
            The files that were written.

        Raises:
            OutputError: The file cannot be written; whatever stood there is untouched.
        """
        return save_model(self.model, path)
