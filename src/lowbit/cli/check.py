"""`lowbit check`: what would run in integers, before anything is quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lowbit.cli.parameters import FILE, Command, data_source, option, preprocessing
from lowbit.cli.screen import show

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from lowbit.methods.check import Check

__all__ = ["check"]

_GROUP = "Options"
_QUIET = "#767676"


@click.command(cls=Command, short_help="What would run in integers, what would not, and why.")
@click.argument("model", type=FILE)
@option(
    _GROUP,
    "--target",
    default="host",
    metavar="NAME",
    help="Where the model will run; `lowbit targets` lists them.  [host]",
)
@option(_GROUP, "--data", metavar="PATH", help="A sample, to know the shapes where the model leaves them open.")
@option(_GROUP, "--preprocess", metavar="SPEC|FILE.yaml", help="How a picture becomes an input.")
@option(_GROUP, "--weights", metavar="FORMAT", help="As in `lowbit quantize`.  [the target's]")
@option(_GROUP, "--activations", metavar="FORMAT", help="As in `lowbit quantize`.  [the target's]")
@option(_GROUP, "--method", metavar="auto|static|dynamic|weight-only", help="As in `lowbit quantize`.  [auto]")
@option(_GROUP, "--recipe", type=FILE, metavar="FILE", help="All of this as YAML; options given here win over it.")
@option(_GROUP, "--details", is_flag=True, help="Print every operator.")
def check(
    model: Path,
    target: str,
    data: str | None,
    preprocess: str | None,
    recipe: Path | None,
    details: bool,
    **options: str | None,
) -> None:
    """Say what would run in integers in MODEL (ONNX) on a target, what would not, and why. Nothing is written.

    A MODEL that is quantized already is held to the target's rules; the exit code is 1 if it breaks any.
    """
    from lowbit.methods.check import check as run
    from lowbit.report.terminal import reasons_summary, sites_table

    found = run(
        model,
        target=target,
        data=data_source(data),
        preprocessing=preprocessing(preprocess),
        recipe=recipe,
        **{key: value for key, value in options.items() if value is not None},
    )
    decisions = sites_table(found.plan) if details else reasons_summary(found.plan)
    if found.quantized:
        show([*_broken_rules(found)])
        if found.violations:
            raise SystemExit(1)
        return
    show([_operators(found), decisions, *_closing(found), *_broken_rules(found)])


def _operators(found: Check) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from lowbit.report.units import NOTHING, microseconds_text

    def cell(count: int, style: str) -> Text:
        return Text(str(count), style=style) if count else Text(NOTHING, style=_QUIET)

    table = Table(
        title=Text(f"{found.source} on {found.target.name}", style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        header_style=_QUIET,
        padding=(0, 1, 0, 0),
    )
    table.add_column("operator", no_wrap=True)
    small = any(row.weights for row in found.operators)
    for name in ("count", "integer", *(("weights only",) if small else ()), "float"):
        table.add_column(name, justify="right", no_wrap=True)
    timed = found.float_us is not None
    if timed:
        table.add_column("float time", justify="right", no_wrap=True)
        table.add_column("planned", justify="right", no_wrap=True)
    for row in found.operators:
        times = [
            Text(NOTHING if time is None else microseconds_text(time), style=_QUIET if time is None else "")
            for time in (row.float_us, row.planned_us)
        ]
        table.add_row(
            row.op_type,
            str(row.count),
            cell(row.integer, "#00875f"),
            *((cell(row.weights, "#a55bd0"),) if small else ()),
            cell(row.count - row.integer - row.weights, ""),
            *(times if timed else ()),
        )
    if timed and found.conversions_us:
        table.add_row(
            Text("conversions", style=_QUIET), *[""] * (5 if small else 4), microseconds_text(found.conversions_us)
        )
    return table


def _broken_rules(found: Check) -> list[object]:
    """Return what the target does not accept of the file as it is."""
    from rich.padding import Padding
    from rich.text import Text

    from lowbit.methods.conformance import summary
    from lowbit.report.units import count_text

    if not found.violations:
        if not found.quantized:
            return []
        return [Text(f"{found.source} keeps the rules of {found.target.name}.", style="bold")]
    title = f"{found.source} breaks the rules of {found.target.name} in {count_text(len(found.violations), 'place')}"
    parts: list[object] = [Padding(Text(title, style="bold #e0303a"), (1, 0, 0, 0))]
    return parts + [Text(f"{line}.") for line in summary(found.violations)]


def _closing(found: Check) -> list[object]:
    from rich.padding import Padding
    from rich.text import Text

    from lowbit.report.units import count_text, microseconds_text, ratio_text

    total = len(found.plan.sites)
    integer = sum(row.integer for row in found.operators)
    weights = sum(row.weights for row in found.operators)
    text = f"{integer} of {count_text(total, 'operator')} would run in integers"
    if weights:
        text += f", {weights} more with weights stored small"
    if not integer and not weights:
        text = "Nothing in this model would be quantized"
    notes: list[str] = [*found.plan.warnings]
    if found.speedup is not None and found.float_us is not None and found.planned_us is not None:
        text += (
            f"; predicted {microseconds_text(found.float_us)} in float, "
            f"{microseconds_text(found.planned_us)} as planned: {ratio_text(found.speedup)}"
        )
        notes.append(
            f"predicted for one thread and the shapes of one sample, from the costs of {found.priced} of "
            f"{count_text(total, 'operator')}; `lowbit quantize` measures"
        )
    elif found.unknown:
        text += "; speed unknown"
        notes.append(
            f"open dimensions: {', '.join(found.unknown)}. Give --data (or --data random) to know the costs; "
            "until then everything that is legal counts as integer"
        )
    elif found.target.costs is None:
        text += "; speed unknown"
        notes.append("nobody has measured this target's costs: everything that is legal counts as integer")
    parts: list[object] = [Padding(Text(f"{text}.", style="bold"), (1, 0, 0, 0))]
    parts += [Text(f"{note[:1].upper()}{note[1:]}.", style=_QUIET) for note in notes]
    return parts
