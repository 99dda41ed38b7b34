"""Learned codebooks: the error never rises, known optima are found, and what matters more is met more closely."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit.exceptions import FormatError
from lowbit.formats import PerBlock, PerChannel, choose_parameters, dequantize, fake_quantize, parse_format, quantize
from lowbit.rounding import STARTS, codebook_error, learn_codebook, learned_parameters, own_levels, weight_range

lawful = settings(derandomize=True, deadline=None, max_examples=60)
rows = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.floats(-8, 8, width=16))


def heavy_tailed(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)


def brute_force(row: np.ndarray, weights: np.ndarray, entries: int) -> float:
    """Return the least error of all ways to cut a sorted row into runs."""
    order = np.argsort(row)
    x, h = row[order].astype(np.float64), weights[order]
    best = np.inf
    for cuts in itertools.combinations_with_replacement(range(len(x) + 1), entries - 1):
        error = 0.0
        for low, high in itertools.pairwise((0, *cuts, len(x))):
            mass = h[low:high].sum()
            if mass > 0:
                mean = (h[low:high] * x[low:high]).sum() / mass
                error += float((h[low:high] * (x[low:high] - mean) ** 2).sum())
        best = min(best, error)
    return best


@pytest.mark.parametrize("start", STARTS)
@lawful
@given(values=rows, entries=st.integers(1, 6), seed=st.integers(0, 3))
def test_levels_are_finite_in_order_and_within_the_row(start: str, values: np.ndarray, entries: int, seed: int) -> None:
    levels = learn_codebook(values, entries, start=start, seed=seed)
    assert (levels.shape, levels.dtype) == ((len(values), entries), np.float32)
    assert (np.diff(levels, axis=1) >= 0).all()
    assert (levels >= values.min(axis=1, keepdims=True) - 1e-5).all()
    assert (levels <= values.max(axis=1, keepdims=True) + 1e-5).all()


@lawful
@given(values=rows, entries=st.integers(1, 4), data=st.data())
def test_exact_is_the_optimum(values: np.ndarray, entries: int, data: st.DataObject) -> None:
    weights = data.draw(hnp.arrays(np.float64, values.shape, elements=st.integers(0, 5).map(float)))
    levels = learn_codebook(values, entries, weights, start="exact")
    for row, own, h in zip(values, levels, weights, strict=True):
        h = h if h.sum() else np.ones_like(h)
        found = float((h * np.square(row[:, None].astype(np.float64) - own).min(axis=1)).sum())
        assert found <= brute_force(row, h, entries) + 1e-3


@pytest.mark.parametrize("start", ["linear", "density", "k-means++"])
def test_the_weighted_error_never_rises(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = heavy_tailed(5, 400)
    importance = np.random.default_rng(1).gamma(0.3, size=values.shape)
    errors = []
    for rounds in range(12):
        monkeypatch.setattr("lowbit.rounding.codebook._ROUNDS", rounds)
        errors.append(codebook_error(values, learn_codebook(values, 8, importance, start=start), importance))
    assert (np.diff(errors, axis=0) <= 1e-6 * np.array(errors[:-1])).all()
    assert (errors[-1] < 0.95 * errors[0]).all()


def test_the_error_is_that_of_the_nearest_levels() -> None:
    values = heavy_tailed(3, 50)
    levels = np.sort(heavy_tailed(3, 5, seed=1), axis=1)
    importance = np.random.default_rng(1).random(values.shape)
    nearest = np.square(values[:, :, None].astype(np.float64) - levels[:, None, :]).min(axis=2)
    np.testing.assert_allclose(codebook_error(values, levels, importance), (importance * nearest).sum(axis=1))


def test_best_is_no_worse_than_any_start() -> None:
    values = heavy_tailed(6, 300)
    best = codebook_error(values, learn_codebook(values, 8))
    for start in ("linear", "density"):
        assert (best <= codebook_error(values, learn_codebook(values, 8, start=start)) * (1 + 1e-6)).all()


@pytest.mark.parametrize("start", ["linear", "density", "exact", "best"])
def test_counting_a_long_row_costs_little(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = heavy_tailed(1, 20_000)
    importance = np.random.default_rng(1).gamma(0.5, size=values.shape)
    counted = learn_codebook(values, 16, importance, start=start)
    monkeypatch.setattr("lowbit.rounding.codebook._MANY", 1 << 20)
    ordered = learn_codebook(values, 16, importance, start=start)
    errors = [codebook_error(values, each, importance)[0] for each in (counted, ordered)]
    assert errors[0] < errors[1] * 1.02


def test_known_levels_are_improved_on() -> None:
    values = heavy_tailed(3, 500)
    start = learn_codebook(values, 8, start="density")
    moved = start + np.float32(0.05)
    found = codebook_error(values, learn_codebook(values, 8, start=moved))
    assert (found < codebook_error(values, moved)).all()


def test_what_matters_more_is_met_more_closely() -> None:
    values = np.array([[0.0, 1.0, 10.0, 11.0]], dtype=np.float32)
    # Plain: the two pairs. Weighted: 10 and 11 matter so much that each gets a level of its own but for one.
    np.testing.assert_allclose(learn_codebook(values, 2), [[0.5, 10.5]])
    np.testing.assert_allclose(learn_codebook(values, 2, np.array([[1.0, 3.0, 1.0, 3.0]])), [[0.75, 10.75]])
    important = np.array([[1e-6, 1e-6, 1.0, 1.0]])
    np.testing.assert_allclose(learn_codebook(values, 2, important), [[10.0, 11.0]], atol=1e-4)


def test_a_seed_decides_what_is_picked_at_random() -> None:
    values = heavy_tailed(2, 3000)
    first, again, other = (learn_codebook(values, 16, start="k-means++", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_learned_levels_beat_even_ones_on_heavy_tails() -> None:
    weight = heavy_tailed(16, 2048) * np.geomspace(0.01, 10, 16, dtype=np.float32)[:, None]
    for bits, learned, share in ((2, "codebook4", 0.95), (3, "codebook8", 0.85), (4, "codebook16", 0.7)):
        fmt = parse_format(f"{learned}:per-channel")
        codebook = fake_quantize(weight, learned_parameters(weight, fmt), fmt)
        # The best that as many evenly spaced levels can do: any range, any zero point.
        even = np.inf
        for shrink in np.linspace(0.02, 1.0, 60):
            top = np.abs(weight).max(axis=1, keepdims=True) * shrink
            step = 2 * top / (2**bits - 1)
            codes = np.clip(np.rint((weight + top) / step), 0, 2**bits - 1)
            even = np.minimum(even, np.square(codes * step - top - weight).sum(axis=1))
        assert (np.square(codebook - weight).sum(axis=1) < share * even).all()


@pytest.mark.parametrize("text", ["codebook8:per-channel", "codebook8:block=16", "codebook8"])
def test_scales_and_levels_together_beat_the_start(text: str) -> None:
    weight = heavy_tailed(12, 64) * np.geomspace(0.01, 10, 12, dtype=np.float32)[:, None]
    importance = np.random.default_rng(1).gamma(0.5, size=64)
    fmt = parse_format(text)
    parameters = learned_parameters(weight, fmt, importance)
    assert parameters.scale.shape == fmt.granularity.scale_shape(weight.shape)
    start = choose_parameters(*weight_range(weight, fmt), fmt)
    errors = [
        (importance * np.square(dequantize(quantize(weight, each, fmt), each, fmt) - weight)).sum()
        for each in (start, parameters)
    ]
    assert errors[1] < 0.7 * errors[0]
    unweighted = learned_parameters(weight, fmt)
    plain = (importance * np.square(fake_quantize(weight, unweighted, fmt) - weight)).sum()
    assert errors[1] < plain


def test_only_channels_of_many_weights_have_levels_of_their_own() -> None:
    fmt = parse_format("codebook4:per-channel")
    assert isinstance(fmt.granularity, PerChannel)
    assert not own_levels((8, 32), fmt)
    assert own_levels((8, 128), fmt)
    for columns, shape in ((32, (4,)), (128, (8, 4))):
        levels = learned_parameters(heavy_tailed(8, columns), fmt).levels
        assert levels is not None
        assert levels.shape == shape
    blocks = parse_format("codebook4:block=64")
    assert isinstance(blocks.granularity, PerBlock)
    assert not own_levels((8, 128), blocks)


def test_extreme_weights_are_learned_without_overflow() -> None:
    for magnitude in (1e-38, 1e-30, 1e30):
        weight = heavy_tailed(4, 64) * np.float32(magnitude)
        for text in ("codebook4:per-channel", "codebook4:block=16"):
            fmt = parse_format(text)
            assert np.isfinite(fake_quantize(weight, learned_parameters(weight, fmt), fmt)).all()
    zeros = np.zeros((4, 64), dtype=np.float32)
    for text in ("codebook4", "codebook4:per-channel", "codebook4:block=16"):
        fmt = parse_format(text)
        assert not fake_quantize(zeros, learned_parameters(zeros, fmt), fmt).any()


def test_what_cannot_be_learned_from_is_refused() -> None:
    values = heavy_tailed(2, 8)
    with pytest.raises(FormatError, match="NaN"):
        learn_codebook(np.where(values > 0, np.nan, values), 4)
    with pytest.raises(FormatError, match="negative"):
        learn_codebook(values, 4, -np.ones(values.shape))
    with pytest.raises(FormatError, match="no way to start"):
        learn_codebook(values, 4, start="middle")  # type: ignore[arg-type]
    assert learn_codebook(values[:, :0], 4).tolist() == [[0.0] * 4] * 2
