"""Plans within a limit of accuracy: decibels at the output, or points of the user's metric.

The limit is a noise power at the model's output. A plan is measured against it with switches, without being built.
Where the fastest plan keeps the limit, that is all. Where it does not, the noise of every operator is measured alone,
and an integer program keeps their sum below the limit; because that sum is an estimate, the plan that comes out is
measured again and the program's limit moved until the plan just keeps the real one. A limit on the user's metric
becomes a limit of noise by bisection over artifacts that are built and scored.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.methods.apply import apply_plan
from lowbit.methods.decide import Decision, decide, make_plan
from lowbit.methods.sensitivity import Sensitivities, measure_sensitivities
from lowbit.plan.choose import NoiseBudget, predicted_latency
from lowbit.plan.cost import FormulaCosts
from lowbit.runtime.session import Feed, open_session
from lowbit.runtime.staging import staged
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.methods.calibrate import Calibration
    from lowbit.methods.sensitivity import NoiseMeter
    from lowbit.methods.verify import Metric
    from lowbit.plan.cost import Costs, Shapes
    from lowbit.plan.plan import Execution
    from lowbit.plan.recipe import Recipe
    from lowbit.plan.sites import Site
    from lowbit.targets import Target

__all__ = ["DEFAULT_SQNR", "Budget", "decibel", "drop_of", "noise_budget"]

DEFAULT_SQNR = 17.0
"""Signal to noise ratio in decibel that a plan is chosen for where the recipe says nothing: a seventh in amplitude."""

# Below this, a twentieth in amplitude, what is nearly as fast and less noisy is preferred where nothing else is asked.
_QUIET_DB = 26.0
_NEARLY = 1.02

# How much slower than the fastest plan a less noisy one may be, where accuracy is what is asked for.
_ACCURATE = 1.1
# Coefficients of an integer program should not span more than this.
_SPAN = 1e4
_STEPS = 7
# A plan whose noise is within this factor of its limit, about 1 dB, is close enough to it.
_CLOSE = 1.25
# A measured noise this far above the limit still counts as within it: 0.1 dB.
_TOLERANCE = 10**0.01
_LEAST = 1e-20


def decibel(power: float) -> float:
    """Return the signal to noise ratio in decibel of a relative noise power, at most 200."""
    return -10.0 * math.log10(max(power, _LEAST))


def _left_in_float(alone: float | None) -> str:
    """Return why an operator that would be faster in integers is left in float, in words.

    Args:
        alone: Noise power at the output if it alone were in integers; `None` if that was not measured.
    """
    if alone is None:
        return "kept in float for accuracy"
    if alone <= _LEAST:
        # The limit does not bind it, so that only conversions at its edges can.
        return (
            "kept in float beside operators that are for accuracy: in integers, alone, it adds no noise at the output"
        )
    return f"kept in float for accuracy: in integers, alone, it leaves {decibel(alone):.1f} dB at the output"


def noise_budget(
    sensitivities: Sensitivities, stored: Mapping[str, Execution], limit: float, *, slowest: float | None = None
) -> NoiseBudget:
    """Return a limit of the noise that integers may add to what the stored weights add anyway.

    Args:
        sensitivities: What every site adds.
        stored: The plan in which nothing computes in integers; its noise is part of every plan's.
        limit: Noise power of the whole plan.
        slowest: Take the least noisy plan that is at most so much slower than the fastest, as a factor; `None` takes
            the fastest.
    """
    base = {path: sensitivities.of(path, execution) for path, execution in stored.items() if execution != "float"}
    total = sum(base.values())
    # Where the weights use up everything, a site stays that adds as good as nothing.
    room = max(limit - total, 1e-3 * limit)

    def more(powers: Mapping[str, float]) -> dict[str, float]:
        edge = _SPAN * room
        return {path: max(min(power - base.get(path, 0.0), edge), -edge) for path, power in powers.items()}

    return NoiseBudget(
        static=more(sensitivities.static),
        dynamic=more(sensitivities.dynamic),
        limit=room,
        minimize=slowest is not None,
        slowest=slowest or 1.0,
    )


# The target whose formulas tell how long a run takes; what switches make of it, unoptimized; and what calling it costs.
_USUAL = "onnxruntime-x86-avx2"
_SWITCHED = 2.5
_LEAST_SECONDS = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A plan, the noise that it was measured to have, and whether that keeps the limit."""

    decision: Decision
    noise: float
    kept: bool = True


def _runs_in(seconds: float, sites: Sequence[Site], shapes: Shapes) -> int:
    """Return how often a model with switches runs in a time, as formulas predict it for a usual processor."""
    costs = find_target(_USUAL).costs
    assert costs is not None
    each = _SWITCHED * predicted_latency(sites, FormulaCosts(costs, shapes), {}) / 1e9
    return max(round(seconds / max(each, _LEAST_SECONDS)), 1)


