"""The contract of every streaming statistic: one row each, the same laws for all."""

from __future__ import annotations

import io
import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit import statistics
from lowbit.exceptions import DataError, FormatError, RecipeError
from lowbit.statistics import RANGE_METHODS, histogram_init, histogram_range, histogram_update, observer

if TYPE_CHECKING:
    from collections.abc import Callable

BINS = 64


@dataclass(frozen=True)
class Row:
    """One statistic: its functions, which laws hold for it, and how its numbers compare.

    `exact` is compared bit for bit; `approximate` pairs numbers with the power of the data's unit that they carry.
    """

    name: str
    init: Callable[[], Any]
    update: Callable[[Any, Any], Any]
    merge: Callable[[Any, Any], Any]
    to_arrays: Callable[[Any], dict[str, Any]]
    from_arrays: Callable[[Any], Any]
    exact: Callable[[Any], list[Any]]
    approximate: Callable[[Any], list[tuple[Any, int]]]
    ordered: bool = False
    batch_bytes: int = 256


def _of_observer(method: Any, **rest: Any) -> Row:
    o = observer(method, bins=BINS)
    return Row(
        name=method,
        init=o.init,
        update=o.update,
        merge=o.merge,
        to_arrays=o.to_arrays,
        from_arrays=o.from_arrays,
        **rest,
    )


ROWS = [
    _of_observer("minmax", exact=lambda s: [s.low, s.high, s.count], approximate=lambda s: []),
    _of_observer(
        "moving-average",
        exact=lambda s: [s.decay, s.batches],
        approximate=lambda s: [(s.low_sum, 1), (s.high_sum, 1)],
        ordered=True,
    ),
    # One row for `percentile`, `mse` and `entropy`: they share this state, which a test below asserts.
    _of_observer(
        "mse",
        exact=lambda s: [s.bins, s.exponent, s.start, s.low, s.high, s.zeros, s.counts.tolist()],
        approximate=lambda s: [(s.total, 1), (s.total_squares, 2)],
        batch_bytes=8 * BINS + 256,
    ),
    Row(
        name="moments",
        init=statistics.moments_init,
        update=statistics.moments_update,
        merge=statistics.moments_merge,
        to_arrays=statistics.moments_to_arrays,
        from_arrays=statistics.moments_from_arrays,
        exact=lambda s: [s.channel_axis, s.count, s.mean.shape],
        approximate=lambda s: [(s.mean, 1), (s.squares, 2)],
    ),
]
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
law = settings(derandomize=True, deadline=None, max_examples=60)

EXTREMES = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, -1.1754944e-38, 1.0, -1.0, 3.4028235e38, -3.4028235e38]
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(EXTREMES)
batch = st.integers(0, 12).flatmap(lambda n: hnp.arrays(np.float32, (n, 3), elements=numbers))
batches = st.lists(batch, max_size=4)


def fold(row: Row, parts: list[np.ndarray], state: Any = None) -> Any:
    state = row.init() if state is None else state
    for part in parts:
        state = row.update(state, part)
    return state


def assert_same(row: Row, a: Any, b: Any, parts: list[np.ndarray]) -> None:
    assert row.exact(a) == row.exact(b)
    flat = np.abs(np.concatenate([np.zeros(1), *(part.ravel().astype(np.float64) for part in parts)]))
    for (x, power), (y, _) in zip(row.approximate(a), row.approximate(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-13 * flat.size * float(flat.max()) ** power)


@every_row
@law
@given(first=batches, second=batches)
def test_merge_is_one_pass_over_both(row: Row, first: list[np.ndarray], second: list[np.ndarray]) -> None:
    merged = row.merge(fold(row, first), fold(row, second))
    assert_same(row, merged, fold(row, first + second), first + second)


@every_row
@law
@given(a=batches, b=batches, c=batches)
def test_merge_is_associative(row: Row, a: list[np.ndarray], b: list[np.ndarray], c: list[np.ndarray]) -> None:
    x, y, z = fold(row, a), fold(row, b), fold(row, c)
    assert_same(row, row.merge(row.merge(x, y), z), row.merge(x, row.merge(y, z)), a + b + c)


@every_row
@law
@given(parts=batches)
def test_initial_state_is_neutral(row: Row, parts: list[np.ndarray]) -> None:
    state = fold(row, parts)
    assert_same(row, row.merge(row.init(), state), state, parts)
    assert_same(row, row.merge(state, row.init()), state, parts)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.ordered], ids=lambda row: row.name)
@law
@given(parts=batches)
def test_neither_order_nor_cutting_matters(row: Row, parts: list[np.ndarray]) -> None:
    state = fold(row, parts)
    assert_same(row, fold(row, parts[::-1]), state, parts)
    whole = np.concatenate([np.zeros((0, 3), np.float32), *parts])
    assert_same(row, fold(row, [whole[::-1]]), state, parts)


