"""Ranges of weights: what each method claims, in both directions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit.exceptions import FormatError
from lowbit.formats import Format, PerBlock, PerChannel, choose_parameters, fake_quantize, parse_format, quantize
from lowbit.rounding import RANGE_METHODS, round_nearest, weight_range

FORMATS = [
    "int8",
    "int8:per-channel",
    "uint8:per-channel",
    "int4:per-channel:narrow",
    "int4:block=16",
    "uint4:block=10",
]


def error(weight: np.ndarray, fmt: Format, method: str, **options: float) -> np.ndarray:
    parameters = choose_parameters(*weight_range(weight, fmt, method, **options), fmt)
    return (fake_quantize(weight, parameters, fmt).astype(np.float64) - weight) ** 2


def heavy_tailed(shape: tuple[int, ...] = (8, 96), seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_t(3, shape) * 10.0 ** generator.uniform(-2, 1, (shape[0], 1))).astype(np.float32)


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("method", RANGE_METHODS)
def test_the_range_holds_zero_lies_within_the_weights_and_has_the_shape_of_the_scale(text: str, method: str) -> None:
    fmt = parse_format(text)
    weight = heavy_tailed()
    low, high = weight_range(weight, fmt, method)
    full_low, full_high = weight_range(weight, fmt)
    assert low.shape == high.shape == fmt.granularity.scale_shape(weight.shape)
    assert low.dtype == high.dtype == np.float32
    assert (full_low <= low).all()
    assert (low <= 0).all()
    assert (high >= 0).all()
    assert (high <= full_high).all()


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("method", RANGE_METHODS)
def test_channels_and_blocks_are_as_if_alone(axis: int, method: str) -> None:
    weight = np.random.default_rng(1).standard_normal((4, 7, 10)).astype(np.float32)
    alone = parse_format("int8")
    low, high = weight_range(weight, Format(alone.element, PerChannel(axis), symmetric=True), method)
    for index in range(weight.shape[axis]):
        part = np.take(weight, index, axis=axis)
        assert (low[index], high[index]) == tuple(float(each) for each in weight_range(part, alone, method))
    low, high = weight_range(weight, Format(alone.element, PerBlock(axis, 3), symmetric=True), method)
    moved_low, moved_high = np.moveaxis(low, axis, 0), np.moveaxis(high, axis, 0)
    for index, part in enumerate(np.split(np.moveaxis(weight, axis, 0), range(3, weight.shape[axis], 3))):
        expected = weight_range(part[:, 1, 2], alone, method)
        assert (moved_low[index, 1, 2], moved_high[index, 1, 2]) == tuple(float(each) for each in expected)


def test_minmax_clips_nothing() -> None:
    for text in FORMATS:
        fmt, weight = parse_format(text), heavy_tailed()
        parameters = choose_parameters(*weight_range(weight, fmt), fmt)
        step = fmt.granularity.broadcast(parameters.scale, weight.shape)
        assert (np.sqrt(error(weight, fmt, "minmax")) <= step * 1.001).all()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    weight=hnp.arrays(np.float32, (3, 20), elements=st.floats(-1e6, 1e6, width=32)),
    text=st.sampled_from([*FORMATS, "int2:per-channel", "float8_e4m3:per-channel", "float4_e2m1:block=4"]),
)
def test_least_squares_is_never_worse_than_minmax(weight: np.ndarray, text: str) -> None:
    fmt = parse_format(text)
    best, full = error(weight, fmt, "mse"), error(weight, fmt, "minmax")
    assert best.sum() <= full.sum() * (1 + 1e-6) + 1e-30
    if "per-channel" in text:
        assert (best.sum(axis=1) <= full.sum(axis=1) * (1 + 1e-6) + 1e-30).all()


def test_least_squares_pays_at_four_bits_and_gives_up_the_largest_weight_for_it() -> None:
    fmt = parse_format("int4:per-channel")
    weight = np.random.default_rng(2).standard_normal((16, 2000)).astype(np.float32)
    best, full = error(weight, fmt, "mse"), error(weight, fmt, "minmax")
    assert best.sum() < 0.7 * full.sum()
    assert best.max() > full.max()


def test_least_squares_finds_the_best_of_its_grid() -> None:
    fmt = parse_format("int4")
    weight = heavy_tailed((1, 500))
    low, high = weight_range(weight, fmt)
    errors = []
    for factor in np.linspace(1.0, 0.3, 51):
        parameters = choose_parameters(low * np.float32(factor), high * np.float32(factor), fmt)
        errors.append(float(((fake_quantize(weight, parameters, fmt).astype(np.float64) - weight) ** 2).sum()))
    assert error(weight, fmt, "mse").sum() == pytest.approx(min(errors), rel=1e-5)
    assert errors.index(min(errors)) > 0


@pytest.mark.parametrize("text", ["int8", "uint8"])
def test_percentile_keeps_that_part_of_the_weights(text: str) -> None:
    weight = np.random.default_rng(3).standard_normal(100_000).astype(np.float32)
    low, high = weight_range(weight, parse_format(text), "percentile", percentile=99.0)
    kept = np.mean((weight >= low) & (weight <= high))
    assert kept == pytest.approx(0.99, abs=1e-3)
    everything = weight_range(weight, parse_format(text), "percentile", percentile=100.0)
    assert everything == weight_range(weight, parse_format(text))


def test_entropy_drops_a_lone_outlier_and_keeps_a_uniform_range() -> None:
    fmt = parse_format("int8")
    generator = np.random.default_rng(4)
    weight = generator.laplace(0.0, 1.0, 50_000).astype(np.float32)
    weight[0] = 200.0
    low, high = weight_range(weight, fmt, "entropy")
    assert high < 60.0
    assert low > -60.0
    assert np.median(error(weight, fmt, "entropy")) < np.median(error(weight, fmt, "minmax")) / 4
    uniform = generator.uniform(-1.0, 1.0, 50_000).astype(np.float32)
    assert weight_range(uniform, fmt, "entropy")[1] > 0.95


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_dead_empty_and_extreme_weights(method: str) -> None:
    fmt = parse_format("int8:per-channel")
    weight = np.zeros((4, 6), dtype=np.float32)
    weight[1], weight[2], weight[3] = 1e-42, 3e38, np.linspace(-1, 1, 6)
    low, high = weight_range(weight, fmt, method)
    assert (low[0], high[0]) == (0, 0)
    assert np.isfinite(choose_parameters(low, high, fmt).scale).all()
    assert weight_range(np.zeros((3, 0), dtype=np.float32), fmt, method)[0].tolist() == [0, 0, 0]


def test_what_is_refused() -> None:
    weight = np.ones((2, 3), dtype=np.float32)
    fmt = parse_format("int8")
    bad = weight.copy()
    bad[0, 0] = np.nan
    for refused in (
        lambda: weight_range(bad, fmt),
        lambda: weight_range(bad, fmt, "mse"),
        lambda: weight_range(weight, fmt, "magic"),
        lambda: weight_range(weight, fmt, "percentile", percentile=0.0),
        lambda: weight_range(weight, parse_format("float8_e4m3"), "entropy"),
    ):
        with pytest.raises(FormatError):
            refused()


def test_round_nearest_takes_parameters_a_range_or_nothing() -> None:
    fmt, weight = parse_format("int4:per-channel"), heavy_tailed()
    low, high = weight_range(weight, fmt)
    parameters = choose_parameters(low, high, fmt)
    expected = quantize(weight, parameters, fmt)
    for codes in (
        round_nearest(weight, fmt),
        round_nearest(weight, fmt, parameters),
        round_nearest(weight, fmt, low=low, high=high),
    ):
        assert np.array_equal(codes, expected)
    half = round_nearest(weight, fmt, low=low / 2, high=high / 2)
    assert not np.array_equal(half, expected)
    for refused in (
        lambda: round_nearest(weight, fmt, low=low),
        lambda: round_nearest(weight, fmt, parameters, low=low, high=high),
    ):
        with pytest.raises(FormatError):
            refused()
