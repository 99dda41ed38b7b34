"""Plans on disk: YAML, written atomically."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.plan.plan import Plan
from lowbit.plan.recipe import read_yaml
from lowbit.plan.text_files import write_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_plan", "write_plan"]


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