def test_the_histogram_methods_share_one_state() -> None:
    for method in ("percentile", "mse", "entropy"):
        o = observer(method)  # type: ignore[arg-type]
        assert o.update is histogram_update
        assert o.merge is statistics.histogram_merge
        assert (o.to_arrays, o.from_arrays) == (statistics.histogram_to_arrays, statistics.histogram_from_arrays)


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_observing_copies_no_tensor(method: Any) -> None:
    o = observer(method)
    data = np.random.default_rng(4).standard_normal(4_000_000).astype(np.float32)
    tracemalloc.start()
    try:
        o.update(o.init(), data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < data.nbytes / 8


def test_order_of_batches_matters_to_a_moving_average() -> None:
    o = observer("moving-average")
    rising = o.finalize(o.update(o.update(o.init(), [1.0]), [2.0]))
    falling = o.finalize(o.update(o.update(o.init(), [2.0]), [1.0]))
    assert rising.high > 1.5 > falling.high


def test_moving_average_of_equal_batches_is_their_range() -> None:
    o = observer("moving-average")
    state = o.init()
    for n in range(1, 4):
        state = o.update(state, np.array([-2.0, 3.0]))
        assert o.finalize(state).low == pytest.approx(-2.0, rel=1e-12), n
        assert o.finalize(state).high == pytest.approx(3.0, rel=1e-12), n


def test_moving_average_is_the_weighted_mean_that_it_documents() -> None:
    o = observer("moving-average", decay=0.8)
    highs = [1.0, 5.0, 2.0, 7.0]
    state = o.init()
    for high in highs:
        state = o.update(state, [0.0, high])
    weights = 0.8 ** np.arange(len(highs))[::-1]
    assert o.finalize(state).high == pytest.approx(np.average(highs, weights=weights), rel=1e-12)


@every_row
@law
@given(first=batches, second=batches)
def test_checkpoint_restores_the_state_exactly(row: Row, first: list[np.ndarray], second: list[np.ndarray]) -> None:
    state = fold(row, first)
    file = io.BytesIO()
    np.savez(file, **row.to_arrays(state))
    file.seek(0)
    with np.load(file) as arrays:
        restored = row.from_arrays(arrays)
    for a, b in ((state, restored), (fold(row, second, state), fold(row, second, restored))):
        assert row.exact(a) == row.exact(b)
        for (x, _), (y, _) in zip(row.approximate(a), row.approximate(b), strict=True):
            np.testing.assert_array_equal(x, y)


@every_row
def test_memory_is_bounded_whatever_comes(row: Row) -> None:
    rng = np.random.default_rng(1)
    state = row.init()
    for exponent in range(-40, 38, 3):
        state = row.update(state, rng.standard_normal((500, 3)) * 10.0**exponent)
        assert sum(array.nbytes for array in row.to_arrays(state).values()) <= row.batch_bytes


@every_row
def test_update_leaves_the_old_state_and_the_data_alone(row: Row) -> None:
    data = np.arange(30, dtype=np.float32).reshape(10, 3) - 7
    state = row.update(row.init(), data)
    before = {name: array.copy() for name, array in row.to_arrays(state).items()}
    row.update(state, data * 1000)
    row.merge(state, row.update(row.init(), data * -3))
    for name, array in row.to_arrays(state).items():
        np.testing.assert_array_equal(array, before[name])
    np.testing.assert_array_equal(data, np.arange(30, dtype=np.float32).reshape(10, 3) - 7)


@every_row
def test_same_data_give_the_same_bits(row: Row) -> None:
    data = np.random.default_rng(2).standard_t(3, (40_000, 3)).astype(np.float32)
    a, b = (row.to_arrays(row.update(row.init(), data.copy())) for _ in range(2))
    assert {name: array.tobytes() for name, array in a.items()} == {name: array.tobytes() for name, array in b.items()}


@every_row
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.int64])
def test_other_dtypes_are_converted(row: Row, dtype: type) -> None:
    data = (np.arange(30).reshape(10, 3) - 15).astype(dtype)
    parts = [data.astype(np.float32)]
    assert_same(row, row.update(row.init(), data), row.update(row.init(), parts[0]), parts)


