"""What is kept beside the codes: thin products weighted by the inputs, and weights that stand out."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.exceptions import FormatError
from lowbit.formats import PerBlock, PerChannel, PerTensor, choose_parameters, fake_quantize, parse_format
from lowbit.rounding import low_rank, outliers, weight_range
from lowbit.rounding.group_sums import group_sums


def correlated(depth: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((depth, depth // 4)) @ generator.standard_normal((depth // 4, depth))
    rows = generator.standard_normal((4096, depth)) @ (mixing + 0.2 * np.eye(depth))
    return rows.astype(np.float32)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_without_moments_it_is_the_truncated_decomposition(shape: tuple[int, int]) -> None:
    residual = np.random.default_rng(0).standard_normal(shape)
    singular = np.linalg.svd(residual, compute_uv=False)
    for rank in (1, 5, 24):
        left, right = low_rank(residual, rank)
        assert (left.shape, right.shape) == ((shape[0], rank), (rank, shape[1]))
        missing = np.square(residual - left.astype(np.float64) @ right).sum()
        assert missing == pytest.approx(np.square(singular[rank:]).sum(), rel=1e-4, abs=1e-8)


def test_moments_make_it_worse_on_the_weights_and_better_on_the_outputs() -> None:
    rows = correlated(48)
    residual = np.random.default_rng(1).standard_normal((48, 32)).astype(np.float32)
    moments = (rows.T @ rows / len(rows)).astype(np.float64)
    errors = {}
    for name, given in (("none", None), ("diagonal", np.diagonal(moments)), ("full", moments)):
        left, right = low_rank(residual, 6, given)
        missing = residual - left @ right
        errors[name] = np.square(missing).sum(), np.square(rows @ missing).sum()
    assert errors["none"][0] < errors["diagonal"][0]
    assert errors["none"][0] < errors["full"][0]
    assert errors["full"][1] < 0.7 * errors["none"][1]
    assert errors["full"][1] < errors["diagonal"][1]


def test_factors_are_balanced_and_survive_a_float_of_few_bits() -> None:
    generator = np.random.default_rng(2)
    residual = (generator.standard_normal((32, 16)) * 1e-3).astype(np.float32)
    left, right = low_rank(residual, 4, np.geomspace(1e-6, 1e6, 32))
    np.testing.assert_allclose(np.abs(left).max(axis=0), np.abs(right).max(axis=1), rtol=1e-4)
    product, half = left @ right, left.astype(np.float16).astype(np.float32) @ right.astype(np.float16)
    assert np.abs(product - half).max() < 2e-3 * np.abs(product).max()


def test_factors_of_nothing_are_nothing() -> None:
    left, right = low_rank(np.zeros((8, 5)), 3, np.zeros(8))
    assert not left.any()
    assert not right.any() or not (left @ right).any()
    assert low_rank(np.ones((8, 5)), 100)[0].shape == (8, 5)


def test_factors_that_do_not_fit_are_refused() -> None:
    for rank, moments in ((0, None), (2, np.ones(7)), (2, np.ones((8, 7)))):
        with pytest.raises(FormatError, match="do not fit"):
            low_rank(np.zeros((8, 5)), rank, moments)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1), PerBlock(1, 4), PerBlock(0, 4)])
def test_group_sums_are_sums_of_what_shares_a_scale(granularity: PerTensor | PerChannel | PerBlock) -> None:
    values = np.random.default_rng(0).standard_normal((6, 10))
    sums = group_sums(values, granularity)
    ones = granularity.broadcast(np.arange(sums.size).reshape(sums.shape), values.shape)
    for number in range(sums.size):
        expected = values[np.broadcast_to(ones, values.shape) == number].sum()
        assert sums.reshape(-1)[number] == pytest.approx(expected)


def test_outliers_are_those_beyond_their_neighbours() -> None:
    generator = np.random.default_rng(0)
    weight = (
        generator.standard_normal((8, 64)).astype(np.float32) * np.geomspace(0.01, 10, 8, dtype=np.float32)[:, None]
    )
    # Far out in its own row, though small beside the others.
    weight[0, 5], weight[3, 7] = 0.3, -9.0
    found = outliers(weight, 2 / weight.size, PerChannel(0))
    assert found.tolist() == [5, 3 * 64 + 7]
    assert found.dtype == np.int32
    largest = np.argsort(-np.abs(weight).reshape(-1))[:5]
    assert outliers(weight, 5 / weight.size, PerTensor()).tolist() == sorted(largest)


def test_importance_decides_between_equals() -> None:
    weight = np.ones((1, 4), dtype=np.float32)
    assert outliers(weight, 0.25, PerTensor(), np.array([1.0, 1.0, 4.0, 1.0])).tolist() == [2]
    assert outliers(weight, 0.5, PerTensor()).tolist() == [0, 1]
    assert outliers(np.zeros((2, 2), np.float32), 0.5, PerTensor()).size == 0
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(FormatError, match="out of range"):
            outliers(weight, fraction, PerTensor())


def test_others_are_rounded_more_finely_without_them() -> None:
    weight = np.random.default_rng(3).standard_t(2.5, (16, 256)).astype(np.float32)
    fmt = parse_format("int4:per-channel")
    apart = outliers(weight, 0.01, fmt.granularity)
    rest = weight.copy()
    rest.reshape(-1)[apart] = 0.0

    errors = []
    for each in (weight, rest):
        parameters = choose_parameters(*weight_range(each, fmt), fmt)
        errors.append(np.square(fake_quantize(each, parameters, fmt) - each).sum())
    assert errors[1] < 0.4 * errors[0]
