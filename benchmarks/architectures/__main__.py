"""Measure networks of many families, each in a process of its own, and print them.

    python -m benchmarks.architectures [NAME …] [--out ROWS.json] [--table]

needs `torchvision`, `timm` and `transformers`. Quantized to W8A8 in lowbit's defaults, a network passes where its
first output agrees with the module itself (eager) to 20 dB on held-out random inputs, or has the same class
everywhere. Weights are random and made to count first (`weights.py`: zeros filled, BatchNorms with the statistics of
four batches), so that this tests operators and interfaces, not accuracy. `--out` is written after every network; what
it holds is not measured again unless it is named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.architectures.measuring import ENOUGH_DB, agrees
from benchmarks.architectures.networks import NETWORKS, missing_packages

LIMIT = 900  # seconds for one network


def main() -> int:
    """Print the table and return 1 if something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip())
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks; all by default")
    parser.add_argument("--out", type=Path, help="rows as JSON; those of an earlier run are kept")
    parser.add_argument("--table", action="store_true", help="print the rows of --out as Markdown, measure nothing")
    asked = parser.parse_args()
    unknown = sorted(set(asked.names) - set(NETWORKS))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(NETWORKS)}")
    rows = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out and asked.out.exists() else {}
    if asked.table:
        print(markdown(rows))
        return 0
    if missing := missing_packages():
        print(f"not installed: pip install {' '.join(missing)}")
        return 1
    names = asked.names or list(NETWORKS)
    for name in names:
        if name not in rows or asked.names:
            rows[name] = _measured(name)
            if asked.out:
                _write(asked.out, rows)
        print(_line(name, rows[name]), flush=True)
    good = sum(_passes(rows[name]) for name in names)
    print(f"{good} of {len(names)} agree")
    return int(good < len(names))


def _measured(name: str) -> dict[str, Any]:
    code = (
        "import json, sys; from benchmarks.architectures.measuring import measure; "
        "print('\\nROW' + json.dumps(measure(sys.argv[1])))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {LIMIT} seconds"}
    for line in done.stdout.splitlines():
        if line.startswith("ROW"):
            return dict(json.loads(line[3:]))
    return {"error": next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no output")[:600]}


def _write(path: Path, rows: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _passes(row: dict[str, Any]) -> bool:
    return "error" not in row and agrees(row)


def _line(name: str, row: dict[str, Any]) -> str:
    start = f"{name:24} {NETWORKS[name].family[:34]:34}"
    if "error" in row:
        return f"{start} FAILED: {row['error']}"
    notes = "".join("; " + note for note in row["notes"])[:300]
    return (
        f"{start} {row['seconds']:5.0f} s {'open ' if row['open'] else 'fixed'} {row['integer']:4}/{row['sites']:4} "
        f"{row['db']:6.1f} dB ({row['varying_db']:5.1f}) top-1 {row['top1']:.3f} of {row['classes']:4}  "
        f"{'ok' if agrees(row) else 'TOO FAR'}{notes}"
    )


def markdown(rows: dict[str, Any]) -> str:
    """Return the rows as a Markdown table, in the order of `NETWORKS`."""
    lines = [
        "| network | from | family | in integers | SQNR | around the mean | same top-1 | |",
        "|" + " --- |" * 8,
    ]
    for name, network in NETWORKS.items():
        if name not in rows:
            continue
        row = rows[name]
        start = f"| `{name}` | {network.package} | {network.family} |"
        if "error" in row:
            lines.append(f"{start} – | – | – | – | {row['error'].replace('|', '/')} |")
            continue
        verdict = "" if agrees(row) else f"less than {ENOUGH_DB:.0f} dB"
        ratios = f"{row['db']:.1f} dB | {row['varying_db']:.1f} dB"
        lines.append(f"{start} {row['integer']} | {ratios} | {100 * row['top1']:.1f} % | {verdict} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
