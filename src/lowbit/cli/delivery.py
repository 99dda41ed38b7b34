"""What a verb that makes an artifact writes and prints at its end, and how the artifact is called by default."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lowbit.cli.screen import show

if TYPE_CHECKING:
    from pathlib import Path

    from lowbit.methods.result import Result

__all__ = ["deliver", "named_after"]


def deliver(
    result: Result,
    artifact: Path,
    *,
    report: Path | None,
    save_plan: Path | None,
    details: bool,
    quiet: bool,
    told: str = "",
) -> None:
    """Write the artifact and what was asked for beside it, and print the account; quietly, warnings alone.

    Args:
        result: The artifact with its account.
        artifact: Where it goes.
        report: Where the report goes, if anywhere.
        save_plan: Where the plan goes, if anywhere.
        details: Whether every operator and layer is printed.
        quiet: Whether only warnings are.
        told: A line or two on how it was made.
    """
    result.save(artifact)
    if save_plan is not None:
        result.save_plan(save_plan)
    if report is not None:
        result.report(report)
    if quiet:
        for warning in result.warnings:
            click.echo(f"warning: {warning}", err=True)
        return
    from rich.padding import Padding
    from rich.text import Text

    wrote = ", ".join(str(path) for path in (artifact, report, save_plan) if path is not None)
    summary, *others = result.renderables(details=details)
    lines = [Text(told)] if told else []
    show([summary, *lines, "", *others, Padding(Text(f"wrote {wrote}", overflow="fold"), (1, 1, 0, 1))])


def named_after(model: Path, weights: str) -> Path:
    """Return where an artifact goes by default: `net.onnx` with weights `int8:per-channel` becomes `net.int8.onnx`."""
    stem = model.stem if model.suffix.lower() == ".onnx" else model.name
    return model.with_name(f"{stem}.{weights.split(':', maxsplit=1)[0]}.onnx")
