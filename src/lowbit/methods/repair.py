"""Trying remedies one after the other: what helps stays, what does not is undone, until time or gain run out."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.exceptions import EngineError, RecipeError
from lowbit.methods.remedies import amended
from lowbit.plan.diagnosis import Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowbit.plan.diagnosis import Remedy
    from lowbit.plan.recipe import Recipe

__all__ = ["COSTLY_DB", "WORTH_DB", "Repaired", "Score", "repair"]

WORTH_DB = 0.3
"""A remedy stays if the output's SQNR rises by so many decibel: 7 % of the noise, above what chance gives."""

COSTLY_DB = 1.0
"""What takes operators out of integers has to gain more, because it costs time or size as well."""

_FRUITLESS = 2
# Share of the time left that learning gets: what it makes has to be built again at the end.
_LEARNING = 0.4
_LEAST_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Score:
    """What one recipe gives.

    Attributes:
        sqnr_db: SQNR at the output that loses most, on held-out calibration samples, in decibel.
        integers: Number of operators that compute in integers.
    """

    sqnr_db: float
    integers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What trying came to.

    Attributes:
        recipe: The recipe with everything that helped.
        score: What it gives.
        trials: What was tried, in order.
        stopped: Why nothing more was tried, in words.
    """

    recipe: Recipe
    score: Score
    trials: tuple[Trial, ...]
    stopped: str


def repair(
    recipe: Recipe,
    before: Score,
    remedies: Sequence[Remedy],
    score: Callable[[str, Recipe], Score],
    *,
    seconds: float,
    each: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> Repaired:
    """Try remedies in order.

    Args:
        recipe: The recipe to start from.
        before: What it gives.
        remedies: What to try, most promising first.
        score: Builds and judges a recipe; gets the remedy's name too.
        seconds: How long this may take, the final build included, for which the time of one trial is kept back.
        each: How long one trial takes, as far as is known.
        clock: Tells the time.

    Returns:
        The recipe with what helped. What a remedy learns against time depends on the machine; all else does not.
    """
    started = clock()
    current, best = recipe, before
    trials: list[Trial] = []
    fruitless = 0
    stopped = "nothing is left to try" if remedies else "no remedy is known for what was found"
    learned = 0.0
    for remedy in remedies:
        left = seconds - (clock() - started)
        if left - learned < 2 * each or seconds <= 0:
            stopped = "the time that is left does not suffice for another remedy"
            break
        candidate = amended(current, remedy)
        if candidate == current or (current.learns and not candidate.learns):
            continue
        learning = candidate.learns
        if learning and recipe.time is None:
            # Whole seconds, so that the recipe reads well.
            budget = math.floor((left - 2 * each) * _LEARNING)
            if budget < _LEAST_SECONDS:
                stopped = "the time that is left does not suffice for learning"
                break
            if not current.learns:
                candidate = dataclasses.replace(candidate, time=float(budget))
        begin = clock()
        try:
            found = score(remedy.name, candidate)
        except (RecipeError, EngineError) as error:
            # A remedy that the model or the target does not admit is an answer, not a failure of the diagnosis.
            trials.append(_refused(remedy.name, best, str(error), clock() - begin))
            fruitless += 1
        else:
            worth = WORTH_DB if found.integers >= best.integers else COSTLY_DB
            kept = found.sqnr_db >= best.sqnr_db + worth
            spent = clock() - begin
            trials.append(
                Trial(
                    remedy=remedy.name,
                    before_db=best.sqnr_db,
                    after_db=found.sqnr_db,
                    kept=kept,
                    seconds=spent,
                    integers=(best.integers, found.integers),
                )
            )
            each = max(each, spent) if not learning else each
            fruitless = 0 if kept else fruitless + 1
            if kept:
                current, best = candidate, found
                learned = spent if learning else learned
        if fruitless == _FRUITLESS:
            stopped = f"{_FRUITLESS} remedies in a row did not gain enough"
            break
    return Repaired(recipe=current, score=best, trials=tuple(trials), stopped=stopped)


def _refused(name: str, best: Score, why: str, seconds: float) -> Trial:
    return Trial(
        remedy=name,
        before_db=best.sqnr_db,
        after_db=None,
        kept=False,
        seconds=seconds,
        integers=(best.integers, best.integers),
        refusal=why,
    )
