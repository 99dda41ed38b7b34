"""What makes up for few bits in weights that are only stored small, each kept where it helps on held-out samples.

Levels are learned by what the inputs are, weights that stand out are kept apart, and a thin product adds what the codes
lack. All of it is part of the plan, so that applying it needs no data and gives the same bytes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from lowbit.formats import parse_format
from lowbit.methods.kept_beside import pack_factors, pack_outliers
from lowbit.methods.planned_weight import pack_codebook, planned_weight
from lowbit.methods.rerounding import better_codes, blind, fits, grids_of, in_parts, limits_of, share_text
from lowbit.methods.second_moments import moments_in_two
from lowbit.methods.weights import channel_axis, from_kernel_matrix, kernel_matrix, plain_codes
from lowbit.plan.packed import pack_steps
from lowbit.rounding import kn_to_conv, learned_parameters, low_rank, outliers, output_errors
from lowbit.rounding.level_rounding import round_to_levels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.data import Dataset
    from lowbit.methods.rerounding import Kind
    from lowbit.methods.second_moments import Moments
    from lowbit.plan.plan import Plan, SitePlan
    from lowbit.plan.recipe import Recipe
    from lowbit.plan.sites import Site
    from lowbit.rounding import RangeMethod
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["compensable", "compensated_plan"]

_SAMPLES = 64


def compensated_plan(
    model: ir.Model,
    sites: Sequence[Site],
    plan: Plan,
    recipe: Recipe,
    target: Target,
    feeds: Dataset | Iterable[Feed] | None,
    *,
    advance: Callable[[], None] = lambda: None,
) -> Plan:
    """Return a plan whose stored weights make up for their few bits, as far as the recipe asks for it.

    Args:
        model: The cleaned float model.
        sites: Its sites.
        plan: What was decided, roundings included.
        recipe: Says what may be kept beside the codes.
        target: Where the model will run.
        feeds: Calibration samples; `None` if there are none.
        advance: Called after every sample.

    Raises:
        EngineError: The engine cannot run the model.
    """
    entries = {entry.node: entry for entry in plan.sites}
    groups: dict[tuple[object, ...], list[Site]] = {}
    for site in sites:
        entry = entries[site.path]
        if compensable(entry, recipe) and fits(site, entry, target, "compensated"):
            # Sites that share a weight share its codes.
            groups.setdefault((site.weight, entry.weights, entry.rounding), []).append(site)
    if not groups:
        return plan
    if feeds is None or blind(feeds):
        for site in (site for group in groups.values() for site in group):
            entries[site.path] = _noted(entries[site.path], _missing(entries[site.path], recipe))
        return dataclasses.replace(plan, sites=tuple(entries.values()))
    for chosen in in_parts(list(groups.values())):
        flat = [site for group in chosen for site in group]
        centred = frozenset(site.path for site in flat if entries[site.path].input_mean is not None)
        moments = moments_in_two(
            model, flat, feeds, samples=_SAMPLES, seed=recipe.seed, centred=centred, advance=advance
        )
        for group in chosen:
            seen = [moments.pop(site.path) for site in group if site.path in moments]
            if not seen:
                continue
            better = _Search(group[0], entries[group[0].path], plan, recipe, seen).run()
            for site in group:
                entries[site.path] = _with_findings(entries[site.path], better)
    return dataclasses.replace(plan, sites=tuple(entries.values()))


def compensable(entry: SitePlan, recipe: Recipe) -> bool:
    """Whether a recipe asks for anything that could make up for the few bits of a site's weight."""
    if entry.execution != "weight-only" or entry.weights is None:
        return False
    element = parse_format(entry.weights).element
    if element.kind == "codebook" and (element.learned or recipe.rounding != "nearest"):
        return True
    return element.bits < _MANY_BITS and (recipe.outliers > 0 or recipe.low_rank > 0)


def _missing(entry: SitePlan, recipe: Recipe) -> str:
    """Return what is not done without data, in words."""
    if parse_format(entry.weights or "").element.learned:
        return "learned from the weight alone, and nothing kept beside the codes: both need calibration data"
    if recipe.outliers > 0 or recipe.low_rank > 0:
        return "nothing kept beside the codes, which needs calibration data"
    return f"rounded to nearest: {recipe.rounding} needs calibration data"


