"""Rotations: orthogonal, so that nothing changes in float; better where there are outliers, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.exceptions import FormatError
from lowbit.rounding.rotation import hadamard_rotation, random_rotation

ROTATIONS = [hadamard_rotation, random_rotation]


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("channels", [1, 2, 7, 64, 96, 384])
def test_they_are_orthogonal_and_repeat(rotation, channels: int) -> None:
    found = rotation(channels, seed=3)
    np.testing.assert_allclose(found @ found.T, np.eye(channels), atol=1e-12)
    np.testing.assert_array_equal(found, rotation(channels, seed=3))


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_the_product_stays(rotation) -> None:
    generator = np.random.default_rng(0)
    x, weight = generator.standard_normal((10, 96)), generator.standard_normal((96, 5))
    turned = rotation(96)
    np.testing.assert_allclose((x @ turned) @ (turned.T @ weight), x @ weight, atol=1e-12)


def rounded(x: np.ndarray, bits: int = 4) -> np.ndarray:
    step = np.abs(x).max() / (2 ** (bits - 1) - 1)
    return np.rint(x / step) * step


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_outliers_are_spread_and_nothing_is_gained_without_them(rotation) -> None:
    generator = np.random.default_rng(1)
    plain = generator.standard_normal((200, 128))
    outliers = plain * np.where(np.arange(128) == 5, 40, 1)
    turned = rotation(128)
    errors = {}
    for name, x in (("plain", plain), ("outliers", outliers)):
        before = np.mean((rounded(x) - x) ** 2)
        after = np.mean((rounded(x @ turned) @ turned.T - x) ** 2)
        errors[name] = after / before
    assert errors["outliers"] < 0.8
    assert errors["plain"] > 0.8


def test_a_single_channel_is_spread_evenly() -> None:
    one = np.zeros(64)
    one[9] = 8.0
    np.testing.assert_allclose(np.abs(one @ hadamard_rotation(64)), 1.0)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_no_channels_are_refused(rotation) -> None:
    with pytest.raises(FormatError, match="no rotation"):
        rotation(0)
