"""The table as Markdown, where it stands in the README, and the versions that it was verified with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.interop.routes import ENGINES, SOURCES

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BEGIN", "END", "README", "headings", "markdown", "read"]

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BEGIN = "<!-- python -m benchmarks.interop --write -->"
END = "<!-- end -->"


def headings() -> dict[str, str]:
    """Return the title of every column with the version that the project pins, by the column's own name."""
    pinned: dict[str, str] = {}
    for name in ("tensorflow.txt", "constraints.txt"):
        pinned |= dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))
    return {name: re.sub(r"\{([\w-]+)\}", lambda found: pinned[found[1]], name) for name in (*SOURCES, *ENGINES)}


def markdown(cells: Mapping[str, Mapping[str, str]]) -> str:
    """Return the table.

    Args:
        cells: What came of every family, by its name and the column's.
    """
    titles = headings()
    lines = ["| operators | " + " | ".join(titles.values()) + " |", "| --- |" + " --- |" * len(titles)]
    for family, row in cells.items():
        lines.append(f"| {family} | " + " | ".join(row[column] for column in titles) + " |")
    return "\n".join(lines)


def read(text: str) -> dict[str, dict[str, str]]:
    """Return the cells of a table that `markdown` wrote, by family and column."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    names = {title: name for name, title in headings().items()}
    columns = [names[title] for title in rows[0][1:]]
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows[2:]}
