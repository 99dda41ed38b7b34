"""GPTQ: worse than nearest on the weights, better on the outputs, and what its definition says, step by step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.exceptions import FormatError
from lowbit.rounding import CodeLimits, compensated, gptq, on_grid, output_errors

INT4 = CodeLimits(low=-8, high=7)
GRIDS = ["per-tensor", "per-channel", "blocks"]


def nearest(
    weight: np.ndarray, scale: np.ndarray, limits: CodeLimits, zero_point: np.ndarray | float = 0
) -> np.ndarray:
    exact = weight / on_grid(scale, weight.shape) + on_grid(zero_point, weight.shape)
    return np.clip(np.rint(exact), limits.low, limits.high).astype(np.int16)


def scales(weight: np.ndarray, grid: str, steps: int = 7) -> np.ndarray:
    """Return scales that clip no weight."""
    reach = np.abs(weight)
    if grid == "per-tensor":
        return np.float32(reach.max() / steps)
    if grid == "per-channel":
        return (reach.max(axis=0) / steps).astype(np.float32)
    return (reach.reshape(-1, 8, weight.shape[1]).max(axis=1) / steps).astype(np.float32)


def moments(generator: np.random.Generator, groups: int, depth: int) -> np.ndarray:
    """Return moments of inputs that are alike, as those of networks are: some directions carry most of the energy."""
    mixing = generator.standard_normal((groups, depth, depth)) * np.geomspace(1, 0.05, depth)
    return mixing @ mixing.transpose(0, 2, 1) / depth


def by_definition(
    weight: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    moment: np.ndarray,
    limits: CodeLimits,
    order: np.ndarray,
) -> np.ndarray:
    """Round one input after the other; the rest becomes what is best for it, by a solution of its own at every step."""
    H = moment + 0.01 * np.trace(moment) / len(moment) * np.eye(len(moment))
    original, current = weight.astype(np.float64), weight.astype(np.float64).copy()
    codes = np.zeros(weight.shape, dtype=np.int16)
    for position, row in enumerate(order):
        codes[row] = np.clip(np.rint(current[row] / scale[row] + zero_point[row]), limits.low, limits.high)
        done, left = order[: position + 1], order[position + 1 :]
        wrong = (codes[done] - zero_point[done]) * scale[done] - original[done]
        # The rest that minimizes e H e, given the errors that are certain.
        current[left] = original[left] - np.linalg.solve(H[np.ix_(left, left)], H[np.ix_(left, done)] @ wrong)
    return codes


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("lazy", [1, 7, 128])
def test_it_is_what_its_definition_says(grid: str, ordered: bool, lazy: int) -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((24, 5)).astype(np.float32)
    moment = moments(generator, 1, 24)
    scale = scales(weight, grid)
    zero_point = generator.integers(-2, 3, scale.shape)
    order = np.argsort(-np.diagonal(moment[0]), kind="stable") if ordered else np.arange(24)
    expected = by_definition(weight, on_grid(scale, (24, 5)), on_grid(zero_point, (24, 5)), moment[0], INT4, order)
    found = gptq(weight, scale, moment, INT4, zero_point=zero_point, activation_order=ordered, lazy=lazy)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("grid", GRIDS)
def test_worse_on_the_weights_better_on_the_outputs(grid: str) -> None:
    generator = np.random.default_rng(1)
    weight = generator.standard_normal((64, 32)).astype(np.float32)
    moment = moments(generator, 1, 64)
    scale = scales(weight, grid)
    plain, better = nearest(weight, scale, INT4), gptq(weight, scale, moment, INT4)
    identity = np.eye(64)[None]
    assert output_errors(weight, better, scale, identity).sum() > output_errors(weight, plain, scale, identity).sum()
    assert output_errors(weight, better, scale, moment).sum() < 0.5 * output_errors(weight, plain, scale, moment).sum()


def test_the_order_of_the_activations_helps() -> None:
    generator = np.random.default_rng(2)
    weight = generator.standard_normal((96, 64)).astype(np.float32)
    mixing = generator.standard_normal((1, 96, 96)) * np.geomspace(0.05, 3, 96)[:, None]
    moment = mixing @ mixing.transpose(0, 2, 1)
    errors = [
        output_errors(
            weight,
            gptq(weight, scales(weight, "per-channel"), moment, INT4, activation_order=ordered),
            scales(weight, "per-channel"),
            moment,
        ).sum()
        for ordered in (False, True)
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("grid", GRIDS)
def test_independent_inputs_are_rounded_to_nearest(grid: str) -> None:
    generator = np.random.default_rng(3)
    weight = generator.standard_normal((40, 6)).astype(np.float32)
    moment = np.diag(generator.uniform(0, 4, 40))[None]
    np.testing.assert_array_equal(
        gptq(weight, scales(weight, grid), moment, INT4), nearest(weight, scales(weight, grid), INT4)
    )


def test_rows_of_a_table_are_rounded_to_nearest_already() -> None:
    # A Gather multiplies its table by one-hot rows: E[x x] is the diagonal of how often every row is looked up.
    generator = np.random.default_rng(4)
    looked_up = generator.integers(0, 30, 500)
    one_hot = np.eye(30)[looked_up]
    table = generator.standard_normal((30, 16)).astype(np.float32)
    moment = (one_hot.T @ one_hot / len(one_hot))[None]
    scale = np.float32(np.abs(table).max() / 7)
    plain = nearest(table, scale, INT4)
    np.testing.assert_array_equal(gptq(table, scale, moment, INT4), plain)
    np.testing.assert_array_equal(compensated(table, plain, scale, moment, INT4), plain)


def test_dead_inputs_are_rounded_to_nearest_and_disturb_nobody() -> None:
    generator = np.random.default_rng(5)
    weight = generator.standard_normal((16, 4)).astype(np.float32)
    moment = moments(generator, 1, 16)
    dead = [3, 7, 15]
    moment[:, dead] = moment[:, :, dead] = 0
    scale = scales(weight, "per-channel")
    for damping in (0.0, 0.01):
        found = gptq(weight, scale, moment, INT4, damping=damping)
        np.testing.assert_array_equal(found[dead], nearest(weight, scale, INT4)[dead])
        alive = np.setdiff1d(np.arange(16), dead)
        alone = gptq(weight[alive], scale, moment[:, alive[:, None], alive], INT4, damping=0.0)
        if damping == 0.0:
            np.testing.assert_array_equal(found[alive], alone)
    np.testing.assert_array_equal(gptq(weight, scale, np.zeros((1, 16, 16)), INT4), nearest(weight, scale, INT4))


def test_groups_are_rounded_each_by_its_own_inputs() -> None:
    generator = np.random.default_rng(6)
    weight = generator.standard_normal((12, 9)).astype(np.float32)
    moment = moments(generator, 3, 12)
    scale = scales(weight, "per-channel")
    together = gptq(weight, scale, moment, INT4)
    for group in range(3):
        columns = slice(3 * group, 3 * group + 3)
        alone = gptq(np.ascontiguousarray(weight[:, columns]), scale[columns], moment[group : group + 1], INT4)
        np.testing.assert_array_equal(together[:, columns], alone)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 4), st.sampled_from([(-8, 7), (-2, 1), (0, 15)]))
def test_codes_never_leave_their_limits(seed: int, depth: int, channels: int, reach: tuple[int, int]) -> None:
    generator = np.random.default_rng(seed)
    weight = (3 * generator.standard_normal((depth, channels))).astype(np.float32)
    low, high = reach
    # Scales far too small, so that nearly everything is clipped and the error runs on.
    scale = generator.uniform(0.05, 1, channels).astype(np.float32)
    zero_point = generator.integers(low, high + 1, channels)
    found = gptq(weight, scale, moments(generator, 1, depth), CodeLimits(low=low, high=high), zero_point=zero_point)
    assert found.min() >= low
    assert found.max() <= high


def test_the_descent_takes_the_same_grids() -> None:
    generator = np.random.default_rng(7)
    weight = generator.standard_normal((64, 16)).astype(np.float32)
    moment = moments(generator, 1, 64)
    for grid in GRIDS:
        scale = scales(weight, grid)
        zero_point = generator.integers(-2, 3, scale.shape)
        plain = nearest(weight, scale, INT4, zero_point)
        better = compensated(weight, plain, scale, moment, INT4, zero_point=zero_point)
        before, after = (output_errors(weight, codes, scale, moment, zero_point).sum() for codes in (plain, better))
        assert after < 0.7 * before


def test_what_does_not_fit_is_refused() -> None:
    weight, one = np.zeros((4, 2), np.float32), np.float32(1)
    with pytest.raises(FormatError, match="do not fit"):
        gptq(weight, one, np.zeros((1, 3, 3)), INT4)
    with pytest.raises(FormatError, match="do not fit"):
        gptq(weight, np.ones(3, np.float32), np.zeros((1, 4, 4)), INT4)
    with pytest.raises(FormatError, match="damping"):
        gptq(weight, one, np.zeros((1, 4, 4)), INT4, damping=2)


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("zero_point", [0.0, 3.0])
def test_weights_that_are_zero_stay_so_and_others_make_up_for_it(order: bool, zero_point: float) -> None:
    generator = np.random.default_rng(5)
    weight = generator.standard_normal((48, 12)).astype(np.float32)
    zeros = generator.random(weight.shape) < 0.6
    weight[zeros] = 0
    scale, H = scales(weight, "per-channel", steps=4), moments(generator, 2, 48)
    limits = CodeLimits(low=-8, high=7, zeros=zeros)
    found = gptq(weight, scale, H, limits, zero_point=np.float32(zero_point), activation_order=order)
    assert (found[zeros] == zero_point).all()
    free = gptq(weight, scale, H, INT4, zero_point=np.float32(zero_point), activation_order=order)
    assert (free[zeros] != zero_point).any()
    plain = nearest(weight, scale, INT4, np.float32(zero_point))
    point = np.float32(zero_point)
    errors = [float(output_errors(weight, codes, scale, H, point).sum()) for codes in (found, plain)]
    assert errors[0] < errors[1]
