"""How long `lowbit --help` and `import lowbit` take: medians of fresh processes, beside the bare interpreter."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import lowbit": ["-c", "import lowbit"],
    "lowbit --help": ["-c", "import sys; sys.argv = ['lowbit', '--help']; from lowbit.cli import main; main()"],
}


def median_seconds(arguments: list[str], *, runs: int) -> float:
    """Return the median wall time of an interpreter with these arguments, after one run that warms the disk cache.

    Raises:
        CalledProcessError: The command failed.
    """
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    table = Table("command", "median of " + str(runs), title="start-up")
    for name, arguments in COMMANDS.items():
        try:
            table.add_row(name, f"{median_seconds(arguments, runs=runs):.3f} s")
        except subprocess.CalledProcessError as error:
            lines = error.stderr.decode(errors="replace").strip().splitlines()
            table.add_row(name, f"[red]{lines[-1] if lines else error}[/]")
    Console().print(table)


if __name__ == "__main__":
    main()
