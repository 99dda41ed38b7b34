"""`lowbit diagnose`: what it prints and writes, and that bad input is one line."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import yaml

from lowbit import Recipe

RUN = ("diagnose", "net.onnx", "--data", "data.npz", "--method", "static")


def test_it_explains_and_writes_nothing(folder, lowbit):
    before = sorted(folder.iterdir())
    done = lowbit(*RUN, "--time", "0")
    assert done.status == 0, done.err
    assert "net.onnx: where the noise comes from" in done.out
    assert "no time was given for remedies" in done.out
    assert "method: static" in done.out
    assert sorted(folder.iterdir()) == before


def test_it_repairs_and_writes_what_it_says(folder, lowbit):
    model = onnx.load("net.onnx")
    weight = next(item for item in model.graph.initializer if item.name == "w1")
    array = onnx.numpy_helper.to_array(weight).copy()
    array[3] *= 20  # with one scale for all, the other channels have next to no codes
    weight.CopyFrom(onnx.numpy_helper.from_array(array, "w1"))
    onnx.save(model, "net.onnx")
    Path("quick.yaml").write_text("time: 0.2\n", encoding="utf-8")  # of learning; the rest is fast
    start = ("--weights", "int8:per-tensor", "--recipe", "quick.yaml", "--time", "1m")
    done = lowbit(*RUN, *start, "-o", "r.onnx", "--save-recipe", "r.yaml")
    assert done.status == 0, done.err
    assert "outlier weights" in done.out
    assert "weights int8:per-channel" in done.out
    assert "kept" in done.out
    assert "wrote r.onnx, r.yaml" in done.out
    onnx.checker.check_model(onnx.load("r.onnx"))
    recipe = Recipe.from_yaml("r.yaml")
    assert recipe.weights == "int8:per-channel"
    assert yaml.safe_load(Path("r.yaml").read_text(encoding="utf-8"))["method"] == "static"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--time", "soon"], "'soon' is no length of time"),
        (["--target", "toaster"], "unknown target 'toaster'"),
        (["--target", "fastest-here"], "name one target"),
        (["--weights", "int9"], "'int9'"),
        (["--preprocess", "gone.yaml"], "gone.yaml"),
        (["--test-data", "gone.npz"], "gone.npz"),
        (["--recipe", "gone.yaml"], "gone.yaml"),
        (["-o", "net.onnx"], "read by this command"),
        (["-o", "gone/r.onnx"], "gone/r.onnx"),
        (["-o", "r.onnx", "--save-recipe", "r.onnx"], "given for two outputs"),
        (["--exclude", "nothing*", "-o", "r.onnx"], "matches no operator"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(folder, lowbit, arguments, said):
    before = sorted(folder.iterdir())
    done = lowbit(*RUN, *arguments)
    assert done.status == 2
    assert done.line.startswith("error: ")
    assert said.lower() in done.line.lower()
    assert done.out == ""
    assert sorted(folder.iterdir()) == before


def test_a_model_that_is_none_is_one_line(folder, lowbit):
    done = lowbit("diagnose", "gone.onnx", "--data", "data.npz")
    assert done.status == 2
    assert "gone.onnx does not exist" in done.line


def test_an_interrupt_leaves_nothing(folder, lowbit, monkeypatch):
    def interrupt(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lowbit.methods.findings.layer_noises", interrupt)
    done = lowbit(*RUN, "-o", "r.onnx")
    assert done.status == 130
    assert done.line == "interrupted; nothing was written"
    assert not Path("r.onnx").exists()
