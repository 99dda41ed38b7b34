"""What is shown on a terminal as plain text, for `print` and for files."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["plain_text"]

_WIDEST = 120


def plain_text(parts: Iterable[object], *, width: int | None = None) -> str:
    """Return parts for a `rich` console as text without colours and without blanks at the ends of lines.

    Args:
        parts: Tables, texts and the like.
        width: Columns; by default those of the terminal, 120 at most.
    """
    from rich.console import Console

    columns = min(shutil.get_terminal_size((100, 24)).columns, _WIDEST) if width is None else width
    console = Console(width=columns, no_color=True, highlight=False, force_terminal=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip("\n")
