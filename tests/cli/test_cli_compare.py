"""`lowbit compare`, and the verb behind it: any two files of one network."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from lowbit.exceptions import DataError, ModelError
from lowbit.graph import clean, load_model
from lowbit.methods.compare import compare, compare_layers, top1_accuracy


@pytest.fixture
def artifact(folder, lowbit):
    command = (
        "quantize",
        "net.onnx",
        "--data",
        "data.npz",
        "--method",
        "static",
        "-o",
        "a.onnx",
        "--time",
        "0",
        "--quiet",
    )
    assert lowbit(*command).status == 0
    return "a.onnx"


def test_the_table_and_the_report(folder, artifact, lowbit):
    done = lowbit("compare", "net.onnx", artifact, "--data", "test.npz", "--report", "c.html", "--time", "0.1")
    assert done.status == 0, done.err
    assert "a.onnx beside net.onnx" in done.out
    for word in ("Latency", "Peak memory", "SQNR, scores", "Quality, layer by layer"):
        assert word in done.out
    page = (folder / "c.html").read_text(encoding="utf-8")
    assert "QLinearConv" in page


def test_a_model_beside_itself_is_exact(folder, lowbit):
    measured = compare("net.onnx", "net.onnx", "test.npz", measure_seconds=0)
    (output,) = measured.outputs
    assert output.max_error == 0.0
    assert output.top1_agreement == 1.0
    assert measured.samples == 20
    assert measured.float_bytes == measured.artifact_bytes
    # Cleaning and the engine's own optimization may round float32 otherwise, nothing else.
    assert min(layer.sqnr_simulated_db for layer in measured.layers) > 110


def test_every_quantized_layer_is_found_again(folder, artifact):
    measured = compare("net.onnx", artifact, "test.npz", measure_seconds=0)
    named = {layer.tensor: layer for layer in measured.layers}
    # a1, a2 and r stand behind a Relu that the codes have absorbed; the layer is the operator before it.
    assert {"x", "a1", "a2", "r"} - {"x"} <= set(named)
    assert named["a2"].op_type == "Conv"
    for layer in measured.layers:
        assert 20 < layer.sqnr_simulated_db < 200
        assert layer.sqnr_real_db is None or abs(layer.sqnr_real_db - layer.sqnr_simulated_db) < 3
    assert measured.planned_integer == 4
    # The last layer carries the error of all before it, as the output itself does.
    output = measured.outputs[0]
    assert abs(named["r"].sqnr_simulated_db - output.sqnr_simulated_db) < 15


def test_a_layer_that_is_ruined_stands_out(folder, artifact):
    model = onnx.load(artifact)
    scale = next(item for item in model.graph.initializer if item.name == "a2_scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(8), "a2_scale"))
    feeds = [{"x": np.load("test.npz")["x"][index : index + 1]} for index in range(4)]
    before = compare_layers(clean(load_model("net.onnx")).model, load_model(artifact), feeds)
    after = compare_layers(clean(load_model("net.onnx")).model, load_model(model), feeds)
    lost = {one.tensor: one.sqnr_simulated_db - two.sqnr_simulated_db for one, two in zip(before, after, strict=True)}
    assert lost["a1"] == pytest.approx(0, abs=0.1)
    # The noise of one step grew 8 times, that of the layers before did not.
    assert 6 < lost["a2"] < 20 * np.log10(8) + 0.1


def test_artifacts_of_the_engines_own_tool_are_compared_too(folder, lowbit):
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(np.load("data.npz")["x"])

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {"x": row[None]}

    quantization.quantize_static("net.onnx", "theirs.onnx", Reader(), per_channel=True)
    done = lowbit("compare", "net.onnx", "theirs.onnx", "--data", "test.npz", "--time", "0")
    assert done.status == 0, done.err
    measured = compare("net.onnx", "theirs.onnx", "test.npz", measure_seconds=0)
    assert len(measured.layers) >= 5
    assert all(layer.sqnr_simulated_db > 20 for layer in measured.layers)


def test_labels_give_accuracy(folder, artifact, lowbit):
    import onnxruntime

    x = np.load("test.npz")["x"]
    scores = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    labels = scores.argmax(axis=1)
    labels[:5] = (labels[:5] + 1) % 10
    np.savez("labelled.npz", x=x, y=labels)
    measured = compare("net.onnx", artifact, "labelled.npz", measure_seconds=0)
    assert measured.metric is not None
    assert measured.metric.name == "top-1 accuracy"
    assert measured.metric.float_value == 0.75
    done = lowbit("compare", "net.onnx", artifact, "--data", "labelled.npz", "--time", "0")
    row = next(line for line in done.out.splitlines() if "top-1 accuracy" in line)
    assert row.split()[2] == "0.75"


def test_top1_accuracy_counts_over_batches():
    outputs = [[np.array([[0.1, 0.9], [0.8, 0.2]])], [np.array([[0.3, 0.7]])]]
    assert top1_accuracy(outputs, np.array([1, 1, 1])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("shape", "labels", "said"),
    [
        ((1, 4, 7), np.array([0]), "not scores of classes"),
        ((1, 4), None, "missing"),
        ((1, 4), np.array(["cat"]), "one integer per sample"),
        ((1, 4), np.array([4]), "has 4 classes"),
        ((1, 4), np.array([0, 1]), "2 labels for 1 samples"),
    ],
)
def test_labels_that_do_not_fit_are_refused(shape, labels, said):
    with pytest.raises(DataError, match=said):
        top1_accuracy([[np.zeros(shape)]], labels)


def test_other_networks_are_refused(folder, lowbit):
    text = '<ir_version: 8, opset_import: ["": 13]> g (float[N, 4] z) => (float[N, 4] y) { y = Relu (z) }'
    onnx.save(onnx.parser.parse_model(text), "other.onnx")
    with pytest.raises(ModelError, match="inputs"):
        compare("net.onnx", "other.onnx", "test.npz")
    done = lowbit("compare", "net.onnx", "other.onnx", "--data", "test.npz")
    assert done.status == 2
    assert "['x']" in done.line
    assert "['z']" in done.line
