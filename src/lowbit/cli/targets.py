"""`lowbit targets`: the engines and instruction sets that lowbit knows."""

from __future__ import annotations

import click

from lowbit.cli.screen import show

__all__ = ["targets"]


@click.command()
def targets() -> None:
    """List the targets, and which of them this machine is."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from lowbit.exceptions import TargetError
    from lowbit.targets import TARGETS
    from lowbit.targets.registry import host_target

    try:
        host = host_target().name
    except TargetError:
        host = ""
    table = Table(box=box.SIMPLE_HEAD, header_style="#767676", padding=(0, 1, 0, 0))
    table.add_column("target", no_wrap=True)
    table.add_column("what it is", overflow="fold", ratio=3)
    table.add_column("defaults", overflow="fold", ratio=1)
    table.add_column("costs", overflow="fold", ratio=2)
    for target in TARGETS.values():
        name = Text(target.name, style="bold" if target.name == host else "")
        if target.name == host:
            name.append("\nhost: this machine", style="#00875f")
        formats = f"W {target.weights}\nA {target.activations}"
        table.add_row(name, target.description, formats, Text(target.measured, style="#767676"))
    show([table])
