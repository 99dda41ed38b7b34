"""Rounding for coded inputs: targets and errors are those of the definition, and codes come near the best there are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lowbit.exceptions import FormatError
from lowbit.rounding import CodeLimits, compensated, gptq, output_errors
from lowbit.rounding.asymmetric import (
    asymmetric_errors,
    asymmetric_target,
    mean_error,
    pairs_init,
    pairs_merge,
    pairs_update,
)


def inputs(groups: int = 1, depth: int = 5, rows: int = 600, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return correlated inputs, and the same as layers with an error of their own would give them."""
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((groups, depth, depth))
    x = np.einsum("rgk,gkl->rgl", generator.standard_normal((rows, groups, depth)), mixing) + 0.5
    wrong = x @ (0.15 * generator.standard_normal((depth, depth)))
    return x, x + wrong + 0.05 * generator.standard_normal(x.shape) + 0.1


def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the outputs `[R, N]` of rows `[R, G, K]` and a weight `[K, N]`."""
    groups = x.shape[1]
    by_group = weight.reshape(len(weight), groups, -1)
    return np.einsum("rgk,kgn->rgn", x, by_group).reshape(len(x), -1)


@pytest.mark.parametrize("groups", [1, 3])
def test_errors_and_means_are_those_of_the_definition(groups: int) -> None:
    generator = np.random.default_rng(1)
    x, coded = inputs(groups)
    weight, decoded = generator.standard_normal((2, 5, 2 * groups))
    shift = generator.standard_normal(2 * groups)
    state = pairs_init(weight, groups)
    parts = [pairs_update(state, x[cut], coded[cut]) for cut in (slice(0, 100), slice(100, None))]
    state = pairs_merge(*parts)
    difference = product(x, weight) - product(coded, decoded)
    np.testing.assert_allclose(asymmetric_errors(state, decoded, shift), np.square(difference - shift).mean(axis=0))
    np.testing.assert_allclose(mean_error(state, decoded), difference.mean(axis=0))
    np.testing.assert_allclose(state.power.reshape(-1) / state.count, np.square(product(x, weight)).mean(axis=0))


@pytest.mark.parametrize("centred", [False, True])
def test_the_target_is_the_least_squares_solution(centred: bool) -> None:
    x, coded = inputs()
    weight = np.random.default_rng(2).standard_normal((5, 3))
    state = pairs_update(pairs_init(weight), x, coded)
    target, moments = asymmetric_target(state, centred=centred, damping=0.0)
    read, wanted = coded[:, 0], x[:, 0] @ weight
    if centred:
        read, wanted = read - read.mean(axis=0), wanted - wanted.mean(axis=0)
    np.testing.assert_allclose(target, np.linalg.lstsq(read, wanted, rcond=None)[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments[0], read.T @ read / len(read), rtol=1e-5)


def test_inputs_that_are_exact_leave_the_weight() -> None:
    x, _ = inputs()
    weight = np.random.default_rng(2).standard_normal((5, 3))
    target, _ = asymmetric_target(pairs_update(pairs_init(weight), x, x))
    np.testing.assert_allclose(target, weight, rtol=1e-6)


def test_codes_come_near_the_best_and_beat_rounding_for_float_inputs() -> None:
    limits = CodeLimits(low=-2, high=1, pair_low=None, pair_high=None)
    choices = np.array(list(itertools.product(range(-2, 2), repeat=5)), dtype=np.float64)  # [1024, 5]
    coded_errors, exact_errors = [], []
    for seed in range(20):
        x, coded = inputs(seed=seed)
        weight = np.random.default_rng(100 + seed).uniform(-1, 0.6, (5, 1)).astype(np.float32)
        scale = np.full((5, 1), 0.5, dtype=np.float32)
        state = pairs_update(pairs_init(weight), x, coded)
        best = min(asymmetric_errors(state, 0.5 * choice[:, None])[0] for choice in choices)
        goal, moments = asymmetric_target(state)
        exact = (x[:, 0].T @ x[:, 0] / len(x))[None].astype(np.float32)
        found = [
            compensated(weight_to_meet, gptq(weight_to_meet, scale, H, limits), scale, H, limits)
            for weight_to_meet, H in ((goal, moments), (weight, exact))
        ]
        coded_errors.append([best, *(asymmetric_errors(state, 0.5 * codes.astype(np.float64))[0] for codes in found)])
        exact_errors.append([output_errors(weight, codes, scale, exact)[0] for codes in found])
    best, asymmetric, usual = np.array(coded_errors).T
    assert (asymmetric >= best * (1 - 1e-9)).all()
    assert np.median(asymmetric / best) < 1.02
    assert asymmetric.mean() < 1.2 * best.mean()
    assert asymmetric.mean() < 0.9 * usual.mean()
    # The other direction: for inputs in float, what was rounded for those is better.
    asymmetric, usual = np.array(exact_errors).T
    assert usual.mean() < asymmetric.mean()


def test_what_does_not_fit_is_refused() -> None:
    x, coded = inputs()
    weight = np.ones((5, 3))
    with pytest.raises(FormatError, match="not 2 groups"):
        pairs_init(weight, 2)
    with pytest.raises(FormatError, match="do not fit"):
        pairs_update(pairs_init(weight), x[:, :, :4], coded[:, :, :4])
    with pytest.raises(FormatError, match="give no target"):
        asymmetric_target(pairs_init(weight))
    with pytest.raises(FormatError, match="not the one"):
        asymmetric_errors(pairs_update(pairs_init(weight), x, coded), np.ones((4, 3)))
