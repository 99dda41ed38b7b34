"""Verify what arrives from which framework and what computes in integers where, and print the table of the README.

    python -m benchmarks.interop [--write]

Every cell is a small network with random weights: brought in and compared with its framework to 50 dB; or quantized in
lowbit's defaults for W8A8, loaded in the engine and compared with the module to 20 dB. Keras and TFLite need
`make tensorflow`. `--write` puts the table into the README; the tests verify every cell again.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.interop.families import FAMILIES
from benchmarks.interop.routes import ENGINES, SOURCES, source_python
from benchmarks.interop.table import BEGIN, END, README, markdown


def main() -> int:
    """Print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip())
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    asked = parser.parse_args()
    if not source_python().exists():
        print(f"{source_python()} is not there: make tensorflow")
        return 1
    cells: dict[str, dict[str, str]] = {}
    for family in FAMILIES:
        cells[family] = {column: route(family) for column, route in (SOURCES | ENGINES).items()}
        print(f"{family}: {', '.join(cells[family].values())}", flush=True)
    table = markdown(cells)
    print(table)
    if asked.write:
        text = README.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        README.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
