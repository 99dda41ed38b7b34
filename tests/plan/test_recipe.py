"""Recipes: checked when they are built, the same in YAML and Python, and patterns that mean what they say."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lowbit.exceptions import RecipeError
from lowbit.plan.recipe import CALIBRATIONS, METHODS, OPTIMIZE, RULE_METHODS, Recipe, Rule, matches

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = (
    "int8",
    "int8:per-channel",
    "int4:block=32",
    "uint4:block=16:symmetric",
    "float16",
    "bfloat16",
    "float8_e4m3",
)
patterns = st.sampled_from(["*", "op:Conv", "re:^block[0-9]+", "encoder/*", "Conv_0", "head.weight"])
rules = st.builds(
    Rule,
    pattern=patterns,
    weights=st.none() | st.sampled_from(FORMATS),
    method=st.none() | st.sampled_from(RULE_METHODS),
)
recipes = st.builds(
    Recipe,
    target=st.sampled_from(["host", "onnxruntime-x86-avx2"]),
    method=st.sampled_from(METHODS),
    optimize=st.sampled_from(OPTIMIZE),
    weights=st.none() | st.sampled_from(FORMATS),
    activations=st.none() | st.sampled_from(["uint8", "int8", "none", "dynamic"]),
    calibration=st.sampled_from(CALIBRATIONS),
    percentile=st.floats(50, 100),
    weight_range=st.sampled_from(["minmax", "percentile", "mse", "entropy"]),
    bias_correction=st.booleans(),
    exclude=st.lists(patterns, max_size=3).map(tuple),
    rules=st.lists(rules, max_size=3).map(tuple),
    io=st.sampled_from(["float", "int8"]),
    seed=st.integers(0, 2**31),
    samples=st.integers(1, 10_000),
)


limited = st.builds(
    Recipe,
    min_sqnr=st.none() | st.floats(-20, 100),
    max_sqnr_loss=st.none() | st.floats(0, 40),
    max_drop=st.none() | st.floats(0, 1),
)


@given(recipes | limited)
def test_recipes_survive_plain_values_and_yaml(recipe: Recipe) -> None:
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe


def test_the_default_is_built_from_nothing() -> None:
    assert Recipe.from_dict({}) == Recipe()
    assert Recipe().method == "auto"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({"methd": "auto"}, "methd"),
        ({"method": "magic"}, "magic"),
        ({"calibration": "guess"}, "guess"),
        ({"weight_range": "guess"}, "guess"),
        ({"io": "int7"}, "int7"),
        ({"optimize": "speed"}, "speed"),
        ({"min_sqnr": "high"}, "high"),
        ({"min_sqnr": float("nan")}, "min_sqnr"),
        ({"max_sqnr_loss": -1.0}, "max_sqnr_loss"),
        ({"max_drop": -0.01}, "max_drop"),
        ({"max_drop": True}, "max_drop"),
        ({"weights": "int9"}, "int9"),
        ({"weights": "none"}, "none"),
        ({"weights": "int4:block=x"}, "int4:block=x"),
        ({"activations": "sometimes"}, "sometimes"),
        ({"percentile": 12.0}, "12"),
        ({"percentile": 100.1}, "100.1"),
        ({"samples": 0}, "samples"),
        ({"exclude": ["re:("]}, "re:("),
        ({"exclude": 3}, "exclude"),
        ({"exclude": [3]}, "exclude"),
        ({"rules": [{"weights": "int8"}]}, "malformed"),
        ({"rules": [{"pattern": "*", "bits": 4}]}, "malformed"),
        ({"rules": ["*"]}, "malformed"),
        ({"rules": [{"pattern": "*", "weights": "int9"}]}, "int9"),
        ({"rules": [{"pattern": "*", "method": "magic"}]}, "magic"),
        ({"rules": [{"pattern": "re:["}]}, "re:["),
        ({"percentile": "high"}, "percentile|wrong kind"),
        ({"samples": "many"}, "samples|wrong kind"),
    ],
)
def test_what_is_wrong_is_named(data: dict[str, Any], word: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(data)
    assert any(part in str(caught.value) for part in word.split("|"))


@pytest.mark.parametrize("content", ["- a\n- b", "just words", "", "12"])
def test_a_file_that_is_no_mapping_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(RecipeError, match="mapping"):
        Recipe.from_yaml(tmp_path / "recipe.yaml")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.from_yaml(tmp_path / "nothing.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="not YAML"):
        Recipe.from_yaml(tmp_path / "broken.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"cannot be read|not YAML"):
        Recipe.from_yaml(tmp_path / "binary.yaml")


def test_a_recipe_as_users_write_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "method: static\nweights: int8:per-channel\nexclude: head\nrules:\n"
        "  - pattern: op:Conv\n    weights: int8\n  - pattern: 're:stem'\n    method: float\n"
    )
    recipe = Recipe.from_yaml(tmp_path / "recipe.yaml")
    assert recipe.exclude == ("head",)
    assert recipe.rules == (Rule(pattern="op:Conv", weights="int8"), Rule(pattern="re:stem", method="float"))


@pytest.mark.parametrize(
    ("pattern", "path", "op_type", "weight", "expected"),
    [
        ("Conv_0", "Conv_0", "Conv", None, True),
        ("Conv_0", "Conv_01", "Conv", None, False),
        ("conv_0", "Conv_0", "Conv", None, False),
        ("Conv_*", "Conv_0", "Conv", None, True),
        ("Conv_?", "Conv_12", "Conv", None, False),
        ("*", "anything", "Tanh", None, True),
        ("encoder/*", "encoder/layer/MatMul", "MatMul", None, True),
        ("head.weight", "MatMul_9", "MatMul", "head.weight", True),
        ("head.weight", "MatMul_9", "MatMul", None, False),
        ("op:Conv", "whatever", "Conv", None, True),
        ("op:Conv", "Conv", "MatMul", None, False),
        ("op:Conv*", "x", "ConvTranspose", None, True),
        ("re:^layer[0-3]\\.", "layer2.conv", "Conv", None, True),
        ("re:^layer[0-3]\\.", "layer4.conv", "Conv", None, False),
        ("re:bias$", "x", "Conv", "a.bias", True),
    ],
)
def test_patterns(pattern: str, path: str, op_type: str, weight: str | None, expected: bool) -> None:
    assert matches(pattern, path, op_type, weight) is expected


def test_later_rules_win_field_by_field_and_exclusions_win_over_all() -> None:
    recipe = Recipe(
        rules=(
            Rule(pattern="op:Conv", weights="int4:block=32", method="weight-only"),
            Rule(pattern="stem*", weights="int8"),
            Rule(pattern="nothing", method="float"),
        ),
        exclude=("stem2",),
    )
    chosen = recipe.rule_for("stem1", "Conv", None)
    assert (chosen.weights, chosen.method) == ("int8", "weight-only")
    chosen = recipe.rule_for("body", "Conv", None)
    assert (chosen.weights, chosen.method) == ("int4:block=32", "weight-only")
    chosen = recipe.rule_for("body", "MatMul", None)
    assert (chosen.weights, chosen.method) == (None, None)
    chosen = recipe.rule_for("stem2", "Conv", None)
    assert (chosen.method, chosen.pattern) == ("float", "stem2")


def test_recipes_are_values() -> None:
    assert Recipe() == Recipe()
    assert hash(Recipe()) == hash(Recipe())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().method = "static"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("weights", "activations", "expected"),
    [
        ("int3", "none", "int3:asymmetric"),
        ("int4:per-channel", "none", "int4:per-channel:asymmetric"),
        ("int3:symmetric", "none", "int3:symmetric"),
        ("int4:narrow", "none", "int4:narrow"),
        ("int8", "none", "int8"),
        ("uint4", "none", "uint4"),
        ("nf4", "none", "nf4"),
        ("int4", "uint8", "int4"),  # integer kernels multiply codes around zero
        (None, "none", None),
    ],
)
def test_best_gives_stored_weights_of_few_bits_a_zero_point(
    weights: str | None, activations: str, expected: str | None
) -> None:
    assert Recipe(method="best", weights=weights, activations=activations).resolved().weights == expected
    assert Recipe(weights=weights, activations=activations).resolved().weights == weights
