"""Percentile ranges against NumPy's percentiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit.statistics import histogram_init, histogram_update, minmax_range, percentile_range, quantile

rng = np.random.default_rng(0)
N = 50_000
TWO_SIDED = {
    "normal": rng.standard_normal(N),
    "student": rng.standard_t(2, N),
    "skewed": rng.exponential(size=N) - 0.3,
    "sparse": np.where(rng.random(N) < 0.9, 0.0, rng.standard_normal(N)),
    "few": np.array([-3.0, -1.0, 2.0, 50.0]),
}


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.99, 100.0])
@pytest.mark.parametrize("name", TWO_SIDED)
def test_two_sided_data_lose_half_of_the_rest_at_each_end(name: str, percentile: float) -> None:
    data = TWO_SIDED[name].astype(np.float32)
    h = histogram_update(histogram_init(), data)
    found = percentile_range(h, percentile)
    rest = (100.0 - percentile) / 2.0
    low, high = np.percentile(data.astype(np.float64), [rest, 100.0 - rest])
    assert found.low == pytest.approx(min(low, 0.0), abs=h.width)
    assert found.high == pytest.approx(max(high, 0.0), abs=h.width)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.99, 100.0])
def test_one_sided_data_lose_the_far_end_only(percentile: float, sign: float) -> None:
    data = (sign * np.maximum(TWO_SIDED["normal"], 0.0)).astype(np.float32)
    h = histogram_update(histogram_init(), data)
    found = percentile_range(h, percentile)
    far = np.percentile(np.abs(data.astype(np.float64)), percentile)
    assert (found.high if sign > 0 else -found.low) == pytest.approx(far, abs=h.width)
    assert (found.low if sign > 0 else found.high) == 0.0


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    data=hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e6, 1e6, width=32)),
    fraction=st.floats(0.0, 1.0),
)
def test_quantiles_are_within_one_bin_and_inside_the_data(data: np.ndarray, fraction: float) -> None:
    h = histogram_update(histogram_init(bins=64), data)
    found = quantile(h, fraction)
    assert found == pytest.approx(np.quantile(data.astype(np.float64), fraction), abs=h.width * (1 + 1e-9))
    assert h.low <= found <= h.high


def test_a_spike_of_exact_zeros_stays_zero() -> None:
    data = np.concatenate([np.zeros(9_000), np.linspace(0.001, 100.0, 1_000)]).astype(np.float32)
    h = histogram_update(histogram_init(bins=16), data)
    assert quantile(h, 0.89) == 0.0
    assert quantile(h, 0.905) == pytest.approx(np.quantile(data.astype(np.float64), 0.905), abs=h.width)
    assert quantile(h, 0.905) > 0.0


def test_percentile_cuts_the_outlier_that_minmax_keeps() -> None:
    data = np.append(TWO_SIDED["normal"], 1e4).astype(np.float32)
    h = histogram_update(histogram_init(), data)
    assert minmax_range(h).high == 1e4
    assert percentile_range(h, 99.9).high < 10.0


def test_symmetric_takes_the_longer_side() -> None:
    h = histogram_update(histogram_init(), TWO_SIDED["skewed"])
    plain, mirrored = percentile_range(h, 99.0), percentile_range(h, 99.0, symmetric=True)
    assert -mirrored.low == mirrored.high == plain.high
