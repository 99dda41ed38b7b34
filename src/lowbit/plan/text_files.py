"""Text on disk, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lowbit.exceptions import OutputError

__all__ = ["write_text"]


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically: under a temporary name, flushed to the disk, then renamed.

    Raises:
        OutputError: The file cannot be written; whatever stood there is untouched.
    """
    path = Path(path)
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise OutputError(
            f"'{path}' cannot be written", cause=error.strerror or str(error), remedy="choose another path"
        ) from error
