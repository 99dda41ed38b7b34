"""Running a piece of a benchmark in a forked child, so that an engine that crashes costs one row and not the run."""

from __future__ import annotations

import os
import pickle
import signal
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["IsolationError", "isolated"]

T = TypeVar("T")


class IsolationError(Exception):
    """The child raised an error or died; the message says which."""


def isolated(function: Callable[[], T]) -> T:
    """Return `function()`, computed in a forked child.

    Args:
        function: May use everything of this process; its result must be picklable.

    Raises:
        IsolationError: The function raised, or the child died from a signal.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read_end)
            try:
                outcome: tuple[bool, T | str] = (True, function())
            except Exception as error:  # noqa: BLE001 - reported to the parent, which turns it into a row
                outcome = (False, f"{type(error).__name__}: {error}")
            with os.fdopen(write_end, "wb") as pipe:
                pickle.dump(outcome, pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise IsolationError(f"crashed with {signal.Signals(os.WTERMSIG(status)).name}")
    if not content:
        raise IsolationError("ended without a result")
    succeeded, value = pickle.loads(content)
    if not succeeded:
        raise IsolationError(" ".join(str(value).split())[:200])
    result: T = value
    return result
