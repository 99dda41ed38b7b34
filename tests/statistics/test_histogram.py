"""Histogram bins are exact, canonical, and agree with NumPy's."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit.statistics import histogram_init, histogram_merge, histogram_update

EXTREMES = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 16777216.0, -1.0]
vectors = hnp.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(EXTREMES),
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(vector=vectors, bins=st.sampled_from([2, 3, 16, 1000]))
def test_every_value_is_in_its_bin_by_exact_arithmetic(vector: np.ndarray, bins: int) -> None:
    h = histogram_update(histogram_init(bins=bins), vector)
    width = Fraction(2) ** h.exponent
    indices = [math.floor(Fraction(float(x)) / width) for x in vector]
    expected = np.bincount(np.array(indices) - min(indices))
    assert h.start == min(indices)
    assert h.counts.tolist() == expected.tolist()
    assert h.counts.size <= bins
    assert h.zeros == sum(float(x) == 0.0 for x in vector)
    assert (h.low, h.high) == (float(vector.min()), float(vector.max()))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(vector=vectors, bins=st.sampled_from([2, 3, 16, 1000]))
def test_no_finer_bins_would_fit(vector: np.ndarray, bins: int) -> None:
    h = histogram_update(histogram_init(bins=bins), vector)
    finer = Fraction(2) ** (h.exponent - 1)
    needed = math.floor(Fraction(h.high) / finer) - math.floor(Fraction(h.low) / finer) + 1
    spacing = Fraction(2) ** max(math.frexp(max(-h.low, h.high))[1] - 24, -149)
    assert needed > bins or finer < spacing


@pytest.mark.parametrize("scale", [1e-40, 1e-3, 1.0, 1e4, 1e37])
def test_counts_agree_with_numpy(scale: float) -> None:
    data = (np.random.default_rng(0).standard_normal(100_000) * scale).astype(np.float32)
    h = histogram_update(histogram_init(), data)
    expected, _ = np.histogram(data.astype(np.float64), h.edges())
    np.testing.assert_array_equal(h.counts, expected)
    if scale > 1e-39:
        assert 4096 < h.counts.size <= 8192


def test_moments_are_those_of_the_data() -> None:
    data = np.random.default_rng(0).normal(3.0, 2.0, 100_000).astype(np.float32)
    h = histogram_update(histogram_update(histogram_init(), data[:77]), data[77:])
    assert h.count == data.size
    assert h.mean == pytest.approx(data.mean(dtype=np.float64), rel=1e-12)
    assert h.second_moment == pytest.approx(np.square(data, dtype=np.float64).mean(), rel=1e-12)


def test_an_outlier_only_coarsens() -> None:
    data = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    calm = histogram_update(histogram_init(), data)
    rough = histogram_update(calm, [1e4])
    assert rough.exponent > calm.exponent
    assert rough.count == calm.count + 1
    assert rough.counts[math.floor(0.5 / rough.width) - rough.start] == np.count_nonzero((data >= 0) & (data < 2))
    again = histogram_merge(histogram_update(histogram_init(), [1e4]), calm)
    np.testing.assert_array_equal(again.counts, rough.counts)


def test_tiny_negative_values_beside_huge_ones_stay_negative() -> None:
    h = histogram_update(histogram_init(), np.array([-1e-45, 3e38], np.float32))
    assert h.start == -1
    assert h.counts[0] == 1


def test_zeros_can_be_left_out() -> None:
    data = np.array([-1.0, 0.0, -0.0, 0.0, 0.25, 1.0], np.float32)
    h = histogram_update(histogram_init(bins=4), data)
    assert h.counts.sum() - h.nonzero_counts().sum() == h.zeros == 3
    positive = histogram_update(histogram_init(), np.array([5.0, 6.0]))
    np.testing.assert_array_equal(positive.nonzero_counts(), positive.counts)


def test_layout_of_the_tensor_does_not_matter() -> None:
    data = np.random.default_rng(0).standard_normal((37, 41, 5)).astype(np.float32)
    a = histogram_update(histogram_init(), data)
    b = histogram_update(histogram_init(), data.transpose(2, 0, 1)[:, ::-1])
    np.testing.assert_array_equal(a.counts, b.counts)
    assert histogram_update(histogram_init(), np.float32(2.5)).count == 1


def test_counts_cannot_be_changed_from_outside() -> None:
    h = histogram_update(histogram_init(), [1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        h.counts[0] = 7
