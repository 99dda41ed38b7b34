"""Latency of two models, measured side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.runtime.engines import Runner
    from lowbit.runtime.session import Feed

__all__ = ["Latency", "compare_latency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Latency of one inference, float and artifact run in interleaved pairs in one process.

    Attributes:
        float_ms: Median of the float model, in milliseconds.
        artifact_ms: Median of the artifact, in milliseconds.
        speedup: Median of the pairwise ratios float / artifact; above 1 means faster than float.
        speedup_low: 25th percentile of the ratios.
        speedup_high: 75th percentile of the ratios.
        pairs: Number of pairs.
        threads: Threads that the engine was given.
        batch: Number of samples in each inference.
    """

    float_ms: float
    artifact_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    pairs: int
    threads: int
    batch: int = 1


def compare_latency(
    reference: Runner,
    artifact: Runner,
    feed: Feed,
    artifact_feed: Feed | None = None,
    *,
    threads: int,
    batch: int = 1,
    seconds: float = 2.0,
    least_pairs: int = 15,
    most_pairs: int = 400,
    advance: Callable[[], None] = lambda: None,
) -> Latency:
    """Time two loaded models in interleaved pairs, so that drift of the machine's speed hits both alike.

    Every time is one inference, or several in a row where one takes less than a millisecond. Which of the two runs
    first alternates from pair to pair.

    Args:
        reference: The float model.
        artifact: The compressed model.
        feed: One set of inputs for both.
        artifact_feed: The same as the artifact takes it, where that differs.
        threads: Threads that both engines were given, for the record.
        batch: Number of samples in `feed`, for the record.
        seconds: How long to measure, after a warm-up.
        least_pairs: Lower bound on the number of pairs, whatever it takes.
        most_pairs: Upper bound.
        advance: Called after every pair.
    """
    coded = feed if artifact_feed is None else artifact_feed
    for _ in range(3):
        reference.run(feed)
        artifact.run(coded)
    start = time.perf_counter()
    reference.run(feed)
    repeats = max(1, int(1e-3 / max(time.perf_counter() - start, 1e-7)))
    pairs: list[tuple[float, float]] = []
    deadline = time.perf_counter() + seconds
    while len(pairs) < least_pairs or (time.perf_counter() < deadline and len(pairs) < most_pairs):
        if len(pairs) % 2:
            second = _time(artifact, coded, repeats)
            first = _time(reference, feed, repeats)
        else:
            first = _time(reference, feed, repeats)
            second = _time(artifact, coded, repeats)
        pairs.append((first, second))
        advance()
    times = np.asarray(pairs)
    low, median, high = np.percentile(times[:, 0] / times[:, 1], [25, 50, 75])
    return Latency(
        float_ms=float(np.median(times[:, 0]) * 1e3),
        artifact_ms=float(np.median(times[:, 1]) * 1e3),
        speedup=float(median),
        speedup_low=float(low),
        speedup_high=float(high),
        pairs=len(pairs),
        threads=threads,
        batch=batch,
    )


def _time(session: Runner, feed: Feed, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        session.run(feed)
    return (time.perf_counter() - start) / repeats
