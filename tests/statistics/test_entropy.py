"""Entropy ranges against the definition, with SciPy's relative entropy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy

from lowbit.statistics import Grid, Histogram, entropy_range, histogram_init, histogram_update, minmax_range
from lowbit.statistics.entropy import entropy_divergences

rng = np.random.default_rng(0)
N = 30_000
DATA = {
    "normal": rng.standard_normal(N),
    "student": rng.standard_t(3, N),
    "skewed": np.concatenate([0.1 * rng.standard_normal(N // 2), rng.exponential(size=N // 2)]),
    "relu": np.maximum(rng.standard_normal(N), 0.0),
    "negative": -rng.exponential(size=N),
    "outlier": np.append(rng.standard_normal(N), 40.0),
    "far": 5.0 + rng.standard_normal(N) * 0.5,
    "few": np.array([-1.0, 0.5, 0.5, 3.0, 100.0]),
}


def by_definition(h: Histogram, threshold: float, codes: int, symmetric: bool) -> float | None:
    """KL(P || Q), literally: clip, flatten over the codes, compare. None if rounding is a matter of taste."""
    counts = h.nonzero_counts().astype(np.float64)
    edges = h.edges()
    inside = (edges[:-1] >= -threshold) & (edges[1:] <= threshold)
    P = counts[inside]
    kept = P.copy()
    first = int(np.flatnonzero(inside)[0])
    P[0] += counts[:first].sum()
    P[-1] += counts[first + P.size :].sum()
    low, high = max(min(h.low, 0.0), -threshold), min(max(h.high, 0.0), threshold)
    grid = Grid.around_zero(max(-low, high), codes) if symmetric else Grid.spanning(low, high, codes)
    centres = edges[:-1][inside] + h.width / 2
    if np.any(np.abs(centres / grid.scale % 1.0 - 0.5) < 1e-9):
        return None
    code = np.clip(np.rint(centres / grid.scale), grid.first, grid.last)
    Q = np.zeros_like(P)
    for c in np.unique(code):
        occupied = (code == c) & (P > 0)
        if occupied.any():
            Q[occupied] = max(kept[code == c].sum(), 1.0) / occupied.sum()
    return float(entropy(P, Q))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("codes", [4, 16, 256])
@pytest.mark.parametrize("name", DATA)
def test_divergences_are_those_of_the_definition(name: str, codes: int, symmetric: bool) -> None:
    h = histogram_update(histogram_init(bins=2048), DATA[name])
    thresholds, divergences = entropy_divergences(h, codes, symmetric)
    expected = {i: by_definition(h, float(thresholds[i]), codes, symmetric) for i in range(0, thresholds.size, 7)}
    clear = [i for i, value in expected.items() if value is not None]
    assert len(clear) > len(expected) // 3
    np.testing.assert_allclose(divergences[clear], [expected[i] for i in clear], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_the_range_has_the_least_divergence(name: str, symmetric: bool) -> None:
    h = histogram_update(histogram_init(), DATA[name])
    thresholds, divergences = entropy_divergences(h, 16, symmetric)
    everything = minmax_range(h, symmetric=symmetric)
    found = entropy_range(h, 16, symmetric)
    best = thresholds[divergences == divergences.min()][-1]
    assert (found.low, found.high) == (max(everything.low, -best), min(everything.high, best))


def test_cuts_the_lone_outlier_that_minmax_keeps() -> None:
    h = histogram_update(histogram_init(), DATA["outlier"])
    assert minmax_range(h).high == 40.0
    for symmetric in (False, True):
        found = entropy_range(h, 256, symmetric)
        assert 3.0 < found.high < 12.0


def test_the_shorter_side_of_skewed_data_costs_no_codes() -> None:
    h = histogram_update(histogram_init(), DATA["skewed"])
    found = entropy_range(h, 256)
    assert h.low <= found.low < 0.0
    assert found.high > 4.0 * -found.low


def test_uniform_data_are_not_clipped() -> None:
    h = histogram_update(histogram_init(), rng.random(N))
    assert entropy_range(h, 256).high > 0.97


def test_fewer_codes_take_a_shorter_range() -> None:
    h = histogram_update(histogram_init(), DATA["student"])
    assert entropy_range(h, 16).high < 0.8 * entropy_range(h, 256).high


def test_a_spike_of_exact_zeros_changes_nothing() -> None:
    plain = histogram_update(histogram_init(), DATA["negative"])
    spiked = histogram_update(plain, np.zeros(50 * N))
    assert entropy_range(plain, 16) == entropy_range(spiked, 16)
