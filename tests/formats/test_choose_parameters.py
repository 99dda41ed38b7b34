"""Scale and zero point at the edges of float32."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.exceptions import FormatError
from lowbit.formats import ELEMENTS, Parameters, choose_parameters, fake_quantize, parse_format


@pytest.mark.parametrize(
    ("text", "low", "high", "scale", "zero_point"),
    [
        ("uint8", -1.0, 1.55, 2.55 / 255, 100),
        ("uint8", 0.5, 2.55, 2.55 / 255, 0),  # widened to hold zero
        ("uint8", -2.55, -0.5, 2.55 / 255, 255),
        ("int8:asymmetric", 0.0, 2.55, 2.55 / 255, -128),
        ("int8", -1.0, 1.27, 1.27 / 127, 0),
        ("int8", -1.28, 1.0, 1.28 / 128, 0),  # the lowest code is used
        ("int8:narrow", -1.27, 1.0, 1.27 / 127, 0),
        ("uint8:symmetric", -1.27, 0.0, 1.27 / 128, 128),
        ("int2:narrow", -3.0, 2.0, 3.0, 0),
        ("float8_e4m3", -896.0, 3.0, 2.0, 0),
        ("float4_e2m1", -3.0, 12.0, 2.0, 0),
        ("float16", -6e4, 2.0, 1.0, 0),
        ("uint8", 0.0, 0.0, 1.0, 0),
        ("int8", 0.0, 0.0, 1.0, 0),
    ],
)
def test_known_values(text: str, low: float, high: float, scale: float, zero_point: float) -> None:
    parameters = choose_parameters(low, high, parse_format(text))
    np.testing.assert_array_max_ulp(parameters.scale, np.float32(scale), 1)
    assert float(parameters.zero_point) == zero_point


@pytest.mark.parametrize("name", [name for name in ELEMENTS if name != "float16"])
@pytest.mark.parametrize("magnitude", [1e-45, 1e-38, 1e30, 3e38, float(np.finfo(np.float32).max)])
def test_extreme_ranges_stay_finite_and_accurate(name: str, magnitude: float) -> None:
    fmt = parse_format(name)
    magnitude = min(float(np.float32(magnitude)), fmt.element.maximum if name == "bfloat16" else np.inf)
    parameters = choose_parameters(-magnitude, magnitude, fmt)
    assert np.isfinite(np.float32(1.0) / parameters.scale)
    x = np.array([-magnitude, 0.0, magnitude], dtype=np.float32)
    decoded = fake_quantize(x, parameters, fmt).astype(np.float64)
    assert np.isfinite(decoded).all()
    step = max(2.0**-8 * magnitude, 1e-40) if name == "bfloat16" else float(parameters.scale)
    assert np.abs(decoded - x).max() <= step * 1.01


def test_a_dead_channel_does_not_disturb_the_others() -> None:
    fmt = parse_format("uint8:per-channel")
    parameters = choose_parameters([-1.0, 0.0, 0.0], [1.55, 0.0, 510.0], fmt)
    assert parameters.scale.tolist() == [np.float32(2.55 / 255), 1.0, 2.0]
    assert parameters.zero_point.tolist() == [100, 0, 0]


@pytest.mark.parametrize("bound", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_no_number_is_refused(bound: float) -> None:
    for low, high in ((bound, 1.0), (-1.0, bound)):
        with pytest.raises(FormatError):
            choose_parameters(np.array([low, 0.0]), np.array([high, 0.0]), parse_format("int8:per-channel"))


def test_float16_says_that_it_cannot_hold_a_large_range() -> None:
    with pytest.raises(FormatError, match="cannot hold"):
        choose_parameters(-1.0, 7e4, parse_format("float16"))


def test_a_range_upside_down_is_refused() -> None:
    with pytest.raises(FormatError, match="above"):
        choose_parameters(2.0, 1.0, parse_format("int8"))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_parameters_refuse_what_is_no_scale(scale: float) -> None:
    with pytest.raises(FormatError):
        Parameters(np.float32(scale), np.int8(0))


def test_parameters_are_values() -> None:
    fmt = parse_format("int8:per-channel")
    one, same, other = (choose_parameters([-1.0, -1.0], [1.0, high], fmt) for high in (2.0, 2.0, 3.0))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    with pytest.raises(FormatError, match="own zero point"):
        Parameters(one.scale, np.int8(0))


def test_a_scale_of_another_shape_is_refused() -> None:
    fmt = parse_format("int8:per-channel")
    with pytest.raises(FormatError, match="needs shape"):
        fake_quantize(np.zeros((3, 4)), choose_parameters([-1.0, -1.0], [1.0, 1.0], fmt), fmt)
