"""The method `best` within a time: remedies for what is wrong with the model first, then learning with what is left."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING

from lowbit.methods.findings import findings
from lowbit.methods.rerounding import first_rounding
from lowbit.targets import find_target

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    import onnx_ir as ir

    from lowbit.data import Dataset
    from lowbit.methods.stages import Stages
    from lowbit.plan.diagnosis import Trial
    from lowbit.plan.recipe import Recipe

__all__ = ["best_within"]

# Share of the time for remedies; what learning gives in the rest is more than any of them.
_REMEDIES_SHARE = 0.3
# What takes operators out of the formats that were asked for is no part of `best`, and learning comes last anyway.
_NOT_TRIED = frozenset({"exclude", "rules", "rounding"})
_LEAST_SECONDS = 1


def best_within(
    model: str | Path | onnx.ModelProto | ir.Model,
    cleaned: ir.Model,
    calibration: Dataset,
    recipe: Recipe,
    stages: Stages,
) -> tuple[Recipe, tuple[str, ...]]:
    """Return a recipe with the remedies that help and the time that is left for learning, and what was tried, in words.

    Args:
        model: As for `quantize`.
        cleaned: The same, cleaned.
        calibration: Calibration samples; a quarter of them judges the remedies.
        recipe: `best`, spelled out, with a time in seconds.
        stages: Shows progress.

    Raises:
        LowbitError: The model cannot be quantized as the recipe says.
    """
    if recipe.time is None or calibration.count() < 2:
        return recipe, ()
    started = time.monotonic()
    found = findings(
        model,
        cleaned,
        calibration,
        dataclasses.replace(recipe, rounding=first_rounding(recipe, find_target(recipe.target)), time=None),
        _REMEDIES_SHARE * recipe.time,
        stages,
        admitted=lambda remedy: not _NOT_TRIED & set(remedy.changes),
    )
    left = recipe.time - (time.monotonic() - started) - found.build_seconds
    # Whole seconds, so that the recipe reads well.
    seconds = float(max(math.floor(left), _LEAST_SECONDS))
    chosen = dataclasses.replace(found.repaired.recipe, rounding=recipe.rounding, time=seconds)
    return chosen, tuple(_told(trial) for trial in found.repaired.trials)


def _told(trial: Trial) -> str:
    if trial.after_db is None:
        return f"tried {trial.remedy}: {trial.refusal}"
    verdict = "kept" if trial.kept else "undone"
    return f"tried {trial.remedy}: {trial.before_db:.1f} → {trial.after_db:.1f} dB at the output, {verdict}"
