"""What a chain of compressing steps gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.exceptions import OutputError
from lowbit.report.plain import plain_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowbit.plan.compression import CompressionRecipe

__all__ = ["Compression", "CompressionStep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionStep:
    """The model after one step.

    Attributes:
        name: The step; `float` is the model as it came.
        bytes: Size of the whole file.
        zeros: Fraction of the weights that are 0.
        distinct: Most distinct values that one weight tensor has.
        seconds: How long the step took.
        score: What `measure` said; `None` without it.
        error: Root of the squared error of its outputs over their squares, beside the float model, on 64 calibration
            samples; `None` without any.
    """

    name: str
    bytes: int
    zeros: float
    distinct: int
    seconds: float
    score: float | None
    error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compression:
    """A small model and its account.

    Attributes:
        content: The ONNX file.
        packed: The `.lbz` file that unpacks to it; `None` without the step `code`.
        steps: The model as it came, and after every step.
        recipe: What was done.
        source: What was compressed, as the user named it.
    """

    content: bytes
    packed: bytes | None
    steps: tuple[CompressionStep, ...]
    recipe: CompressionRecipe
    source: str = "model"

    @property
    def ratio(self) -> float:
        """How many times smaller the last file is than the first."""
        return self.steps[0].bytes / self.steps[-1].bytes

    def save(self, path: str | Path) -> Path:
        """Write the packed file where the name ends in `.lbz`, and the ONNX file otherwise, whole or not at all.

        Raises:
            OutputError: The file cannot be written, or nothing was packed.
        """
        path = Path(path)
        content: bytes | None = self.content
        if path.suffix == ".lbz":
            content = self.packed
        if content is None:
            raise OutputError(f"'{path}' cannot be written", cause="nothing was packed", remedy="add the step code")
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_bytes(content)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OutputError(f"'{path}' cannot be written", cause=error.strerror or str(error)) from error
        return path

    def __str__(self) -> str:
        """Return the account as plain text, as wide as the terminal."""
        return plain_text(self.renderables())

    def renderables(self) -> Sequence[object]:
        """Return the account for a `rich` console."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        scored = any(step.score is not None for step in self.steps)
        table = Table(box=box.SIMPLE_HEAD, title=f"{self.source}: step by step", title_justify="left")
        seen = any(step.error is not None for step in self.steps)
        further = (*(("error",) if seen else ()), *(("score",) if scored else ()))
        for heading in ("step", "bytes", "smaller", "zeros", "values", "seconds", *further):
            table.add_column(heading, justify="left" if heading == "step" else "right")
        for step in self.steps:
            cells = [
                f"{step.bytes:,}",
                f"{self.steps[0].bytes / step.bytes:.1f}×",
                f"{step.zeros:.1%}",
                f"{step.distinct:,}",
                f"{step.seconds:.0f}",
            ]
            error = [("" if step.error is None else f"{step.error:.1%}")] if seen else []
            score = [("" if step.score is None else f"{step.score:.4f}")] if scored else []
            table.add_row(Text(step.name), *cells, *error, *score)
        return [table]
