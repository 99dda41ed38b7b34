"""What every script around a quantizer does: read the arguments, limit the threads, measure, print one line of JSON."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks.peers.feeds import FeedFolder

__all__ = ["Job", "limit_onnxruntime_threads", "parser", "peak_memory_mb", "run"]

Job = Callable[[argparse.Namespace, FeedFolder], "dict[str, Any] | None"]
"""Quantizes `arguments.model` into `arguments.output`; returns what else to print, if anything."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all scripts share."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--model", type=Path, required=True, help="the float ONNX file")
    result.add_argument("--calibration", type=Path, required=True, help="folder of .npz files, one a sample")
    result.add_argument("--output", type=Path, required=True, help="where to write the quantized ONNX file")
    result.add_argument("--samples", type=int, help="number of samples to use; default: all")
    result.add_argument(
        "--threads", type=int, default=0, help="threads of ONNX Runtime during calibration; 0: its choice"
    )
    return result


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process, in MB (10^6 bytes).

    Linux hands the peak of the process that started this one down in `ru_maxrss`; `VmHWM` counts this program alone.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def limit_onnxruntime_threads(threads: int) -> None:
    """Make every ONNX Runtime session of this process use so many threads, 0 = its choice; the tools have no option."""
    import onnxruntime as ort

    original = ort.SessionOptions

    def limited() -> Any:
        options = original()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return options

    ort.SessionOptions = limited


def run(job: Job, arguments: argparse.Namespace) -> None:
    """Run a job and print its measurements as one line of JSON; what the tool prints goes to the error stream."""
    feeds = FeedFolder(arguments.calibration, limit=arguments.samples)
    if not len(feeds):
        sys.exit(f"{arguments.calibration} holds no .npz files")
    with redirect_stdout(sys.stderr):
        start = time.perf_counter()
        extra = job(arguments, feeds)
        seconds = time.perf_counter() - start
    row = {"seconds": seconds, "peak_mb": peak_memory_mb(), "samples": len(feeds), **(extra or {})}
    print(json.dumps(row))
