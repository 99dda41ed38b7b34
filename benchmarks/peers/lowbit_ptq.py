"""Quantize with lowbit; without options: with its defaults."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.feeds import FeedFolder
from benchmarks.peers.quantizer import parser, run

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator


def quantize(arguments: argparse.Namespace, feeds: FeedFolder) -> dict[str, Any]:
    """Quantize the model for this machine; tell how long each stage took."""
    import lowbit

    stages: dict[str, float] = {}

    @contextmanager
    def timed(title: str, steps: int | None) -> Iterator[Callable[[], None]]:
        del steps
        start = time.perf_counter()
        yield lambda: None
        stages[title] = stages.get(title, 0.0) + time.perf_counter() - start

    options: dict[str, Any] = {}
    if arguments.calibrate is not None:
        options["calibration"] = arguments.calibrate
    if arguments.test is not None:
        options["test_data"] = FeedFolder(arguments.test)
    result = lowbit.quantize(arguments.model, data=feeds, target=arguments.target, seed=0, stages=timed, **options)
    result.save(arguments.output)
    found = {"stages": stages, "method": result.plan.method, "warnings": list(result.warnings)}
    measured = result.verification
    found["planned_integer"] = len(measured.contract)
    found["fused_integer"] = sum(row.integer for row in measured.contract)
    if measured.prediction is not None and measured.timeline:
        # The prediction is of the cleaned model's operators, which the timeline has measured in one run with float's.
        took = sum(row.artifact_us for row in measured.timeline) / 1e3
        found["predicted_ratio"] = measured.prediction.artifact_ms / took
        if measured.prediction.corrected_ms is not None:
            found["corrected_ratio"] = measured.prediction.corrected_ms / took
    return found


def main() -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--target", default="host")
    arguments.add_argument("--calibrate", choices=("minmax", "percentile", "mse", "entropy"))
    arguments.add_argument("--test", type=Path, help="folder of feeds for verification; default: a part of calibration")
    run(quantize, arguments.parse_args())


if __name__ == "__main__":
    main()
