"""What fewer bits cost on trained models: the score of the task by weight format, activation format and method.

Every artifact is built on the case's calibration samples and scored on its test samples, in the engine's own kernels.
`minmax` is rounding to nearest over the full range of the weights, what most tools do; `best` is `--method best`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.engine import open_session, run_all, sqnr_db
from benchmarks.zoo import DEFAULT_CACHE, LOADERS, ZooError, load_case

if TYPE_CHECKING:
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
    "minmax": {"rounding": "nearest", "calibration": "minmax", "bias_correction": False},
    "gptq": {"rounding": "gptq", "weight_range": "mse"},
    "best": {"method": "best"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One artifact.

    Attributes:
        case: Name of the model.
        bits: Formats of weights and activations, e.g. `W4A8`.
        method: How it was made.
        float_score: The float model's score.
        score: The artifact's, in the engine's own kernels.
        sqnr_db: SQNR of its first output over the first 64 test samples.
        integer_kernels: How many integer kernels the engine runs it with.
        size_ratio: Its size over the float model's.
        seconds: How long it took to make, verification included.
    """

    case: str
    bits: str
    method: str
    float_score: float
    score: float
    sqnr_db: float
    integer_kernels: int
    size_ratio: float
    seconds: float


def measure(case: Case, bits: str, method: str, *, seconds: float | None) -> Row:
    """Build and score one artifact."""
    import lowbit

    options = {**_FORMATS[bits], **_METHODS[method]}
    if method == "best" and seconds is not None:
        options["time"] = seconds
    started = time.perf_counter()
    result = lowbit.quantize(
        case.model, list(case.calibration), test_data=list(case.calibration)[:8], measure_seconds=0.0, **options
    )
    took = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "artifact.onnx"
        result.save(path)
        exact = run_all(open_session(case.model), case.test)
        found = run_all(open_session(path), case.test)
        size = path.stat().st_size / case.model.stat().st_size
    return Row(
        case=case.name,
        bits=bits,
        method=method,
        float_score=case.metric(exact),
        score=case.metric(found),
        sqnr_db=sqnr_db(exact[:64], found[:64]),
        integer_kernels=result.verification.integer_kernels,
        size_ratio=size,
        seconds=took,
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["efficientnet_lite0", "keyword_spotting_float", "ppocr_rec"])
    parser.add_argument("--formats", nargs="+", default=list(_FORMATS), choices=_FORMATS, metavar="NAME")
    parser.add_argument("--methods", nargs="+", default=list(_METHODS), choices=_METHODS, metavar="NAME")
    parser.add_argument("--time", type=float, help="seconds that `best` may learn")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for models built on first use")
    parser.add_argument("--out", type=Path, help="write the rows as JSON, after every one")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.cases) - set(LOADERS))
    if unknown:
        parser.error(f"no case is called {unknown[0]}: use {', '.join(LOADERS)}")
    console = Console()
    rows: list[Row] = []
    for name in arguments.cases:
        try:
            case = load_case(name, cache=arguments.cache)
        except ZooError as error:
            console.print(f"{name}: not run: {error}")
            continue
        for bits in arguments.formats:
            for method in arguments.methods:
                rows.append(measure(case, bits, method, seconds=arguments.time))
                console.print(rows[-1])
                if arguments.out is not None:
                    arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    table = Table("model", "bits", "method", "float", "score", "lost", "dB", "integer kernels", "size", "seconds")
    for row in rows:
        table.add_row(
            row.case,
            row.bits,
            row.method,
            f"{row.float_score:.4f}",
            f"{row.score:.4f}",
            f"{100 * (row.float_score - row.score):+.2f}",
            f"{row.sqnr_db:.1f}",
            str(row.integer_kernels),
            f"{row.size_ratio:.3f}",
            f"{row.seconds:.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
