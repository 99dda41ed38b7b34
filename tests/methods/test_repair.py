"""Remedies answer causes, and only what helps stays in the recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowbit.exceptions import EngineError
from lowbit.methods.remedies import amended, remedies
from lowbit.methods.repair import COSTLY_DB, WORTH_DB, Score, repair
from lowbit.plan.diagnosis import Cause, CauseKind, DiagnosedLayer, Remedy
from lowbit.plan.recipe import Recipe, Rule
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TARGET = find_target("onnxruntime-x86-avx2")
A = Remedy(name="a", changes={"weight_range": "mse"}, promise=0.9)
B = Remedy(name="b", changes={"equalize": True}, promise=0.5)
C = Remedy(name="c", changes={"smooth": "awq"}, promise=0.4)
D = Remedy(name="d", changes={"exclude": ("x",)}, promise=0.3)
LEARNED = Remedy(name="learned", changes={"rounding": "learned"}, promise=0.2)


def layer(kind: CauseKind | None, *, op_type: str = "Conv", execution: str = "static", weights: float = 0.1):
    causes = () if kind is None else (Cause(kind=kind, node="n", tensor="t", evidence={}, text="", remedy=""),)
    return DiagnosedLayer(
        node="n[0]",
        op_type=op_type,
        execution=execution,
        sqnr_db=10.0,
        noise=0.1,
        share=1.0,
        weights_share=weights,
        causes=causes,
    )


def scored(gains: Mapping[str, float]) -> Callable[[str, Recipe], Score]:
    """Return a judge for which every field that differs from the default adds its gain; `exclude` costs an integer."""

    def score(_name: str, recipe: Recipe) -> Score:
        usual, own = Recipe().to_dict(), recipe.to_dict()
        changed = [key for key, value in own.items() if value != usual[key]]
        return Score(20.0 + sum(gains.get(key, 0.0) for key in changed), 5 - sum(key == "exclude" for key in changed))

    return score


@pytest.mark.parametrize(
    ("found", "recipe", "first"),
    [
        (layer("long tail"), Recipe(), "calibration percentile 99.99"),
        (layer("long tail"), Recipe(calibration="minmax"), "calibration mse"),
        (layer("clipped range"), Recipe(calibration="percentile", percentile=95.0), "calibration minmax"),
        (layer("outlier channel"), Recipe(), "equalize"),
        (layer("LayerNorm outliers", op_type="MatMul"), Recipe(), "smooth smoothquant"),
        (layer("coarse weights", weights=1.0), Recipe(), "weight_range mse"),
        (layer("coarse weights", weights=1.0), Recipe(weights="int4", weight_range="mse"), "rounding gptq"),
        (layer("outlier weights", weights=0.9), Recipe(weights="int8:per-tensor"), "weights int8:per-channel"),
        (layer("Softmax mask", op_type="Softmax"), Recipe(), "exclude n[0]"),
        (layer(None, weights=0.0), Recipe(), "calibration percentile 99.99"),
        (layer(None, weights=0.0), Recipe(activations="uint4"), "calibration output-mse"),
    ],
)
def test_the_remedy_of_a_cause_comes_first(found: DiagnosedLayer, recipe: Recipe, first: str) -> None:
    proposed = remedies(recipe, TARGET, [found], {})
    assert proposed[0].name == first
    assert list(proposed) == sorted(proposed, key=lambda remedy: -remedy.promise)


def test_what_a_recipe_has_is_not_proposed_again() -> None:
    recipe = Recipe(equalize=True, weight_range="mse", rounding="learned", smooth="smoothquant")
    names = {remedy.name for remedy in remedies(recipe, TARGET, [layer("outlier channel")], {})}
    assert not names & {"equalize", "weight_range mse", "rounding gptq", "rounding learned", "smooth smoothquant"}


def test_layers_are_measured_behind_coded_ones_once() -> None:
    coarse, asked = layer("coarse weights", weights=1.0), {"reestimate", "rounding_inputs quantized", "absorb_bias"}
    outlying = layer("outlier channel")
    names = {remedy.name for remedy in remedies(Recipe(), TARGET, [coarse, outlying], {})}
    assert asked <= names
    present = Recipe(reestimate=True, rounding_inputs="quantized", absorb_bias=True)
    assert not asked & {remedy.name for remedy in remedies(present, TARGET, [coarse, outlying], {})}
    # Rounding to nearest looks at no inputs.
    nearest = {remedy.name for remedy in remedies(Recipe(rounding="nearest"), TARGET, [coarse], {})}
    assert "rounding_inputs quantized" not in nearest


def test_a_remedy_is_added_to_what_is_there() -> None:
    recipe = Recipe(exclude=("y",), rules=(Rule(pattern="z", method="float"),))
    assert amended(recipe, D).exclude == ("y", "x")
    assert amended(amended(recipe, D), D).exclude == ("y", "x")
    (excluded,) = [item for item in remedies(recipe, TARGET, [layer(None)], {}) if "exclude" in item.changes]
    # A bracket in a name is no pattern.
    assert amended(recipe, excluded).rule_for("n[0]", "Conv", None).method == "float"
    assert amended(recipe, excluded).rule_for("n0", "Conv", None).method is None


def test_what_helps_is_kept_and_what_does_not_is_undone() -> None:
    gains = {"weight_range": 2.0, "equalize": WORTH_DB - 0.01, "smooth": 1.0}
    found = repair(Recipe(), Score(20.0, 5), [A, B, C], scored(gains), seconds=100)
    assert [trial.kept for trial in found.trials] == [True, False, True]
    assert found.recipe == Recipe(weight_range="mse", smooth="awq")
    assert found.score.sqnr_db == pytest.approx(23.0)
    assert [trial.before_db for trial in found.trials] == pytest.approx([20.0, 22.0, 22.0])


def test_what_costs_time_has_to_gain_more() -> None:
    for gain, kept in ((COSTLY_DB - 0.1, False), (COSTLY_DB + 0.1, True)):
        found = repair(Recipe(), Score(20.0, 5), [D], scored({"exclude": gain}), seconds=100)
        assert found.trials[0].kept is kept
        assert found.trials[0].integers == (5, 4)


def test_it_stops_when_the_gain_stops() -> None:
    found = repair(Recipe(), Score(20.0, 5), [A, B, C], scored({"smooth": 9.0}), seconds=100)
    assert [trial.remedy for trial in found.trials] == ["a", "b"]
    assert "2 remedies in a row" in found.stopped
    assert found.recipe == Recipe()


def test_it_stops_when_the_time_is_used() -> None:
    now = [0.0]

    def score(name: str, recipe: Recipe) -> Score:
        now[0] += 10.0
        return scored({"weight_range": 1.0, "equalize": 1.0, "smooth": 1.0})(name, recipe)

    found = repair(Recipe(), Score(20.0, 5), [A, B, C], score, seconds=35.0, each=10.0, clock=lambda: now[0])
    # The last ten seconds are for building what is left.
    assert [trial.remedy for trial in found.trials] == ["a", "b"]
    assert "time that is left" in found.stopped
    assert repair(Recipe(), Score(20.0, 5), [A], score, seconds=0.0).trials == ()


def test_learning_gets_a_part_of_the_time_and_gptq_does_not_undo_it() -> None:
    gptq = Remedy(name="gptq", changes={"rounding": "gptq"}, promise=0.1)
    seen: list[Recipe] = []

    def score(name: str, recipe: Recipe) -> Score:
        seen.append(recipe)
        return scored({"rounding": 3.0})(name, recipe)

    found = repair(Recipe(), Score(20.0, 5), [LEARNED, gptq], score, seconds=100.0, clock=lambda: 0.0)
    assert found.recipe.rounding == "learned"
    assert found.recipe.time == 40.0
    assert len(seen) == 1
    own = repair(Recipe(time=7.0), Score(20.0, 5), [LEARNED], score, seconds=100.0, clock=lambda: 0.0)
    assert own.recipe.time == 7.0


def test_a_remedy_that_is_refused_is_told_and_undone() -> None:
    def score(name: str, recipe: Recipe) -> Score:
        if name == "a":
            raise EngineError("no kernel", remedy="another format")
        return scored({"equalize": 1.0})(name, recipe)

    found = repair(Recipe(), Score(20.0, 5), [A, B], score, seconds=100)
    assert found.trials[0].after_db is None
    assert "no kernel" in found.trials[0].refusal
    assert found.recipe == Recipe(equalize=True)
