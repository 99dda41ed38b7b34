"""The files that a command will write: refused early where they cannot be written, and told afterwards."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from lowbit.exceptions import OutputError

__all__ = ["Outputs"]


class Outputs:
    """What one command writes.

    A path that cannot be written is refused before minutes of work, not after. Which files are finished is read from
    the disk, because an interrupt may come between writing a file and noting it.
    """

    def __init__(self) -> None:
        self._before: dict[Path, tuple[int, int] | None] = {}

    def reserve(self, path: Path, *, inputs: tuple[Path | None, ...] = ()) -> Path:
        """Check that `path` can be written, and remember it.

        Args:
            path: The file to be written; one that exists will be replaced.
            inputs: Files that this command reads, which it must not replace.

        Raises:
            OutputError: It cannot be written, is an input, or was reserved before.
        """
        if path.is_dir():
            raise OutputError(f"'{path}' is a folder", remedy="give the name of a file")
        if path.exists() and not path.is_file():
            raise OutputError(f"'{path}' is not a regular file", remedy="choose another path")
        for source in inputs:
            if source is not None and source.exists() and path.exists() and source.samefile(path):
                raise OutputError(f"'{path}' is read by this command", remedy="write to another path")
        resolved = path.resolve()
        if resolved in self._before:
            raise OutputError(f"'{path}' was given for two outputs", remedy="give each its own path")
        probe = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            try:
                probe.touch(exist_ok=False)
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"'{path}' cannot be written",
                cause=error.strerror or str(error),
                remedy=f"create the folder {path.parent}"
                if error.errno == errno.ENOENT and not path.parent.is_dir()
                else "choose a folder that you may write to",
            ) from error
        self._before[resolved] = _identity(resolved)
        return path

    def written(self) -> tuple[Path, ...]:
        """Return the reserved files that have been written since."""
        return tuple(_short(path) for path, before in self._before.items() if _identity(path) != before)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _short(path: Path) -> Path:
    """Return the path as seen from here, where that is shorter."""
    relative = Path(os.path.relpath(path))
    return relative if len(str(relative)) < len(str(path)) else path
