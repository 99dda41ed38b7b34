"""The chain: every step keeps what the former made, in files that an engine runs, and an interrupted one goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
import yaml
from onnx import numpy_helper

import lowbit
from lowbit.exceptions import DataError, OutputError, RecipeError
from lowbit.plan.compression import Code, CompressionRecipe, Prune, Quantize, Share
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from pathlib import Path

STEPS = [{"prune": {"amount": 0.8, "epochs": 2}}, {"share": {"entries": 8}}, {"quantize": {"epochs": 1}}, "code"]


@pytest.fixture(name="net", scope="module")
def _net(tmp_path_factory) -> Path:
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 40] x) => (float[N, 4] y) {
            a = Gemm <transB = 1> (x, w1, b1)
            r = Relu (a)
            c = Gemm <transB = 1> (r, w2, b2)
            s = Relu (c)
            y = Gemm <transB = 1> (s, w3, b3)
        }""")
    rng = np.random.default_rng(0)
    for number, (outputs, inputs) in enumerate(((96, 40), (64, 96), (4, 64)), 1):
        weight = rng.standard_normal((outputs, inputs)).astype(np.float32) * np.float32(np.sqrt(2 / inputs))
        bias = rng.standard_normal(outputs).astype(np.float32) * np.float32(0.1)
        for name, array in ((f"w{number}", weight), (f"b{number}", bias)):
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture(name="data", scope="module")
def _data() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((256, 40)).astype(np.float32)}


def weights(content: bytes) -> list[np.ndarray]:
    """Return the matrices of a file, as codes where they are codes."""
    arrays = [numpy_helper.to_array(one) for one in onnx.load_from_string(content).graph.initializer]
    return [array.astype(np.float32) for array in arrays if array.ndim == 2]


def distance(net: Path, content: bytes, x: np.ndarray) -> float:
    exact, found = (open_session(source, threads=1).run({"x": x})[0] for source in (net.read_bytes(), content))
    return float(np.square(exact - found).sum() / np.square(exact).sum())


def test_every_step_keeps_what_the_former_made(net, data, tmp_path):
    found = lowbit.compress(net, data, steps=STEPS, batch=32)
    assert [step.name for step in found.steps] == ["float", "prune", "share", "quantize", "code"]
    assert found.steps[1].zeros >= 0.79
    for step in found.steps[2:]:
        assert step.zeros >= found.steps[1].zeros - 1e-9
        assert step.distinct <= 8
    arrays = weights(found.content)
    assert sum(np.count_nonzero(array == 0) for array in arrays) / sum(array.size for array in arrays) >= 0.79
    assert all(len(np.unique(array)) <= 8 for array in arrays)
    # It has learned from the float model: noise would be at 1.
    assert distance(net, found.content, data["x"]) < 0.6
    lowbit.unpack(found.save(tmp_path / "model.lbz"), tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == found.content
    assert found.ratio == net.stat().st_size / (tmp_path / "model.lbz").stat().st_size > 10
    assert "quantize" in str(found)


def test_without_learning_the_same_is_kept(net, data):
    steps = [{"prune": {"amount": 0.5, "epochs": 0}}, {"quantize": {"weights": "int8:per-tensor", "epochs": 0}}]
    found = lowbit.compress(net, data, steps=steps)
    assert found.packed is None
    assert found.steps[2].zeros >= found.steps[1].zeros >= 0.5
    assert distance(net, found.content, data["x"]) < 0.2


def test_an_interrupted_chain_goes_on_to_the_same_bytes(net, data, tmp_path):
    whole = lowbit.compress(net, data, steps=STEPS, batch=32)
    seen: list[str] = []

    def stop(path: Path) -> float:
        seen.append(path.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return 0.0

    kept = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        lowbit.compress(net, data, steps=STEPS, batch=32, checkpoint=kept, measure=stop)
    assert {"0.onnx", "1.onnx"} <= {path.name for path in kept.iterdir()}
    with pytest.raises(RecipeError, match="another model or recipe"):
        lowbit.compress(net, data, steps=STEPS, batch=16, checkpoint=kept)
    resumed = lowbit.compress(net, data, steps=STEPS, batch=32, checkpoint=kept)
    assert (resumed.content, resumed.packed) == (whole.content, whole.packed)
    assert resumed.steps[1].seconds < whole.steps[1].seconds
    assert not kept.exists()


def test_a_folder_with_other_files_is_no_checkpoint(net, data, tmp_path):
    mine = tmp_path / "model.onnx"
    mine.write_bytes(net.read_bytes())
    with pytest.raises(RecipeError, match="holds other files"):
        lowbit.compress(net, data, steps=STEPS, batch=32, checkpoint=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_measures_are_noted(net, data):
    found = lowbit.compress(net, data, steps=[{"prune": {"epochs": 0}}], measure=lambda path: path.stat().st_size)
    assert found.steps[1].score == found.steps[1].bytes
    assert found.steps[0].bytes == net.stat().st_size


def test_nothing_was_packed(net, data, tmp_path):
    found = lowbit.compress(net, data, steps=[{"prune": {"epochs": 0}}])
    with pytest.raises(OutputError, match="nothing was packed"):
        found.save(tmp_path / "model.lbz")
    assert not list(tmp_path.iterdir())
    found.save(tmp_path / "model.onnx")
    assert open_session(tmp_path / "model.onnx", threads=1).run(data)[0].shape == (256, 4)


def test_batches_are_no_calibration_samples(net, data):
    batches = [data["x"][:32], data["x"][32:64]]
    with pytest.raises(DataError, match="needs calibration samples"):
        lowbit.compress(net, batches, steps=[{"prune": {"epochs": 0}}])


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], "no steps"),
        (["share", "prune"], "would part weights that share a value"),
        (["quantize", "prune"], "prune before quantize"),
        (["quantize", "share"], "put share before quantize"),
        (["code", "quantize"], "quantize comes after code"),
        (["prune", "prune"], "there twice"),
        (["squeeze"], "unknown step 'squeeze'"),
        ([{"prune": {"amount": 1.0}}], "amount of prune is 1.0"),
        ([{"prune": {"ammount": 0.5}}], "its keys are amount"),
        ([{"quantize": {"epochs": -1}}], "epochs of quantize is -1"),
        ("prune", "list them"),
    ],
)
def test_steps_that_make_no_sense(net, data, steps, said):
    with pytest.raises(RecipeError, match=said):
        lowbit.compress(net, data, steps=steps)


