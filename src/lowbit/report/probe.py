"""What `lowbit probe` found, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.report.units import NOTHING, microseconds_text, ratio_text

if TYPE_CHECKING:
    from lowbit.plan.probed import ProbeResult

__all__ = ["probe_parts"]

_QUIET = "#767676"
_MOST = 25


def probe_parts(found: ProbeResult, *, details: bool = False) -> list[object]:
    """Return the parts of the summary for a `rich` console.

    Args:
        found: What probing found.
        details: Whether every operator is listed, not only those that take longest.
    """
    return [_machine(found), _costs(found, details=details), _closing(found)]


def _machine(found: ProbeResult) -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    machine = found.machine
    rows = (
        ("processor", f"{machine.processor}, {found.processors} available"),
        ("instruction sets", " ".join(machine.instruction_sets) or "unknown"),
        ("engine", f"{machine.engine}, {machine.threads} thread{'s' if machine.threads > 1 else ''}"),
        ("target", found.target.name),
        (
            "uint8 × int8 products",
            "saturate in pairs (measured): weights have to be made safe" if found.saturates else "exact (measured)",
        ),
    )
    for label, value in rows:
        table.add_row(Text(label, style=_QUIET), Text(value, overflow="fold"))
    return table


def _costs(found: ProbeResult, *, details: bool) -> object:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    dynamic = any(cost.dynamic_ns is not None for cost in found.operators)
    table = Table(box=box.SIMPLE_HEAD, header_style=_QUIET, padding=(0, 1, 0, 0))
    table.add_column("operator", overflow="fold", max_width=70)
    for name in ("float", "static", *(("dynamic",) if dynamic else ()), "float / best"):
        table.add_column(name, justify="right", no_wrap=True)
    listed = list(found.operators)
    if found.source and not details:
        listed = sorted(listed, key=lambda cost: -(cost.float_ns or 0.0))[:_MOST]
    for cost in listed:
        best = min((ns for ns in (cost.static_ns, cost.dynamic_ns) if ns), default=None)
        ratio = cost.float_ns / best if best and cost.float_ns else None
        style = "" if ratio is None else "#00875f" if ratio > 1 else "#d70000"
        name, _, key = cost.label.partition("\n")
        label = Text(name)
        if key:
            label.append(f"  {key}", style=_QUIET)
        table.add_row(
            label,
            _time(cost.float_ns),
            _time(cost.static_ns),
            *((_time(cost.dynamic_ns),) if dynamic else ()),
            Text(NOTHING if ratio is None else ratio_text(ratio), style=style),
        )
    return table


def _time(nanoseconds: float | None) -> str:
    return NOTHING if nanoseconds is None else microseconds_text(nanoseconds / 1e3)


def _closing(found: ProbeResult) -> object:
    from rich.text import Text

    total = len(found.operators)
    if found.measured:
        text = f"{found.measured} of {total} operators measured in {found.seconds:.1f} s"
    else:
        text = f"all {total} operators known from the cache, read in {found.seconds:.1f} s"
    text += f"; remembered in {found.cache}" if found.cache is not None else ""
    if found.source and total > _MOST:
        text += "; --details lists all"
    return Text(f"{text}.", style=_QUIET, overflow="fold")
