"""What quantizing a model gives back."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.graph import save_model
from lowbit.report.plain import plain_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from lowbit.plan.plan import Plan
    from lowbit.plan.verification import TensorHistogram, Verification

__all__ = ["Result"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """A compressed model with its plan and its measured account.

    Attributes:
        model: The artifact as a graph; leave it unchanged.
        plan: What was decided for every operator, and why.
        verification: What was measured beside the float model.
        histograms: Distributions of weights and activations with their grids, for the report.
        source: What was quantized, as the user named it.
        notes: What cleaning did to the graph.
        provenance: Versions, digests and options, for the report.
        advice: What to do with it, one sentence each: which engine to deploy with, if several were tried.
        kept_float: Whether nothing was gained, so that `model` is the cleaned float model.
    """

    model: ir.Model
    plan: Plan
    verification: Verification
    histograms: tuple[TensorHistogram, ...] = ()
    source: str = "model"
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    kept_float: bool = False
    advice: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before trusting the artifact."""
        return tuple(dict.fromkeys((*self.plan.warnings, *self.verification.warnings)))

    def save(self, path: str | Path) -> list[Path]:
        """Write the artifact as ONNX, atomically; above 2 GB with a data file beside it.

        Returns:
            The files that were written.

        Raises:
            OutputError: The file cannot be written; whatever stood there is untouched.
        """
        return save_model(self.model, path)

    def save_plan(self, path: str | Path) -> None:
        """Write the plan as YAML, to be read, edited and applied again.

        Raises:
            OutputError: The file cannot be written.
        """
        from lowbit.plan.files import write_plan

        write_plan(self.plan, path)

    def report(self, path: str | Path) -> None:
        """Write the report as one self-contained HTML file.

        Raises:
            OutputError: The file cannot be written.
        """
        from lowbit.report.html import write_report

        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
        write_report(
            Path(path),
            title=self.source,
            plan=self.plan,
            verification=self.verification,
            histograms=self.histograms,
            provenance={**self.provenance, "written": now},
        )

    def __str__(self) -> str:
        """Return the summary as plain text, as wide as the terminal."""
        return self.text()

    def text(self, *, width: int | None = None, details: bool = False) -> str:
        """Return the summary as plain text.

        Args:
            width: Columns; by default the terminal's.
            details: Whether every operator and layer is listed.
        """
        return plain_text(self.renderables(details=details), width=width)

    def renderables(self, *, details: bool = False) -> Sequence[object]:
        """Return the parts of the summary for a `rich` console."""
        from rich.text import Text

        from lowbit.report.terminal import (
            kernels_table,
            layers_table,
            reasons_summary,
            sites_table,
            summary_table,
            timeline_table,
        )

        parts: list[object] = [
            summary_table(self.plan, self.verification, title=self.source),
            reasons_summary(self.plan),
        ]
        parts += [Text(sentence, style="bold") for sentence in self.advice]
        if details:
            parts += [timeline_table(self.verification)] if self.verification.timeline else []
            parts += [sites_table(self.plan), layers_table(self.verification), kernels_table(self.verification)]
        return parts