def test_whether_it_multiplies_in_bfloat16_is_part_of_the_recipe():
    recipe = CompressionRecipe(bfloat16=True)
    assert CompressionRecipe.from_dict(recipe.to_dict()) == recipe
    with pytest.raises(RecipeError, match="bfloat16 is 'yes'"):
        CompressionRecipe.from_dict({"bfloat16": "yes"})


def test_recipes_are_yaml(tmp_path):
    rules = ({"pattern": "op:Gemm", "weights": "int8"},)
    steps = (Prune(amount=0.9), Share(entries=8, grid="int8"), Quantize(weights="int2", rules=rules), Code())
    recipe = CompressionRecipe(steps=steps, labels=0.5, seed=3)
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.safe_dump(recipe.to_dict()), encoding="utf-8")
    assert CompressionRecipe.from_yaml(path) == recipe
    path.write_text("steps:\n  - prune:\n      amount: 0.7\n  - code\nlabels: 0\n", encoding="utf-8")
    assert CompressionRecipe.from_yaml(path).steps == (Prune(amount=0.7), Code())


def test_at_once_too_zeros_and_shared_values_are_kept(net, data):
    """Rounding alone would give 256 values."""
    steps = [
        {"prune": {"amount": 0.6, "epochs": 0}},
        {"share": {"entries": 6}},
        {"quantize": {"weights": "int8:per-tensor", "epochs": 0}},
    ]
    found = lowbit.compress(net, data, steps=steps)
    assert found.steps[3].distinct <= 6
    assert found.steps[3].zeros == found.steps[1].zeros >= 0.6


def test_errors_grow_from_step_to_step(net, data):
    steps = [{"prune": {"amount": 0.3, "epochs": 0}}, {"quantize": {"weights": "int4:per-tensor", "epochs": 0}}, "code"]
    found = lowbit.compress(net, data, steps=steps)
    errors = [step.error for step in found.steps]
    assert errors[0] < 1e-6
    assert 1e-3 < errors[1] < errors[2] == errors[3]
    assert errors[2] ** 2 == pytest.approx(distance(net, found.content, data["x"]), rel=0.2)
    assert "error" in str(found)


def test_movement_in_a_chain(net, data):
    recipe = {"amount": 0.7, "epochs": 2}
    options = {"labels": 0.0, "batch": 32}
    kept = [
        lowbit.compress(net, data, steps=[{"prune": {**recipe, "criterion": criterion}}], **options)
        for criterion in ("magnitude", "movement")
    ]
    for found in kept:
        assert found.steps[1].zeros == pytest.approx(0.7, abs=0.01)
    assert not np.array_equal(*(weights(found.content)[0] == 0 for found in kept))
    with pytest.raises(RecipeError, match="movement"):
        Prune(epochs=0, criterion="movement")
    with pytest.raises(RecipeError, match="wanda"):
        Prune(criterion="wanda")
