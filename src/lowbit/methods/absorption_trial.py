"""One bias that could move behind an activation function: the errors at the outputs behind it, with and without."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.formats import PerTensor, choose_parameters, dequantize, parse_format, quantize
from lowbit.methods.decide import with_granularity
from lowbit.methods.second_moments import input_rows
from lowbit.methods.weights import encode_weight, kernel_matrix
from lowbit.plan.packed import pack_floats
from lowbit.plan.plan import AbsorptionPlan
from lowbit.statistics import Histogram, histogram_init, histogram_range, histogram_update

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.formats import Format
    from lowbit.methods.absorb import Absorbing
    from lowbit.plan.recipe import Recipe
    from lowbit.plan.sites import Site
    from lowbit.targets import Target

__all__ = ["WORTH", "AbsorptionTrial", "planned_absorption"]

WORTH = 0.99
"""What is less than this share of the error is nothing that outputs would notice."""

_ROWS = 64


class AbsorptionTrial:
    """The errors at the outputs of one layer, with a bias absorbed by it and without.

    Args:
        pair: The pair.
        site: The layer that reads.
        amounts: `[C]`, what is absorbed.
        recipe: Says how ranges are chosen and whether mean errors count.
        target: Where the model will run.
        fmt: Format of activations.
    """

    def __init__(
        self,
        pair: Absorbing,
        site: Site,
        amounts: NDArray[np.float64],
        recipe: Recipe,
        target: Target,
        fmt: Format,
    ) -> None:
        self.pair, self.site, self.amounts, self.recipe, self.fmt = pair, site, amounts, recipe, fmt
        text = with_granularity(recipe.weights or target.weights, weight_only=False)
        encoded = encode_weight(site, parse_format(text), saturates=False, method=recipe.weight_range)
        group = pair.second.group
        self.exact, self.coded = (
            _by_group(kernel_matrix(site, each), group) for each in (site.weight_array(), encoded.decode())
        )
        self.response = pair.second.response(amounts).reshape(group, -1)
        self.histograms = [histogram_init(), histogram_init()]
        self.count = 0
        self.sums = np.zeros((3, 2, *self.response.shape))

    def watch(self, plain: NDArray[Any], moved: NDArray[Any]) -> None:
        """See what is read, without and with absorption."""
        seen = zip(self.histograms, (plain, moved), strict=True)
        self.histograms = [histogram_update(histogram, array) for histogram, array in seen]

    def judge(self, plain: NDArray[Any], moved: NDArray[Any], generator: np.random.Generator) -> None:
        """Add the errors of one sample."""
        site = self.site
        seed = int(generator.integers(1 << 31))
        picked: list[NDArray[np.float64]] = []
        for array, histogram in ((plain, None), (plain, self.histograms[0]), (moved, self.histograms[1])):
            coded = array if histogram is None else self._coded(array, histogram)
            # The same rows of each.
            rows = input_rows(site, coded, _ROWS, np.random.default_rng(seed))
            picked.append(rows.astype(np.float64).transpose(1, 0, 2))
        wanted = picked[0] @ self.exact
        errors = (
            picked[1] @ self.coded - wanted,
            picked[2] @ self.coded + self.response[:, None] - wanted,
        )
        self.count += wanted.shape[1]
        for index, each in enumerate((*errors, wanted)):
            self.sums[index, 0] += each.sum(axis=1)
            self.sums[index, 1] += np.square(each).sum(axis=1)

    def verdict(self) -> AbsorptionPlan | str:
        """Return what is to be moved, or why nothing."""
        powers = []
        for total, squares in self.sums / max(self.count, 1):
            # What biases are corrected by is no error.
            mean = np.square(total) if self.recipe.bias_correction else 0.0
            powers.append(float(np.maximum(squares - mean, 0.0).sum()))
        before, after, power = powers
        shares = [100 * np.sqrt(each / power) if power > 0 else 0.0 for each in (before, after)]
        text = f"output error {shares[0]:.2g} % -> {shares[1]:.2g} %"
        if after >= WORTH**2 * before:
            return f"it does not help: {text}"
        tops = [f"{histogram.high:.3g}" for histogram in self.histograms]
        return planned_absorption(self.pair, self.amounts, f"largest activation {tops[0]} -> {tops[1]}, {text}")

    def _coded(self, array: NDArray[Any], histogram: Histogram) -> NDArray[np.float32]:
        method: Any = self.recipe.calibration
        found = histogram_range(
            histogram,
            "mse" if method in {"auto", "moving-average", "output-mse"} else method,
            codes=self.fmt.element.code_count,
            symmetric=self.fmt.symmetric and self.fmt.element.signed,
            percentile=self.recipe.percentile,
        )
        plain = dataclasses.replace(self.fmt, granularity=PerTensor())
        low, high = min(found.low, 0.0), max(found.high, 0.0)
        parameters = choose_parameters(np.float32(low), np.float32(high or (1.0 if low == 0.0 else 0.0)), plain)
        return dequantize(quantize(array, parameters, plain), parameters, plain)


def planned_absorption(pair: Absorbing, amounts: NDArray[np.float64], gain: str) -> AbsorptionPlan:
    """Return the plan of moving a bias, with what it gains in words."""
    return AbsorptionPlan(
        layer=pair.first.name,
        reader=pair.second.name,
        amounts=pack_floats(amounts.astype(np.float32)),
        reason=f"{int((amounts > 0).sum())} of {amounts.size} channels, {gain}",
    )


def _by_group(matrix: NDArray[np.float32], group: int) -> NDArray[np.float64]:
    """Return `[K, N]` as `[G, K, N / G]`."""
    return matrix.reshape(len(matrix), group, -1).transpose(1, 0, 2).astype(np.float64)
