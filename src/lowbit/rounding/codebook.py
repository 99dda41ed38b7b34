"""Learning the levels of a codebook: k-means in one dimension, weighted by what each weight matters.

The objective of a row is `Σ h (w - q(w))²`, with `h` the diagonal of the Hessian of the layer's output error: `E[x²]`
of the input that a weight is multiplied with (Kim et al., SqueezeLLM: Dense-and-Sparse Quantization, 2023, section 4.1,
take the diagonal of the loss's). With `h = 1` it is the plain k-means of Han et al., Deep Compression, 2015, section 3.
Rows are sorted once, long ones counted into bins; a step of Lloyd's algorithm then only looks up sums of runs, for all
rows together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from lowbit.exceptions import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["STARTS", "Start", "codebook_error", "learn_codebook"]

Start: TypeAlias = Literal["best", "linear", "density", "k-means++", "exact"]
STARTS: tuple[Start, ...] = get_args(Start)

_ROUNDS = 50
# Levels that move by less than this share of their row's span have arrived.
_ARRIVED = 1e-6
# Values of a row from which on it is counted into bins instead of sorted; the bins.
_MANY = 1 << 14
_BINS = 1 << 13
# Cells of equal weight that a row is cut into to see where its weights are dense.
_CELLS = 512
# Candidates for the edge between two levels where the optimum is searched for.
_EDGES = 512
# Costs of runs that one search for exact levels may look at.
_AFFORDABLE = 1 << 23


def learn_codebook(
    values: NDArray[np.floating],
    entries: int,
    importance: NDArray[np.floating] | None = None,
    *,
    start: Start | NDArray[np.floating] = "best",
    seed: int = 0,
) -> NDArray[np.float32]:
    """Find the levels of each row that its values are, on weighted average, nearest to.

    Args:
        values: `[G, n]`, a row for every codebook.
        entries: Levels of each, k.
        importance: Weights of the values' squared errors, of a shape that broadcasts; `None` is 1 for all.
        start: Levels to improve on. `linear` are evenly spaced over the row; `density` are as close together as
            many levels are in the optimum, by the cube root of the density (Panter and Dite, 1951); `k-means++` are
            values picked at random, far ones more probably (Arthur and Vassilvitskii, 2007); `exact` is the optimum of
            dynamic programming over the edges between levels, all of them in rows of at most 512 values (Wang and Song,
            Ckmeans.1d.dp, 2011); `best` takes the best of `linear`, `density` and, where affordable, `exact`. Or `[G,
            k]` levels that are known already.
        seed: Seed of `k-means++`.

    Returns:
        `[G, k]` float32, ascending; rows of fewer than k distinct values repeat some.

    Raises:
        FormatError: A value is NaN or infinite, the importance is negative, or `start` is unknown.
    """
    if isinstance(start, str) and start not in STARTS:
        raise FormatError(f"{start!r} is no way to start a codebook", remedy=f"Use one of {', '.join(STARTS)}")
    if not values.shape[1]:
        return np.zeros((len(values), entries), dtype=np.float32)
    rows = _Rows(values, importance)
    if not isinstance(start, str):
        return rows.improved(start.astype(np.float64)).astype(np.float32)
    if start != "best":
        return rows.improved(rows.start(start, entries, seed)).astype(np.float32)
    candidates: list[Start] = ["linear", "density"]
    if len(rows.values) * entries * (min(rows.values.shape[1], _EDGES) + 1) ** 2 <= _AFFORDABLE:
        candidates.append("exact")
    best = rows.improved(rows.start(candidates[0], entries, seed))
    error = rows.error(best)
    for other in candidates[1:]:
        found = rows.improved(rows.start(other, entries, seed))
        fresh = rows.error(found)
        best[fresh < error] = found[fresh < error]
        error = np.minimum(error, fresh)
    return best.astype(np.float32)


def codebook_error(
    values: NDArray[np.floating], levels: NDArray[np.floating], importance: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """Return the weighted squared error of each row at its nearest levels, `[G]`.

    Args:
        values: `[G, n]`.
        levels: `[G, k]`, ascending.
        importance: Weights of the squared errors, of a shape that broadcasts; `None` is 1 for all.
    """
    return _Rows(values, importance).error(levels.astype(np.float64))


class _Rows:
    """Sorted rows of values with running sums of their weights, `w`, `w·x` and `w·x²`, each `[G, n + 1]`."""

    def __init__(self, values: NDArray[np.floating], importance: NDArray[np.floating] | None) -> None:
        if not np.isfinite(values).all():
            raise FormatError(
                "The weight holds NaN or infinity", remedy="Check the model: it was not trained to the end"
            )
        x = values.astype(np.float64)
        weights = np.broadcast_to(1.0 if importance is None else importance, x.shape).astype(np.float64)
        if not (weights >= 0).all() or not np.isfinite(weights).all():
            raise FormatError("An importance is negative or not finite", remedy="Pass means of squares")
        # Inputs that were never seen say nothing; a row of only those counts all its weights alike.
        weights[weights.sum(axis=1) == 0] = 1.0
        if x.shape[1] > _MANY:
            self.values, sums = _counted(x, weights)
        else:
            if importance is None:
                x = np.sort(x, axis=1)
            else:
                # Stable, so that the sums of equal values are the same everywhere.
                order = np.argsort(x, axis=1, kind="stable")
                x, weights = np.take_along_axis(x, order, axis=1), np.take_along_axis(weights, order, axis=1)
            self.values, sums = x, (weights, weights * x, weights * np.square(x))
        self.mass, self.first, self.second = (_running(each) for each in sums)

    def start(self, start: Start, entries: int, seed: int) -> NDArray[np.float64]:
        """Return levels to start from, `[G, k]`."""
        if start == "linear":
            return np.linspace(self.values[:, 0], self.values[:, -1], entries, axis=1)
        if start == "density":
            return self._dense(entries)
        return self._scattered(entries, seed) if start == "k-means++" else self._optimal(entries)

    def improved(self, levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move levels to the means of what is nearest to them until nothing moves; the error never rises."""
        for _ in range(_ROUNDS):
            moved = self._means(self._cuts(levels), levels)
            span = self.values[:, -1:] - self.values[:, :1]
            arrived = (np.abs(moved - levels) <= _ARRIVED * span).all()
            levels = moved
            if arrived:
                break
        return levels

    def error(self, levels: NDArray[np.float64]) -> NDArray[np.float64]:
        cuts = self._cuts(levels)
        mass, first, second = (_between(sums, cuts) for sums in (self.mass, self.first, self.second))
        errors = np.maximum(second - 2 * levels * first + np.square(levels) * mass, 0.0)
        total: NDArray[np.float64] = errors.sum(axis=1)
        return total

    def _cuts(self, levels: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return where each level's run of values begins and ends, `[G, k + 1]`."""
        cuts = _ranks(self.values, (levels[:, :-1] + levels[:, 1:]) / 2)
        return np.pad(cuts, [(0, 0), (1, 1)], constant_values=((0, 0), (0, self.values.shape[1])))

    def _means(self, cuts: NDArray[np.intp], levels: NDArray[np.float64]) -> NDArray[np.float64]:
        mass, first = _between(self.mass, cuts), _between(self.first, cuts)
        means = np.divide(first, mass, out=levels.copy(), where=mass > 0)
        # Sums of many numbers may stray from the run that they are the mean of by a rounding error.
        ordered: NDArray[np.float64] = np.maximum.accumulate(means, axis=1)
        return ordered

    def _dense(self, entries: int) -> NDArray[np.float64]:
        """Place levels as densely as the cube root of the weights' density, the best for many levels."""
        cells = min(self.values.shape[1], _CELLS)
        # Cells of equal weight: their density is the inverse of their width.
        wanted = self.mass[:, -1:] * np.linspace(0.0, 1.0, cells + 1)
        ends = np.take_along_axis(
            self.values, np.minimum(_ranks(self.mass[:, 1:], wanted), self.values.shape[1] - 1), axis=1
        )
        share = _running(np.diff(ends, axis=1) ** (2 / 3))
        targets = share[:, -1:] * ((np.arange(entries) + 0.5) / entries)
        cell = np.minimum(_ranks(share[:, 1:], targets), cells - 1)
        before, after = np.take_along_axis(share, cell, axis=1), np.take_along_axis(share, cell + 1, axis=1)
        inside = np.divide(targets - before, after - before, out=np.zeros_like(targets), where=after > before)
        left, right = np.take_along_axis(ends, cell, axis=1), np.take_along_axis(ends, cell + 1, axis=1)
        return left + inside * (right - left)

    def _scattered(self, entries: int, seed: int) -> NDArray[np.float64]:
        generator = np.random.default_rng(seed)
        weights = np.diff(self.mass, axis=1)
        distance = np.full(self.values.shape, np.inf)
        levels = np.empty((len(self.values), entries))
        chance = weights
        for index in range(entries):
            reach = np.cumsum(chance, axis=1)
            target = generator.random((len(self.values), 1)) * reach[:, -1:]
            picked = np.minimum((reach < target).sum(axis=1), self.values.shape[1] - 1)
            levels[:, index] = self.values[np.arange(len(picked)), picked]
            distance = np.minimum(distance, np.square(self.values - levels[:, index, None]))
            chance = weights * distance
        return np.sort(levels, axis=1)

    def _optimal(self, entries: int) -> NDArray[np.float64]:
        return np.stack([self._optimal_row(row, entries) for row in range(len(self.values))])

    def _optimal_row(self, row: int, entries: int) -> NDArray[np.float64]:
        """Cut one row into runs of least squared error: `D[m, j] = min_i D[m - 1, i] + cost(i, j)`."""
        edges = self._edges(row)
        mass, first, second = (sums[row, edges] for sums in (self.mass, self.first, self.second))
        within = mass[None, :] - mass[:, None]
        total = first[None, :] - first[:, None]
        means = np.divide(total, within, out=np.zeros_like(total), where=within > 0)
        cost = np.maximum(second[None, :] - second[:, None] - means * total, 0.0)
        cost[np.tril_indices(len(edges), -1)] = np.inf
        best = cost[0]
        parents = []
        for _ in range(entries - 1):
            through = best[:, None] + cost
            parents.append(through.argmin(axis=0))
            best = np.take_along_axis(through, parents[-1][None, :], axis=0)[0]
        cuts = [len(edges) - 1]
        for parent in reversed(parents):
            cuts.append(int(parent[cuts[-1]]))
        runs = edges[[0, *reversed(cuts)]]
        mass, first = np.diff(self.mass[row, runs]), np.diff(self.first[row, runs])
        # A run of nothing takes the value beside it, so that levels stay in order.
        beside = self.values[row, np.minimum(runs[:-1], self.values.shape[1] - 1)]
        ordered: NDArray[np.float64] = np.maximum.accumulate(np.divide(first, mass, out=beside, where=mass > 0))
        return ordered

    def _edges(self, row: int) -> NDArray[np.intp]:
        """Return where runs may begin: everywhere, or evenly by rank and evenly by value, for the tails."""
        count = self.values.shape[1]
        if count <= _EDGES:
            return np.arange(count + 1)
        values = self.values[row]
        by_rank = np.linspace(0, count, _EDGES // 2).astype(np.intp)
        by_value = np.searchsorted(values, np.linspace(values[0], values[-1], _EDGES // 2)).astype(np.intp)
        return np.unique(np.concatenate([by_rank, by_value]))


def _running(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of the first 0, 1, … n terms of each row, `[G, n + 1]`."""
    sums = np.zeros((len(terms), terms.shape[1] + 1))
    np.cumsum(terms, axis=1, out=sums[:, 1:])
    return sums


def _counted(
    x: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], tuple[NDArray[np.float64], ...]]:
    """Count each row into evenly spaced bins; return their means, ascending, and their `w`, `w·x` and `w·x²`."""
    low = x.min(axis=1, keepdims=True)
    width = (x.max(axis=1, keepdims=True) - low) / _BINS
    width[width == 0] = 1.0
    index = np.minimum(((x - low) / width).astype(np.intp), _BINS - 1)
    index += np.arange(len(x))[:, None] * _BINS
    sums = tuple(
        np.bincount(index.reshape(-1), each.reshape(-1), len(x) * _BINS).reshape(len(x), _BINS).astype(np.float64)
        for each in (weights, weights * x, weights * np.square(x))
    )
    middles = low + width * (np.arange(_BINS) + 0.5)
    means = np.divide(sums[1], sums[0], out=middles, where=sums[0] > 0)
    return np.maximum.accumulate(means, axis=1), sums


def _between(sums: NDArray[np.float64], cuts: NDArray[np.intp]) -> NDArray[np.float64]:
    return np.diff(np.take_along_axis(sums, cuts, axis=1), axis=1)


def _ranks(ordered: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return how many of each row's values are not above the wanted ones: a bisection of all rows at once.

    Args:
        ordered: `[G, n]`, each row ascending.
        wanted: `[G, q]`.
    """
    low = np.zeros(wanted.shape, dtype=np.intp)
    high = np.full(wanted.shape, ordered.shape[1], dtype=np.intp)
    for _ in range(int(ordered.shape[1]).bit_length()):
        middle = (low + high) // 2
        probed = np.take_along_axis(ordered, np.minimum(middle, ordered.shape[1] - 1), axis=1)
        right = (probed <= wanted) & (middle < high)
        low = np.where(right, middle + 1, low)
        high = np.where(right, high, middle)
    return low
