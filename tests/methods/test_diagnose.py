"""Planted causes are found in whole models, repaired, and the recipe gives the repaired artifact again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
import yaml

import lowbit
from lowbit.exceptions import DataError, RecipeError
from lowbit.graph import serialize
from lowbit.methods.diagnose import diagnose, recipe_text
from lowbit.plan.recipe import Recipe
from lowbit.plan.verification import worst_db

if TYPE_CHECKING:
    from lowbit.plan.diagnosis import DiagnosedLayer

TARGET = "onnxruntime-arm64"  # exact products: what is planted is all there is
SEPARABLE = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 3, 12, 12] x) => (float[N, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        b = Relu (a)
        c = Conv <pads = [1, 1, 1, 1], group = 16> (b, w2, b2)
        d = Relu (c)
        e = Conv (d, w3, b3)
        p = GlobalAveragePool (e)
        y = Flatten (p)
    }
"""
SHAPES = {
    "w1": (16, 3, 3, 3),
    "b1": (16,),
    "w2": (16, 1, 3, 3),
    "b2": (16,),
    "w3": (8, 16, 1, 1),
    "b3": (8,),
}


@pytest.fixture(autouse=True)
def _without_measuring_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory takes two processes a time, which would be most of the time of these tests."""
    monkeypatch.setattr("lowbit.methods.verify.peak_memory_mb", lambda *_, **__: 10.0)


def separable(outlier: float = 1.0) -> onnx.ModelProto:
    """Return a separable network; one channel of its first activation is `outlier` times as large, to no effect."""
    proto = onnx.parser.parse_model(SEPARABLE)
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.standard_normal(shape) * (0.3 if name[0] == "w" else 0.2) for name, shape in SHAPES.items()
    }
    arrays["w1"][3] *= outlier
    arrays["b1"][3] *= outlier
    arrays["w2"][3] /= outlier
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()
    )
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    onnx.checker.check_model(proto)
    return proto


def pictures(count: int = 24, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 12, 12)).astype(np.float32)


def kinds(layers: tuple[DiagnosedLayer, ...], node: str) -> set[str]:
    return {cause.kind for layer in layers if layer.node == node for cause in layer.causes}


def test_an_outlier_channel_is_found_repaired_and_the_recipe_says_how() -> None:
    model, data = separable(100.0), pictures()
    found = diagnose(model, data, method="static", target=TARGET, seconds=60, rounding="nearest", time=0.2)
    assert found.layers[0].node == "node_c"
    assert found.layers[0].share > 0.5
    assert kinds(found.layers, "node_c") == {"outlier channel"}
    assert sum(layer.share for layer in found.layers) == pytest.approx(1.0)
    assert found.trials[0].remedy == "equalize"
    assert found.trials[0].kept
    assert found.recipe.equalize
    before, after = found.sqnr_db
    assert after > before + 3
    again = lowbit.quantize(model, data, recipe=Recipe.from_dict(yaml.safe_load(found.recipe_yaml)), measure_seconds=0)
    assert serialize(again.model) == serialize(found.result.model)
    text = found.text(width=120)
    for part in ("outlier channel", "kept", "→", "equalize: true", "method: static"):
        assert part in text
    assert "outlier" in found.text(width=80, details=True)


def test_outliers_behind_a_normalization_are_moved_or_given_ranges_at_run_time() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[1, 8, 48] x) => (float[1, 8, 32] y) {
            n = LayerNormalization <axis = -1> (x, gain)
            h = MatMul (n, w1)
            r = Relu (h)
            y = MatMul (r, w2)
        }
    """)
    generator = np.random.default_rng(0)
    arrays = {
        "gain": np.where(np.arange(48) == 7, 80.0, 1.0),
        "w1": generator.standard_normal((48, 64)) * 0.2 / np.where(np.arange(48) == 7, 80.0, 1.0)[:, np.newaxis],
        "w2": generator.standard_normal((64, 32)) * 0.2,
    }
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()
    )
    for node in proto.graph.node:
        node.name = f"node_{node.output[0]}"
    data = list(generator.standard_normal((40, 1, 8, 48)).astype(np.float32))
    found = diagnose(proto, data, method="static", target=TARGET, seconds=60, time=0.2)
    assert found.layers[0].node == "node_h"
    assert kinds(found.layers, "node_h") == {"LayerNorm outliers"}
    assert found.trials[0].remedy == "smooth smoothquant"
    assert found.trials[0].kept
    assert found.trials[0].after_db is not None
    assert found.trials[0].after_db > found.trials[0].before_db + 6
    assert any(trial.remedy == "dynamic ranges for node_h" for trial in found.trials)


def test_a_sound_model_has_no_such_cause_and_time_0_tries_nothing() -> None:
    model, data = separable(), pictures()
    found = diagnose(model, data, method="static", target=TARGET, seconds=0)
    assert not any(layer.causes for layer in found.layers)
    assert found.causes == ()
    assert found.trials == ()
    assert found.result is found.before
    assert found.recipe == Recipe(method="static", target=TARGET)
    assert "nothing was changed" in found.text()


def test_pixels_that_were_not_scaled_are_suspected() -> None:
    data = np.random.default_rng(2).integers(0, 256, (8, 3, 12, 12)).astype(np.float32)
    found = diagnose(separable(), data, method="static", target=TARGET, seconds=0)
    assert [cause.kind for cause in found.causes] == ["preprocessing suspected"]
    assert "preprocessing suspected" in found.text()


def test_weights_of_few_bits_are_named_and_rounded_better() -> None:
    model, data = separable(), pictures()
    found = diagnose(model, data, method="weight-only", weights="int2:per-channel", target=TARGET, seconds=0)
    assert kinds(found.layers, "node_e") == set()  # too small to be worth storing
    assert found.layers == ()
    assert "nothing to explain" in found.text()
    found = diagnose(model, data, method="static", weights="int4:per-channel", target=TARGET, seconds=0)
    assert any("coarse weights" in kinds(found.layers, layer.node) for layer in found.layers)


def test_best_within_a_time_tries_remedies_before_it_learns() -> None:
    model, data = separable(100.0), pictures()
    options = {"target": TARGET, "activations": "uint8", "measure_seconds": 0}
    result = lowbit.quantize(model, data, method="best", time=20.0, **options)
    kept = [note for note in result.notes if note.startswith("tried equalize") and note.endswith("kept")]
    assert kept, result.notes
    plain = lowbit.quantize(model, data, method="auto", **options)
    assert worst_db(result.verification) > worst_db(plain.verification) + 3.0
    # What was asked for is not given up: every operator that ran in integers still does.
    integers = [[site.execution for site in found.plan.sites] for found in (plain, result)]
    assert integers[0] == integers[1]


def test_what_cannot_be_diagnosed_is_said() -> None:
    with pytest.raises(DataError, match="no data were given"):
        diagnose(separable(), None, target=TARGET)
    with pytest.raises(RecipeError, match="name one target"):
        diagnose(separable(), pictures(), target="fastest-here")
    with pytest.raises(RecipeError, match="seconds from 0 on"):
        diagnose(separable(), pictures(), target=TARGET, seconds=-1)


def test_a_recipe_is_written_without_its_defaults() -> None:
    assert yaml.safe_load(recipe_text(Recipe())) == {"method": "auto"}
    recipe = Recipe(rounding="gptq", exclude=("a",))
    assert Recipe.from_dict(yaml.safe_load(recipe_text(recipe))) == recipe
