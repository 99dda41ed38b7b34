"""The command line. Arguments mean the same as in Python; every command is a thin layer over one verb of `methods`.

Nothing here imports more than `click` at module level, so that `lowbit --help` answers at once.
"""

from __future__ import annotations

from lowbit.cli.application import main

__all__ = ["main"]
