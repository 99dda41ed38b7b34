"""`python -m benchmarks.processor COMMAND …` runs a command as on a processor that ends at AVX2."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.processor import LimitError, environment


def main() -> None:
    """Run the command line."""
    command = sys.argv[1:]
    if not command or command[0] in {"-h", "--help"}:
        sys.exit("usage: python -m benchmarks.processor COMMAND [ARGUMENT …]")
    with tempfile.TemporaryDirectory(prefix="processor-") as folder:
        try:
            limited = environment(Path(folder))
        except LimitError as error:
            sys.exit(f"instruction sets cannot be hidden here: {error}")
        program = shutil.which(command[0])
        if program is None:
            sys.exit(f"there is no command {command[0]}")
        sys.exit(subprocess.run([program, *command[1:]], env=limited, check=False).returncode)


if __name__ == "__main__":
    main()
