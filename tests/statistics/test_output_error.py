"""Errors at outputs are those of the definition, and candidates hold what was seen."""

from __future__ import annotations

import numpy as np
import pytest

from lowbit.exceptions import FormatError
from lowbit.formats import parse_format
from lowbit.statistics.output_error import close_ranges, compact_weight, squared_output_errors, wide_ranges

UINT8 = parse_format("uint8:asymmetric")


def test_errors_are_those_of_rounding_by_hand() -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((2, 30, 5)).astype(np.float32)
    weight = generator.standard_normal((2, 5, 9)).astype(np.float32)
    candidates = [(-1.0, 1.0), (-2.0, 4.0), (0.0, 3.0)]
    got = squared_output_errors(rows, compact_weight(weight), candidates, UINT8)
    for error, (low, high) in zip(got, candidates, strict=True):
        scale = (high - low) / 255
        zero_point = np.rint(-low / scale)
        coded = (np.clip(np.rint(rows / scale) + zero_point, 0, 255) - zero_point) * scale
        wanted = np.square((coded - rows) @ weight).sum()
        assert error == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 4, 9), (3, 9, 4), (2, 5, 5), (1, 1, 7)])
def test_a_compact_weight_gives_errors_of_the_same_size(shape: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(1)
    weight = generator.standard_normal(shape).astype(np.float32)
    weight[:, 0] = 0  # also where it has no full rank
    rows = generator.standard_normal((shape[0], 20, shape[1])).astype(np.float32)
    compact = compact_weight(weight)
    assert compact.shape == (shape[0], shape[1], min(shape[1:]))
    np.testing.assert_allclose(
        np.square(rows @ compact).sum(axis=2), np.square(rows @ weight).sum(axis=2), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("low", "high", "symmetric"), [(0.0, 6.0, False), (-3.0, 1.0, False), (-2.0, 2.0, True)])
def test_candidates_lie_within_what_was_seen(low: float, high: float, symmetric: bool) -> None:
    wide = wide_ranges(low, high, symmetric=symmetric)
    assert wide[0] == (low, high)
    near = close_ranges(wide[3], low, high, 0.4, symmetric=symmetric)
    assert wide[3] not in near
    for a, b in (*wide, *near):
        assert low <= a <= 0 <= b <= high
        assert not symmetric or a == -b


def test_a_weight_of_other_inputs_is_refused() -> None:
    with pytest.raises(FormatError, match="does not read"):
        squared_output_errors(np.ones((1, 2, 3), np.float32), np.ones((1, 4, 2), np.float32), [(0.0, 1.0)], UINT8)
