"""The verb that explains and repairs: causes of bad layers, remedies that are tried, and the recipe that is left."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.exceptions import RecipeError
from lowbit.graph import clean, load_model
from lowbit.methods.fastest import FASTEST_HERE
from lowbit.methods.findings import findings
from lowbit.methods.quantize import quantize
from lowbit.methods.samples import calibration_and_test
from lowbit.methods.stages import Stages, silent
from lowbit.plan.recipe import Recipe
from lowbit.plan.verification import worst_db
from lowbit.report.plain import plain_text
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    import onnx_ir as ir

    from lowbit.data import Preprocessing
    from lowbit.methods.result import Result
    from lowbit.plan.diagnosis import Cause, DiagnosedLayer, Trial

__all__ = ["DEFAULT_SECONDS", "Diagnosis", "diagnose", "recipe_text"]

DEFAULT_SECONDS = 300.0

_WHY_DATA = "what is wrong with a layer is seen on samples"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Diagnosis:
    """What is wrong with a quantized model, what was tried, and what helped.

    Attributes:
        source: What was diagnosed, as the user named it.
        causes: What is suspicious about the data.
        layers: The quantized layers, those that make most of the noise first.
        trials: The remedies that were tried, in order.
        stopped: Why nothing more was tried.
        recipe: The recipe with everything that helped; `lowbit.quantize` gives `result` again from it.
        before: The artifact as it was asked for, on the test samples.
        result: The repaired artifact; `before` itself if nothing helped.
        seconds: How long all of it took.
    """

    source: str
    causes: tuple[Cause, ...]
    layers: tuple[DiagnosedLayer, ...]
    trials: tuple[Trial, ...]
    stopped: str
    recipe: Recipe
    before: Result
    result: Result
    seconds: float

    @property
    def sqnr_db(self) -> tuple[float, float]:
        """SQNR at the output that loses most, before and after, in decibel, on the test samples."""
        return worst_db(self.before.verification), worst_db(self.result.verification)

    @property
    def recipe_yaml(self) -> str:
        """The recipe as YAML, without what is the default anyway."""
        return recipe_text(self.recipe)

    def save(self, path: str | Path) -> list[Path]:
        """Write the repaired artifact as ONNX, atomically.

        Raises:
            OutputError: The file cannot be written; whatever stood there is untouched.
        """
        return self.result.save(path)

    def __str__(self) -> str:
        """Return the diagnosis as plain text, as wide as the terminal."""
        return self.text()

    def text(self, *, width: int | None = None, details: bool = False) -> str:
        """Return the diagnosis as plain text.

        Args:
            width: Columns; by default the terminal's.
            details: Whether every layer is listed.
        """
        said = plain_text(self.renderables(details=details), width=width)
        return f"{said}\n\n{self.recipe_lines}"

    @property
    def recipe_lines(self) -> str:
        """The recipe as it is printed: no line is broken, so that it can be copied however long names are."""
        return "\n".join((" The recipe for it:", *(f"   {line}" for line in self.recipe_yaml.splitlines())))

    def renderables(self, *, details: bool = False) -> Sequence[object]:
        """Return the parts of the diagnosis for a `rich` console; the recipe is not among them."""
        from lowbit.report.diagnosis import conclusion, diagnosed_layers, suspicions, trials_table

        return [
            *suspicions(self.causes),
            diagnosed_layers(self.layers, title=f"{self.source}: where the noise comes from", everything=details),
            trials_table(self.trials, self.stopped),
            conclusion(*self.sqnr_db),
        ]


def diagnose(
    model: str | Path | onnx.ModelProto | ir.Model,
    data: Any = None,
    *,
    test_data: Any = None,
    preprocessing: Preprocessing | None = None,
    recipe: Recipe | str | Path | None = None,
    seconds: float = DEFAULT_SECONDS,
    stages: Stages = silent,
    **options: Any,
) -> Diagnosis:
    """Explain which layers of a quantized model are bad and why, try remedies, and keep what helps.

    A quarter of the calibration samples judges the remedies; neither these nor the test samples are calibrated on
    while they do. The repaired artifact is then built from all calibration samples and measured on the test samples.

    Args:
        model: Path of an ONNX file, a `ModelProto` or an `onnx_ir.Model`; never changed.
        data: Calibration data, in any form that `quantize` takes.
        test_data: Held-out data; by default a fifth of `data` is kept back.
        preprocessing: What to do to images.
        recipe: What to start from: a `Recipe` or the path of a YAML file; `best` starts from `auto`.
        seconds: How long all may take, about; 0 only explains. The least is two builds of the artifact.
        stages: Shows progress; see `Stages`.
        **options: Fields of `Recipe`, e.g. `target="host"`, `weights="int4"`.

    Raises:
        ModelError: The model cannot be read.
        DataError: There are no data, or they do not fit the model.
        RecipeError: The recipe is wrong.
        TargetError: The target is unknown.
        EngineError: The engine does not run the float model, or the artifact as asked for.
    """
    started = time.monotonic()
    settings = _settings(recipe, options)
    if isinstance(seconds, bool) or not math.isfinite(seconds) or seconds < 0:
        raise RecipeError(f"the time is {seconds!r}", remedy="give seconds from 0 on")
    with stages("Load and clean the model", None):
        cleaned = clean(load_model(model)).model
    find_target(settings.target)
    calibration, tests = calibration_and_test(
        cleaned, data, test_data, settings, preprocessing=preprocessing, needed=_WHY_DATA
    )
    assert calibration is not None

    def build(name: str, chosen: Recipe) -> Result:
        with stages(name, None):
            return quantize(model, lambda: calibration, test_data=lambda: tests, recipe=chosen, measure_seconds=0)

    before = build("Quantize as asked", settings)
    spent = time.monotonic() - started
    found = findings(model, cleaned, calibration, settings, seconds - spent, stages)
    helped = found.repaired.recipe != settings
    result = build("Build the repaired model", found.repaired.recipe) if helped else before
    return Diagnosis(
        source=Path(model).name if isinstance(model, (str, Path)) else "model",
        causes=found.causes,
        layers=found.layers,
        trials=found.repaired.trials,
        stopped=found.repaired.stopped if seconds > 0 else "no time was given for remedies",
        recipe=found.repaired.recipe,
        before=before,
        result=result,
        seconds=time.monotonic() - started,
    )


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as YAML, without what is the default anyway."""
    import yaml

    usual = Recipe().to_dict()
    values = {key: value for key, value in recipe.to_dict().items() if value != usual[key] or key == "method"}
    # In one line each, however long names are: what is copied from a terminal stays YAML.
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=math.inf)


def _settings(recipe: Recipe | str | Path | None, options: dict[str, Any]) -> Recipe:
    base = Recipe.from_yaml(recipe) if isinstance(recipe, (str, Path)) else recipe or Recipe()
    settings = Recipe.from_dict({**base.to_dict(), **options}) if options else base
    if settings.target == FASTEST_HERE:
        raise RecipeError(
            f"the target is {FASTEST_HERE}", cause="causes differ from engine to engine", remedy="name one target"
        )
    # What `best` adds is among the remedies.
    return dataclasses.replace(settings, method="auto") if settings.method == "best" else settings
