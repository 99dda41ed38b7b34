"""What removing channels gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.graph import save_model
from lowbit.report.plain import plain_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnx_ir as ir

__all__ = ["ChannelPruning", "PrunedChannels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedChannels:
    """What became of one group of channels.

    Attributes:
        name: The operator that makes the channels.
        units: Channels or heads before.
        kept: How many of them are left.
        width: Channels of a unit.
        reason: Why nothing was removed; empty if something was.
        notes: Errors of outputs before and after compensation, and the like.
    """

    name: str
    units: int
    kept: int
    width: int = 1
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelPruning:
    """A pruned float model and its account.

    Attributes:
        model: The artifact; leave it unchanged.
        groups: What became of every group, in the graph's order.
        macs: Multiplications of one sample before and after.
        weights: Weights before and after.
        source: What was pruned, as the user named it.
    """

    model: ir.Model
    groups: tuple[PrunedChannels, ...]
    macs: tuple[float, float]
    weights: tuple[float, float]
    source: str = "model"

    def save(self, path: str | Path) -> list[Path]:
        """Write the artifact as ONNX, atomically.

        Raises:
            OutputError: The file cannot be written; whatever stood there is untouched.
        """
        return save_model(self.model, path)

    def __str__(self) -> str:
        """Return the account as plain text, as wide as the terminal."""
        return plain_text(self.renderables())

    def renderables(self) -> Sequence[object]:
        """Return the account for a `rich` console."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, title=f"{self.source}: what was removed", title_justify="left")
        for heading in ("operator", "before", "after", "why"):
            table.add_column(heading, justify="right" if heading in {"before", "after"} else "left")
        for group in self.groups:
            unit = f" x {group.width}" if group.width > 1 else ""
            why = group.reason or "; ".join(group.notes)
            table.add_row(Text(group.name), f"{group.units}{unit}", f"{group.kept}{unit}", Text(why))
        summary = (
            f" multiplications {self.macs[0] / 1e6:.2f} M -> {self.macs[1] / 1e6:.2f} M, "
            f"weights {self.weights[0]:,.0f} -> {self.weights[1]:,.0f}"
        )
        return [table, Text(summary)]
