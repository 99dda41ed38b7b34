"""Moments per channel against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.exceptions import DataError
from lowbit.statistics import moments_init, moments_merge, moments_update


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_batches_give_the_moments_of_the_whole(axis: int) -> None:
    rng = np.random.default_rng(0)
    # A mean far above the deviation is where naive sums of squares cancel.
    data = (1e4 + rng.standard_normal((12, 6, 10)) * 0.1).astype(np.float32)
    pieces = np.array_split(data, 4, axis=1 if axis == 0 else 0)
    state = moments_init(channel_axis=axis)
    for piece in pieces:
        state = moments_update(state, piece)
    rows = np.moveaxis(data, axis, 0).reshape(data.shape[axis], -1).astype(np.float64)
    np.testing.assert_allclose(state.mean, rows.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(state.variance, rows.var(axis=1), rtol=1e-6)
    assert state.count == rows.shape[1]


def test_other_numbers_of_channels_are_refused() -> None:
    state = moments_update(moments_init(), np.ones((2, 3)))
    with pytest.raises(DataError, match=r"3 .* 4 channels"):
        moments_update(state, np.ones((2, 4)))
    with pytest.raises(DataError, match="axis 1"):
        moments_update(state, np.ones(3))


def test_nothing_seen_has_no_channels() -> None:
    state = moments_merge(moments_init(), moments_update(moments_init(), np.ones((0, 3))))
    assert state.count == state.mean.size == state.variance.size == 0
