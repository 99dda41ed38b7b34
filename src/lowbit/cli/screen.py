"""Results on stdout: rich renderables, in colour on a terminal, plain elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["show"]

_WIDEST = 120
"""Beyond this many columns a table is harder to read, not easier."""


def show(parts: Sequence[object]) -> None:
    """Print renderables, without trailing blanks and blank lines at the end.

    Raises:
        BrokenPipeError: Nobody reads stdout any more.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if console.width > _WIDEST:
        console.width = _WIDEST
    # Captured, because rich ends the process by itself when a pipe breaks.
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    text = capture.get()
    if not console.is_terminal:
        text = "\n".join(line.rstrip() for line in text.splitlines())
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()
