"""Codebooks: their levels are the published ones, learned levels belong to one tensor, and codes are nearest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.exceptions import FormatError
from lowbit.formats import (
    ELEMENTS,
    Parameters,
    choose_parameters,
    dequantize,
    fake_quantize,
    levels_of,
    minimum_opset,
    parse_format,
    quantize,
)

FIXED = [each.name for each in ELEMENTS.values() if each.levels and not each.learned]
# Dettmers et al., QLoRA, 2023, appendix E.
NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


def own_levels(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return np.sort(generator.standard_normal(shape).astype(np.float32), axis=-1)


def test_nf4_is_the_published_one() -> None:
    # Published ones follow from a probability of seven digits: 0.9677083.
    np.testing.assert_allclose(ELEMENTS["nf4"].levels, NF4, rtol=0, atol=3e-7)


def test_powers_of_two() -> None:
    magnitudes = [level for level in ELEMENTS["pot4"].levels if level > 0]
    assert magnitudes == [2.0**-exponent for exponent in range(6, -1, -1)]
    assert ELEMENTS["pot3"].levels == (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)


def test_additive_powers_of_two_are_sums_of_a_power_of_three_and_one_of_one() -> None:
    # Li et al., 2020, equation 5 at 3 bits of magnitude: {0, 1, 1/2, 1/8} + {0, 1/4}, over the largest.
    sums = sorted({first + second for first in (0, 1, 1 / 2, 1 / 8) for second in (0, 1 / 4)})
    positive = [level for level in ELEMENTS["apot4"].levels if level >= 0]
    np.testing.assert_allclose(positive, np.array(sums) / 1.25)


@pytest.mark.parametrize("name", ELEMENTS)
def test_levels_ascend_hold_zero_and_fill_their_bits(name: str) -> None:
    element = ELEMENTS[name]
    assert (element.kind == "codebook") == bool(element.levels)
    if element.levels:
        assert (np.diff(element.levels) > 0).all()
        assert 0.0 in element.levels
        assert 2 ** (element.bits - 1) < len(element.levels) <= 2**element.bits


@pytest.mark.parametrize("name", [*FIXED, "codebook8"])
@settings(derandomize=True, deadline=None, max_examples=40)
@given(value=st.floats(-1.5, 1.5, width=32))
def test_no_level_is_nearer_than_the_code(name: str, value: float) -> None:
    fmt = parse_format(name)
    parameters = choose_parameters(-1.0, 1.0, fmt)
    decoded = np.array(fmt.element.levels, dtype=np.float32) * parameters.scale
    chosen = fake_quantize(value, parameters, fmt)
    assert abs(chosen - value) <= np.abs(decoded - value).min() * (1 + 1e-5) + 1e-7


def test_learned_levels_of_a_tensor_and_of_its_channels() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((5, 7)).astype(np.float32)
    for axis in (0, 1):
        fmt = parse_format("codebook4:per-channel", channel_axis=axis)
        channels = x.shape[axis]
        one = Parameters(np.ones(channels, np.float32), np.zeros(channels, fmt.element.dtype), own_levels(generator, 4))
        own = Parameters(one.scale, one.zero_point, own_levels(generator, channels, 4))
        for parameters in (one, own):
            codes = quantize(x, parameters, fmt)
            assert (codes.dtype, codes.shape) == (fmt.element.dtype, x.shape)
            levels = np.broadcast_to(levels_of(fmt, parameters.levels), (channels, 4))
            for row, rows_levels, decoded in zip(
                np.moveaxis(x, axis, 0), levels, np.moveaxis(dequantize(codes, parameters, fmt), axis, 0), strict=True
            ):
                nearest = rows_levels[np.abs(row[:, None] - rows_levels).argmin(axis=1)]
                np.testing.assert_array_equal(decoded, nearest)
        assert one != own
        assert hash(one) != hash(own)


def test_levels_that_do_not_fit_are_refused() -> None:
    x = np.zeros((3, 4), dtype=np.float32)
    zeros, ones = np.zeros(3, ELEMENTS["codebook4"].dtype), np.ones(3, np.float32)
    levels = np.linspace(-1, 1, 4, dtype=np.float32)
    per_channel = parse_format("codebook4:per-channel")
    with pytest.raises(FormatError, match="ascending"):
        Parameters(ones, zeros, levels[::-1].copy())
    for fmt, wrong in (
        (per_channel, np.linspace(-1, 1, 5, dtype=np.float32)),
        (per_channel, np.tile(levels, (2, 1))),
        (parse_format("nf2:per-channel"), levels),
    ):
        with pytest.raises(FormatError, match="do not fit"):
            quantize(x, Parameters(ones, zeros, wrong), fmt)
    whole = parse_format("codebook4")
    with pytest.raises(FormatError, match="do not fit"):
        quantize(x, Parameters(ones[0], zeros[0], np.tile(levels, (3, 1))), whole)


def test_codes_without_a_level_are_refused() -> None:
    fmt = parse_format("pot4")
    codes = np.array([15], dtype=np.uint8).astype(fmt.element.dtype)
    with pytest.raises(FormatError, match="does not exist"):
        dequantize(codes, choose_parameters(-1.0, 1.0, fmt), fmt)


def test_codebooks_have_no_zero_point() -> None:
    with pytest.raises(FormatError, match="no zero point"):
        parse_format("nf4:asymmetric")
    fmt = parse_format("nf4")
    with pytest.raises(FormatError, match="zero point"):
        quantize(np.zeros(3), Parameters(np.float32(1), np.ones((), fmt.element.dtype)), fmt)  # type: ignore[arg-type]


def test_few_bits_need_no_new_opset() -> None:
    assert minimum_opset(parse_format("nf2:block=32")) == minimum_opset(parse_format("codebook8")) == 18
    assert minimum_opset(parse_format("nf4:per-channel")) == 21
    assert minimum_opset(parse_format("codebook256:per-channel")) == 11