@every_row
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_counted_and_refused(row: Row, bad: float) -> None:
    data = np.ones((10, 3), np.float32)
    data[2, 1] = data[7, 0] = bad
    with pytest.raises(DataError, match="2 of 30"):
        row.update(row.init(), data)


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_values_beyond_float32_are_refused(method: Any) -> None:
    o = observer(method)
    with pytest.raises(DataError, match="1 of 2"):
        o.update(o.init(), np.array([1.0, 1e300]))


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_complex_values_are_refused(method: Any) -> None:
    o = observer(method)
    with pytest.raises(DataError, match="complex"):
        o.update(o.init(), np.array([1j]))


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_nothing_observed_gives_no_range(method: Any, symmetric: bool) -> None:
    o = observer(method, symmetric=symmetric)
    with pytest.raises(DataError, match="no values"):
        o.finalize(o.update(o.init(), np.zeros((0, 4), np.float32)))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("codes", [3, 4, 16, 256])
@pytest.mark.parametrize("method", RANGE_METHODS)
@settings(derandomize=True, deadline=None, max_examples=15)
@given(parts=st.lists(batch, min_size=1, max_size=3).filter(lambda parts: any(part.size for part in parts)))
def test_ranges_contain_zero_and_stay_near_the_data(
    method: Any, codes: int, symmetric: bool, parts: list[np.ndarray]
) -> None:
    o = observer(method, codes=codes, symmetric=symmetric)
    state = o.init()
    for part in parts:
        state = o.update(state, part)
    found = o.finalize(state)
    assert found.low <= 0.0 <= found.high
    if symmetric:
        assert found.low == -found.high
    flat = np.concatenate([part.ravel() for part in parts]).astype(np.float64)
    low, high = min(flat.min(), 0.0), max(flat.max(), 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    # Rounding the zero point moves an asymmetric range by up to half a step.
    slack = 0.5 * (high - low) / (codes - 1) if method == "mse" else 0.0
    assert found.low >= low - slack - 1e-9 * abs(low)
    assert found.high <= high + slack + 1e-9 * abs(high)
    assert (found.high > found.low) == (flat.any() and found.high - found.low > 0)


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("value", [0.0, 3.3, -3.3, 1e-45, 3.4e38])
def test_a_constant_is_covered_and_only_just(method: Any, value: float) -> None:
    o = observer(method)
    found = o.finalize(o.update(o.init(), np.full((4, 5), value, np.float32)))
    exact = float(np.float32(value))
    assert found.low == pytest.approx(min(exact, 0.0), rel=1e-6)
    assert found.high == pytest.approx(max(exact, 0.0), rel=1e-6)


@pytest.mark.parametrize("method", [m for m in RANGE_METHODS if m != "moving-average"])
def test_one_histogram_serves_every_method(method: Any) -> None:
    data = np.random.default_rng(3).laplace(size=(100, 50)).astype(np.float32)
    o = observer(method, codes=16, percentile=99.0)
    histogram = histogram_update(histogram_init(), data)
    assert histogram_range(histogram, method, codes=16, percentile=99.0) == o.finalize(o.update(o.init(), data))


def test_unusable_options_are_refused_at_once() -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        observer("max")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="decay"):
        observer("moving-average", decay=1.0)
    with pytest.raises(RecipeError, match="bins"):
        observer("mse", bins=1)
    histogram = histogram_update(histogram_init(), [1.0])
    with pytest.raises(RecipeError, match="moving-average"):
        histogram_range(histogram, "moving-average")
    with pytest.raises(RecipeError, match="percentile"):
        histogram_range(histogram, "percentile", percentile=0.0)
    for method in ("mse", "entropy"):
        with pytest.raises(FormatError, match="codes"):
            histogram_range(histogram, method, codes=1)  # type: ignore[arg-type]
        with pytest.raises(FormatError, match="codes"):
            histogram_range(histogram, method, codes=2, symmetric=True)  # type: ignore[arg-type]


def test_states_that_measure_differently_do_not_merge() -> None:
    with pytest.raises(DataError, match="bins"):
        statistics.histogram_merge(histogram_init(bins=8), histogram_init(bins=16))
    with pytest.raises(DataError, match="decays"):
        statistics.moving_average_merge(
            statistics.moving_average_init(decay=0.9), statistics.moving_average_init(decay=0.8)
        )
    with pytest.raises(DataError, match="axes"):
        statistics.moments_merge(statistics.moments_init(channel_axis=0), statistics.moments_init(channel_axis=1))


def test_a_range_refuses_what_it_cannot_be() -> None:
    with pytest.raises(DataError, match="zero"):
        statistics.Range(low=1.0, high=2.0)
    with pytest.raises(DataError, match="finite"):
        statistics.Range(low=-np.inf, high=2.0)
    assert statistics.Range.covering(1.0, 2.0) == statistics.Range(low=0.0, high=2.0)
    assert statistics.Range.covering(-3.0, 2.0, symmetric=True) == statistics.Range(low=-3.0, high=3.0)
    assert statistics.Range(low=-3.0, high=2.0).magnitude == 3.0
