"""Rounding whose errors cancel: never worse at the output, always within the limits of codes and pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.exceptions import FormatError
from lowbit.rounding import CodeLimits, compensated, hazards, make_safe

SAFE = CodeLimits(pair_low=-128, pair_high=128)


def moments(generator: np.random.Generator, groups: int, depth: int) -> np.ndarray:
    mixing = generator.standard_normal((groups, depth, max(depth // 2, 1)))
    return mixing @ mixing.transpose(0, 2, 1)


def error(weight: np.ndarray, codes: np.ndarray, scale: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Return the expected squared error of every output, `[N]`."""
    wrong = codes * scale.astype(np.float64) - weight
    per_group = wrong.reshape(len(wrong), len(moment), -1)
    return np.einsum("kgn,gkl,lgn->gn", per_group, moment, per_group).reshape(-1)


def case(seed: int, depth: int, channels: int, groups: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((depth, channels)).astype(np.float32)
    scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    return weight, scale, moments(generator, groups, depth)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 70), st.integers(1, 5), st.sampled_from([1, 2]))
def test_outputs_are_never_worse_and_codes_stay_in_range(seed: int, depth: int, each: int, groups: int) -> None:
    weight, scale, moment = case(seed, depth, each * groups, groups)
    codes = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    better = compensated(weight, codes, scale, moment, CodeLimits(low=-127))
    assert better.dtype == np.int8
    assert better.min() >= -127
    # The diagonal that stands for unseen inputs takes part in the decision: hold the sum that was minimized.
    damped = moment + 0.01 * np.trace(moment, axis1=1, axis2=2)[:, None, None] / depth * np.eye(depth)
    assert (error(weight, better, scale, damped) <= error(weight, codes, scale, damped) * (1 + 1e-9)).all()


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 65), st.integers(1, 6))
def test_no_pair_can_saturate_where_pairs_are_limited(seed: int, depth: int, channels: int) -> None:
    weight, scale, moment = case(seed, depth, channels)
    codes, safe_scale, _ = make_safe(weight, scale)
    better = compensated(weight, codes, safe_scale, moment, SAFE)
    assert not hazards(better).any()


def test_correlated_inputs_make_up_for_errors() -> None:
    # Both inputs are always equal: 0.4 + 0.4 is better as 1 + 0 than as 0 + 0.
    weight = np.array([[0.4], [0.4]], dtype=np.float32)
    codes = compensated(weight, np.zeros((2, 1), np.int8), np.ones(1, np.float32), np.ones((1, 2, 2)), CodeLimits())
    assert sorted(codes.ravel()) == [0, 1]


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 70), st.integers(1, 6))
def test_weights_that_are_zero_stay_so(seed: int, depth: int, channels: int) -> None:
    weight, scale, moment = case(seed, depth, channels)
    zeros = np.random.default_rng(seed).random(weight.shape) < 0.5
    weight[zeros] = 0
    codes = np.rint(weight / scale / 8).astype(np.int8)
    found = compensated(weight, codes, 8 * scale, moment, CodeLimits(low=-127, zeros=zeros))
    assert not found[zeros].any()
    damped = moment + 0.01 * np.trace(moment, axis1=1, axis2=2)[:, None, None] / depth * np.eye(depth)
    assert (error(weight, found, 8 * scale, damped) <= error(weight, codes, 8 * scale, damped) * (1 + 1e-9)).all()


def test_independent_inputs_are_rounded_to_nearest() -> None:
    weight, scale, _ = case(3, 40, 8)
    codes = np.rint(weight / scale).astype(np.int8)
    np.testing.assert_array_equal(compensated(weight, codes, scale, np.eye(40)[None], CodeLimits()), codes)


def test_a_wrong_start_finds_the_nearest_code() -> None:
    weight, scale, _ = case(4, 16, 4)
    start = np.rint(weight / scale).astype(np.int8) // 2
    found = compensated(weight, start, scale, np.eye(16)[None], CodeLimits())
    np.testing.assert_array_equal(found, np.rint(weight / scale).astype(np.int8))


def test_small_problems_come_close_to_their_optimum() -> None:
    choices = np.array(list(itertools.product((-1, 0, 1, 2), repeat=4)))
    ratios = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        weight = generator.uniform(-0.5, 1.5, (4, 1)).astype(np.float32)
        moment = moments(generator, 1, 4) + 0.1 * np.eye(4)
        nearest = np.rint(weight).astype(np.int8)
        found = compensated(weight, nearest, np.ones(1, np.float32), moment, CodeLimits(low=-1, high=2))
        wrong = choices - weight.ravel()
        optimum = np.einsum("ck,kl,cl->c", wrong, moment[0], wrong).min()
        one = np.ones(1)
        before, after = (error(weight, codes, one, moment)[0] for codes in (nearest, found))
        ratios.append(((before - after) / (before - optimum)) if before > optimum * 1.001 else 1.0)
    assert np.mean(ratios) > 0.6


@pytest.mark.parametrize(
    ("codes", "scale", "moment"),
    [((3, 2), (2,), (1, 4, 4)), ((4, 2), (3,), (1, 4, 4)), ((4, 2), (2,), (1, 3, 3)), ((4, 2), (2,), (3, 4, 4))],
)
def test_shapes_that_do_not_fit_are_refused(
    codes: tuple[int, ...], scale: tuple[int, ...], moment: tuple[int, ...]
) -> None:
    with pytest.raises(FormatError, match="do not fit"):
        compensated(
            np.zeros((4, 2), np.float32), np.zeros(codes, np.int8), np.ones(scale, np.float32), np.zeros(moment), SAFE
        )
