"""Peak memory of loading and running a model, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import EngineError

if TYPE_CHECKING:
    from lowbit.runtime.session import Feed

__all__ = ["peak_memory_mb"]

_BYTES_PER_MB = 1e6


def peak_memory_mb(
    model: str | Path, feed: Feed, *, threads: int = 1, runs: int = 3, engine: str = "onnxruntime"
) -> float:
    """Return the peak resident memory that loading and running `model` adds to a process, in MB (10^6 bytes).

    Args:
        model: Path of the ONNX file.
        feed: One set of inputs.
        threads: Threads of the engine.
        runs: Number of inferences.
        engine: The engine.

    Raises:
        EngineError: The process failed.
    """
    with tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
        path = Path(folder) / "feed.npz"
        arrays: dict[str, Any] = {f"input:{name}": array for name, array in feed.items()}
        np.savez(path, **arrays)
        # The same packages as here, also where lowbit runs from a source tree.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", __name__, str(model), str(path), str(threads), str(runs), engine]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - ours
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise EngineError("the memory measurement failed", cause=lines[-1] if lines else f"exit {done.returncode}")
    return float(json.loads(done.stdout)["peak_mb"])


def _measure(model: str, feed_path: str, threads: int, runs: int, engine: str) -> float:
    """Load and run the model in this process, and return by how much its peak memory grew, in MB."""
    import psutil

    from lowbit.runtime.engines import open_in, version_of

    with np.load(feed_path, allow_pickle=False) as arrays:
        feed = {name.removeprefix("input:"): arrays[name] for name in arrays.files}
    version_of(engine)
    before = psutil.Process().memory_info().rss
    session = open_in(engine, model, threads=threads)
    for _ in range(runs):
        session.run(feed)
    return max(_peak_bytes() - before, 0) / _BYTES_PER_MB


def _peak_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: it survives exec on Linux and would report the parent's memory.
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import psutil

    information = psutil.Process().memory_info()
    return int(getattr(information, "peak_wset", information.rss))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    print(
        json.dumps(
            {"peak_mb": _measure(arguments[0], arguments[1], int(arguments[2]), int(arguments[3]), arguments[4])}
        )
    )
