"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

__all__ = ["Stages", "silent"]

Stages = Callable[[str, int | None], AbstractContextManager[Callable[[], None]]]
"""Opens a stage of work with a title and a number of steps; gives what to call after each step."""


@contextmanager
def silent(title: str, steps: int | None) -> Iterator[Callable[[], None]]:
    """Open a stage that shows nothing."""
    del title, steps
    yield lambda: None
