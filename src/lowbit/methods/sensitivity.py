"""How much each site hurts: the noise that it alone adds at the model's outputs when it is quantized.

Noises of different sites are nearly independent, so their powers add up: measuring every site once predicts the noise
of every plan, and an integer program can weigh milliseconds against decibels. A tensor between two integer sites is
rounded once; its reader pays for it, so that the sum over a plan counts every rounding once.
"""

from __future__ import annotations

import dataclasses
import heapq
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from lowbit.exceptions import DataError
from lowbit.methods.decide import decide, make_plan
from lowbit.methods.noise_power import ComparedTensor, Power, compared_tensors
from lowbit.methods.switches import Switched, switched_model
from lowbit.runtime.session import Feed, Session, open_session
from lowbit.runtime.staging import staged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.methods.calibrate import Calibration
    from lowbit.methods.decide import Decision
    from lowbit.plan.cost import Costs, Shapes
    from lowbit.plan.plan import Execution, Plan, SitePlan
    from lowbit.plan.recipe import Recipe
    from lowbit.plan.sites import Site
    from lowbit.targets import Target

__all__ = ["NoiseMeter", "Sensitivities", "everything_static", "measure_sensitivities", "meter_of_plan", "open_meter"]

Item = tuple[str, "Execution"]
"""One thing that can be switched on: a site and how it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivities:
    """Noise powers at the output that loses most, relative to that output's power in float.

    Attributes:
        static: What every site adds in static integers, by path.
        dynamic: The same with ranges at run time.
        stored: What every weight adds that is stored as codes while its site computes in float.
        samples: On how many samples they were measured.
        runs: How many runs of the model that took.
        alone: Share of the sites, 0 to 1, that were measured one by one; the others share the noise of a quiet group.
    """

    static: Mapping[str, float]
    dynamic: Mapping[str, float]
    stored: Mapping[str, float]
    samples: int
    runs: int
    alone: float

    def of(self, path: str, execution: Execution) -> float:
        """Return the noise power of one site under an execution; 0 for what computes in float."""
        powers = {"static": self.static, "dynamic": self.dynamic, "weight-only": self.stored}.get(execution, {})
        return powers.get(path, 0.0)

    def predict(self, executions: Mapping[str, Execution]) -> float:
        """Return the noise power that a plan is predicted to have."""
        return sum(self.of(path, execution) for path, execution in executions.items())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoiseMeter:
    """Measures the noise of any plan of one model on a few samples, without building it.

    Attributes:
        switched: The model with switches.
        session: The same, loaded.
        feeds: The samples.
        compared: The tensors that are compared.
        references: What the float model computes for them, for every sample.
    """

    switched: Switched
    session: Session
    feeds: tuple[Feed, ...]
    compared: tuple[ComparedTensor, ...]
    references: tuple[tuple[NDArray[np.float64], ...], ...]

    def noise(self, executions: Mapping[str, Execution], *, samples: int | None = None) -> float:
        """Return the noise power of a plan, relative to the output's power, at the output that loses most.

        Args:
            executions: Execution by path; what is absent stays in float.
            samples: On how many of the samples; on all by default.
        """
        return self._measure(self.switched.feed(executions), range(samples or len(self.feeds))).ratio()

    def share(self, items: Iterable[Item], samples: Iterable[int]) -> Power:
        """Return the noise of a group of sites, each of which pays for the roundings of what it reads.

        Args:
            items: Sites and how they run.
            samples: Positions of the samples to measure on.
        """
        feed: dict[str, NDArray[Any]] = {}
        for path, execution in items:
            feed.update(self.switched.share(path, execution))
        return self._measure(feed, samples)

    def weights_alone(self, path: str, execution: Execution, samples: Iterable[int]) -> Power:
        """Return the noise of one site of which only the weights are rounded.

        Args:
            path: The site.
            execution: How it runs.
            samples: Positions of the samples to measure on.
        """
        return self._measure(self.switched.weights(path, execution), samples)

    def _measure(self, switches: Mapping[str, NDArray[Any]], samples: Iterable[int]) -> Power:
        total = Power.none(len(self.compared))
        for sample in samples:
            outputs = self.session.run({**self.feeds[sample], **switches}, [tensor.name for tensor in self.compared])
            total += Power.between(
                self.references[sample],
                [tensor.plain(array) for tensor, array in zip(self.compared, outputs, strict=True)],
            )
        return total


def everything_static(
    sites: Sequence[Site], recipe: Recipe, target: Target, shapes: Shapes, *, costs: Costs | None = None
) -> Decision:
    """Return a decision that quantizes whatever may be quantized, static where that is possible.

    Calibration of this decision (`watch_list`) sees every tensor that any plan may need.
    """
    first = decide(sites, recipe, target, shapes, everything=True)
    executions = dict(first.executions)
    for path, may in first.allowed.items():
        if "static" in may or "dynamic" in may:
            executions[path] = "static" if "static" in may else "dynamic"
    if executions == first.executions or (costs is None and target.costs is None):
        return first
    return decide(sites, recipe, target, shapes, costs=costs, executions=executions)


def open_meter(
    model: ir.Model,
    sites: Sequence[Site],
    recipe: Recipe,
    target: Target,
    decision: Decision,
    calibration: Calibration | None,
    shapes: Shapes,
    feeds: Iterable[Feed],
    *,
    samples: int = 16,
    threads: int = 1,
) -> NoiseMeter:
    """Build and load the model with switches.

    Args:
        model: The cleaned float model.
        sites: Its sites.
        recipe: What the user asks for.
        target: Where the model will run.
        decision: What `everything_static` returned.
        calibration: What calibration saw of that decision; `None` if nothing is static.
        shapes: Shape of every tensor for one sample.
        feeds: Samples; the first `samples` of them are kept.
        samples: How many samples to measure on at most.
        threads: Threads of the engine. With several, sums round otherwise, codes flip, and the plan, or its reasons,
            would depend on how many processors there are; 0 takes all.

    Raises:
        DataError: There is no sample.
        EngineError: The engine refuses the model.
    """
    plan = make_plan(model, sites, recipe, target, decision, calibration, shapes)
    entries = {entry.node: entry for entry in plan.sites}
    alternatives = {
        path: dataclasses.replace(entries[path], execution="dynamic", activations="uint8")
        for path, may in decision.allowed.items()
        if "dynamic" in may and entries[path].weights is not None
    }
    return meter_of_plan(model, plan, target, feeds, alternatives, samples=samples, threads=threads)


def meter_of_plan(
    model: ir.Model,
    plan: Plan,
    target: Target,
    feeds: Iterable[Feed],
    alternatives: Mapping[str, SitePlan],
    *,
    samples: int = 16,
    threads: int = 1,
) -> NoiseMeter:
    """Build and load the model in which everything that one plan quantizes has a switch.

    Args:
        model: The float model that the plan is for, prepared as it says.
        plan: The plan.
        target: Where the model will run.
        feeds: Samples; the first `samples` of them are kept.
        alternatives: By path, entries of sites that run, or may run, with ranges found at run time.
        samples: How many samples to measure on at most.
        threads: Threads of the engine. With several, sums round otherwise, codes flip, and the plan, or its reasons,
            would depend on how many processors there are; 0 takes all.

    Raises:
        DataError: There is no sample.
        EngineError: The engine refuses the model.
    """
    kept = tuple(islice(feeds, samples))
    if not kept:
        raise DataError("there are no samples to measure sensitivities on", remedy="give calibration data")
    switched = switched_model(model, plan, target, alternatives)
    compared = compared_tensors(switched.model)
    present = {value.name for value in switched.model.graph.outputs}
    inner = {value.name: value for node in switched.model.graph for value in node.outputs}
    for tensor in compared:
        if tensor.name not in present:
            present.add(tensor.name)
            switched.model.graph.outputs.append(inner[tensor.name])
    with staged(switched.model) as source:
        # Not optimized: the engine would fuse nothing around the switches and only take longer to load.
        session = open_session(source, threads=threads, optimized=False)
    names = [tensor.name for tensor in compared]
    references = tuple(
        tuple(tensor.plain(array) for tensor, array in zip(compared, session.run(feed, names), strict=True))
        for feed in kept
    )
    return NoiseMeter(switched=switched, session=session, feeds=kept, compared=compared, references=references)


def measure_sensitivities(
    meter: NoiseMeter,
    *,
    runs: int = 2000,
    advance: Callable[[], None] = lambda: None,
) -> Sensitivities:
    """Measure what every site adds to the noise at the output.

    One by one on one sample, then those that matter on as many samples as the runs suffice for. Where they do not
    suffice for even one sample each, groups of neighbouring sites are measured, and the loudest is split in two as long
    as runs are left. What is measured does not depend on how fast this machine is.

    Args:
        meter: The model with switches.
        runs: How often the model may run; at least one run for each execution.
        advance: Called after every run of the model.
    """
    items: dict[Execution, list[Item]] = {}
    for path, execution in meter.switched.switches:
        items.setdefault(execution, []).append((path, execution))
    if not items:
        return Sensitivities(static={}, dynamic={}, stored={}, samples=0, runs=0, alone=1.0)
    done = 0

    def measure(group: Sequence[Item], sample: int) -> Power:
        nonlocal done
        done += 1
        power = meter.share(group, [sample])
        advance()
        return power

    total = sum(len(found) for found in items.values())
    powers: dict[Execution, dict[str, float]] = {execution: {} for execution in items}
    samples = 1
    if total <= runs:
        sums = {item: measure([item], 0) for found in items.values() for item in found}
        loud = _loudest({item: power.ratio() for item, power in sums.items()})
        while samples < len(meter.feeds) and done + len(loud) <= runs:
            for item in loud:
                sums[item] += measure([item], samples)
            samples += 1
        for (path, execution), power in sums.items():
            powers[execution][path] = power.ratio()
        alone = 1.0
    else:
        loudest = [(-measure(found, 0).ratio(), index, found) for index, found in enumerate(items.values())]
        heapq.heapify(loudest)
        groups: list[tuple[float, list[Item]]] = []
        while loudest and done + 2 <= runs:
            negative, _, group = heapq.heappop(loudest)
            if len(group) == 1:
                groups.append((-negative, group))
                continue
            for half in (group[: len(group) // 2], group[len(group) // 2 :]):
                heapq.heappush(loudest, (-measure(half, 0).ratio(), done, half))
        groups += [(-negative, group) for negative, _, group in loudest]
        for ratio, group in groups:
            for path, execution in group:
                powers[execution][path] = ratio / len(group)
        alone = sum(len(group) == 1 for _, group in groups) / total
    return Sensitivities(
        static=powers.get("static", {}),
        dynamic=powers.get("dynamic", {}),
        stored=powers.get("weight-only", {}),
        samples=samples,
        runs=done,
        alone=alone,
    )


# Share of all noise that the sites make up which are measured on more than one sample.
_MATTERS = 0.99


def _loudest(powers: Mapping[Item, float]) -> list[Item]:
    """Return the fewest items that make up as good as all of the noise."""
    ordered = sorted(powers, key=lambda item: -powers[item])
    total = sum(powers.values())
    kept: list[Item] = []
    reached = 0.0
    for item in ordered:
        if reached >= _MATTERS * total:
            break
        kept.append(item)
        reached += powers[item]
    return kept
