"""Quantities are readable: three digits, the unit that fits, and no false 100 %."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.report import units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.bytes_text(0), "0 B"),
        (units.bytes_text(999), "999 B"),
        (units.bytes_text(999_600), "1.00 MB"),
        (units.bytes_text(18_600_000), "18.6 MB"),
        (units.bytes_text(2_147_483_648), "2.15 GB"),
        (units.megabytes_text(61.34), "61.3 MB"),
        (units.milliseconds_text(0.412), "412 µs"),
        (units.milliseconds_text(9.204), "9.20 ms"),
        (units.milliseconds_text(1250), "1.25 s"),
        (units.ratio_text(1.5), "1.50×"),
        (units.ratio_text(12.34), "12.3×"),
        (units.ratio_text(9.996), "10.0×"),
        (units.interval_text(1.488, 1.553), "1.49–1.55×"),
        (units.decibel_text(-2.5), "−2.5 dB"),
        (units.decibel_text(math.inf), "exact"),
        (units.decibel_text(math.nan), "undefined"),
        (units.decibel_text(-math.inf), "undefined"),
        (units.decibel_text(None), "–"),
        (units.percent_text(1.0), "100 %"),
        (units.percent_text(0.0), "0 %"),
        (units.percent_text(0.9999999), "> 99.99 %"),
        (units.percent_text(0.00002), "< 0.01 %"),
        (units.percent_text(0.962), "96.2 %"),
        (units.count_text(1, "layer"), "1 layer"),
        (units.count_text(1000, "sample"), "1,000 samples"),
        (units.signed_text(-0.016), "−0.016"),
        (units.signed_text(-0.00001), "±0"),
    ],
)
def test_text(text: str, expected: str) -> None:
    assert text == expected


@given(st.floats(min_value=1e-6, max_value=1e9))
def test_numbers_keep_their_value_to_half_a_percent(value: float) -> None:
    assert float(units.number_text(value).replace("−", "-")) == pytest.approx(value, rel=0.0051)


@given(st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True))
def test_only_all_is_a_hundred_percent_and_only_none_is_zero(fraction: float) -> None:
    assert units.percent_text(fraction) not in {"100 %", "100.0 %", "100.00 %", "0 %", "0.0 %", "0.00 %"}
