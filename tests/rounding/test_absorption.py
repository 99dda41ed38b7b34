"""The expected cost and gain of absorption are those that normal channels show."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.exceptions import FormatError
from lowbit.rounding.absorption import expected_absorption, tail_power


@pytest.mark.parametrize("sigmas", [0.0, 0.5, 1.0, 2.0])
def test_tail_power_is_that_of_samples(sigmas: float) -> None:
    z = np.random.default_rng(0).standard_normal(2_000_000)
    assert tail_power(sigmas) == pytest.approx(np.mean(np.maximum(-sigmas - z, 0) ** 2), rel=0.03)


def test_noise_before_and_after_is_that_of_samples() -> None:
    generator = np.random.default_rng(1)
    mean, deviation = np.array([20.0, 1.0, 12.0]), np.array([2.0, 1.0, 1.5])
    amounts = np.maximum(mean - 3 * deviation, 0)
    weight = generator.standard_normal((3, 40))
    y = mean + deviation * generator.standard_normal((200_000, 3))
    plain, moved = np.maximum(y, 0), np.maximum(y - amounts, 0)
    measured = []
    for read, high in ((plain, (mean + 3 * deviation).max()), (moved, (mean + 3 * deviation - amounts).max())):
        step = high / 255
        # Clipping is left out: values beyond three deviations are what both leave to the range's method.
        coded = np.rint(read / step) * step
        back = coded + (amounts if read is moved else 0)
        measured.append(np.square((back - plain) @ weight).sum(axis=1).mean())
    energy = np.square(weight).sum(axis=1)
    np.testing.assert_allclose(expected_absorption(mean, deviation, amounts, energy), measured, rtol=0.1)


def test_a_bound_caps_the_range() -> None:
    one = np.ones(1)
    before, after = expected_absorption(10 * one, one, 0 * one, one, high=6.0)
    assert before == after == pytest.approx(6.0**2 / (12 * 255**2))


def test_other_channels_are_refused() -> None:
    with pytest.raises(FormatError, match="do not fit"):
        expected_absorption(np.ones(2), np.ones(2), np.ones(3), np.ones(2))
    with pytest.raises(FormatError, match="do not fit"):
        expected_absorption(np.ones(2), np.ones(2), -np.ones(2), np.ones(2))
