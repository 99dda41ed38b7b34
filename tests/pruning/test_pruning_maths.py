"""Scores, masks, schedules and reconstruction hold what their papers say, in both directions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lowbit.exceptions import RecipeError
from lowbit.pruning import (
    lamp,
    magnitude,
    mask_of,
    movement,
    parse_pattern,
    polynomial_sparsity,
    prune_and_reconstruct,
    refit,
    refit_inputs,
    wanda,
)


@pytest.fixture
def layer() -> tuple[np.ndarray, np.ndarray]:
    """A weight `[32, 24]` and inputs `[4096, 32]` that are correlated and of unlike energy."""
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(32, 32)) * np.geomspace(0.1, 3.0, 32)[:, None]
    return generator.normal(size=(32, 24)).astype(np.float32), (generator.normal(size=(4096, 32)) @ mixing)


def power(difference: np.ndarray, inputs: np.ndarray) -> float:
    return float(np.mean((inputs @ difference) ** 2))


def test_scores_are_what_their_formulas_say() -> None:
    weight = np.array([[1.0, -2.0], [3.0, 0.5]], np.float32)
    assert magnitude(weight).tolist() == [[1, 2], [3, 0.5]]
    assert wanda(weight, np.array([4.0, 1.0])).tolist() == [[2, 4], [3, 0.5]]
    assert wanda(weight, np.array([[4.0, 1.0], [1.0, 9.0]])).tolist() == [[2, 2], [3, 1.5]]
    assert movement(weight, np.array([[1.0, 1.0], [-1.0, 2.0]])).tolist() == [[-1, 2], [3, -1]]
    squares = np.array([1.0, 4.0, 9.0, 0.25])
    expected = [1 / 14.0, 4 / 13.0, 9 / 9.0, 0.25 / 14.25]
    assert np.allclose(lamp(np.sqrt(squares)), expected)
    assert lamp(np.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("amount", [0.0, 0.25, 0.5, 0.9])
def test_masks_keep_the_highest_scores(amount: float) -> None:
    scores = np.random.default_rng(1).random((16, 8))
    mask = mask_of(scores, amount)
    assert (~mask).sum() == round(amount * scores.size)
    if amount:
        assert scores[~mask].max() < scores[mask].min()
    by_output = mask_of(scores, amount, per_output=True)
    assert set((~by_output).sum(axis=0).tolist()) == {round(amount * 16)}


@pytest.mark.parametrize(("text", "kept", "of"), [("2:4", 2, 4), ("1:4", 1, 4), ("4:8", 4, 8)])
def test_neighbours_keep_exactly_what_the_pattern_says(text: str, kept: int, of: int) -> None:
    scores = np.random.default_rng(2).random((16, 5))
    mask = mask_of(scores, 0.0, parse_pattern(text))
    assert set(mask.reshape(16 // of, of, 5).sum(axis=1).ravel().tolist()) == {kept}
    groups, kept_groups = scores.reshape(16 // of, of, 5), mask.reshape(16 // of, of, 5)
    assert (
        np.where(kept_groups, groups, np.inf).min(axis=1) > np.where(kept_groups, -np.inf, groups).max(axis=1)
    ).all()


def test_blocks_go_as_a_whole() -> None:
    mask = mask_of(np.random.default_rng(3).random((16, 8)), 0.5, parse_pattern("4x2"))
    blocks = mask.reshape(4, 4, 4, 2).transpose(0, 2, 1, 3).reshape(16, 8)
    assert {tuple(block) for block in blocks.tolist()} == {(True,) * 8, (False,) * 8}
    assert (~mask).mean() == 0.5


@pytest.mark.parametrize("text", ["4:2", "0:4", "x", "2x0", "2:4:8", ""])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="use any, N:M"):
        parse_pattern(text)


def test_what_cannot_be_masked_is_refused() -> None:
    with pytest.raises(RecipeError, match="from 0 to below 1"):
        mask_of(np.ones((4, 4)), 1.0)
    with pytest.raises(RecipeError, match="no multiple of 4"):
        mask_of(np.ones((6, 4)), 0.0, parse_pattern("2:4"))
    with pytest.raises(RecipeError, match="no blocks of 4x1"):
        mask_of(np.ones((6, 4)), 0.5, parse_pattern("4x1"))


@pytest.mark.parametrize("pattern", ["any", "2:4", "2x1"])
def test_reconstruction_is_worse_on_weights_and_better_on_outputs(layer, pattern: str) -> None:
    weight, inputs = layer
    moments = (inputs.T @ inputs / len(inputs))[None]
    shape = parse_pattern(pattern)
    fitted = prune_and_reconstruct(weight, moments, 0.5, shape)
    plain = weight * mask_of(np.abs(weight), 0.5, shape)
    assert (fitted == 0).sum() == (plain == 0).sum() == weight.size // 2
    assert np.sum((fitted - weight) ** 2) > np.sum((plain - weight) ** 2)
    assert power(fitted - weight, inputs) < 0.8 * power(plain - weight, inputs)


def test_refitting_comes_to_the_least_squares_optimum(layer) -> None:
    weight, inputs = layer
    moments = (inputs.T @ inputs / len(inputs))[None]
    kept = mask_of(wanda(weight, np.diagonal(moments[0])), 0.4, per_output=True)
    fitted = refit(weight, moments, kept, damping=0.0)
    assert ((fitted != 0) == kept).all()
    best = np.zeros_like(weight, dtype=np.float64)
    for output in range(weight.shape[1]):
        rows = kept[:, output]
        best[rows, output] = np.linalg.lstsq(inputs[:, rows], inputs @ weight[:, output], rcond=None)[0]
    left_out, optimum = power(np.where(kept, weight, 0) - weight, inputs), power(best - weight, inputs)
    assert optimum <= power(fitted - weight, inputs) < optimum + 0.02 * (left_out - optimum)


def test_whole_inputs_are_made_up_for_exactly(layer) -> None:
    weight, inputs = layer
    kept = np.random.default_rng(1).random(32) < 0.6
    found = refit_inputs(weight, inputs.T @ inputs / len(inputs), kept, damping=0.0)
    expected = np.linalg.lstsq(inputs[:, kept], inputs @ weight, rcond=None)[0]
    np.testing.assert_allclose(found[kept], expected, rtol=1e-6, atol=1e-8)
    assert not found[~kept].any()


def test_without_correlations_there_is_nothing_to_make_up(layer) -> None:
    weight, _ = layer
    fitted = prune_and_reconstruct(weight, np.eye(32)[None], 0.5, lazy=32)
    plain = weight * mask_of(np.abs(weight), 0.5)
    assert np.array_equal(fitted, plain)


def test_groups_are_pruned_by_their_own_inputs() -> None:
    generator = np.random.default_rng(4)
    weight = generator.normal(size=(6, 8)).astype(np.float32)
    moments = np.stack([np.diag([9.0, 9, 9, 1e-3, 1e-3, 1e-3]), np.diag([1e-3, 1e-3, 1e-3, 9.0, 9, 9])])
    weight = np.sign(weight)
    fitted = prune_and_reconstruct(weight, moments, 0.5, damping=0.0)
    assert (fitted[3:, :4] == 0).all()
    assert (fitted[:3, 4:] == 0).all()


def test_sparsity_grows_as_a_polynomial() -> None:
    values = [polynomial_sparsity(step, final=0.9, initial=0.5, begin=10, end=110) for step in range(130)]
    assert values[:10] == [0.0] * 10
    assert values[10] == 0.5
    assert values[60] == pytest.approx(0.9 - 0.4 * 0.5**3)
    assert values[110:] == [0.9] * 20
    assert all(later >= former for former, later in itertools.pairwise(values))
    assert polynomial_sparsity(0, final=0.5, begin=0, end=0) == 0.5


@pytest.mark.parametrize(
    "options", [{"final": 1.0}, {"final": 0.2, "initial": 0.3}, {"final": -0.1}, {"final": 0.5, "begin": 5, "end": 2}]
)
def test_impossible_schedules_are_refused(options: dict) -> None:
    with pytest.raises(RecipeError, match="sparsity"):
        polynomial_sparsity(0, **{"begin": 0, "end": 10, **options})
