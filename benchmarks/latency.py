"""Time the artifacts that `benchmarks.accuracy --keep` has left, all of one model in turn in one run.

Speed-ups over float at one thread and at all, the best peer whose artifact is valid (it loads, and the score is within
1 % of float's; where there is none, float counts), and lowbit's predicted latency beside the measured one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.isolated import IsolationError, isolated
from benchmarks.zoo import DEFAULT_CACHE, LOADERS, ZooError, load_case

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_VALID = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One artifact beside float and all others.

    Attributes:
        case: Name of the case.
        peer: Name of the quantizer, `float` for the model itself.
        threads: Threads of the engine.
        ms: Median latency in milliseconds.
        speedup: Median over rounds of float time / own time.
        low: 25th percentile of those ratios.
        high: 75th percentile.
        rounds: Number of rounds.
    """

    case: str
    peer: str
    threads: int
    ms: float
    speedup: float
    low: float
    high: float
    rounds: int


def open_session(model: Path, threads: int) -> Any:
    """Open a model on the CPU provider."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Idle workers of one session must not steal time from the next one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def interleaved(
    case: str, models: Mapping[str, Path], feed: Mapping[str, Any], *, threads: int, seconds: float
) -> list[Timing]:
    """Time all models in rounds: every round runs each of them, in an order that rotates.

    Args:
        case: Name of the case.
        models: Files by quantizer; `float` is the reference.
        feed: One set of inputs.
        threads: Threads of the engine.
        seconds: Least time for all rounds; there are at least 30.
    """
    sessions = {name: open_session(path, threads) for name, path in models.items()}
    repeats = {}
    for name, session in sessions.items():
        for _ in range(3):
            session.run(None, feed)
        start = time.perf_counter()
        session.run(None, feed)
        repeats[name] = max(1, min(int(2e-3 / max(time.perf_counter() - start, 1e-7)), 50))
    names = list(sessions)
    rows: list[list[float]] = []
    start = time.perf_counter()
    while len(rows) < 30 or time.perf_counter() - start < seconds:
        turn = len(rows) % len(names)
        taken = dict.fromkeys(names, 0.0)
        for name in names[turn:] + names[:turn]:
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                sessions[name].run(None, feed)
            taken[name] = (time.perf_counter() - begin) / repeats[name]
        rows.append([taken[name] for name in names])
    table = np.array(rows)
    reference = table[:, names.index("float")]
    timings = []
    for index, name in enumerate(names):
        low, median, high = np.percentile(reference / table[:, index], [25, 50, 75])
        timings.append(
            Timing(
                case=case,
                peer=name,
                threads=threads,
                ms=float(np.median(table[:, index]) * 1e3),
                speedup=float(median),
                low=float(low),
                high=float(high),
                rounds=len(rows),
            )
        )
    return timings


def verdict(timings: Sequence[Timing], rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print one line per case, and what they add up to."""
    threads = min(timing.threads for timing in timings)
    all_threads = max(timing.threads for timing in timings)
    table = Table(
        "case",
        "lowbit",
        f"at {all_threads} threads",
        "best valid peer",
        "its speed",
        "lowbit / peer",
        "predicted",
        "integer",
    )
    ratios, slower, slower_than_peer, far = [], 0, 0, 0
    for case in dict.fromkeys(timing.case for timing in timings):
        own = {(timing.peer, timing.threads): timing for timing in timings if timing.case == case}
        measured = {row["peer"]: row for row in rows if row["case"] == case and not row.get("error")}
        lowbit = own["lowbit", threads]
        valid = {
            timing.peer: timing.speedup
            for (peer, count), timing in own.items()
            if count == threads
            and peer not in {"float", "lowbit"}
            and (measured.get(peer, {}).get("score") or 0.0)
            >= _VALID * (measured.get(peer, {}).get("float_score") or math.inf)
        }
        peer = max(valid, key=lambda name: valid[name], default="none (float)")
        best = valid.get(peer, 1.0)
        ratios.append(lowbit.speedup / best)
        slower += sum(own["lowbit", count].speedup < 1 for count in {threads, all_threads})
        slower_than_peer += lowbit.speedup < best
        row = measured.get("lowbit", {})
        predicted = row.get("predicted_ratio")
        far += predicted is not None and abs(predicted - 1) > 0.15
        planned, fused = row.get("planned_integer"), row.get("fused_integer")
        table.add_row(
            case,
            f"{lowbit.speedup:.2f}× ({lowbit.low:.2f}–{lowbit.high:.2f})",
            f"{own['lowbit', all_threads].speedup:.2f}×",
            peer,
            f"{best:.2f}×",
            f"{ratios[-1]:.2f}",
            "" if predicted is None else f"{100 * (predicted - 1):+.1f} %",
            "" if planned is None else f"{fused} of {planned}",
        )
    console.print(table)
    mean = math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
    console.print(
        f"geometric mean over the best valid peers: {mean:.2f}; slower than float: {slower}; slower than the best "
        f"valid peer: {slower_than_peer}; predictions more than 15 % off: {far}"
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path, nargs="+", help="what `benchmarks.accuracy --out` has written")
    parser.add_argument("--artifacts", type=Path, required=True, help="the folder of `benchmarks.accuracy --keep`")
    parser.add_argument("--cases", nargs="+", default=list(LOADERS), choices=LOADERS, metavar="NAME")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for models built on first use")
    parser.add_argument("--seconds", type=float, default=6.0, help="least time for each case and number of threads")
    parser.add_argument("--out", type=Path, help="write the timings here as JSON")
    arguments = parser.parse_args()
    console = Console()
    rows = [row for path in arguments.rows for row in json.loads(path.read_text(encoding="utf-8"))]
    counts = sorted({1, len(os.sched_getaffinity(0))})
    timings: list[Timing] = []
    for name in arguments.cases:
        try:
            case = load_case(name, cache=arguments.cache)
        except ZooError as error:
            console.print(f"{name}: not run: {error}")
            continue
        files = {
            path.stem: path for path in sorted((arguments.artifacts / name).glob("*.onnx")) if ".again" not in path.name
        }
        if "lowbit" not in files:
            console.print(f"{name}: not run: no artifact of lowbit in {arguments.artifacts / name}")
            continue
        models = {"float": case.model, **{peer: path for peer, path in files.items() if peer != "float"}}
        for threads in counts:
            try:
                timings += isolated(
                    partial(interleaved, name, models, case.latency_feed, threads=threads, seconds=arguments.seconds)
                )
            except IsolationError as error:
                console.print(f"{name}, {threads} threads: {error}")
        for timing in timings:
            if timing.case == name:
                shown = f"{timing.threads} threads {timing.ms:8.3f} ms {timing.speedup:5.2f}×"
                console.print(f"{name:20} {timing.peer:18} {shown}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps([asdict(timing) for timing in timings], indent=1), encoding="utf-8")
    if timings:
        verdict(timings, rows, console)


if __name__ == "__main__":
    main()
