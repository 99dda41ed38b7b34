"""Latency and memory: what is measured is what happens, in the units that are promised."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest

from lowbit.exceptions import EngineError
from lowbit.runtime.memory import peak_memory_mb
from lowbit.runtime.timing import compare_latency

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Clock:
    """Time that passes only when a fake session runs."""

    now: float = 0.0
    order: list[str] = field(default_factory=list)


@dataclass
class Fake:
    """A session that takes a known time."""

    clock: Clock
    name: str
    seconds: list[float]
    feeds: list[object] = field(default_factory=list)

    def run(self, feed: object) -> None:
        self.feeds.append(feed)
        self.clock.order.append(self.name)
        self.clock.now += self.seconds[len(self.feeds) % len(self.seconds)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_ratios_and_medians(clock: Clock) -> None:
    slow, fast = Fake(clock, "slow", [0.004]), Fake(clock, "fast", [0.002])
    found = compare_latency(slow, fast, {}, threads=3, batch=4, seconds=1.0)  # type: ignore[arg-type]
    assert found.speedup == pytest.approx(2.0)
    assert found.speedup_low == pytest.approx(2.0)
    assert found.speedup_high == pytest.approx(2.0)
    assert found.float_ms == pytest.approx(4.0)
    assert found.artifact_ms == pytest.approx(2.0)
    assert (found.threads, found.batch) == (3, 4)
    assert found.pairs == pytest.approx(1.0 / 0.006, abs=2)


def test_each_takes_its_turn_to_be_first(clock: Clock) -> None:
    one, two = Fake(clock, "f", [0.003]), Fake(clock, "a", [0.003])
    compare_latency(one, two, {}, threads=1, seconds=0.0)  # type: ignore[arg-type]
    # After the warm-up and one run that finds out how long a run is.
    assert "".join(clock.order[7:]).startswith("faaffaaf")


def test_drift_hits_both_alike(clock: Clock) -> None:
    """The machine gets slower and slower: the ratio is still that of the models."""
    drift = [0.002 * 1.02**step for step in range(200)]
    slow, fast = Fake(clock, "slow", [3 * value for value in drift]), Fake(clock, "fast", drift)
    found = compare_latency(slow, fast, {}, threads=1, seconds=1.0)  # type: ignore[arg-type]
    assert found.speedup == pytest.approx(3.0, rel=0.05)


def test_an_outlier_does_not_move_the_median(clock: Clock) -> None:
    steady, hiccup = Fake(clock, "f", [0.002]), Fake(clock, "a", [0.002] * 9 + [0.5])
    found = compare_latency(steady, hiccup, {}, threads=1, seconds=1.0)  # type: ignore[arg-type]
    assert found.speedup == pytest.approx(1.0)


def test_short_runs_are_repeated_and_bounded(clock: Clock) -> None:
    one, two = Fake(clock, "f", [1e-5]), Fake(clock, "a", [1e-5])
    steps: list[int] = []
    found = compare_latency(one, two, {}, threads=1, seconds=60.0, most_pairs=40, advance=lambda: steps.append(1))  # type: ignore[arg-type]
    assert found.pairs == len(steps) == 40
    assert found.float_ms == pytest.approx(0.01)
    # Each time is that of about a millisecond.
    assert len(one.feeds) == pytest.approx(40 * 100, rel=0.05)


def test_a_coded_artifact_gets_its_own_feed(clock: Clock) -> None:
    one, two = Fake(clock, "f", [0.002]), Fake(clock, "a", [0.002])
    compare_latency(one, two, "floats", "codes", threads=1, seconds=0.0)  # type: ignore[arg-type]
    assert set(one.feeds) == {"floats"}
    assert set(two.feeds) == {"codes"}


def write_model(path: Path, megabytes: int) -> None:
    text = "g (float[1,1000] x, float[1000,N] w) => (float[1,N] y) { y = MatMul(x, w) }"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    del proto.graph.input[1]
    weight = np.random.default_rng(0).standard_normal((1000, megabytes * 250), np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, path)


def test_peak_memory_grows_with_the_weights_and_not_with_this_process(tmp_path: Path) -> None:
    write_model(tmp_path / "small.onnx", 1)
    write_model(tmp_path / "large.onnx", 60)
    feed = {"x": np.zeros((1, 1000), np.float32)}
    ballast = np.ones(30_000_000, np.float32)  # 120 MB here must not count there
    small, large = (peak_memory_mb(tmp_path / name, feed, threads=1) for name in ("small.onnx", "large.onnx"))
    assert ballast.size
    assert 0 < small < 60
    assert large - small > 55
    assert large < 400


def test_a_failed_measurement_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="memory measurement failed"):
        peak_memory_mb(tmp_path / "nothing.onnx", {"x": np.zeros(1, np.float32)}, threads=1)
