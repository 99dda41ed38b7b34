"""What is seen of a training while it runs: a bar with loss and metric, and files for TensorBoard."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lowbit.exceptions import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowbit.training.settings import Epoch

__all__ = ["Shown", "TensorBoard", "progress_on"]


class Shown:
    """A bar of steps with the loss and the last metric, and a line for every epoch; or nothing.

    Args:
        bar: A `rich` progress; `None` shows nothing.
        epochs: How many there will be.
    """

    def __init__(self, bar: Any, epochs: int) -> None:
        self.bar, self.epochs = bar, epochs
        self.task = None if bar is None else bar.add_task("Train", total=None, numbers="")
        self.mean: float | None = None

    def step(self, step: int, steps: int, loss: float, metric: float | None) -> None:
        """Show one step."""
        if self.bar is None:
            return
        self.mean = loss if self.mean is None else 0.95 * self.mean + 0.05 * loss
        numbers = f"loss {self.mean:.4g}" + ("" if metric is None else f"  metric {metric:.4g}")
        self.bar.update(self.task, total=steps, completed=step, numbers=numbers)

    def epoch(self, row: Epoch) -> None:
        """Leave a line for an epoch."""
        if self.bar is None:
            return
        metric = "" if row.metric is None else f"  metric {row.metric:.4g}"
        self.bar.console.print(f"epoch {row.epoch}/{self.epochs}  loss {row.loss:.4g}{metric}", highlight=False)


@contextmanager
def progress_on(wanted: bool | None, epochs: int) -> Iterator[Shown]:
    """Show the progress of a training.

    Args:
        wanted: Whether; `None` where stderr is a terminal.
        epochs: How many there will be.
    """
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield Shown(None, epochs)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield Shown(bar, epochs)


class TensorBoard:
    """Writes the numbers of a training for TensorBoard, if there is a folder for them."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    @classmethod
    @contextmanager
    def opened(cls, folder: str | Path | None) -> Iterator[TensorBoard]:
        """Open a folder; `None` writes nothing.

        Raises:
            RecipeError: TensorBoard is not installed.
        """
        if folder is None:
            yield cls(None)
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RecipeError(
                f"log_dir is '{folder}'", cause=f"{error}", remedy="pip install lowbit[tensorboard]"
            ) from error
        writer = SummaryWriter(str(folder))
        try:
            yield cls(writer)
        finally:
            writer.close()

    def step(self, step: int, loss: float) -> None:
        """Write one step."""
        if self.writer is not None:
            self.writer.add_scalar("loss", loss, step)

    def epoch(self, row: Epoch) -> None:
        """Write one epoch."""
        if self.writer is None:
            return
        self.writer.add_scalar("lr", row.lr, row.steps)
        if row.metric is not None:
            self.writer.add_scalar("metric", row.metric, row.steps)
