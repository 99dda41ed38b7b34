"""Equalizing scales make both ranges equal; absorbed biases pass a Relu unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.exceptions import FormatError
from lowbit.rounding.equalization import absorbable_bias, equalizing_scales, shared_precision


def test_both_sides_get_the_same_range_and_keep_their_product() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.uniform(0.1, 4, (2, 50))
    scales = equalizing_scales(first, second)
    np.testing.assert_allclose(first / scales, second * scales)
    np.testing.assert_allclose((first / scales) * (second * scales), first * second)


def test_it_is_the_optimum_of_the_precision_both_share() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.uniform(0.1, 4, (2, 6))
    scales = equalizing_scales(first, second)
    best = shared_precision(first / scales, second * scales)
    assert best > shared_precision(first, second)
    for _ in range(200):
        other = scales * np.exp(generator.normal(0, 0.2, 6))
        assert shared_precision(first / other, second * other) <= best * (1 + 1e-12)


def test_channels_without_weights_are_left_alone_and_scales_stay_within_limits() -> None:
    scales = equalizing_scales(np.array([0.0, 3.0, 1e-30, 1e30]), np.array([5.0, 0.0, 1.0, 1.0]), most=8.0)
    np.testing.assert_array_equal(scales, [1, 1, 1 / 8, 8])
    assert shared_precision(np.zeros(3), np.ones(3)) == 1


def test_what_is_absorbed_passes_the_relu_unchanged() -> None:
    generator = np.random.default_rng(2)
    mean, deviation = np.array([5.0, 1.0, -4.0]), np.array([1.0, 1.0, 1.0])
    moved = absorbable_bias(mean, deviation)
    np.testing.assert_allclose(moved, [2.0, 0.0, 0.0])
    y = mean + deviation * generator.standard_normal((20_000, 3))
    second = generator.standard_normal((3, 4))
    before = np.maximum(y, 0) @ second
    after = np.maximum(y - moved, 0) @ second + moved @ second
    # Three standard deviations: what lies beyond, one value in 740, is all that changes.
    assert np.mean(np.abs(after - before).max(axis=1) > 1e-9) < 0.003


def test_ranges_of_other_channels_are_refused() -> None:
    with pytest.raises(FormatError, match="same channels"):
        equalizing_scales(np.ones(3), np.ones(4))
    with pytest.raises(FormatError, match="same channels"):
        absorbable_bias(np.ones(3), -np.ones(3))
