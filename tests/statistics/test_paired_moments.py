"""Moments of pairs are those of one pass over all, whatever the cuts, and tell the error of any affine correction."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.exceptions import DataError
from lowbit.statistics.paired_moments import affine_error, paired_init, paired_merge, paired_update


def pairs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = 1e3 + generator.standard_normal((12, 5, 7)) * np.arange(1, 6)[:, None]
    return y, 0.8 * y + generator.standard_normal(y.shape) - 3


@pytest.mark.parametrize("cuts", [[12], [1, 11], [4, 4, 4], [3, 0, 9]])
def test_any_cut_gives_the_moments_of_all(cuts: list[int]) -> None:
    y, z = pairs()
    state, start = paired_init(), 0
    for size in cuts:
        state = paired_update(state, y[start : start + size], z[start : start + size])
        start += size
    rows, others = (np.moveaxis(each, 1, 0).reshape(5, -1) for each in (y, z))
    np.testing.assert_allclose(state.mean, rows.mean(axis=1))
    np.testing.assert_allclose(state.other_mean, others.mean(axis=1))
    np.testing.assert_allclose(state.deviation, rows.std(axis=1))
    np.testing.assert_allclose(state.other_deviation, others.std(axis=1))
    covariances = [np.cov(row, other, bias=True)[0, 1] for row, other in zip(rows, others, strict=True)]
    np.testing.assert_allclose(state.products / state.count, covariances)


def test_merging_is_associative() -> None:
    parts = [paired_update(paired_init(channel_axis=-1), *pairs(seed)) for seed in range(3)]
    left = paired_merge(paired_merge(parts[0], parts[1]), parts[2])
    right = paired_merge(parts[0], paired_merge(parts[1], parts[2]))
    np.testing.assert_allclose(left.products, right.products, rtol=1e-12)
    np.testing.assert_allclose(left.squares, right.squares, rtol=1e-12)
    assert paired_merge(paired_init(), parts[0]) is parts[0]


def test_the_error_of_an_affine_correction() -> None:
    y, z = pairs()
    state = paired_update(paired_init(), y, z)
    generator = np.random.default_rng(3)
    factor, shift = generator.uniform(0.5, 2, 5), generator.standard_normal(5)
    wanted = np.square(y - factor[:, None] * z - shift[:, None]).mean(axis=(0, 2))
    np.testing.assert_allclose(affine_error(state, factor, shift), wanted, rtol=1e-9)
    np.testing.assert_allclose(affine_error(state), np.square(y - z).mean(axis=(0, 2)), rtol=1e-9)


def test_what_does_not_fit_is_refused() -> None:
    y, z = pairs()
    with pytest.raises(DataError, match="to compare"):
        paired_update(paired_init(), y, z[:3])
    with pytest.raises(DataError, match="NaN or infinite"):
        paired_update(paired_init(), y, z * np.inf)
    with pytest.raises(DataError, match="cannot be merged"):
        paired_merge(paired_update(paired_init(), y, z), paired_update(paired_init(channel_axis=2), y, z))