# Codes of so many bits lack too little to be worth it.
_MANY_BITS = 8
_FARTHEST = 127
# Added to the power of every input, as a share of the mean.
_FLOOR = 0.01
# A finding that takes away less of the error than this is not worth its bytes.
_WORTH = 0.99


class _Search:
    """The entry of one site, or of all that share its weight, and the error of its outputs on held-out samples."""

    def __init__(self, site: Site, entry: SitePlan, plan: Plan, recipe: Recipe, seen: Sequence[Moments]) -> None:
        assert entry.weights is not None
        self.site = site
        self.entry = entry
        self.recipe = recipe
        self.fmt = parse_format(entry.weights)
        self.method: RangeMethod = plan.options.get("weight_range", "minmax")
        self.weight = site.weight_array()
        self.fit = np.mean([moments.fit for moments in seen], axis=0)
        self.held = np.mean([moments.held for moments in seen], axis=0)
        self.power = self._output_error(self.weight)
        self.error = self._error_of(entry)

    def run(self) -> SitePlan:
        """Try everything that the recipe asks for, in turn, and return the entry with what helped."""
        if self.fmt.element.learned:
            self._try(self._levels(self.entry), "levels learned by the inputs")
        if self.recipe.outliers > 0:
            self._try(self._without_outliers(), f"{1000 * self.recipe.outliers:.3g} ‰ of outliers kept apart")
        if self.fmt.element.kind == "codebook" and self.recipe.rounding != "nearest":
            kind: Kind = "compensated" if self.recipe.rounding == "compensated" else "gptq"
            self._try(self._levels_chosen(kind), f"{kind} rounding")
        if self.recipe.low_rank > 0 and len(self.fit) == 1:
            self._try(self._with_product(), f"a product of rank {self.recipe.low_rank}")
        return self.entry

    def _try(self, candidate: SitePlan | None, what: str) -> None:
        """Keep a candidate if its outputs err less, and note both errors."""
        if candidate is None:
            self.entry = _noted(self.entry, f"without {what}: 16 bits do not hold it")
            return
        error = self._error_of(candidate)
        texts = share_text(self.error, self.power), share_text(error, self.power)
        if error < self.error * _WORTH**2:
            self.entry = _noted(candidate, f"output error {texts[0]} -> {texts[1]} by {what}")
            self.error = error
        else:
            self.entry = _noted(self.entry, f"output error {texts[0]}, without {what}, where it is {texts[1]}")

    def _levels(self, entry: SitePlan, positions: NDArray[np.int32] | None = None) -> SitePlan:
        """Return an entry with levels that are learned by the inputs, and not for weights at some positions."""
        importance = self._importance()
        rest = self.weight
        if positions is not None:
            rest = self.weight.copy()
            rest.reshape(-1)[positions] = 0.0
            importance = importance.copy()
            importance.reshape(-1)[positions] = 0.0
        placed = planned_weight(self.site, self.fmt, self.entry, self.method).fmt
        return dataclasses.replace(entry, codebook=pack_codebook(learned_parameters(rest, placed, importance)))

    def _without_outliers(self) -> SitePlan | None:
        encoded = planned_weight(self.site, self.fmt, self.entry, self.method)
        positions = outliers(self.weight, self.recipe.outliers, encoded.fmt.granularity, self._importance())
        packed = pack_outliers(self.weight, positions)
        if packed is None:
            return None
        # What stands apart is put back when the weight is decoded: not in a kernel that decodes by itself.
        entry = dataclasses.replace(self.entry, outliers=packed, rounding=None, decode="load")
        if self.fmt.element.learned:
            return self._levels(entry, positions)
        if self.fmt.element.kind == "codebook" or self.recipe.rounding == "nearest":
            return entry
        return self._rerounded(entry, positions)

    def _rerounded(self, entry: SitePlan, positions: NDArray[np.int32]) -> SitePlan:
        """Return an entry whose codes are rounded anew, now that some weights do not need any."""
        kind: Kind = "gptq" if self.recipe.rounding == "gptq" else "compensated"
        encoded = planned_weight(self.site, self.fmt, entry, self.method)
        nearest = plain_codes(self.site, encoded)
        if nearest is None:
            return entry
        scale, zero_point = grids_of(self.site, encoded)
        # A weight that is kept apart has no error, whatever its code: it takes the code of what it is coded as.
        goal = self.weight.copy()
        coded = dataclasses.replace(encoded, beside=None).decode()
        goal.reshape(-1)[positions] = coded.reshape(-1)[positions]
        goal_matrix = kernel_matrix(self.site, goal)
        better = better_codes(goal_matrix, nearest, scale, zero_point, self.fit, limits_of(self.site, encoded), kind)
        steps = (better.astype(np.int16) - nearest).astype(np.int8)
        apart = np.zeros(self.weight.size, dtype=bool)
        apart[positions] = True
        steps[kernel_matrix(self.site, apart.reshape(self.weight.shape))] = 0
        candidate = dataclasses.replace(entry, rounding=pack_steps(steps, nearest)) if steps.any() else entry
        return candidate if self._error_of(candidate) < self._error_of(entry) else entry

    def _levels_chosen(self, kind: Kind) -> SitePlan:
        """Return the entry with codes whose errors cancel, and the same levels."""
        encoded = planned_weight(self.site, self.fmt, self.entry, self.method)
        nearest = plain_codes(self.site, encoded)
        assert nearest is not None
        levels = encoded.parameters.levels
        table = np.array(self.fmt.element.levels) if levels is None else levels
        goal = kernel_matrix(self.site, self.weight)
        coded = kernel_matrix(self.site, dataclasses.replace(encoded, beside=None).decode())
        apart = np.zeros(goal.shape, dtype=bool)
        if encoded.beside is not None:
            # A weight that is kept apart has no error, whatever its code.
            apart = kernel_matrix(self.site, encoded.beside.without_outliers(self.weight) != self.weight)
            goal = np.where(apart, coded, goal)
        scale, _ = grids_of(self.site, encoded)
        better = round_to_levels(goal, table, scale, self.fit, kind=kind)
        steps = np.where(apart, 0, better - nearest.astype(np.int16))
        # Steps from nearest are stored in a byte.
        small = np.clip(steps, -_FARTHEST, _FARTHEST).astype(np.int8)
        return dataclasses.replace(self.entry, rounding=pack_steps(small, nearest))

    def _with_product(self) -> SitePlan | None:
        lacking = self.weight - planned_weight(self.site, self.fmt, self.entry, self.method).decode()
        left, right = low_rank(kernel_matrix(self.site, lacking), self.recipe.low_rank, self.fit[0])
        packed = pack_factors(*self._in_own_layout(left, right))
        return None if packed is None else dataclasses.replace(self.entry, low_rank=packed)

    def _in_own_layout(
        self, left: NDArray[np.float32], right: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the factors of a matrix in the kernel's order as those of the weight in its own."""
        if self.site.op_type == "Conv":
            per_rank = kn_to_conv(left, (left.shape[1], *self.weight.shape[1:]))
            return np.ascontiguousarray(right.T), per_rank.reshape(left.shape[1], -1)
        if channel_axis(self.site) == 0:
            return np.ascontiguousarray(right.T), np.ascontiguousarray(left.T)
        return left, right

    def _importance(self) -> NDArray[np.float64]:
        """Return `E[x²]` of the input that each weight is multiplied with, in the weight's own shape."""
        # A variance may be a rounding error below zero.
        diagonal = np.maximum(np.einsum("gkk->gk", self.fit).astype(np.float64), 0.0)
        # Inputs that calibration has not seen may still come.
        diagonal += _FLOOR * diagonal.mean()
        outputs = kernel_matrix(self.site, self.weight).shape[1]
        return from_kernel_matrix(self.site, np.repeat(diagonal.T, outputs // len(diagonal), axis=1))

    def _error_of(self, entry: SitePlan) -> float:
        return self._output_error(self.weight - planned_weight(self.site, self.fmt, entry, self.method).decode())

    def _output_error(self, lacking: NDArray[np.float32]) -> float:
        matrix = kernel_matrix(self.site, lacking)
        nothing = np.zeros(matrix.shape, dtype=np.int8)
        return float(output_errors(matrix, nothing, np.ones((), dtype=np.float32), self.held).sum())


def _noted(entry: SitePlan, note: str) -> SitePlan:
    return dataclasses.replace(entry, notes=(*entry.notes, note))


def _with_findings(entry: SitePlan, found: SitePlan) -> SitePlan:
    """Return an entry with what was found for another site of the same weight."""
    return dataclasses.replace(
        entry,
        rounding=found.rounding,
        decode=found.decode if found.outliers is not None else entry.decode,
        codebook=found.codebook,
        outliers=found.outliers,
        low_rank=found.low_rank,
        notes=found.notes,
    )
