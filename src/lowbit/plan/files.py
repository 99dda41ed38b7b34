"""Plans on disk: YAML, written atomically."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lowbit.exceptions import OutputError
from lowbit.plan.plan import Plan
from lowbit.plan.recipe import read_yaml

__all__ = ["read_plan", "write_plan", "write_text"]


def read_plan(path: str | Path) -> Plan:
    """Read a plan from YAML.

    Raises:
        RecipeError: The file cannot be read or is no plan.
    """
    return Plan.from_dict(read_yaml(path, "plan"))


def write_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan as YAML.

    Raises:
        OutputError: The file cannot be written.
    """
    import yaml

    write_text(path, yaml.safe_dump(plan.to_dict(), sort_keys=False, width=120, allow_unicode=True))


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
