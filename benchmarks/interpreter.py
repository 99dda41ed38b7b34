"""The interpreter's forward beside ONNX Runtime's, float, in interleaved pairs.

    python -m benchmarks.interpreter MODEL [--batch 8] [--threads 2] [--pairs 21]

Prints both medians and the median of the pairs' ratios, with its quartiles. The workers of both wait without spinning,
so that neither steals time from the other, and other work on the machine does not decide the comparison.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def seconds(run: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(path: Path, *, batch: int, threads: int, pairs: int) -> None:
    """Time both engines on one random batch and print the comparison."""
    # Read by the OpenMP library when it is loaded. lowbit's sessions of ONNX Runtime do not spin by themselves.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    from lowbit.graph import clean, load_model, serialize
    from lowbit.interpreter import to_torch
    from lowbit.runtime.session import open_session

    torch.set_num_threads(threads)
    model = clean(load_model(path)).model
    value = model.graph.inputs[0]
    assert value.shape is not None
    shape = [size if isinstance(size, int) else batch for size in value.shape]
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    session, module, tensor = (
        open_session(serialize(model), threads=threads),
        to_torch(model).eval(),
        torch.tensor(array),
    )
    feed = {str(value.name): array}

    def interpreted() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return module(tensor)

    for _ in range(3):
        expected, found = session.run(feed)[0], interpreted()[0].numpy()
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    times = [(seconds(interpreted), seconds(lambda: session.run(feed))) for _ in range(pairs)]
    ours, theirs = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    low, middle, high = statistics.quantiles([one / other for one, other in times], n=4)
    print(f"{path.name}, batch {batch}, {threads} threads, {pairs} pairs; outputs differ by {error:.1e} of their range")
    print(f"interpreter {ours:.1f} ms, ONNX Runtime {theirs:.1f} ms, ratio {middle:.2f} ({low:.2f} to {high:.2f})")


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description="The interpreter's forward beside ONNX Runtime's")
    parser.add_argument("model", type=Path, help="an ONNX file with one input")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=21)
    given = parser.parse_args()
    measure(given.model, batch=given.batch, threads=given.threads, pairs=given.pairs)


if __name__ == "__main__":
    main()
