"""Detectors of causes: each finds the cause that was planted, and nothing in what is sound."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.formats import choose_parameters, parse_format, quantize
from lowbit.formats import dequantize as decode
from lowbit.methods.causes import (
    clipped_range,
    long_tail,
    outlier_channel,
    shared_range,
    silent_channels,
    softmax_mask,
)
from lowbit.methods.input_causes import constant_input, raw_pixels, weak_input
from lowbit.methods.weight_causes import coarse_weights, saturation
from lowbit.rounding import SaturationReport
from lowbit.statistics import Histogram, histogram_init, histogram_update

CODES = 256


def histogram(values: np.ndarray) -> Histogram:
    return histogram_update(histogram_init(), values.astype(np.float32))


def full_step(values: np.ndarray) -> float:
    """Return the step of 8 bits over everything that occurs."""
    return float(max(values.max(), 0) - min(values.min(), 0)) / (CODES - 1)


def test_an_outlier_channel() -> None:
    maxima = np.linspace(1.0, 2.0, 16)
    assert outlier_channel("n", "t", maxima) is None
    maxima[5] = 60.0
    cause = outlier_channel("n", "t", maxima)
    assert cause is not None
    assert (cause.kind, cause.node, cause.tensor) == ("outlier channel", "n", "t")
    assert cause.evidence["channel"] == 5
    assert cause.evidence["ratio"] == pytest.approx(60 / np.median(maxima))
    assert cause.evidence["codes"] == pytest.approx(CODES / cause.evidence["ratio"])
    assert "channel 5 of t reaches 60" in cause.text


def test_channels_that_are_dead_do_not_make_the_others_outliers() -> None:
    maxima = np.concatenate([np.zeros(20), np.ones(6)])
    assert outlier_channel("n", "t", maxima) is None
    # Two channels have no typical one.
    assert outlier_channel("n", "t", np.array([1.0, 100.0])) is None


def test_an_outlier_behind_a_normalization_has_its_own_remedy() -> None:
    maxima = np.array([1.0, 1.0, 1.0, 1.0, 30.0])
    cause = outlier_channel("n", "t", maxima, kind="LayerNorm outliers")
    assert cause is not None
    assert "smoothquant" in cause.remedy
    weights = outlier_channel("n", "t", maxima, kind="outlier weights")
    assert weights is not None
    assert "per-channel" in weights.remedy


def test_a_long_tail() -> None:
    values = np.random.default_rng(0).standard_normal(50_000)
    assert long_tail("n", "t", histogram(values), step=full_step(values)) is None
    values[7] = 120.0
    cause = long_tail("n", "t", histogram(values), step=full_step(values))
    assert cause is not None
    # ±3.1 of a span of about 124.
    assert cause.evidence["codes"] == pytest.approx(6.2 / 124 * CODES, rel=0.1)
    # A range that leaves the tail out already is no cause.
    assert long_tail("n", "t", histogram(values), step=8.0 / 255) is None


def test_zeros_behind_a_relu_are_no_bulk() -> None:
    values = np.maximum(np.random.default_rng(1).standard_normal(50_000) - 2.0, 0.0)
    assert np.mean(values == 0) > 0.97
    assert long_tail("n", "t", histogram(values), step=full_step(values)) is None


def test_a_clipped_range() -> None:
    values = np.random.default_rng(2).standard_normal(50_000)
    seen = histogram(values)
    assert clipped_range("n", "t", seen, low=-4.5, high=4.5, step=9 / 255) is None
    cause = clipped_range("n", "t", seen, low=-1.5, high=1.5, step=3 / 255)
    assert cause is not None
    assert cause.evidence["fraction"] == pytest.approx(np.mean(np.abs(values) > 1.5), abs=0.005)
    error = np.mean(np.square(values - np.clip(values, -1.5, 1.5)))
    assert cause.evidence["ratio"] == pytest.approx(error / ((3 / 255) ** 2 / 12), rel=0.02)


def test_a_mask_before_a_softmax() -> None:
    scores = np.random.default_rng(3).standard_normal(4096) * 3
    assert softmax_mask("n", "t", histogram(scores), step=full_step(scores)) is None
    masked = np.where(np.arange(4096) % 3 == 0, -1e4, scores)
    cause = softmax_mask("n", "t", histogram(masked), step=full_step(masked))
    assert cause is not None
    assert cause.evidence["mask"] == -1e4
    assert cause.evidence["codes"] < 1
    # A range without the mask gives the scores their codes.
    assert softmax_mask("n", "t", histogram(masked), step=full_step(scores)) is None


def test_a_range_shared_by_unlike_branches() -> None:
    alike = {"a": (-1.0, 1.0), "b": (0.0, 3.0)}
    assert shared_range("n", "t", alike, step=4 / 255) is None
    unlike = {"a": (-0.5, 0.5), "b": (0.0, 30.0)}
    cause = shared_range("n", "t", unlike, step=30.5 / 255)
    assert cause is not None
    assert cause.evidence["ratio"] == pytest.approx(30)
    assert cause.evidence["codes"] == pytest.approx(255 / 30.5)
    assert "a 1 (30× less)" in cause.text
    assert shared_range("n", "t", {"b": (0.0, 30.0)}, step=30 / 255) is None


def report(hazards: int, before: float, after: float) -> SaturationReport:
    return SaturationReport(
        pairs=100,
        hazards=hazards,
        channels=8,
        clipped=0,
        scaled=min(hazards, 8),
        scaled_and_clipped=0,
        error_before=before,
        error_after=after,
    )


def test_saturation() -> None:
    assert saturation("n", "w", report(0, 1.0, 1.0)) is None
    # Safe for next to nothing: no cause.
    assert saturation("n", "w", report(9, 1.0, 1.05)) is None
    cause = saturation("n", "w", report(9, 1.0, 3.0))
    assert cause is not None
    assert cause.evidence["growth"] == 3.0
    assert cause.text.startswith("9 of 100 pairs")


def test_dead_and_constant_channels() -> None:
    low, high = np.zeros(8), np.arange(1.0, 9.0)
    assert silent_channels("n", "t", low, high, samples=4) is None
    high[2] = 0.0
    dead = silent_channels("n", "t", low, high, samples=4)
    assert dead is not None
    assert (dead.kind, dead.evidence["dead"], dead.evidence["constant"]) == ("dead channels", 1, 0)
    constant = silent_channels("n", "t", np.full(8, 0.5), np.array([0.5, *range(1, 8)]), samples=4)
    assert constant is not None
    assert (constant.kind, constant.evidence["constant"]) == ("constant channels", 1)


def test_coarse_weights() -> None:
    weight = np.random.default_rng(4).standard_normal((16, 32)).astype(np.float32)
    found = {}
    for text in ("int8", "int4", "int2"):
        fmt = parse_format(text)
        parameters = choose_parameters(weight.min(), weight.max(), fmt)
        decoded = decode(quantize(weight, parameters, fmt), parameters, fmt)
        found[text] = coarse_weights("n", "w", weight, decoded, fmt=text)
    assert found["int8"] is None
    assert found["int4"] is not None
    assert found["int2"] is not None
    assert found["int2"].evidence["sqnr_db"] < found["int4"].evidence["sqnr_db"] < 27
    assert coarse_weights("n", "w", weight, weight, fmt="int8") is None


def test_pixels_that_were_not_scaled() -> None:
    sound = {"low": 0.0, "high": 255.0, "whole": True, "signal": 3.0, "bias": 1.0}
    assert raw_pixels("n", "x", **sound) is None  # a model of 0 … 255
    cause = raw_pixels("n", "x", **{**sound, "signal": 190.0})
    assert cause is not None
    assert cause.kind == "preprocessing suspected"
    assert cause.evidence["ratio"] == 190
    for change in ({"whole": False}, {"high": 1.0}, {"low": -1.0}, {"bias": 0.0}):
        assert raw_pixels("n", "x", **{**sound, "signal": 190.0, **change}) is None


def test_inputs_that_drown_in_biases() -> None:
    sound = {"low": 0.0, "high": 1.0, "signal": 0.8, "bias": 0.6}
    assert weak_input("n", "x", **sound) is None
    cause = weak_input("n", "x", **{**sound, "signal": 0.003})
    assert cause is not None
    assert cause.kind == "preprocessing suspected"
    assert weak_input("n", "x", **{**sound, "signal": 0.003, "bias": 0.0}) is None


def test_constant_inputs() -> None:
    assert constant_input("x", 0.0, 1.0, samples=4) is None
    assert constant_input("x", 0.0, 1.0, samples=1, repeated=True) is None
    for low, repeated in ((1.0, False), (0.0, True)):
        cause = constant_input("x", low, 1.0, samples=4, repeated=repeated)
        assert cause is not None
        assert cause.kind == "constant input"
