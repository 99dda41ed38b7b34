"""Why an operator cannot become a LiteRT kernel."""

from __future__ import annotations

__all__ = ["Refusal"]


class Refusal(Exception):  # noqa: N818 - no error: the caller collects all of them and says them at once
    """An operator that has no integer kernel in LiteRT, with the reason as its message."""
