"""A duration on the command line: `90`, `2.5`, `90s`, `5m` or `1h`."""

from __future__ import annotations

import re
from typing import Any

import click

__all__ = ["DURATION", "Duration"]

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_FORM = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([smh]?)")


class Duration(click.ParamType[float]):
    """A number of seconds, or of minutes or hours with an `m` or `h` behind it; becomes seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the duration in seconds."""
        if isinstance(value, int | float):
            return float(value)
        found = _FORM.fullmatch(str(value).strip().lower())
        if found is None:
            self.fail(f"{value!r} is no duration: write 90, 90s, 5m or 1h", param, ctx)
        return float(found[1]) * _SECONDS[found[2]]


DURATION = Duration()
