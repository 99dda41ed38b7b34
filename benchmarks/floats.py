"""float16, bfloat16 and float8 files beside the float32 model: size, agreement, score and latency, in one run.

`python -m benchmarks.floats [CASE …]` prints a table. `computed` lets everything run in float16 that is not guarded;
`stored` keeps the weights so and computes in float32. The speed-up is the median of interleaved pairs, one thread.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import lowbit
from benchmarks.accuracy import float_score, measure
from benchmarks.zoo import Case, load_case
from lowbit.exceptions import LowbitError
from lowbit.graph import model_size

if TYPE_CHECKING:
    from collections.abc import Iterator

CASES = ("efficientnet_lite0", "keyword_spotting_float", "resnet8_cifar10", "ppocr_rec", "minilm")
RECIPES = {
    "float16 computed": {"weights": "float16", "activations": "float16"},
    "float16 stored": {"weights": "float16", "activations": "none"},
    "bfloat16 stored": {"weights": "bfloat16", "activations": "none"},
    "float8_e4m3 stored": {"weights": "float8_e4m3:per-channel", "activations": "none"},
    "float8_e5m2 stored": {"weights": "float8_e5m2:per-channel", "activations": "none"},
}
_CALIBRATION = 50


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--samples", type=int, default=64, help="test samples for the SQNR")
    parser.add_argument("--seconds", type=float, default=3.0, help="for the latency of one file")
    arguments = parser.parse_args()
    titles = ["case", "file", "size", "dB", "score", "speed-up", "operators in float32"]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}", flush=True)
    for name in arguments.cases:
        case = load_case(name)
        for row in _rows(case, arguments.samples, arguments.seconds):
            print(f"| {' | '.join(row)} |", flush=True)


def _rows(case: Case, samples: int, seconds: float) -> Iterator[list[str]]:
    yield [case.name, "float32", "1.00", "", f"{float_score(case):.4f}", "1.00", ""]
    whole = model_size(case.model)
    with tempfile.TemporaryDirectory(prefix="lowbit-floats-") as folder:
        for label, recipe in RECIPES.items():
            path = Path(folder) / "artifact.onnx"
            try:
                result = lowbit.quantize(case.model, data=case.calibration[:_CALIBRATION], measure_seconds=0, **recipe)
                result.save(path)
                found = measure(case, path, samples=samples, seconds=seconds)
            except (LowbitError, ValueError) as error:
                yield [case.name, label, *[""] * 4, str(error)]
                continue
            kept = Counter(site.op_type for site in result.plan.sites if site.execution == "float")
            guarded = ", ".join(f"{count} {kind}" for kind, count in kept.most_common())
            yield [
                case.name,
                label,
                f"{model_size(path) / whole:.2f}",
                f"{found.sqnr_real_db:.1f}",
                f"{found.score:.4f}",
                f"{found.speedup:.2f}",
                guarded if "computed" in label else "",
            ]


if __name__ == "__main__":
    main()
