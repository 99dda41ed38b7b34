"""A diagnosis on the terminal: layers with their causes, remedies with what they gained, and the recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lowbit.report.terminal import GRADE_STYLES
from lowbit.report.units import count_text, decibel_text, percent_text
from lowbit.report.verdict import grade_sqnr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowbit.plan.diagnosis import Cause, DiagnosedLayer, Trial

__all__ = ["conclusion", "diagnosed_layers", "suspicions", "trials_table"]

_QUIET = "#767676"
_SHOWN = 8
_LONGEST_NAME = 48
_NAMED = 0.01
"""Layers that make less of the noise are shown on request only."""


def suspicions(causes: Sequence[Cause]) -> tuple[RenderableType, ...]:
    """Return what is suspicious about the data, a line each."""
    lines = [
        Text.assemble(("! ", GRADE_STYLES["poor"]), (cause.kind, "bold"), f": {cause.text}. → {cause.remedy}.")
        for cause in causes
    ]
    return (Padding(Group(*lines), (0, 1, 1, 1)),) if lines else ()


def diagnosed_layers(layers: Sequence[DiagnosedLayer], *, title: str, everything: bool = False) -> RenderableType:
    """Return the layers: SQNR, share of the noise, causes with their evidence, and what may be done.

    Args:
        layers: The layers, loudest first.
        title: What stands above the table.
        everything: Whether all are shown, not only the loudest.
    """
    if not layers:
        return Padding(Text("No layer is quantized, so there is nothing to explain.", style="bold"), (0, 1))
    shown = layers if everything else [layer for layer in layers if layer.share >= _NAMED][:_SHOWN]
    table = _table(title)
    table.add_column("layer", overflow="fold", ratio=3)
    table.add_column("SQNR", justify="right", no_wrap=True)
    table.add_column("noise", justify="right", no_wrap=True)
    table.add_column("cause → what may help", overflow="fold", ratio=7)
    for layer in shown:
        table.add_row(
            Text.assemble(_short(layer.node), (f"\n{layer.op_type} {layer.execution}", _QUIET)),
            Text(decibel_text(layer.sqnr_db), style=GRADE_STYLES[grade_sqnr(layer.sqnr_db)]),
            Text(percent_text(layer.share), style="bold"),
            _explained(layer),
        )
    parts: list[RenderableType] = [table]
    notes = "SQNR: output against float, of everything up to the layer. Noise: the layer's share at the model's output."
    rest = len(layers) - len(shown)
    if rest:
        share = sum(layer.share for layer in layers) - sum(layer.share for layer in shown)
        notes += f" {count_text(rest, 'more layer')} make {percent_text(max(share, 0.0))}; --details shows them."
    parts.append(Padding(Text(notes, style=_QUIET), (0, 1)))
    return Group(*parts)


def trials_table(trials: Sequence[Trial], stopped: str) -> RenderableType:
    """Return the remedies that were tried, with the SQNR on held-out calibration samples before and after each."""
    said = Padding(Text(f"Stopped: {stopped}.", style=_QUIET, overflow="fold"), (0, 1))
    if not trials:
        return said
    table = _table("Remedies, on held-out calibration samples")
    table.add_column("remedy", overflow="fold", ratio=1)
    table.add_column("before", justify="right", no_wrap=True)
    table.add_column("after", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    changed = any(trial.integers[0] != trial.integers[1] for trial in trials)
    if changed:
        table.add_column("in integers", justify="right", no_wrap=True)
    for trial in trials:
        name = Text(_short(trial.remedy))
        if trial.refusal:
            name.append(f"\n{trial.refusal}", style=_QUIET)
        mark = Text("kept", style=GRADE_STYLES["good"]) if trial.kept else Text("undone", style=_QUIET)
        if trial.refusal:
            mark = Text("refused", style=GRADE_STYLES["fair"])
        before, after = trial.integers
        table.add_row(
            name,
            decibel_text(trial.before_db),
            Text("" if trial.after_db is None else decibel_text(trial.after_db), style="bold" if trial.kept else ""),
            mark,
            *((f"{before} → {after}" if before != after else str(before),) if changed else ()),
        )
    return Group(table, said)


def conclusion(before_db: float, after_db: float) -> RenderableType:
    """Return before and after on the test samples.

    Args:
        before_db: SQNR of the output as it was asked for.
        after_db: The same with what helped.
    """
    text = f"Output on test samples: {decibel_text(before_db)} → {decibel_text(after_db)}"
    if after_db == before_db:
        text = f"Output on test samples: {decibel_text(before_db)}; nothing was changed"
    return Padding(Text(f"{text}.", style="bold"), (1, 1))


def _explained(layer: DiagnosedLayer) -> Text:
    """Return causes with their evidence, each with its remedy behind an arrow."""
    known = layer.weights_share
    part = "" if known is None else _parts(known)
    if not layer.causes:
        return Text(f"no cause found{f'; {part}' if part else ''}", style=_QUIET)
    text = Text()
    for number, found in enumerate(layer.causes):
        said = found.text.replace(found.tensor, _short(found.tensor)) if found.tensor else found.text
        text.append("\n" if number else "")
        text.append(found.kind, style="bold")
        text.append(f": {said}\n")
        text.append(f"→ {found.remedy}")
    if part:
        text.append(f"\n{part}", style=_QUIET)
    return text


def _parts(weights: float) -> str:
    """Say whether weights or activations make a layer's noise."""
    if weights >= 0.5:
        return f"weights make {percent_text(weights)} of its noise"
    return f"activations make {percent_text(1.0 - weights)} of its noise"


def _short(name: str) -> str:
    """Leave out the middle of names that some exporters make of whole paths."""
    if len(name) <= _LONGEST_NAME:
        return name
    half = _LONGEST_NAME // 2 - 1
    return f"{name[:half]}…{name[-half:]}"


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        header_style=_QUIET,
        padding=(0, 1, 0, 0),
    )
