"""Quantize every model of the zoo with lowbit and with the peers, and measure all of them in one run.

Task score, SQNR (real kernels and simulated), speed-up over float in interleaved pairs, size, and what quantizing took.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import textwrap
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.engine import open_session, paired_latency, run_all, sqnr_db
from benchmarks.isolated import IsolationError, isolated
from benchmarks.peers.feeds import save_feeds
from benchmarks.peers.launch import PEERS, LaunchError, Peer, launch
from benchmarks.zoo import DEFAULT_CACHE, LOADERS, Case, ZooError, load_case


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model from one quantizer, measured.

    Attributes:
        case: Name of the case.
        peer: Name of the quantizer.
        metric_name: What the score means.
        float_score: The float model's score.
        score: The artifact's score with real kernels.
        sqnr_real_db: SQNR of the first output with the engine's real kernels, in decibel.
        sqnr_simulated_db: The same with all graph optimizations off.
        float_ms: Median latency of the float model in milliseconds, one thread, batch 1.
        artifact_ms: The artifact's.
        speedup: Median of the pairwise ratios float / artifact.
        size_ratio: Size of the artifact over the float model's.
        seconds: How long quantizing took.
        peak_mb: Peak resident memory of the quantizing process, in MB (10^6 bytes).
        predicted_ratio: Latency that lowbit predicted of its artifact over what it measured; `None` for the others.
        corrected_ratio: The same after the costs were corrected by the measurement.
        planned_integer: How many operators lowbit planned in integers.
        fused_integer: How many of them the engine runs in integers.
        deterministic: Whether two runs wrote the same bytes; `None` where that was not asked.
        note: What else there is to know.
        error: Why there are no measurements.
    """

    case: str
    peer: str
    metric_name: str = ""
    float_score: float | None = None
    score: float | None = None
    sqnr_real_db: float | None = None
    sqnr_simulated_db: float | None = None
    float_ms: float | None = None
    artifact_ms: float | None = None
    speedup: float | None = None
    size_ratio: float | None = None
    seconds: float | None = None
    peak_mb: float | None = None
    predicted_ratio: float | None = None
    corrected_ratio: float | None = None
    planned_integer: int | None = None
    fused_integer: int | None = None
    deterministic: bool | None = None
    note: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the engine says of one artifact; the fields are those of `Row`."""

    score: float
    sqnr_real_db: float
    sqnr_simulated_db: float
    float_ms: float
    artifact_ms: float
    speedup: float


def float_score(case: Case) -> float:
    """Return the float model's task score."""
    return case.metric(run_all(open_session(case.model), case.test))


def measure(case: Case, artifact: Path, *, samples: int, seconds: float) -> Measured:
    """Run an artifact on the test data of its case, and time it beside the float model.

    Args:
        case: Where the artifact comes from.
        artifact: ONNX file.
        samples: Number of test samples for the SQNR.
        seconds: Least time for the latency.
    """
    exact, session = open_session(case.model), open_session(artifact)
    outputs = run_all(session, case.test)
    reference = run_all(exact, case.test[:samples])
    simulated = run_all(open_session(artifact, simulated=True), case.test[:samples])
    latency = paired_latency(exact, session, case.latency_feed, seconds=seconds)
    return Measured(
        score=case.metric(outputs),
        sqnr_real_db=sqnr_db(reference, outputs[:samples]),
        sqnr_simulated_db=sqnr_db(reference, simulated),
        float_ms=latency.first_ms,
        artifact_ms=latency.second_ms,
        speedup=latency.speedup,
    )


