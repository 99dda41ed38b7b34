"""From a model, a recipe and calibration samples to what is wrong, what was tried, and the recipe that is left."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from lowbit.data import Dataset, split_calibration
from lowbit.methods.apply import apply_plan
from lowbit.methods.layer_noise import layer_noises
from lowbit.methods.prepare import prepared_for
from lowbit.methods.quantize import quantize
from lowbit.methods.remedies import remedies
from lowbit.methods.repair import Repaired, Score, repair
from lowbit.methods.symptoms import causes_in_inputs, causes_in_layers
from lowbit.plan.diagnosis import Cause, DiagnosedLayer
from lowbit.plan.sites import Site, find_sites
from lowbit.plan.verification import worst_db
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx
    import onnx_ir as ir

    from lowbit.methods.result import Result
    from lowbit.methods.stages import Stages
    from lowbit.plan.diagnosis import Remedy
    from lowbit.plan.recipe import Recipe
    from lowbit.runtime.session import Feed

__all__ = ["Findings", "findings"]

# Of the calibration samples, what remedies are fitted on; the rest judges them.
_FITTED_SHARE = 0.75
_JUDGED = 64
# Samples on which causes are looked for.
_LOOKED_AT = 16
# Share of the time for measuring layers.
_MEASURING = 0.2
_LONGEST_MEASURING = 30.0
_LONGEST_TITLE = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a diagnosis of one model comes to, before the repaired artifact is built.

    Attributes:
        causes: What is suspicious about the data.
        layers: The quantized layers, loudest first.
        repaired: The remedies that were tried, and the recipe that is left.
        build_seconds: How long one artifact took to build and to judge.
    """

    causes: tuple[Cause, ...]
    layers: tuple[DiagnosedLayer, ...]
    repaired: Repaired
    build_seconds: float


def findings(
    model: str | Path | onnx.ModelProto | ir.Model,
    cleaned: ir.Model,
    calibration: Dataset,
    recipe: Recipe,
    seconds: float,
    stages: Stages,
    *,
    admitted: Callable[[Remedy], bool] = lambda _: True,
) -> Findings:
    """Diagnose on calibration samples, and try remedies.

    Args:
        model: The model, in any form that `quantize` takes.
        cleaned: The same, cleaned.
        calibration: Calibration samples; a part of them judges the remedies.
        recipe: What to start from.
        seconds: About how long all may take, the build of the repaired artifact included.
        stages: Shows progress.
        admitted: Which remedies may be tried.

    Raises:
        LowbitError: The model cannot be quantized as the recipe says.
    """
    started = time.monotonic()
    fitted, judging = split_calibration(calibration, calibration=_FITTED_SHARE, seed=recipe.seed)
    if judging.count() > _JUDGED:
        judging = judging.subset(0, max(_JUDGED // judging.unit, 1) * judging.unit)
    held_out = list(judging)

    def build(chosen: Recipe) -> Result:
        return quantize(model, lambda: fitted, test_data=held_out, recipe=chosen, measure_seconds=0)

    def score(name: str, chosen: Recipe) -> Score:
        # Names of operators may be as long as a paragraph.
        with stages(f"Try {name[:_LONGEST_TITLE]}", None):
            return _score(build(chosen))

    with stages("Quantize for the diagnosis", None):
        first = build(recipe)
    each = time.monotonic() - started
    measuring = min(max(_MEASURING * seconds, 1.0), _LONGEST_MEASURING)
    causes, layers, sites = _looked_at(cleaned, first, recipe, fitted, measuring, stages)
    repaired = repair(
        recipe,
        _score(first),
        tuple(filter(admitted, remedies(recipe, find_target(recipe.target), layers, sites))),
        score,
        seconds=max(seconds - (time.monotonic() - started), 0.0),
        each=each,
    )
    return Findings(causes=causes, layers=layers, repaired=repaired, build_seconds=each)


def _looked_at(
    cleaned: ir.Model, result: Result, recipe: Recipe, data: Dataset, seconds: float, stages: Stages
) -> tuple[tuple[Cause, ...], tuple[DiagnosedLayer, ...], dict[str, Site]]:
    """Return what is wrong with the data and with the layers, and the sites by path."""
    target = find_target(recipe.target)
    feeds: list[Feed] = list(islice(iter(data), _LOOKED_AT))
    prepared = prepared_for(cleaned, result.plan)
    sites = find_sites(prepared, target)
    with stages("Look for causes", None):
        inputs = causes_in_inputs(prepared, sites, feeds)
        found = causes_in_layers(prepared, sites, apply_plan(cleaned, result.plan), feeds)
    with stages("Measure layer by layer", None) as advance:
        noises = layer_noises(prepared, result.plan, target, feeds, seconds=seconds, advance=advance)
    total = sum(noise.noise for noise in noises.values())
    measured = {layer.node: layer for layer in result.verification.layers}
    layers = []
    for entry in result.plan.sites:
        if entry.node not in noises:
            continue
        noise, layer = noises[entry.node], measured.get(entry.node)
        known = None
        if layer is not None:
            known = layer.sqnr_simulated_db if layer.sqnr_real_db is None else layer.sqnr_real_db
        layers.append(
            DiagnosedLayer(
                node=entry.node,
                op_type=entry.op_type,
                execution=entry.execution,
                sqnr_db=known,
                noise=noise.noise,
                share=noise.noise / total if total > 0 else 0.0,
                weights_share=noise.weights,
                causes=found.get(entry.node, ()),
            )
        )
    ranked = tuple(sorted(layers, key=lambda layer: -layer.share))
    return inputs, ranked, {site.path: site for site in sites}


def _score(result: Result) -> Score:
    integers = sum(site.execution in {"static", "dynamic"} for site in result.plan.sites)
    return Score(worst_db(result.verification), integers)
