"""The claims of every pruning algorithm, on matrices."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.exceptions import RecipeError
from lowbit.pruning import (
    block_mask,
    constant_amount,
    largest_mask,
    magnitude_scores,
    movement_scores,
    n_of_m_mask,
    polynomial_amount,
    refit,
    sparse_gpt,
    wanda_scores,
)
from lowbit.pruning.refit import output_error

RNG = np.random.default_rng(0)
MIX = RNG.standard_normal((48, 48))
INPUTS = RNG.standard_normal((2000, 48)) @ MIX * np.geomspace(0.1, 3, 48)
MOMENTS = INPUTS.T @ INPUTS / len(INPUTS)
WEIGHT = RNG.standard_normal((48, 20))


@pytest.mark.parametrize("amount", [0.0, 0.3, 0.5, 0.9])
def test_mask_keeps_the_largest(amount: float) -> None:
    mask = largest_mask(magnitude_scores(WEIGHT), amount)
    assert (~mask).sum() == round(amount * WEIGHT.size)
    if amount:
        assert np.abs(WEIGHT[mask]).min() >= np.abs(WEIGHT[~mask]).max()


def test_equal_scores_keep_the_first() -> None:
    assert largest_mask(np.ones(4), 0.5).tolist() == [True, True, False, False]
    assert n_of_m_mask(np.ones(4), 2, 4).tolist() == [True, True, False, False]


@pytest.mark.parametrize("amount", [-0.1, 1.0, 2.0, float("nan")])
def test_amounts_that_leave_nothing_are_refused(amount: float) -> None:
    with pytest.raises(RecipeError, match="amount"):
        largest_mask(WEIGHT, amount)


def test_two_of_four() -> None:
    mask = n_of_m_mask(magnitude_scores(WEIGHT), 2, 4)
    assert (mask.reshape(12, 4, 20).sum(axis=1) == 2).all()
    best = np.sort(np.abs(WEIGHT).reshape(12, 4, 20), axis=1)[:, 2:].sum()
    assert np.abs(WEIGHT[mask]).sum() == pytest.approx(best)
    with pytest.raises(RecipeError, match="5:4"):
        n_of_m_mask(WEIGHT, 5, 4)


def test_blocks_go_whole() -> None:
    mask = block_mask(magnitude_scores(WEIGHT), 0.5, (4, 5))
    blocks = mask.reshape(12, 4, 4, 5).sum(axis=(1, 3))
    assert set(blocks.ravel().tolist()) == {0, 20}
    assert (blocks == 0).sum() == 24


def test_schedule_of_zhu_and_gupta() -> None:
    amounts = [polynomial_amount(step, start=10, end=110, final=0.8) for step in range(150)]
    assert amounts[9] == amounts[10] == 0.0
    assert amounts[60] == pytest.approx(0.8 * (1 - 0.5**3))
    assert amounts[110] == amounts[149] == 0.8
    steps = np.diff(amounts[10:111])
    assert (np.diff(steps) < 0).all()
    assert [constant_amount(step, amount=0.5, start=2) for step in range(4)] == [0, 0, 0.5, 0.5]
    with pytest.raises(RecipeError, match="step 5 to 5"):
        polynomial_amount(0, start=5, end=5, final=0.5)


def test_movement_removes_what_moves_to_zero_not_what_is_small() -> None:
    weight, scores = np.array([0.1, 2.0]), np.zeros(2)
    for _ in range(5):
        gradient = np.array([-1.0, 1.0])  # descent: the small one grows, the large one shrinks
        scores = movement_scores(scores, weight, gradient)
        weight = weight - 0.05 * gradient
    assert largest_mask(scores, 0.5).tolist() == [True, False]
    assert largest_mask(magnitude_scores(weight), 0.5).tolist() == [False, True]


def _errors(weight: np.ndarray) -> tuple[float, float]:
    return float(np.square(weight - WEIGHT).sum()), output_error(weight - WEIGHT, MOMENTS)


@pytest.mark.parametrize("pattern", [None, (2, 4)])
def test_wanda_and_sparse_gpt_are_worse_on_weights_and_better_on_outputs(pattern: tuple[int, int] | None) -> None:
    def mask(scores: np.ndarray) -> np.ndarray:
        return largest_mask(scores, 0.5, axis=0) if pattern is None else n_of_m_mask(scores, *pattern)

    plain = _errors(WEIGHT * mask(magnitude_scores(WEIGHT)))
    wanda = _errors(WEIGHT * mask(wanda_scores(WEIGHT, np.diagonal(MOMENTS))))
    sparse, kept = sparse_gpt(WEIGHT, MOMENTS, 0.5, pattern=pattern)
    reconstructed = _errors(sparse)
    assert plain[0] < wanda[0]
    assert plain[0] < reconstructed[0]
    assert reconstructed[1] < wanda[1] < plain[1]
    assert (sparse[~kept] == 0).all()
    assert (~kept).mean() == pytest.approx(0.5, abs=0.01)
    if pattern:
        assert (kept.reshape(12, 4, 20).sum(axis=1) == 2).all()


def test_refit_is_least_squares() -> None:
    kept = RNG.random(48) < 0.6
    found = refit(WEIGHT, MOMENTS, kept, damping=0.0)
    expected = np.linalg.lstsq(INPUTS[:, kept], INPUTS @ WEIGHT, rcond=None)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
