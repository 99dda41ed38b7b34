"""Keeping what an engine's own code prints off the terminal, where no option turns it off."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["without_stderr"]


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Send the process's standard error nowhere, that of compiled code included."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed: there is nothing to keep clean
        yield
        return
    silence = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silence, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silence)
