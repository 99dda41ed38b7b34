"""Where the time of an inference goes: every kernel of the engine's own graph, timed inside the running model."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.runtime.kernels import Kernel, load_optimized
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowbit.runtime.session import Feed, Session

__all__ = ["Profile", "TimedKernel", "profile_side_by_side"]

# Operators whose time contains the time of their subgraphs' kernels, which are reported as well.
_CONTAINERS = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_SMALLEST_NS = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedKernel:
    """One kernel and its time in one inference, in nanoseconds."""

    kernel: Kernel
    ns: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One model in one engine.

    Attributes:
        kernels: Every kernel that ran, in execution order; their times add up to `whole_ns`.
        whole_ns: Median time of an inference without the profiler, in nanoseconds.
        spread: Distance between the quartiles of that time over its median: how much the machine was disturbed.
        runs: Number of inferences behind the medians.
    """

    kernels: tuple[TimedKernel, ...]
    whole_ns: float
    spread: float
    runs: int


def profile_side_by_side(
    models: Sequence[tuple[str | Path | bytes, Feed]],
    *,
    threads: int = 1,
    seconds: float = 2.0,
    least_runs: int = 6,
    most_runs: int = 80,
    engine: str = "onnxruntime",
    advance: Callable[[], None] = lambda: None,
) -> tuple[Profile, ...]:
    """Profile several models in turn, inference by inference, so that drift of the machine's speed hits all alike.

    A profiler adds a few microseconds to every kernel. What it adds is measured on the whole model, which also runs
    without it, and taken off.

    Args:
        models: ONNX files or serialized models, each with one set of inputs.
        threads: Threads of the engine.
        seconds: How long to measure in total, after a warm-up.
        least_runs: Lower bound on the inferences of each model, whatever it takes.
        most_runs: Upper bound.
        engine: The engine to measure.
        advance: Called after every round.

    Raises:
        EngineError: The engine refuses a model.
    """
    if engine == "openvino":
        from lowbit.runtime.openvino_profile import openvino_times

        found = openvino_times(
            models,
            threads=threads,
            seconds=seconds,
            least_runs=least_runs,
            most_runs=most_runs,
            advance=advance,
        )
        return tuple(
            _assembled([(kernel, _typical(times)) for kernel, times in kernels], whole) for kernels, whole in found
        )
    with tempfile.TemporaryDirectory(prefix="lowbit-") as text:
        folder = Path(text)
        plain: list[Session] = []
        traced: list[Session] = []
        for index, (model, _) in enumerate(models):
            plain.append(open_session(model, threads=threads))
            traced.append(
                open_session(
                    model,
                    threads=threads,
                    optimized_path=folder / f"{index}.onnx",
                    profile_prefix=folder / f"{index}",
                    options={
                        "session.optimized_model_external_initializers_file_name": f"{index}.bin",
                        "session.optimized_model_external_initializers_min_size_in_bytes": "64",
                    },
                )
            )
        for (_, feed), session in zip(models, plain, strict=True):
            for _ in range(2):
                session.run(feed)
        repeats = [_repeats(session, feed) for (_, feed), session in zip(models, plain, strict=True)]
        whole: list[list[float]] = [[] for _ in models]
        rounds = 0
        deadline = time.perf_counter() + seconds
        while rounds < least_runs or (time.perf_counter() < deadline and rounds < most_runs):
            for index, (_, feed) in enumerate(models):
                start = time.perf_counter_ns()
                for _ in range(repeats[index]):
                    plain[index].run(feed)
                whole[index].append((time.perf_counter_ns() - start) / repeats[index])
                for _ in range(min(repeats[index], 3)):
                    traced[index].run(feed)
            rounds += 1
            advance()
        profiles = []
        for index, session in enumerate(traced):
            events = json.loads(Path(session.engine.end_profiling()).read_text(encoding="utf-8"))
            profiles.append(_profile(events, load_optimized(folder / f"{index}.onnx"), whole[index]))
    return tuple(profiles)


def _repeats(session: Session, feed: Feed) -> int:
    """Return how many inferences make one time of at least a millisecond."""
    start = time.perf_counter()
    session.run(feed)
    return max(1, min(int(1e-3 / max(time.perf_counter() - start, 1e-7)), 50))


def _typical(durations: Sequence[float]) -> float:
    """Return the mean of the middle half: the profiler counts whole microseconds, which a median would keep."""
    low, high = np.percentile(durations, [25, 75])
    return float(np.mean([value for value in durations if low <= value <= high]))


def _profile(events: list[dict[str, object]], kernels: Sequence[Kernel], whole: list[float]) -> Profile:
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    sessions_runs = 0
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Session" and name == "model_run":
            sessions_runs += 1
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        arguments = event["args"]
        duration = event["dur"]
        assert isinstance(arguments, dict)
        assert isinstance(duration, (int, float))
        operator = str(arguments["op_name"])
        if operator not in _CONTAINERS:
            times[name.removesuffix("_kernel_time"), operator].append(1e3 * float(duration))
    by_name = {(kernel.name, kernel.op_type): kernel for kernel in kernels}
    timed = []
    for (name, operator), durations in times.items():
        kernel = by_name.get((name, operator)) or Kernel(op_type=operator, name=name, inputs=(), outputs=())
        # A kernel in a loop or a branch runs more often or less often than the model: its share of one inference.
        share = len(durations) / max(sessions_runs, 1)
        timed.append((kernel, _typical(durations) * share))
    return _assembled(timed, whole)


def _assembled(timed: Sequence[tuple[Kernel, float]], whole: Sequence[float]) -> Profile:
    """Return a profile whose kernels take together what the model takes without a profiler."""
    low, median, high = np.percentile(whole, [25, 50, 75])
    excess = (sum(ns for _, ns in timed) - median) / max(len(timed), 1)
    corrected = [max(ns - excess, _SMALLEST_NS) for _, ns in timed]
    # Where a kernel is shorter than the profiler's own time the floor above leaves too much: scale the rest.
    factor = median / max(sum(corrected), 1.0)
    return Profile(
        kernels=tuple(
            TimedKernel(kernel=kernel, ns=float(ns * factor)) for (kernel, _), ns in zip(timed, corrected, strict=True)
        ),
        whole_ns=float(median),
        spread=float((high - low) / median) if median else 0.0,
        runs=len(whole),
    )
