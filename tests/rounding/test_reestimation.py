"""Restored outputs have the mean and spread of the float ones, and are nearer to them where rounding shrank them."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.exceptions import FormatError
from lowbit.rounding.reestimation import restoring_affine


def statistics(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return y.mean(axis=0), y.std(axis=0)


def test_mean_and_spread_come_back() -> None:
    generator = np.random.default_rng(0)
    x = np.abs(generator.standard_normal((2000, 40)))
    weight = 0.1 * generator.standard_normal((40, 16))
    coarse = np.clip(np.rint(weight / 0.08), -1, 1) * 0.08  # clipped hard, so that outputs shrink
    y, rounded = x @ weight, x @ coarse
    factor, shift = restoring_affine(*statistics(y), *statistics(rounded))
    restored = factor * rounded + shift
    np.testing.assert_allclose(statistics(restored), statistics(y), rtol=1e-4, atol=1e-4)
    assert np.mean((restored - y) ** 2) < 0.5 * np.mean((rounded - y) ** 2)


def test_where_nothing_changed_nothing_changes() -> None:
    y = np.random.default_rng(1).standard_normal((100, 4))
    factor, shift = restoring_affine(*statistics(y), *statistics(y))
    np.testing.assert_allclose(factor, 1)
    np.testing.assert_allclose(shift, 0, atol=1e-7)


def test_channels_that_were_rounded_away_get_their_mean_only() -> None:
    factor, shift = restoring_affine(
        np.array([1.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0]), np.array([0.5, 0.5, 0.5]), np.array([0.0, 0.1, 1.0])
    )
    np.testing.assert_array_equal(factor, 1)
    np.testing.assert_allclose(shift, 0.5)


def test_other_channels_are_refused() -> None:
    with pytest.raises(FormatError, match="same channels"):
        restoring_affine(np.ones(3), np.ones(3), np.ones(3), np.ones(4))
    with pytest.raises(FormatError, match="same channels"):
        restoring_affine(np.ones(3), -np.ones(3), np.ones(3), np.ones(3))
