"""Which layers of a plan make the noise at the output, and whether their weights or their activations do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.methods.noise_power import Power
from lowbit.methods.sensitivity import meter_of_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import onnx_ir as ir

    from lowbit.plan.plan import Plan
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["LayerNoise", "layer_noises"]

_SAMPLES = 4
# Layers whose weights are measured apart from their activations.
_LOUD = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNoise:
    """What one operator adds to the noise at the output.

    Attributes:
        noise: Its power alone, relative to the output's.
        weights: The part of it that its weights alone make, 0 to 1; `None` if that was not measured.
    """

    noise: float
    weights: float | None = None


def layer_noises(
    model: ir.Model,
    plan: Plan,
    target: Target,
    feeds: Iterable[Feed],
    *,
    seconds: float = 20.0,
    clock: Callable[[], float] = time.monotonic,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, LayerNoise]:
    """Measure what every quantized operator of a plan adds to the noise at the output, alone.

    Args:
        model: The float model that the plan is for, prepared as it says.
        plan: The plan.
        target: Where the model will run.
        feeds: Samples; the first few are used.
        seconds: About how long to measure; one sample is measured whatever it takes.
        clock: Tells the time.
        advance: Called after every run of the model.

    Returns:
        By path, every operator that is quantized.
    """
    dynamic = {entry.node: entry for entry in plan.sites if entry.execution == "dynamic" and entry.weights is not None}
    meter = meter_of_plan(model, plan, target, feeds, dynamic, samples=_SAMPLES)
    items = [
        (entry.node, entry.execution)
        for entry in plan.sites
        if (entry.node, entry.execution) in meter.switched.switches
    ]
    begin = clock()
    sums = {path: Power.none(len(meter.compared)) for path, _ in items}
    done = 0
    for sample in range(len(meter.feeds)):
        for path, execution in items:
            sums[path] += meter.share([(path, execution)], [sample])
            advance()
        done += 1
        if (clock() - begin) * (done + 1) / done > seconds:
            break
    ratios = {path: power.ratio() for path, power in sums.items()}
    executions = dict(items)
    weights: dict[str, float] = {}
    for path in sorted(ratios, key=lambda path: -ratios[path])[:_LOUD]:
        if ratios[path] > 0 and meter.switched.weights(path, executions[path]):
            alone = meter.weights_alone(path, executions[path], range(done)).ratio()
            # The two parts are nearly, not exactly, independent.
            weights[path] = min(alone / ratios[path], 1.0)
            advance()
    return {path: LayerNoise(noise=ratio, weights=weights.get(path)) for path, ratio in ratios.items()}
