"""Weights that share values are told from others, also where pruning left little of them."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.rounding.shared_values import shares_values

GENERATOR = np.random.default_rng(0)
FREE = GENERATOR.standard_normal((16, 24, 3, 3)).astype(np.float32)
LEVELS = np.sort(GENERATOR.standard_normal(16)).astype(np.float32)


def shared(axis: int | None = None) -> np.ndarray:
    found = LEVELS[GENERATOR.integers(0, 16, FREE.shape)]
    if axis is not None:
        factors = GENERATOR.uniform(0.5, 2.0, FREE.shape[axis]).astype(np.float32)
        found = found * factors.reshape([-1 if index == axis else 1 for index in range(4)])
    return found


def pruned(weight: np.ndarray, amount: float) -> np.ndarray:
    return np.where(GENERATOR.random(weight.shape) < amount, 0, weight)


@pytest.mark.parametrize("axis", [None, 0])
def test_values_are_shared_by_all_or_by_a_channel(axis: int | None) -> None:
    assert shares_values(shared(axis), 0, 256)
    assert shares_values(pruned(shared(axis), 0.3), 0, 256)
    assert not shares_values(shared(1), 0, 256)


def test_free_weights_share_nothing_whatever_is_pruned() -> None:
    for amount in (0.0, 0.5, 0.95):
        assert not shares_values(pruned(FREE, amount), 0, 256)
    assert not shares_values(np.zeros((4, 4), np.float32), 0, 256)


def test_channels_that_are_gone_do_not_count() -> None:
    weight = shared(0)
    weight[3] = 0
    assert shares_values(weight, 0, 256)


def test_more_values_than_codes_are_not_kept() -> None:
    assert shares_values(shared(), 0, 16)
    assert not shares_values(shared(), 0, 15)
