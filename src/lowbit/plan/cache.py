"""Where lowbit keeps what it has measured on this machine."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Return the folder where lowbit keeps what it has measured: `LOWBIT_CACHE`, or `lowbit` in the user's cache."""
    own = os.environ.get("LOWBIT_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lowbit"
