"""What fewer bits cost on trained models, by lowbit and by every other tool that runs here.

Every artifact is built on the case's calibration samples and scored on its test samples, in the engine's own kernels.
`minmax` is rounding to nearest over the full range of the weights, what most tools do; `best` is `--method best`. The
other tools run in processes and interpreters of their own. What one cannot do is a row with the reason.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.engine import open_session, run_all, sqnr_db
from benchmarks.isolated import IsolationError, isolated
from benchmarks.peers.feeds import save_feeds
from benchmarks.peers.few_bits import ADAROUND_ITERATIONS, FEW_BIT_PEERS, UNSUPPORTED, with_iterations
from benchmarks.peers.launch import LaunchError, launch
from benchmarks.stored import file_size, stored_share, weight_count
from benchmarks.zoo import DEFAULT_CACHE, LOADERS, ZooError, load_case

if TYPE_CHECKING:
    from benchmarks.peers.launch import Peer
    from benchmarks.zoo import Case

_FORMATS = {
    "W8A8": {"weights": "int8:per-channel", "activations": "uint8"},
    "W6A8": {"weights": "int6:per-channel", "activations": "uint8"},
    "W4A8": {"weights": "int4:per-channel", "activations": "uint8"},
    "W3A8": {"weights": "int3:per-channel", "activations": "uint8"},
    "W4A16": {"weights": "int4:per-channel", "activations": "none"},
    "W3A16": {"weights": "int3:per-channel", "activations": "none"},
}
_METHODS: dict[str, dict[str, Any]] = {
    "lowbit minmax": {"rounding": "nearest", "calibration": "minmax", "bias_correction": False},
    "lowbit gptq": {"rounding": "gptq", "weight_range": "mse"},
    "lowbit gptq, quantized inputs": {"rounding": "gptq", "weight_range": "mse", "rounding_inputs": "quantized"},
    "lowbit best": {"method": "best"},
}
# A tool that leaves a tenth of the weights in more bits than asked is shown, and not compared.
_COMPARABLE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One artifact.

    Attributes:
        case: Name of the model.
        bits: Formats of weights and activations, e.g. `W4A8`; 16 stands for float.
        method: Tool and method.
        float_score: The float model's score.
        score: The artifact's, in the engine's own kernels.
        sqnr_db: SQNR of its first output over the first 64 test samples.
        integer_kernels: How many integer kernels the engine runs it with.
        share: Fraction of the weights that the file stores in as few bits as asked (8 for 6, 4 for 3).
        size_ratio: Its size over the float model's.
        seconds: How long it took to make; lowbit's includes its verification.
        engine: Whose kernels.
        error: Why there are no figures.
    """

    case: str
    bits: str
    method: str
    float_score: float
    score: float = 0.0
    sqnr_db: float = 0.0
    integer_kernels: int = 0
    share: float = 0.0
    size_ratio: float = 0.0
    seconds: float = 0.0
    engine: str = ""
    error: str = ""


def score_artifact(case: Case, path: Path, row: Row) -> Row:
    """Run an artifact on the test samples, in ONNX Runtime or, if it is an `.xml`, in OpenVINO."""
    from lowbit.runtime.kernels import read_kernels
    from lowbit.runtime.openvino_session import openvino_kernels, openvino_session

    exact = run_all(open_session(case.model), case.test)
    if path.suffix == ".xml":
        session = openvino_session(path, threads=1)
        found = [session.run(feed) for feed in case.test]
        kernels, engine = openvino_kernels(session), "OpenVINO"
    else:
        found = run_all(open_session(path), case.test)
        kernels, engine = read_kernels(path), "ONNX Runtime"
    return replace(
        row,
        score=case.metric(found),
        sqnr_db=sqnr_db(exact[:64], found[:64]),
        integer_kernels=kernels.integer_count(),
        share=stored_share(path, weight_count(case.model), bits=8 if row.bits in ("W8A8", "W6A8") else 4),
        size_ratio=file_size(path) / case.model.stat().st_size,
        engine=engine,
    )


def with_lowbit(case: Case, row: Row, *, seconds: float | None) -> Row:
    """Build and score one artifact of lowbit."""
    import lowbit

    options = {**_FORMATS[row.bits], **_METHODS[row.method]}
    if row.method == "lowbit best" and seconds is not None:
        options["time"] = seconds
    started = time.perf_counter()
    samples = list(case.calibration)
    result = lowbit.quantize(case.model, samples, test_data=samples[:8], measure_seconds=1.0, **options)
    took = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "artifact.onnx"
        result.save(path)
        return replace(score_artifact(case, path, row), seconds=took)


