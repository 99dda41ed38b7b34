"""Keras, SavedModel and TFLite models: converted by an interpreter that has TensorFlow, and equal afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowbit.exceptions import EngineError, ModelError
from lowbit.graph import clean, serialize
from lowbit.importing import import_model, is_foreign
from lowbit.importing.tensorflow_models import PYTHON_VARIABLE
from lowbit.runtime import open_session

DATA = Path(os.environ.get("LOWBIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
PYTHON = Path(os.environ.get(PYTHON_VARIABLE, Path("~/.cache/lowbit-bench/tensorflow/bin/python").expanduser()))


@pytest.fixture
def tensorflow() -> Path:
    if not PYTHON.exists():
        pytest.skip(f"no interpreter with TensorFlow: `make tensorflow`, or name one in {PYTHON_VARIABLE}")
    return PYTHON


def answering(folder: Path, code: str) -> Path:
    """Return an interpreter that answers instead of TensorFlow."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport sys, json\n{code}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def in_tensorflow(python: Path, code: str, *arguments: object) -> None:
    """Run code where TensorFlow is."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    environment.pop("PYTHONPATH", None)
    command = [str(python), "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def run(model: Any, x: np.ndarray) -> np.ndarray:
    session = open_session(serialize(model), threads=1)
    return session.run({session.inputs[0]: x})[0]


def test_which_files_are_foreign(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    assert not is_foreign(tmp_path / "saved")
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    assert all(
        is_foreign(path) for path in (tmp_path / "saved", "a.keras", "a.H5", "a.tflite", "a.pt2", "a.safetensors")
    )
    assert not is_foreign("a.onnx")


def test_a_missing_tensorflow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.keras").write_bytes(b"x")
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EngineError, match=r"pip install 'tensorflow-cpu==2.21.0' 'tf2onnx==1.17.0'"):
        import_model(tmp_path / "a.keras")
    with pytest.raises(EngineError, match="has no module 'keras'"):
        import_model(tmp_path / "a.keras", python=sys.executable)
    with pytest.raises(EngineError, match="cannot be run"):
        import_model(tmp_path / "a.keras", python=tmp_path / "nothing")


def test_what_the_other_process_says_becomes_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"x")
    refused = json.dumps({"error": "a.h5 is bad", "cause": "it is", "remedy": "make it good"})
    with pytest.raises(ModelError, match=r"a.h5 is bad. it is. make it good."):
        import_model(tmp_path / "a.h5", python=answering(tmp_path, f"print('noise'); print({refused!r}); sys.exit(3)"))
    with pytest.raises(ModelError, match=r"ended early. Segmentation"):
        import_model(
            tmp_path / "a.h5", python=answering(tmp_path, "print('Segmentation', file=sys.stderr); sys.exit(9)")
        )
    with pytest.raises(ModelError, match="does not exist"):
        import_model(tmp_path / "none.tflite", python=sys.executable)
    (tmp_path / "frozen.pb").write_bytes(b"x")
    with pytest.raises(ModelError, match="TensorFlow 1"):
        import_model(tmp_path / "frozen.pb", python=sys.executable)


@pytest.mark.slow
def test_keyword_spotting_from_tflite_is_the_same_to_four_digits(tensorflow: Path, tmp_path: Path) -> None:
    source = DATA / "models" / "kws_dscnn_float.tflite"
    if not source.exists():
        pytest.skip("LOWBIT_DATA has no kws_dscnn_float.tflite")
    samples = np.load(DATA / "kws-mlperf-dev.npz")
    x = ((samples["x"].astype(np.float32) - 83) * np.float32(0.5847029089927673)).reshape(-1, 49, 10, 1)
    np.save(tmp_path / "x.npy", x)
    in_tensorflow(
        tensorflow,
        "import sys, numpy as np, tensorflow as tf\n"
        "i = tf.lite.Interpreter(sys.argv[1]); i.allocate_tensors(); out = []\n"
        "for s in np.load(sys.argv[2]):\n"
        "    i.set_tensor(i.get_input_details()[0]['index'], s[None]); i.invoke()\n"
        "    out.append(i.get_tensor(i.get_output_details()[0]['index'])[0])\n"
        "np.save(sys.argv[3], np.array(out))",
        source,
        tmp_path / "x.npy",
        tmp_path / "y.npy",
    )
    wanted, labels = np.load(tmp_path / "y.npy"), samples["y"]
    imported = import_model(source, python=tensorflow)
    assert [(v.name, [d if isinstance(d, int) else d.value for d in v.shape]) for v in imported.model.graph.inputs] == [
        ("input_1", ["batch", 49, 10, 1])
    ]
    found = run(imported.model, x)
    accuracy = [round(float((y.argmax(1) == labels).mean()), 4) for y in (wanted, found)]
    assert accuracy[0] == accuracy[1] > 0.85


@pytest.mark.slow
def test_image_classification_from_keras_is_the_same_to_four_digits(tensorflow: Path, tmp_path: Path) -> None:
    from PIL import Image

    source = DATA / "models" / "resnet8_cifar10.h5"
    if not source.exists():
        pytest.skip("LOWBIT_DATA has no resnet8_cifar10.h5")
    with zipfile.ZipFile(DATA / "cifar10-jpeg.zip") as archive:
        names = sorted(
            name for name in archive.namelist() if "test/" in name and name.endswith((".jpg", ".jpeg", ".png"))
        )
        names = names[::10]
        x = np.array([np.asarray(Image.open(archive.open(name)).convert("RGB")) for name in names], np.float32)
    classes = sorted({name.split("/")[-2] for name in names})
    labels = np.array([classes.index(name.split("/")[-2]) for name in names])
    np.save(tmp_path / "x.npy", x)
    in_tensorflow(
        tensorflow,
        "import sys, numpy as np, keras\n"
        "m = keras.models.load_model(sys.argv[1], compile=False); x = np.load(sys.argv[2])\n"
        "np.save(sys.argv[3], m.predict(x, verbose=0)); m.export(sys.argv[4], verbose=False)\n"
        "m.save(sys.argv[4] + '.keras')",
        source,
        tmp_path / "x.npy",
        tmp_path / "y.npy",
        tmp_path / "saved",
    )
    wanted = np.load(tmp_path / "y.npy")
    for path in (source, tmp_path / "saved", tmp_path / "saved.keras"):
        imported = import_model(path, python=tensorflow)
        found = run(imported.model, x)
        accuracy = [round(float((y.argmax(1) == labels).mean()), 4) for y in (wanted, found)]
        assert accuracy[0] == accuracy[1] > 0.7
        # The interface stays as Keras has it, channels last: one Transpose at the entry, none inside.
        operators = [node.op_type for node in clean(imported.model).model.graph]
        assert operators.count("Transpose") == 1
        assert operators[0] == "Transpose"


@pytest.mark.slow
def test_bad_models_of_keras_and_tflite(tensorflow: Path, tmp_path: Path) -> None:
    in_tensorflow(
        tensorflow,
        "import sys, keras\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x): return 2 * x\n"
        "m = keras.Sequential([keras.Input((4,)), Twice()]); m.save(sys.argv[1] + '/own.keras')\n"
        "m.export(sys.argv[1] + '/own', verbose=False)\n"
        "m = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x + 1)])\n"
        "m.save(sys.argv[1] + '/lambda.keras')",
        tmp_path,
    )
    with pytest.raises(ModelError, match=r"whose class is not known here.*model.export"):
        import_model(tmp_path / "own.keras", python=tensorflow)
    with pytest.raises(ModelError, match=r"Lambda.*model.export"):
        import_model(tmp_path / "lambda.keras", python=tensorflow)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(run(import_model(tmp_path / "own", python=tensorflow).model, x), 2 * x)
    (tmp_path / "bad.tflite").write_bytes(b"not a flatbuffer")
    with pytest.raises(ModelError, match="not a TFLite file"):
        import_model(tmp_path / "bad.tflite", python=tensorflow)
    (tmp_path / "bad.h5").write_bytes(b"not hdf5")
    with pytest.raises(ModelError, match="not a Keras model"):
        import_model(tmp_path / "bad.h5", python=tensorflow)


@pytest.mark.slow
def test_keras_models_of_every_shape(tensorflow: Path, tmp_path: Path) -> None:
    """A Sequential, inputs and outputs by name and by position, whole numbers, and a layer that Keras compiles."""
    in_tensorflow(
        tensorflow,
        "import sys, numpy as np, keras; L = keras.layers; folder = sys.argv[1]\n"
        "keras.utils.set_random_seed(0); r = np.random.default_rng(0)\n"
        "a, b = keras.Input((4,), name='left'), keras.Input((3,), name='right')\n"
        "ids = keras.Input((5,), dtype='int32', name='ids')\n"
        "x = {'left': r.normal(size=(2, 4)).astype('f'), 'right': r.normal(size=(2, 3)).astype('f'),\n"
        "     'picture': r.normal(size=(2, 6, 6, 4)).astype('f'),\n"
        "     'ids': r.integers(0, 9, size=(2, 5)).astype('int32')}\n"
        "models = {\n"
        "    'sequential': keras.Sequential([a, L.Dense(3, activation='gelu'), L.BatchNormalization(), L.Dense(2)]),\n"
        "    'named': keras.Model({'left': a, 'right': b},\n"
        "                         {'sum': L.Dense(2)(L.Concatenate()([a, b])), 'twice': a + a}),\n"
        "    'ordered': keras.Model([b, a], [L.Dense(2)(b), L.Dense(3)(a)]),\n"
        "    'grouped': keras.Sequential([keras.Input((6, 6, 4), name='picture'), L.Conv2D(8, 3, groups=2)]),\n"
        "    'tokens': keras.Sequential([ids, L.Embedding(9, 6), L.LSTM(4), L.Dense(2)]),\n"
        "}\n"
        "for name, model in models.items():\n"
        "    model.save(f'{folder}/{name}.keras')\n"
        "    if name == 'grouped': model.export(f'{folder}/saved', verbose=False)\n"
        "    given = [x[t.name] for t in model.inputs]\n"
        "    feed = {t.name: x[t.name] for t in model.inputs} if name == 'named' else given\n"
        "    y = keras.tree.flatten(model(feed if len(given) > 1 else given[0]))\n"
        "    np.savez(f'{folder}/{name}.npz', **{f'y{i}': np.array(one) for i, one in enumerate(y)})\n"
        "np.savez(f'{folder}/x.npz', **x)",
        tmp_path,
    )
    x = np.load(tmp_path / "x.npz")
    for name, inputs in {
        "sequential": ["left"],
        "named": ["left", "right"],
        "ordered": ["right", "left"],
        "tokens": ["ids"],
        "grouped": ["picture"],
    }.items():
        imported = import_model(tmp_path / f"{name}.keras", python=tensorflow)
        assert [value.name for value in imported.model.graph.inputs] == inputs
        assert {str(value.shape[0]) for value in imported.model.graph.inputs} == {"batch"}
        session = open_session(serialize(imported.model), threads=1)
        found = session.run({value: x[value] for value in session.inputs})
        wanted = np.load(tmp_path / f"{name}.npz")
        assert len(found) == len(wanted.files)
        for index, array in enumerate(found):
            np.testing.assert_allclose(array, wanted[f"y{index}"], atol=1e-5)
    saved = import_model(tmp_path / "saved", python=tensorflow).model
    np.testing.assert_allclose(run(saved, x["picture"]), np.load(tmp_path / "grouped.npz")["y0"], atol=1e-5)


@pytest.mark.slow
def test_operators_of_tflite_that_the_converter_does_not_know(tensorflow: Path, tmp_path: Path) -> None:
    in_tensorflow(
        tensorflow,
        "import sys, numpy as np, tensorflow as tf; folder = sys.argv[1]\n"
        "def save(name, function, shape, **settings):\n"
        "    f = tf.function(function, input_signature=[tf.TensorSpec(shape, tf.float32)]).get_concrete_function()\n"
        "    c = tf.lite.TFLiteConverter.from_concrete_functions([f])\n"
        "    for key, value in settings.items(): setattr(c, key, value)\n"
        "    sets = tf.lite.OpsSet\n"
        "    if name == 'flex': c.target_spec.supported_ops = [sets.TFLITE_BUILTINS, sets.SELECT_TF_OPS]\n"
        "    open(f'{folder}/{name}.tflite', 'wb').write(c.convert())\n"
        "save('erf', lambda x: tf.nn.gelu(x, approximate=False), (4, 50))\n"
        "save('tanh', lambda x: tf.nn.gelu(x, approximate=True), (4, 50))\n"
        "save('custom', tf.linalg.det, (2, 3, 3), allow_custom_ops=True)\n"
        "save('flex', tf.linalg.det, (2, 3, 3))\n"
        "x = np.linspace(-6, 6, 200).astype('f').reshape(4, 50)\n"
        "np.savez(f'{folder}/y.npz', x=x, erf=tf.nn.gelu(x, False), tanh=tf.nn.gelu(x, True))",
        tmp_path,
    )
    arrays = np.load(tmp_path / "y.npz")
    for name in ("erf", "tanh"):
        found = run(import_model(tmp_path / f"{name}.tflite", python=tensorflow).model, arrays["x"])
        np.testing.assert_allclose(found, arrays[name], atol=1e-6)
    with pytest.raises(ModelError, match=r"custom op: MatrixDeterminant.*no meaning outside of their own runtime"):
        import_model(tmp_path / "custom.tflite", python=tensorflow)
    with pytest.raises(ModelError, match=r"Select TensorFlow op.*no meaning outside of their own runtime"):
        import_model(tmp_path / "flex.tflite", python=tensorflow)


@pytest.mark.slow
def test_an_int8_tflite_file_keeps_its_codes(tensorflow: Path, tmp_path: Path) -> None:
    in_tensorflow(
        tensorflow,
        "import sys, numpy as np, keras, tensorflow as tf\n"
        "keras.utils.set_random_seed(0)\n"
        "m = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, activation='relu'),\n"
        "    keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5)])\n"
        "c = tf.lite.TFLiteConverter.from_keras_model(m); r = np.random.default_rng(0)\n"
        "c.representative_dataset = lambda: ([r.normal(size=(1, 8, 8, 3)).astype('float32')] for _ in range(20))\n"
        "c.optimizations = [tf.lite.Optimize.DEFAULT]\n"
        "c.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]\n"
        "c.inference_input_type = c.inference_output_type = tf.int8\n"
        "data = c.convert(); open(sys.argv[1], 'wb').write(data)\n"
        "i = tf.lite.Interpreter(model_content=data); i.allocate_tensors()\n"
        "x = r.integers(-128, 128, size=(32, 8, 8, 3)).astype('int8'); out = []\n"
        "for s in x:\n"
        "    i.set_tensor(i.get_input_details()[0]['index'], s[None]); i.invoke()\n"
        "    out.append(i.get_tensor(i.get_output_details()[0]['index'])[0])\n"
        "np.savez(sys.argv[2], x=x, y=np.array(out))",
        tmp_path / "m.tflite",
        tmp_path / "xy.npz",
    )
    imported = import_model(tmp_path / "m.tflite", python=tensorflow)
    assert any("int8 codes" in note for note in imported.notes)
    arrays = np.load(tmp_path / "xy.npz")
    found = run(imported.model, arrays["x"])
    assert found.dtype == np.int8
    assert np.abs(found.astype(int) - arrays["y"].astype(int)).max() <= 1
