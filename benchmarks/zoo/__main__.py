"""Print the float score and latency of every case: `python -m benchmarks.zoo [NAME …]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.engine import open_session, paired_latency, run_all
from benchmarks.zoo import DEFAULT_CACHE, LOADERS, ZooError, load_case


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(LOADERS), metavar="NAME", help=f"any of {', '.join(LOADERS)}")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for models built on first use")
    arguments = parser.parse_args()
    console = Console()
    table = Table("case", "metric", "float", "latency ms", "size MB", "calibration", "test")
    for name in arguments.cases:
        with console.status(name):
            try:
                case = load_case(name, cache=arguments.cache)
            except ZooError as error:
                table.add_row(name, f"[yellow]not run: {error}[/]")
                continue
            session = open_session(case.model)
            score = case.metric(run_all(session, case.test))
            latency = paired_latency(session, session, case.latency_feed)
        table.add_row(
            name,
            case.metric_name,
            f"{score:.4f}",
            f"{latency.first_ms:.2f}",
            f"{case.model.stat().st_size / 1e6:.2f}",
            str(len(case.calibration)),
            str(len(case.test)),
        )
    console.print(table)


if __name__ == "__main__":
    main()
