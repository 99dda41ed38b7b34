"""Where the time of an inference goes in OpenVINO: its own counters, read after every inference."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING

from lowbit.runtime.openvino_session import openvino_kernels, openvino_session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lowbit.runtime.kernels import Kernel
    from lowbit.runtime.session import Feed

__all__ = ["openvino_times"]

Times = tuple[list[tuple["Kernel", list[float]]], list[float]]
"""Every kernel with its times, and the times of whole inferences without counters, in nanoseconds."""


def openvino_times(
    models: Sequence[tuple[str | Path | bytes, Feed]],
    *,
    threads: int,
    seconds: float,
    least_runs: int,
    most_runs: int,
    advance: Callable[[], None],
) -> list[Times]:
    """Run several models in turn, inference by inference; see `lowbit.runtime.profile.profile_side_by_side`.

    Raises:
        EngineError: OpenVINO is not installed, or refuses a model.
    """
    plain = [openvino_session(model, threads=threads) for model, _ in models]
    traced = [openvino_session(model, threads=threads, profile=True) for model, _ in models]
    repeats = []
    for session, (_, feed) in zip(plain, models, strict=True):
        for _ in range(3):
            session.run(feed)
        start = time.perf_counter()
        session.run(feed)
        repeats.append(max(1, min(int(1e-3 / max(time.perf_counter() - start, 1e-7)), 50)))
    for session, (_, feed) in zip(traced, models, strict=True):
        session.run(feed)
    found: list[dict[str, list[float]]] = [defaultdict(list) for _ in models]
    whole: list[list[float]] = [[] for _ in models]
    rounds = 0
    deadline = time.perf_counter() + seconds
    while rounds < least_runs or (time.perf_counter() < deadline and rounds < most_runs):
        for index, (_, feed) in enumerate(models):
            start_ns = time.perf_counter_ns()
            for _ in range(repeats[index]):
                plain[index].run(feed)
            whole[index].append((time.perf_counter_ns() - start_ns) / repeats[index])
            traced[index].run(feed)
            for entry in traced[index].request.profiling_info:
                microseconds = entry.real_time.total_seconds() * 1e6
                if microseconds > 0:
                    found[index][entry.node_name].append(1e3 * microseconds)
        rounds += 1
        advance()
    results: list[Times] = []
    for session, times, totals in zip(traced, found, whole, strict=True):
        kernels = {kernel.name: kernel for kernel in openvino_kernels(session).kernels}
        results.append(([(kernels[name], values) for name, values in times.items() if name in kernels], totals))
    return results
