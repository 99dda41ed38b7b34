"""Progress on stderr: a bar with the time left where the number of steps is known, a spinner elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from lowbit.methods.stages import Stages

__all__ = ["stages", "terminal_stages"]

_TITLE_COLUMNS = 26


def stages(*, quiet: bool) -> Stages:
    """Return how to show stages of work: not at all if that was asked for or nobody watches."""
    if quiet or not sys.stderr.isatty():
        from lowbit.methods.stages import silent

        return silent
    from rich.console import Console

    return terminal_stages(Console(stderr=True))


def terminal_stages(console: Console) -> Stages:
    """Return stages that are drawn on `console` while they last and leave one line each."""
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.text import Text

    class Times(ProgressColumn):
        """The time that has passed, and the time that is left."""

        def render(self, task: Task) -> Text:
            elapsed = task.finished_time if task.finished_time is not None else task.elapsed
            text = Text(_duration(elapsed or 0.0), style="#767676")
            if task.time_remaining and not task.finished:
                text.append(f", {_duration(task.time_remaining)} left")
            return text

    @contextmanager
    def stage(title: str, steps: int | None) -> Iterator[Callable[[], None]]:
        counted = (BarColumn(bar_width=24), TextColumn("{task.completed}/{task.total}")) if steps else ()
        columns = (
            SpinnerColumn(finished_text=Text("✓", style="#00875f")),
            TextColumn(f"{{task.description:<{_TITLE_COLUMNS}}}"),
            *counted,
            Times(),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(title, total=steps)
            yield lambda: progress.advance(task)
            progress.update(task, total=steps or 1, completed=steps or 1)

    return stage


def _duration(seconds: float) -> str:
    """Return a duration, e.g. `3.2 s` or `2:05`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
