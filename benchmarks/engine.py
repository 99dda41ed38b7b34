"""ONNX Runtime as the benchmarks use it: one thread, real kernels or simulated, and latency in interleaved pairs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from benchmarks.zoo.case import Array, Feed, Outputs

__all__ = ["PairedLatency", "open_session", "paired_latency", "run_all", "sqnr_db"]


def open_session(model: Path, *, simulated: bool = False) -> Any:
    """Open a model on the CPU provider with one thread.

    Args:
        model: ONNX file.
        simulated: Whether to turn all graph optimizations off, so that Q/DQ pairs compute in float.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if simulated:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def run_all(session: Any, feeds: Iterable[Feed]) -> list[list[Array]]:
    """Return the outputs of every feed."""
    return [session.run(None, feed) for feed in feeds]


def sqnr_db(reference: Outputs, outputs: Outputs) -> float:
    """Return the signal to quantization noise ratio of the first output, in decibel, over all samples.

    Args:
        reference: The float model's outputs.
        outputs: The model's under test.

    Raises:
        ValueError: The outputs hold NaN or infinity.
    """
    signal = noise = 0.0
    for expected, actual in zip(reference, outputs, strict=True):
        exact = np.asarray(expected[0], dtype=np.float64)
        error = exact - np.asarray(actual[0], dtype=np.float64)
        if not np.isfinite(error).all():
            raise ValueError("the model's output holds NaN or infinity")
        signal += float(np.sum(exact * exact))
        noise += float(np.sum(error * error))
    if noise == 0.0:
        return float("inf")
    return 10.0 * float(np.log10(signal / noise)) if signal else float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedLatency:
    """Latency of two models that were run in turn, in one process.

    Attributes:
        first_ms: Median of the first model, in milliseconds.
        second_ms: Median of the second.
        speedup: Median of the ratios first / second of each pair; above 1 means that the second is faster.
        pairs: Number of pairs.
    """

    first_ms: float
    second_ms: float
    speedup: float
    pairs: int


def paired_latency(
    first: Any, second: Any, feed: Feed, *, seconds: float = 1.0, minimum_pairs: int = 30
) -> PairedLatency:
    """Time two sessions in interleaved pairs, at least `seconds` long and `minimum_pairs` many.

    Which one of a pair runs first alternates: the second finds warmer caches and a higher clock.
    """
    for session in (first, second):
        for _ in range(5):
            session.run(None, feed)
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(times) < minimum_pairs or time.perf_counter() - start < seconds:
        order: Sequence[int] = (0, 1) if len(times) % 2 == 0 else (1, 0)
        pair = [0.0, 0.0]
        for index in order:
            session = (first, second)[index]
            begin = time.perf_counter()
            session.run(None, feed)
            pair[index] = time.perf_counter() - begin
        times.append((pair[0], pair[1]))
    table = np.array(times)
    first_ms, second_ms = np.median(table, axis=0) * 1e3
    return PairedLatency(
        first_ms=float(first_ms),
        second_ms=float(second_ms),
        speedup=float(np.median(table[:, 0] / table[:, 1])),
        pairs=len(times),
    )