def with_peer(case: Case, peer: Peer, row: Row, *, cache: Path, timeout: float) -> Row:
    """Let another tool build an artifact and score it; an error becomes the row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_feeds(case.calibration, folder / "calibration")
        output = folder / f"artifact{peer.suffix}"
        try:
            cost = launch(
                peer,
                python=cache / peer.environment / "bin" / "python",
                model=case.model,
                calibration=folder / "calibration",
                output=output,
                timeout=timeout,
            )
            scored = isolated(partial(score_artifact, case, output, row))
        except (LaunchError, IsolationError) as error:
            return replace(row, error=str(error))
        return replace(scored, seconds=float(cost["seconds"]))


def measure(case: Case, row: Row, arguments: argparse.Namespace) -> Row | None:
    """Fill a row in; `None` where the method has nothing to do with these formats."""
    if row.method in _METHODS:
        return with_lowbit(case, row, seconds=arguments.time)
    if row.bits in FEW_BIT_PEERS[row.method]:
        peer = with_iterations(FEW_BIT_PEERS[row.method][row.bits], arguments.adaround_iterations)
        return with_peer(case, peer, row, cache=arguments.cache, timeout=arguments.timeout)
    reason = UNSUPPORTED.get(row.method, {}).get(row.bits)
    return None if reason is None else replace(row, error=f"no such call: {reason}")


def merged(rows: list[Row], row: Row) -> list[Row]:
    """Return the rows with one more, which takes the place of an earlier one for the same model, formats and method."""
    key = (row.case, row.bits, row.method)
    return sorted(
        [other for other in rows if (other.case, other.bits, other.method) != key] + [row],
        key=lambda each: (
            each.case,
            list(_FORMATS).index(each.bits),
            not each.method.startswith("lowbit"),
            each.method,
        ),
    )


def show(rows: list[Row], console: Console) -> None:
    """Print the table, and lowbit's best score beside that of the best tool that stores as many weights so small."""
    table = Table("model", "bits", "method", "score", "lost", "dB", "kernels", "weights", "size", "seconds", "engine")
    for row in rows:
        if row.error:
            table.add_row(row.case, row.bits, row.method, "none")
            continue
        table.add_row(
            row.case,
            row.bits,
            row.method,
            f"{row.score:.4f}",
            f"{100 * (row.float_score - row.score):+.2f}",
            f"{row.sqnr_db:.1f}",
            str(row.integer_kernels),
            f"{row.share:.0%}",
            f"{row.size_ratio:.3f}",
            f"{row.seconds:.0f}",
            row.engine,
        )
    console.print(table)
    for row in rows:
        if row.error:
            console.print(f"{row.case} {row.bits}, {row.method}: {escape(row.error)}")
    for case, bits in dict.fromkeys((row.case, row.bits) for row in rows):
        here = [r for r in rows if (r.case, r.bits) == (case, bits) and not r.error and r.share >= _COMPARABLE]
        ours = [row for row in here if row.method in _METHODS]
        theirs = [row for row in here if row.method not in _METHODS]
        if ours and theirs:
            first, second = (max(group, key=lambda row: (row.score, row.sqnr_db)) for group in (ours, theirs))
            console.print(
                f"{case} {bits}: {first.method} {first.score:.4f} ({first.sqnr_db:.1f} dB), "
                f"best of the others: {second.method} {second.score:.4f} ({second.sqnr_db:.1f} dB)"
            )


def _arguments() -> argparse.Namespace:
    methods = [*_METHODS, *FEW_BIT_PEERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["efficientnet_lite0", "ppocr_rec"])
    parser.add_argument("--formats", nargs="+", default=["W8A8", "W4A8", "W4A16"], choices=_FORMATS, metavar="NAME")
    parser.add_argument(
        "--only", nargs="*", default=[""], metavar="NAME", help=f"methods that begin so: {', '.join(methods)}"
    )
    parser.add_argument("--time", type=float, help="seconds that `best` may learn")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds that another tool may take")
    parser.add_argument("--adaround-iterations", type=int, default=ADAROUND_ITERATIONS, help="AIMET's, a layer")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of models and of the interpreters")
    parser.add_argument("--out", type=Path, help="merge the rows into this JSON file, after every one")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.cases) - set(LOADERS))
    if unknown:
        parser.error(f"no case is called {unknown[0]}: use {', '.join(LOADERS)}")
    arguments.methods = [name for name in methods if any(name.startswith(start) for start in arguments.only)]
    return arguments


def main() -> None:
    """Run the command line."""
    arguments = _arguments()
    console = Console()
    rows: list[Row] = []
    if arguments.out is not None and arguments.out.exists():
        rows = [Row(**entry) for entry in json.loads(arguments.out.read_text(encoding="utf-8"))]
    for name in arguments.cases:
        try:
            case = load_case(name, cache=arguments.cache)
        except ZooError as error:
            console.print(f"{name}: not run: {error}")
            continue
        score = isolated(lambda case=case: case.metric(run_all(open_session(case.model), case.test)))  # type: ignore[misc]
        for bits in arguments.formats:
            for method in arguments.methods:
                row = measure(case, Row(case=name, bits=bits, method=method, float_score=score), arguments)
                if row is None:
                    continue
                rows = merged(rows, row)
                Console(stderr=True).print(row)
                if arguments.out is not None:
                    arguments.out.write_text(json.dumps([asdict(r) for r in rows], indent=1), encoding="utf-8")
    show(rows, console)


if __name__ == "__main__":
    main()
