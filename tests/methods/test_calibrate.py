"""Calibration: what it watches, what it costs in memory, and what it says of data that are not numbers."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lowbit.exceptions import DataError
from lowbit.graph import clean, load_model, serialize
from lowbit.methods.calibrate import Watch, calibrate, observed_shapes
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NETWORK = (
    "g (float[1,8,9,9] x, float[16,8,3,3] w) => (float[1,16,7,7] y) { c = Conv(x, w)\n r = Relu(c)\n y = Tanh(r) }"
)


def test_it_sees_every_value_of_every_tensor(parse: Callable, noise: Callable) -> None:
    proto = parse(NETWORK)
    model = clean(load_model(proto)).model
    feeds = noise(proto, count=7)
    steps = []
    watch = Watch(tensors=("x", "r", "y"), means={"x": 1, "r": 1})
    seen = calibrate(model, feeds, watch, threads=1, advance=lambda: steps.append(1))
    assert seen.samples == len(steps) == 7
    assert set(seen.histograms) == {"x", "r", "y"}
    assert not any(node.outputs[0].name == "x__seen" for node in model.graph), "the model itself was changed"
    weight = next(iter(model.graph.initializers.values())).const_value.numpy()
    from lowbit.runtime.staging import with_outputs

    session = open_session(serialize(with_outputs(model, ("r",))), threads=1)
    inner = np.concatenate([session.run(feed, ["r"])[0] for feed in feeds])
    outer = np.concatenate([feed["x"] for feed in feeds])
    for name, array in (("x", outer), ("r", inner)):
        histogram = seen.histograms[name]
        assert histogram.count == array.size
        assert histogram.low == array.min()
        assert histogram.high == array.max()
        assert np.allclose(seen.means[name], array.mean(axis=(0, 2, 3), dtype=np.float64), atol=1e-6)
    assert weight.shape == (16, 8, 3, 3)


def test_a_tensor_that_becomes_nan_is_named(parse: Callable) -> None:
    proto = parse("g (float[1,4] x) => (float[1,4] y) { s = Sqrt(x)\n l = Log(x)\n y = Add(s, l) }")
    model = clean(load_model(proto)).model
    good, bad = np.full((1, 4), 2, np.float32), np.array([[1, 2, -1, 3]], np.float32)
    with pytest.raises(DataError, match=r"'s'.*sample 2"):
        calibrate(model, [{"x": good}, {"x": good}, {"x": bad}], Watch(tensors=("x", "s")), threads=1)
    zero = np.zeros((1, 4), np.float32)
    with pytest.raises(DataError, match=r"'l'.*sample 0"):
        calibrate(model, [{"x": zero}], Watch(tensors=("l",)), threads=1)


def test_no_samples_are_refused(parse: Callable) -> None:
    model = clean(load_model(parse(NETWORK))).model
    with pytest.raises(DataError, match="empty"):
        calibrate(model, [], Watch(tensors=("x",)), threads=1)


def test_memory_does_not_depend_on_the_number_of_samples(parse: Callable) -> None:
    proto = parse(
        "g (float[1,8,64,64] x, float[16,8,3,3] w) => (float[1,16,62,62] y) "
        "{ c = Conv(x, w)\n r = Relu(c)\n y = Tanh(r) }"
    )
    model = clean(load_model(proto)).model
    watch = Watch(tensors=("x", "c", "r", "y"), means={"x": 1})

    def feeds(count: int) -> Iterator[dict[str, np.ndarray]]:
        generator = np.random.default_rng(0)
        for _ in range(count):
            yield {"x": generator.standard_normal((1, 8, 64, 64), np.float32) * generator.uniform(0.5, 2)}

    def peak(count: int) -> int:
        tracemalloc.start()
        calibrate(model, feeds(count), watch, threads=1)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(3)  # what is imported on first use
    few, many = peak(5), peak(60)
    # One sample's tensors hold 0.85 MB: 55 of them kept would be 47 MB.
    assert many < few + 1_000_000


def test_shapes_are_those_of_the_sample(parse: Callable) -> None:
    proto = parse("g (float[N,8,H,9] x, float[16,8,3,3] w) => (float[N,16,A,7] y) { c = Conv(x, w)\n y = Relu(c) }")
    model = clean(load_model(proto)).model
    shapes = observed_shapes(model, {"x": np.zeros((3, 8, 11, 9), np.float32)}, threads=1)
    assert shapes["x"] == (3, 8, 11, 9)
    assert shapes["c"] == shapes["y"] == (3, 16, 9, 7)
