"""Tables for the terminal: rich renderables that fit 80 columns and use more where there are more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lowbit.report.comparison import compare, warnings_of
from lowbit.report.reasons import formats_text, group_reasons
from lowbit.report.speed import slowest
from lowbit.report.units import NOTHING, count_text, decibel_text, microseconds_text
from lowbit.report.verdict import ENGINE_GAP_DB, Grade, engine_loses, grade_sqnr, layer_db, verdict, worst_layer_db

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lowbit.plan.plan import Execution, Plan, SitePlan
    from lowbit.plan.verification import LayerQuality, Verification

__all__ = [
    "EXECUTION_STYLES",
    "GRADE_STYLES",
    "kernels_table",
    "layers_table",
    "reasons_summary",
    "sites_table",
    "summary_table",
    "timeline_table",
]

# NOTE: every colour has a luminance near 0.18, the geometric mean of black and white in the WCAG contrast formula, so
# that it reads on dark and light terminals alike; the sixteen named colours do not (yellow on white, blue on black).
_QUIET = "#767676"
GRADE_STYLES: Mapping[Grade, str] = {
    "good": "#00875f",
    "fair": "#b26b00",
    "poor": "bold #e0303a",
    "unknown": _QUIET,
}
EXECUTION_STYLES: Mapping[Execution, str] = {
    "static": "#00875f",
    "dynamic": "#0078c8",
    "weight-only": "#a55bd0",
    "half": "#b26b00",
    "float": _QUIET,
}

_WIDE = 110
"""From this width on a site takes one row of five columns; below, its details stand under its name."""
_BAR_CELLS = 12
_BAR_FULL_DB = 48.0
"""SQNR that fills the bar: about that of eight-bit values at their full range."""


def summary_table(plan: Plan, verification: Verification, *, title: str) -> RenderableType:
    """Return the float model beside the artifact, and what the reader must know.

    Args:
        plan: What was decided.
        verification: What was measured.
        title: Name of the model.
    """
    table = _table(title)
    table.add_column("", overflow="fold", ratio=3)
    table.add_column("float", justify="right", no_wrap=True)
    table.add_column("artifact", justify="right", no_wrap=True)
    table.add_column("", overflow="fold", ratio=4)
    for row in compare(plan, verification):
        table.add_row(
            Text(row.label),
            Text(row.float_text, style=_QUIET if row.float_text == "reference" else ""),
            Text(row.artifact_text, style="bold"),
            Text(row.change, style="" if row.grade == "unknown" else GRADE_STYLES[row.grade]),
        )
    latency = verification.latency
    measured = [f"{plan.method} for {plan.target}", f"measured in {verification.engine}"]
    if latency is not None:
        measured.append(
            f"{count_text(latency.threads, 'thread')}, batch {latency.batch}, {count_text(latency.pairs, 'pair')}"
        )
    parts: list[RenderableType] = [table, Padding(Text(", ".join(measured), style=_QUIET), (0, 1))]
    warnings = warnings_of(plan, verification)
    if warnings:
        parts.append(_warnings(warnings))
    parts.append(Padding(Text(verdict(verification).sentence(), style="bold"), (1, 1, 0, 1)))
    return Group(*parts)


def sites_table(plan: Plan, *, limit: int | None = None) -> RenderableType:
    """Return every site: node, operator, how it runs, its formats and why.

    Args:
        plan: What was decided.
        limit: Show at most so many sites; how many are left out is said below the table.
    """
    shown = plan.sites if limit is None else plan.sites[: max(limit, 0)]
    hidden = len(plan.sites) - len(shown)
    parts: list[RenderableType] = [_Sites(sites=shown)]
    if hidden:
        parts.append(Padding(Text(f"and {count_text(hidden, 'more site')}", style=_QUIET), (0, 1)))
    return Group(*parts)


def layers_table(verification: Verification) -> RenderableType:
    """Return the SQNR of every inner tensor, in the engine and simulated, the worst layer and every gap marked."""
    notes = "SQNR against float, of everything up to and including the layer. fused: the engine hides the tensor."
    layers = _Layers(layers=verification.layers, worst_db=worst_layer_db(verification.layers))
    parts: list[RenderableType] = [layers, Padding(Text(notes, style=_QUIET), (0, 1))]
    gaps = sum(engine_loses(layer.sqnr_real_db, layer.sqnr_simulated_db) for layer in verification.layers)
    if gaps:
        said = f"{count_text(gaps, 'layer')} at least {ENGINE_GAP_DB:.0f} dB worse in the engine than simulated"
        parts.append(Padding(Text(said, style=GRADE_STYLES["poor"]), (0, 1)))
    return Group(*parts)


def timeline_table(verification: Verification, *, limit: int = 15) -> RenderableType:
    """Return where the milliseconds go: the operators that take longest, in execution order, float beside artifact.

    Args:
        verification: What was measured.
        limit: Show at most so many operators; what the others take together is said in the last row.
    """
    table = _table("Where the milliseconds go")
    table.add_column("node", overflow="fold", ratio=1)
    table.add_column("op", no_wrap=True)
    for name in ("float", "artifact"):
        table.add_column(name, justify="right", no_wrap=True)
    timeline = verification.timeline
    shown = slowest(timeline, limit)
    for row in shown:
        slower = row.artifact_us > 1.1 * row.float_us
        table.add_row(
            Text(row.node),
            Text(row.op_type),
            microseconds_text(row.float_us),
            Text(microseconds_text(row.artifact_us), style=GRADE_STYLES["fair"] if slower else ""),
        )
    before, after = sum(row.float_us for row in timeline), sum(row.artifact_us for row in timeline)
    if len(shown) < len(timeline):
        rest = (before - sum(row.float_us for row in shown), after - sum(row.artifact_us for row in shown))
        more = Text(f"{len(timeline) - len(shown)} more", style=_QUIET)
        table.add_row(more, "", *(Text(microseconds_text(time), style=_QUIET) for time in rest))
    table.add_section()
    table.add_row("all", "", microseconds_text(before), Text(microseconds_text(after), style="bold"))
    return table


def kernels_table(verification: Verification) -> RenderableType:
    """Return how often each operator runs in the engine, after its own optimization, in both models."""
    table = _table(f"Kernels in {verification.engine}")
    table.add_column("operator", overflow="fold")
    for name in ("float", "artifact", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    before, after = verification.float_kernels, verification.kernels
    for name in sorted({*before, *after}, key=lambda name: (-after.get(name, 0), -before.get(name, 0), name)):
        change = after.get(name, 0) - before.get(name, 0)
        table.add_row(
            Text(name),
            str(before[name]) if name in before else Text(NOTHING, style=_QUIET),
            Text(str(after[name]), style="bold") if name in after else Text(NOTHING, style=_QUIET),
            Text(f"{change:+d}".replace("-", "−") if change else "", style=_QUIET),
        )
    table.add_section()
    total = sum(after.values()) - sum(before.values())
    table.add_row(
        "all",
        str(sum(before.values())),
        Text(str(sum(after.values())), style="bold"),
        Text(f"{total:+d}".replace("-", "−"), style=_QUIET),
    )
    integers = f"{verification.integer_kernels} compute in integers, {verification.planned_integer} were planned"
    parts: list[RenderableType] = [table, Padding(Text(integers, style=_QUIET), (0, 1))]
    if verification.unfused:
        said = f"planned in integers, run in float: {', '.join(verification.unfused)}"
        parts.append(Padding(Text(said, style=GRADE_STYLES["poor"], overflow="fold"), (0, 1)))
    return Group(*parts)


def reasons_summary(plan: Plan) -> RenderableType:
    """Return the decisions grouped by their reason, e.g. `23 × Conv static …: integer kernel, 1.94× as fast`."""
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for group in group_reasons(plan):
        style = EXECUTION_STYLES[group.execution]
        formats = f" {group.formats}" if group.formats else ""
        line = Text.assemble(
            (group.op_type, "bold"), (f" {group.execution}", style), (formats, _QUIET), f": {group.reason}"
        )
        table.add_row(Text(str(len(group.nodes))), Text("×", style=_QUIET), line)
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sites:
    """Sites laid out for the width at hand, which is known only while rendering."""

    sites: tuple[SitePlan, ...]

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield self._wide() if options.max_width >= _WIDE else self._narrow()

    def _wide(self) -> Table:
        table = _table(None)
        table.add_column("node", overflow="fold", ratio=4)
        table.add_column("op", no_wrap=True)
        table.add_column("runs", no_wrap=True)
        table.add_column("formats", overflow="fold", ratio=3)
        table.add_column("why", overflow="fold", ratio=5)
        for site in self.sites:
            style = EXECUTION_STYLES[site.execution]
            formats = formats_text(site).replace(", ", "\n")
            table.add_row(
                Text(site.node), Text(site.op_type), Text(site.execution, style=style), Text(formats), _why(site)
            )
        return table

    def _narrow(self) -> Table:
        table = _table(None)
        table.add_column("node", overflow="fold", ratio=5)
        table.add_column("runs", no_wrap=True)
        table.add_column("why", overflow="fold", ratio=5)
        for site in self.sites:
            style = EXECUTION_STYLES[site.execution]
            node = Text.assemble(site.node, (f"\n{site.op_type}", _QUIET))
            formats = formats_text(site).replace(", ", "\n")
            runs = Text.assemble((site.execution, style), (f"\n{formats}" if formats else "", _QUIET))
            table.add_row(node, runs, _why(site))
        return table


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layers:
    """Layers laid out for the width at hand: the bars give way to the names first."""

    layers: tuple[LayerQuality, ...]
    worst_db: float | None

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        bars = options.max_width >= _WIDE
        table = _table("Quality, layer by layer")
        table.add_column("node", overflow="fold", ratio=1)
        table.add_column("op", no_wrap=True)
        if bars:
            table.add_column("SQNR", no_wrap=True, width=_BAR_CELLS)
        table.add_column("engine", justify="right", no_wrap=True)
        table.add_column("simulated", justify="right", no_wrap=True)
        for layer in self.layers:
            known = layer_db(layer)
            style = GRADE_STYLES[grade_sqnr(known)]
            mark = (" worst", GRADE_STYLES["poor"]) if known == self.worst_db else ""
            fused = layer.sqnr_real_db is None
            simulated_style = (
                GRADE_STYLES["poor"]
                if engine_loses(layer.sqnr_real_db, layer.sqnr_simulated_db)
                else style
                if fused
                else ""
            )
            table.add_row(
                Text.assemble(layer.node, mark),
                Text(layer.op_type),
                *((Text(_bar(known), style=style),) if bars else ()),
                Text("fused", style=_QUIET) if fused else Text(decibel_text(layer.sqnr_real_db), style=style),
                Text(decibel_text(layer.sqnr_simulated_db), style=simulated_style),
            )
        yield table


def _why(site: SitePlan) -> Text:
    return Text.assemble(site.reason, *((f"\n{note}", _QUIET) for note in site.notes))


def _table(title: str | None) -> Table:
    return Table(
        title=None if title is None else Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        header_style=_QUIET,
        padding=(0, 1, 0, 0),
    )


def _warnings(warnings: tuple[str, ...]) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for warning in warnings:
        grid.add_row(Text("!", style=GRADE_STYLES["poor"]), Text(warning))
    return Padding(grid, (1, 1, 0, 1))


def _bar(sqnr_db: float) -> str:
    if math.isnan(sqnr_db) or sqnr_db <= 0:
        return ""
    eighths = round(min(sqnr_db / _BAR_FULL_DB, 1.0) * _BAR_CELLS * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