def bench(case: Case, name: str, peer: Peer, folder: Path, arguments: argparse.Namespace, score: float) -> Row:
    """Quantize a case with one tool and measure what it wrote; an error becomes the row."""
    output = folder / f"{name}.onnx"
    options = ("--transformer",) if peer.tells_architecture and case.transformer else ()
    blank = Row(case=case.name, peer=name, metric_name=case.metric_name, float_score=score)

    def quantize(target: Path) -> dict[str, float | str]:
        return launch(
            peer,
            python=arguments.peer_python,
            model=case.model,
            calibration=folder / "calibration",
            output=target,
            options=options,
            timeout=arguments.timeout,
        )

    deterministic: bool | None = None
    try:
        cost = quantize(output)
        if peer.deterministic:
            second = folder / f"{name}.again.onnx"
            quantize(second)
            deterministic = _digest(output) == _digest(second)
        measured = isolated(lambda: measure(case, output, samples=arguments.sqnr_samples, seconds=arguments.seconds))
    except (LaunchError, IsolationError) as error:
        return replace(blank, error=str(error))
    if arguments.keep is not None:
        kept = arguments.keep / case.name
        kept.mkdir(parents=True, exist_ok=True)
        (kept / output.name).write_bytes(output.read_bytes())
    return replace(
        blank,
        **asdict(measured),
        size_ratio=_size(output) / _size(case.model),
        seconds=float(cost["seconds"]),
        peak_mb=float(cost["peak_mb"]),
        deterministic=deterministic,
        **{key: cost.get(key) for key in ("predicted_ratio", "corrected_ratio", "planned_integer", "fused_integer")},
        note=str(cost.get("preparation", "")),
    )


def _digest(model: Path) -> str:
    digest = hashlib.sha256()
    for file in (model, *sorted(model.parent.glob(f"{model.name}*data"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _size(model: Path) -> int:
    return sum(file.stat().st_size for file in (model, *model.parent.glob(f"{model.name}*data")))


def show(rows: list[Row], console: Console) -> None:
    """Print the rows as a table."""
    table = Table("quantizer", "score", "Δ points", "dB real", "dB sim", "speed-up", "size", "s", "MB", "same")
    for row in rows:
        if row.error:
            table.add_row(row.peer, f"[red]{escape(textwrap.shorten(row.error, 90))}[/]")
            continue
        table.add_row(
            row.peer,
            _number(row.score, ".4f"),
            _number(None if row.score is None else 100 * (row.score - (row.float_score or 0.0)), "+.2f"),
            _number(row.sqnr_real_db, ".1f"),
            _number(row.sqnr_simulated_db, ".1f"),
            _number(row.speedup, ".2f"),
            _number(row.size_ratio, ".2f"),
            _number(row.seconds, ".1f"),
            _number(row.peak_mb, ".0f"),
            {None: "", True: "yes", False: "[red]NO[/]"}[row.deterministic],
        )
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"  {row.peer}: {escape(row.note)}")


def _number(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases", nargs="+", default=list(LOADERS), choices=LOADERS, metavar="NAME", help="default: all"
    )
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS, metavar="NAME", help="default: all")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for models built on first use")
    parser.add_argument("--peer-python", type=Path, help="interpreter with the peers; default: in the cache")
    parser.add_argument("--out", type=Path, help="write the rows here as JSON, after every row")
    parser.add_argument("--keep", type=Path, help="keep the artifacts in this folder")
    parser.add_argument("--seconds", type=float, default=1.0, help="least time for each latency, and 30 pairs")
    parser.add_argument("--sqnr-samples", type=int, default=64, help="test samples for the SQNR")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds given to one quantizer")
    arguments = parser.parse_args()
    if arguments.peer_python is None:
        arguments.peer_python = arguments.cache / "peers" / "bin" / "python"

    console = Console()
    rows: list[Row] = []
    for case_name in arguments.cases:
        try:
            case = load_case(case_name, cache=arguments.cache)
        except ZooError as error:
            rows.append(Row(case=case_name, peer="", error=f"not run: {error}"))
            console.print(rows[-1].error)
            continue
        score = isolated(partial(float_score, case))
        with tempfile.TemporaryDirectory() as folder:
            save_feeds(case.calibration, Path(folder) / "calibration")
            for peer_name in arguments.peers:
                with console.status(f"{case_name}: {peer_name}"):
                    row = bench(case, peer_name, PEERS[peer_name], Path(folder), arguments, score)
                rows.append(row)
                if arguments.out is not None:
                    arguments.out.write_text(json.dumps([asdict(r) for r in rows], indent=1), encoding="utf-8")
        console.print(f"{case.name}: {case.metric_name}, float {score:.4f}, {len(case.test)} test samples")
        show([row for row in rows if row.case == case_name], console)


if __name__ == "__main__":
    main()
