"""Print the rows that `benchmarks.accuracy --out` wrote as the Markdown table of the README."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

__all__ = ["table"]


def table(rows: list[dict[str, Any]]) -> str:
    """Return one line per model and one column per quantizer: points lost, SQNR with real kernels, speed over float.

    Args:
        rows: The rows of one or more runs, as `benchmarks.accuracy` writes them.
    """
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    lines = [
        "| model (score of float) | " + " | ".join(peers) + " |",
        "| --- |" + " --- |" * len(peers),
    ]
    found = {(row["case"], row["peer"]): row for row in rows}
    for case in cases:
        first = next(row for row in rows if row["case"] == case)
        cells = [_cell(found.get((case, peer))) for peer in peers]
        lines.append(f"| {case} ({first['metric_name']} {first['float_score']:.3f}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    if row["error"]:
        return "fails"
    points = 100 * (row["score"] - row["float_score"])
    shown = "±0.0" if abs(points) < 0.05 else f"{points:+.1f}".replace("-", "−")
    decibel = f"{row['sqnr_real_db']:.1f}".replace("-", "−")
    return f"{shown}, {decibel} dB, {row['speedup']:.2f}×, {row['size_ratio']:.2f}"


def main() -> None:
    """Read the files and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip())
    parser.add_argument("files", nargs="+", type=Path, help="what `benchmarks.accuracy --out` wrote")
    rows = [row for path in parser.parse_args().files for row in json.loads(path.read_text(encoding="utf-8"))]
    print(table(rows))


if __name__ == "__main__":
    main()
