"""MSE ranges against brute force over the real quantization of the real samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit.statistics import (
    Grid,
    Histogram,
    Range,
    histogram_init,
    histogram_update,
    minmax_range,
    mse_range,
    rounding_error,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

rng = np.random.default_rng(0)
N = 10_000
TWO_SIDED = {
    "normal": rng.standard_normal(N),
    "laplace": rng.laplace(size=N),
    "student": rng.standard_t(3, N),
    "skewed": np.concatenate([0.1 * rng.standard_normal(N // 2), rng.exponential(size=N // 2)]),
    "hard-swish": (wide := 2 * rng.standard_normal(N)) * np.clip(wide + 3, 0, 6) / 6,
}
ONE_SIDED = {
    "relu": np.maximum(rng.standard_normal(N), 0.0),
    "exponential": rng.exponential(size=N),
    "lognormal": rng.lognormal(size=N),
    "negative": -rng.exponential(size=N),
}
PILED_UP = {
    "clipped below": np.maximum(rng.standard_normal(N), -1.0),
    "hard-tanh": np.clip(3 * rng.standard_normal(N) + 0.5, -1.0, 1.3),
    "relu6": np.clip(4 * rng.standard_normal(N), 0.0, 6.0),
}
EVERYTHING = TWO_SIDED | ONE_SIDED | PILED_UP
LONG_TAILED = ["laplace", "student", "skewed", "exponential", "lognormal", "negative"]


def observed(data: np.ndarray) -> Histogram:
    return histogram_update(histogram_init(), data)


def true_error(data: np.ndarray, found: Range, codes: int, symmetric: bool = False) -> float:
    """Quantize and dequantize as ONNX does, in float64, and measure."""
    if symmetric:
        scale = found.high / (codes // 2 - 1)
        first, last = -(codes // 2), codes // 2 - 1
    else:
        scale = (found.high - found.low) / (codes - 1)
        zero_point = np.clip(np.rint(-found.low / scale), 0, codes - 1)
        first, last = -zero_point, codes - 1 - zero_point
    return float(np.mean((np.clip(np.rint(data / scale), first, last) * scale - data) ** 2))


def candidates(data: np.ndarray, symmetric: bool) -> Iterator[Range]:
    fine = np.geomspace(0.02, 1.0, 160)
    wide = np.geomspace(0.02, 1.0, 40)
    low, high = min(data.min(), 0.0), max(data.max(), 0.0)
    if symmetric:
        yield from (Range.covering(0.0, max(-low, high) * f, symmetric=True) for f in fine)
    elif low == 0.0 or high == 0.0:
        yield from (Range(low=low * f, high=high * f) for f in fine)
    else:
        yield from (Range(low=low * f, high=high * g) for f in wide for g in wide)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("codes", [4, 16, 256])
@pytest.mark.parametrize("name", EVERYTHING)
def test_as_good_as_brute_force_on_the_samples(name: str, codes: int, symmetric: bool) -> None:
    data = EVERYTHING[name].astype(np.float32).astype(np.float64)
    found = mse_range(observed(data), codes, symmetric)
    best = min(true_error(data, candidate, codes, symmetric) for candidate in candidates(data, symmetric))
    assert true_error(data, found, codes, symmetric) <= 1.02 * best


@pytest.mark.parametrize(("codes", "margin"), [(16, 0.75), (256, 1.0)])
@pytest.mark.parametrize("name", LONG_TAILED)
def test_long_tails_are_clipped_to_advantage(name: str, codes: int, margin: float) -> None:
    data = EVERYTHING[name].astype(np.float32)
    h = observed(data)
    found, everything = mse_range(h, codes), minmax_range(h)
    assert found.high - found.low < margin * (everything.high - everything.low)
    assert true_error(data, found, codes) < margin * true_error(data, everything, codes)


def test_uniform_data_are_not_clipped() -> None:
    h = observed(rng.random(N))
    assert mse_range(h, 256).high == pytest.approx(h.high, rel=0.01)


@pytest.mark.parametrize("name", [*TWO_SIDED, *ONE_SIDED])
def test_fewer_codes_take_a_shorter_range(name: str) -> None:
    h = observed(EVERYTHING[name])
    wide, narrow = mse_range(h, 256), mse_range(h, 16)
    assert narrow.high - narrow.low < 0.95 * (wide.high - wide.low)


@pytest.mark.parametrize("codes", [3, 16, 256])
@pytest.mark.parametrize("stretch", [0.01, 0.1, 1.0, 3.0])
def test_the_measure_integrates_a_density_that_is_constant_in_each_bin(codes: int, stretch: float) -> None:
    h = histogram_update(histogram_init(bins=256), TWO_SIDED["laplace"])
    grid = Grid.spanning(h.low * stretch, h.high * stretch, codes)
    points = np.repeat(h.edges()[:-1], 2000) + np.tile((np.arange(2000) + 0.5) / 2000, h.counts.size) * h.width
    error = (np.clip(np.rint(points / grid.scale), grid.first, grid.last) * grid.scale - points) ** 2
    expected = float(np.repeat(h.counts, 2000) @ error) / 2000 / h.count
    assert rounding_error(h, grid) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", [*TWO_SIDED, *ONE_SIDED])
def test_the_measure_predicts_the_error_of_the_samples(name: str) -> None:
    data = EVERYTHING[name].astype(np.float32).astype(np.float64)
    h = observed(data)
    for codes in (16, 256):
        found = mse_range(h, codes)
        predicted = rounding_error(h, Grid.spanning(found.low, found.high, codes))
        assert predicted == pytest.approx(true_error(data, found, codes), rel=0.03)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    data=hnp.arrays(
        np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    ),
    codes=st.sampled_from([3, 4, 15, 16, 256]),
    symmetric=st.booleans(),
)
def test_never_worse_than_minmax_by_its_own_measure(data: np.ndarray, codes: int, symmetric: bool) -> None:
    h = observed(data)
    found, everything = mse_range(h, codes, symmetric), minmax_range(h, symmetric=symmetric)
    if everything.low == everything.high:
        assert found == everything
        return
    ours, theirs = (
        Grid.around_zero(r.high, codes) if symmetric else Grid.spanning(r.low, r.high, codes)
        for r in (found, everything)
    )
    assert rounding_error(h, ours) <= rounding_error(h, theirs) * (1 + 1e-6)


def test_the_grid_hits_the_pile_of_a_clipped_activation() -> None:
    h = observed(PILED_UP["clipped below"])
    found = mse_range(h, 256)
    steps = h.low / ((found.high - found.low) / 255)
    assert steps == pytest.approx(round(steps), abs=1e-6)


def test_exact_zeros_do_not_count() -> None:
    half = ONE_SIDED["exponential"]
    with_spike = np.concatenate([half, np.zeros(10 * N)])
    assert mse_range(observed(half), 16) == mse_range(observed(with_spike), 16)


def test_ends_lie_on_the_grid() -> None:
    for codes in (16, 256):
        found = mse_range(observed(TWO_SIDED["skewed"]), codes)
        zero_point = -found.low / (found.high - found.low) * (codes - 1)
        assert zero_point == pytest.approx(round(zero_point), abs=1e-9)


def test_range_scales_with_the_data() -> None:
    data = TWO_SIDED["student"].astype(np.float32)
    base = mse_range(observed(data), 16)
    for exponent in (-80, 100):
        scaled = mse_range(observed(np.ldexp(data, exponent)), 16)
        assert (scaled.low, scaled.high) == (np.ldexp(base.low, exponent), np.ldexp(base.high, exponent))