class Budget:
    """Decides within the limits of a recipe, for whatever costs it is given.

    Args:
        sites: The model's sites.
        recipe: What the user asks for: `min_sqnr`, `max_sqnr_loss`, `max_drop` and `optimize`.
        target: Where the model will run.
        shapes: Shape of every tensor for one sample.
        meter: The model with switches.
        drop: How much of the metric a decision loses, see `drop_of`; needed for `max_drop`.
        seconds: About how long the noise of single operators is measured, if it has to be. Runs of the model are
            counted, not seconds, so that two machines come to the same plan.

    Attributes:
        limit: Largest noise power of a whole plan, weights included, relative to the output's power.
        warnings: What the user should know.
        trials: With `max_drop`, every plan that was scored: its noise in decibel and its drop.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        recipe: Recipe,
        target: Target,
        shapes: Shapes,
        meter: NoiseMeter,
        *,
        drop: Callable[[Decision], float] | None = None,
        seconds: float = 15.0,
    ) -> None:
        self.sites = sites
        self.recipe = recipe
        self.target = target
        self.shapes = shapes
        self.meter = meter
        self.runs = _runs_in(seconds, sites, shapes)
        self.drop = drop
        self._slowest = _ACCURATE if recipe.optimize == "accuracy" else None
        self._default = self._slowest is None and (
            recipe.min_sqnr is None and recipe.max_sqnr_loss is None and recipe.max_drop is None
        )
        self.stored = decide(sites, dataclasses.replace(recipe, method="weight-only"), target, shapes)
        self.weights_noise = meter.noise(self.stored.executions)
        self.limit = self._limit()
        self.warnings: tuple[str, ...] = ()
        self.trials: list[tuple[float, float]] = []
        self._sensitivities: Sensitivities | None = None
        self._searched_drop = False

    def _limit(self) -> float:
        """Return the largest noise power that the recipe allows."""
        recipe = self.recipe
        lowest = DEFAULT_SQNR if self._default else recipe.min_sqnr
        limit = math.inf if lowest is None else math.pow(10.0, -lowest / 10.0)
        if recipe.max_sqnr_loss is not None:
            limit = min(limit, self.weights_noise * math.pow(10.0, recipe.max_sqnr_loss / 10.0))
        return max(limit, _LEAST)

    @property
    def sensitivities(self) -> Sensitivities:
        """What every operator adds alone; measured when it is first asked for."""
        if self._sensitivities is None:
            self._sensitivities = measure_sensitivities(self.meter, runs=self.runs)
        return self._sensitivities

    def keeps(self, executions: Mapping[str, Execution]) -> bool:
        """Whether a plan keeps the limit; where nothing but stored weights does, whether it adds nothing to those."""
        return self.meter.noise(executions) <= max(self.limit, self.weights_noise) * _TOLERANCE

    def choose(self, costs: Costs | None = None, *, caution: float = 1.0) -> Decision:
        """Return the best plan within the limits; its reasons say what was left in float for accuracy.

        Args:
            costs: What everything costs; by default the target's formulas.
            caution: Factor on the predicted costs of integers.
        """
        if self.recipe.max_drop is not None and self.drop is not None and not self._searched_drop:
            self._search_drop(self.recipe.max_drop, self.drop, costs, caution)
        found = self._within(self.limit, costs, caution)
        if self._default and decibel(found.noise) < _QUIET_DB:
            nearly = self._within(self.limit, costs, caution, slowest=_NEARLY)
            found = nearly if nearly.noise < found.noise else found
        if not found.kept:
            self._warn_out_of_reach()
        return self.explained(found.decision, costs)

    def explained(self, decision: Decision, costs: Costs | None) -> Decision:
        """Return a decision whose reasons tell apart what is slower in integers and what would be too noisy."""
        fastest = self._decide(costs, 1.0)
        reasons = dict(decision.reasons)
        for path, execution in fastest.executions.items():
            if execution in {"static", "dynamic"} and decision.executions.get(path) in {"float", "weight-only"}:
                stored = "weights stored small; " if decision.executions[path] == "weight-only" else ""
                alone = None if self._sensitivities is None else self._sensitivities.of(path, execution)
                reasons[path] = stored + _left_in_float(alone)
        return dataclasses.replace(decision, reasons=reasons)

    def _warn_out_of_reach(self) -> None:
        wanted = decibel(self.limit)
        if self.recipe.min_sqnr is None and self.recipe.max_sqnr_loss is None:
            return
        alone = f"weights stored as {_formats(self.stored)} alone leave {decibel(self.weights_noise):.1f} dB"
        self.warnings = (f"{wanted:.1f} dB at the output are out of reach: {alone}",)

    def _decide(self, costs: Costs | None, caution: float, budget: NoiseBudget | None = None) -> Decision:
        return decide(self.sites, self.recipe, self.target, self.shapes, costs=costs, caution=caution, budget=budget)

    def _found(self, decision: Decision, limit: float) -> _Found:
        noise = self.meter.noise(decision.executions)
        return _Found(decision=decision, noise=noise, kept=noise <= limit * _TOLERANCE)

    def _within(self, limit: float, costs: Costs | None, caution: float, *, slowest: float | None = None) -> _Found:
        """Return the plan whose measured noise is within `limit`, and as close to it as a few steps come.

        With `slowest`, the least noisy one that is at most so much slower than that.
        """
        slowest = slowest or self._slowest
        if slowest is None:
            fastest = self._found(self._decide(costs, caution), limit)
            if fastest.kept:
                return fastest
        if self.weights_noise > limit:
            # Nothing can be quieter than the weights; what adds hardly anything to them may still be integer.
            limit = self.weights_noise * _TOLERANCE
        # Where noises partly cancel, or add up to more than their sum, the stored weights tell by how much.
        predicted = self.sensitivities.predict(self.stored.executions)
        aim = limit * max(predicted, _LEAST) / max(self.weights_noise, _LEAST) if self.weights_noise > _LEAST else limit
        inside: tuple[float, _Found] | None = None
        outside = math.inf
        for _ in range(_STEPS):
            budget = noise_budget(self.sensitivities, self.stored.executions, aim, slowest=slowest)
            found = self._found(self._decide(costs, caution, budget), limit)
            if not found.kept:
                outside = aim
                aim = math.sqrt(inside[0] * outside) if inside else aim * min(limit / found.noise, 0.8)
                continue
            same = inside is not None and inside[1].decision.executions == found.decision.executions
            inside = (aim, found)
            # Predictions err by a decibel or two; a plan far below its limit has room for more noise.
            if slowest is not None or found.noise * _CLOSE >= limit or (same and math.isfinite(outside)):
                break
            aim = math.sqrt(aim * outside) if math.isfinite(outside) else aim * min(limit / found.noise, 4.0)
        if inside is not None:
            return dataclasses.replace(inside[1], kept=inside[1].noise <= self.limit * _TOLERANCE)
        return self._found(self.stored, limit)

    def _search_drop(
        self, allowed: float, drop: Callable[[Decision], float], costs: Costs | None, caution: float
    ) -> None:
        """Bisect over limits of noise for the fastest plan that loses at most `allowed` of the metric."""
        self._searched_drop = True

        def lost(found: _Found) -> float:
            value = drop(found.decision)
            self.trials.append((decibel(found.noise), value))
            return value

        loudest = self._within(self.limit, costs, caution)
        if lost(loudest) <= allowed:
            self.limit = min(self.limit, max(loudest.noise * _TOLERANCE, _LEAST))
            return
        quietest = self._found(self.stored, self.limit)
        remaining = lost(quietest)
        self.limit = quietest.noise
        if remaining > allowed:
            still = f"with activations in float and weights as {_formats(self.stored)} it still loses {remaining:.4g}"
            remedy = "leave more weights in float with --exclude, or store them with more bits"
            self.warnings = (f"no plan loses at most {allowed:g} of the metric: {still}; {remedy}",)
            return
        loud, quiet = decibel(loudest.noise), decibel(quietest.noise)
        last = quietest.decision.executions
        for _ in range(_STEPS):
            if quiet - loud < _FINE_DB:
                break
            middle = (loud + quiet) / 2
            found = self._within(math.pow(10.0, -middle / 10.0), costs, caution)
            if found.decision.executions == last:
                quiet = middle
                continue
            if lost(found) <= allowed:
                last, quiet = found.decision.executions, middle
                self.limit = max(found.noise, _LEAST)
            else:
                loud = middle


# A bisection for a drop of the metric ends when the limits lie this close.
_FINE_DB = 0.5


def drop_of(
    model: ir.Model,
    sites: Sequence[Site],
    recipe: Recipe,
    target: Target,
    calibration: Calibration | None,
    shapes: Shapes,
    feeds: Iterable[Feed],
    metric: Metric,
    labels: NDArray[Any] | None = None,
    *,
    threads: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Callable[[Decision], float]:
    """Return a function that builds the artifact of a decision, runs it in the engine and scores it.

    Args:
        model: The cleaned float model.
        sites: Its sites.
        recipe: What the user asks for.
        target: Where the model will run.
        calibration: What calibration saw of every tensor that a plan may need.
        shapes: Shape of every tensor for one sample.
        feeds: Verification samples; read once for the float model and once for every decision.
        metric: The user's metric; higher is better.
        labels: Labels of the samples.
        threads: Threads of the engine; 0 takes all.
        advance: Called after every sample.

    Returns:
        A function from a decision to the metric of float minus that of the decision, in the metric's own unit.
    """
    plain = dataclasses.replace(recipe, io="float")

    def score(source: ir.Model) -> float:
        with staged(source) as loadable:
            session = open_session(loadable, threads=threads)
        outputs = []
        for feed in feeds:
            outputs.append(session.run(feed))
            advance()
        return float(metric(outputs, labels))

    reference = score(model)

    def drop(decision: Decision) -> float:
        plan = make_plan(model, sites, plain, target, decision, calibration, shapes)
        return reference - score(apply_plan(model, plan, target=target).model)

    return drop


def _formats(decision: Decision) -> str:
    return ", ".join(sorted(set(decision.weights.values()))) or "float"
