"""From a module to PyTorch's graph of it, or an error that names the line which cannot be captured."""

from __future__ import annotations

import contextlib
import io
import linecache
import logging
import re
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from lowbit.importing.dimensions import OpenAxes
    from lowbit.importing.examples import Examples

__all__ = ["capture", "capture_error", "quiet"]

_DATA_DEPENDENT = (
    "GuardOnDataDependentSymNode",
    "data-dependent",
    "Data-dependent",
    "UserErrorType.DYNAMIC_CONTROL_FLOW",
)


def capture(module: torch.nn.Module, examples: Examples, axes: OpenAxes) -> torch.export.ExportedProgram:
    """Return the graph of one call of a module.

    Args:
        module: In evaluation mode.
        examples: Its arguments.
        axes: What stays open; PyTorch may close an axis that the module relies on.

    Raises:
        Exception: Whatever PyTorch raises; `capture_error` says it in one sentence.
    """
    import torch

    shapes = torch.export.ShapesCollection()
    for tensor, own in zip(examples.tensors(), axes.inputs, strict=True):
        if own:
            shapes[tensor] = dict.fromkeys(own, torch.export.Dim.AUTO)
    dynamic = shapes.dynamic_shapes(module, examples.positional, examples.named) if axes else None
    with quiet():
        return torch.export.export(module, examples.positional, examples.named, dynamic_shapes=dynamic, strict=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep PyTorch from printing: what matters comes as an exception, the same text on the terminal is noise."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        shown = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def capture_error(module: torch.nn.Module, error: BaseException) -> ModelError:
    """Return what kept PyTorch from capturing a module, with the line of the user's code and what to do."""
    place = _place(error)
    name = type(module).__name__
    said = f"{type(error).__name__}: {error}"
    if any(mark in said for mark in _DATA_DEPENDENT):
        return ModelError(
            f"{name} cannot be captured as one graph: {place or 'its forward'} decides by values of tensors",
            cause="a graph runs the same operators for every input",
            remedy="Write the choice with torch.where, or with torch.cond where only one branch may run; "
            "a number taken from a tensor (.item(), int(), a boolean index) must be a constant or a mask of fixed size",
        )
    return ModelError(
        f"{name} cannot be captured by torch.export{f' at {place}' if place else ''}",
        cause=_sentence(error),
        remedy="Call torch.export.export(module, args) on it to see everything that PyTorch says; give only the part "
        "of the module that computes tensors from tensors",
    )


def _sentence(error: BaseException) -> str:
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _place(error: BaseException) -> str:
    """Return the innermost line of code that is not PyTorch's own, as `file:line: code`."""
    import torch

    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    found = ""
    trace: Any = error.__traceback__
    while trace is not None:
        file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        if not file.startswith((*inside, "<")):
            source = linecache.getline(file, line).strip()
            found = f"{Path(file).name}:{line}" + (f" (`{source}`)" if source else "")
        trace = trace.tb_next
    return found
