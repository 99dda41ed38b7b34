"""Durations as users write them."""

from __future__ import annotations

import pytest

from lowbit.cli.duration import DURATION


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("2.5", 2.5), ("0", 0), (".5", 0.5), ("90s", 90), ("5m", 300), ("1h", 3600), (" 1.5 M ", 90)],
)
def test_durations(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds
