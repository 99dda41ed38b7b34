"""`lowbit inspect`: what a file contains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lowbit.cli.parameters import FILE, Command, option
from lowbit.cli.screen import show

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from lowbit.methods.inspect import Inspection

__all__ = ["inspect"]

_QUIET = "#767676"


@click.command(cls=Command, short_help="What a file contains, in which formats.")
@click.argument("model", type=FILE)
@option("Options", "--details", is_flag=True, help="Print every operator.")
def inspect(model: Path, details: bool) -> None:
    """Show what MODEL (ONNX) contains: formats, sizes, what is not quantized and why, and what the engine runs."""
    from lowbit.methods.inspect import inspect as run
    from lowbit.report.terminal import reasons_summary, sites_table

    found = run(model)
    parts: list[object] = [_heading(found.source), _facts(found), _stored(found)]
    plan = found.as_plan()
    parts.append(_heading("Operators"))
    parts.append(sites_table(plan) if details else reasons_summary(plan))
    parts += _engine(found)
    parts.append(_closing(found))
    show(parts)


def _heading(text: str) -> RenderableType:
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text(text, style="bold"), (1, 0, 0, 0))


def _facts(found: Inspection) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from lowbit.report.units import bytes_text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style=_QUIET, no_wrap=True)
    grid.add_column(overflow="fold")
    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    grid.add_row("opset", f"{opsets}; IR version {found.ir_version}")
    if found.producer:
        grid.add_row("written by", Text(found.producer))
    grid.add_row("size", bytes_text(found.bytes))
    for label, tensors in (("inputs", found.inputs), ("outputs", found.outputs)):
        grid.add_row(label, Text("\n".join(str(tensor) for tensor in tensors)))
    return grid


def _stored(found: Inspection) -> RenderableType:
    from rich import box
    from rich.table import Table

    from lowbit.report.units import bytes_text, percent_text

    table = Table(box=box.SIMPLE_HEAD, header_style=_QUIET, padding=(0, 2, 0, 0))
    table.add_column("stored as", no_wrap=True)
    for name in ("tensors", "numbers", "bytes", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    total = sum(row.bytes for row in found.stored)
    for row in found.stored:
        share = percent_text(row.bytes / total) if total else ""
        table.add_row(row.dtype, str(row.tensors), f"{row.elements:,}", bytes_text(row.bytes), share)
    if len(found.stored) > 1:
        table.add_section()
        tensors = sum(row.tensors for row in found.stored)
        table.add_row("all", str(tensors), f"{found.parameters:,}", bytes_text(total), "")
    return table


def _engine(found: Inspection) -> list[object]:
    from rich.columns import Columns
    from rich.text import Text

    heading = _heading(f"Kernels in {found.engine}, after its own optimization")
    if found.kernels is None:
        return [heading, Text(f"it does not load this file: {found.refusal}", style="#e0303a")]
    ordered = sorted(found.kernels.items(), key=lambda item: -item[1])
    return [heading, Columns([Text.assemble(f"{count} × ", (name, "bold")) for name, count in ordered], padding=(0, 2))]


def _closing(found: Inspection) -> RenderableType:
    from rich.padding import Padding
    from rich.text import Text

    from lowbit.report.units import count_text

    total = count_text(len(found.operators), "operator")
    if not found.quantized:
        text = f"Nothing is quantized: all {total} are in float. `lowbit check` says what could be."
    else:
        text = f"{len(found.quantized)} of {total} are quantized or have compressed weights"
        if found.kernels is not None:
            text += f"; {count_text(found.integer_kernels, 'kernel')} of the engine compute in integers"
        text += "."
    if found.plan is not None:
        text += f" Written by lowbit for {found.plan.target}."
    return Padding(Text(text, style="bold"), (1, 0, 0, 0))
