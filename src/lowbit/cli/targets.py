"""`lowbit targets`: the engines and instruction sets that lowbit knows."""

from __future__ import annotations

import click

from lowbit.cli.screen import show

__all__ = ["targets"]


@click.command(short_help="The targets, and which one this machine is.")
def targets() -> None:
    """List the targets, and which of them this machine is."""
    from rich.padding import Padding
    from rich.text import Text

    from lowbit.exceptions import TargetError
    from lowbit.targets import TARGETS
    from lowbit.targets.registry import host_target

    try:
        host = host_target().name
    except TargetError:
        host = ""
    parts: list[object] = []
    for target in TARGETS.values():
        here = ("  host: this machine", "#00875f") if target.name == host else ""
        parts.append(Text.assemble((target.name, "bold"), here))
        defaults = f"weights {target.weights}, activations {target.activations} by default"
        lines = Text("\n").join(
            [Text(target.description), Text(defaults), Text(f"costs: {target.measured}", "#767676")]
        )
        parts.append(Padding(lines, (0, 0, 1, 2)))
    show(parts)
