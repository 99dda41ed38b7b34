"""Scales of SmoothQuant and AWQ: what the papers' equations say, and that a search never ends worse than it began."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.exceptions import FormatError
from lowbit.rounding import CodeLimits, output_errors
from lowbit.rounding.migration import activation_aware_scales, search_scales, smoothing_scales

INT4 = CodeLimits(low=-8, high=7)


def test_at_one_half_both_sides_get_the_same_range() -> None:
    generator = np.random.default_rng(0)
    activations, weights = generator.uniform(0.1, 9, (2, 40))
    scales = smoothing_scales(activations, weights)
    np.testing.assert_allclose(activations / scales, weights * scales, rtol=1e-6)
    np.testing.assert_allclose(smoothing_scales(activations, weights, 1.0), activations, rtol=1e-6)
    np.testing.assert_allclose(smoothing_scales(activations, weights, 0.0), 1 / weights, rtol=1e-6)


def test_channels_that_are_never_active_are_left_alone() -> None:
    assert smoothing_scales(np.array([0.0, 2.0]), np.array([3.0, 0.0])).tolist() == [1, 1]
    assert activation_aware_scales(np.array([0.0, 1.0, 4.0]), 0.5).tolist() == pytest.approx([1, 0.5**0.5, 2**0.5])
    np.testing.assert_array_equal(activation_aware_scales(np.array([0.0, 1.0, 4.0]), 0), 1)


def error(weight: np.ndarray, moments: np.ndarray, scales: np.ndarray) -> float:
    """Return the error of the outputs, if a weight times these scales is rounded to 4 bits per column."""
    scaled = (weight * scales[:, None]).astype(np.float32)
    steps = np.abs(scaled).max(axis=0) / 7
    codes = np.clip(np.rint(scaled / steps), INT4.low, INT4.high).astype(np.int8)
    return float(output_errors(scaled, codes, steps.astype(np.float32), moments / np.outer(scales, scales)).sum())


def test_weights_that_meet_large_activations_become_more_exact() -> None:
    generator = np.random.default_rng(1)
    sizes = np.ones(64)
    sizes[:4] = 20
    x = generator.standard_normal((500, 64)) * sizes
    weight = generator.standard_normal((64, 32)).astype(np.float32)
    moments = (x.T @ x / len(x))[None]
    scales, alpha = search_scales(np.abs(x).mean(axis=0), lambda each: error(weight, moments, each))
    assert 0 < alpha < 1
    assert scales[:4].min() > 2 * scales[4:].max()
    assert error(weight, moments, scales) < 0.5 * error(weight, moments, np.ones(64))
    # Worse on the weights themselves: that is what it costs.
    identity = np.eye(64)[None]
    assert error(weight, identity, scales) > error(weight, identity, np.ones(64))


def test_nothing_changes_where_nothing_is_better() -> None:
    scales, alpha = search_scales(np.array([1.0, 9.0]), lambda each: float(np.ptp(each)))
    assert alpha == 0
    np.testing.assert_array_equal(scales, 1)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(FormatError, match="do not fit"):
        smoothing_scales(np.ones(3), np.ones(4))
    with pytest.raises(FormatError, match="none of channels"):
        activation_aware_scales(np.array([-1.0]), 0.5)
