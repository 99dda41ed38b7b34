"""TensorFlow Model Optimization Toolkit: a Keras network is trained, pruned, clustered, both, and quantized on top.

Runs in an interpreter of its own, with `tensorflow-cpu`, `tf_keras`, `tensorflow-model-optimization` and `tf2onnx`, and
follows the toolkit's guides: `prune_low_magnitude` with `PolynomialDecay`, `cluster_weights` (with
`preserve_sparsity` after pruning), `strip_*`, then `TFLiteConverter`. Writes the float network
as ONNX too, for lowbit to start from.
"""

from __future__ import annotations

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf2onnx
from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster as experimental

keras = tf.keras
_BATCH = 64


def _lenet5() -> object:
    layers = keras.layers
    return keras.Sequential(
        [
            layers.InputLayer((28, 28, 1), name="x"),
            layers.Conv2D(20, 5),
            layers.MaxPooling2D(2),
            layers.Conv2D(50, 5),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(500, activation="relu"),
            layers.Dense(10),
        ]
    )


def _compiled(model: object, rate: float) -> object:
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _clone(model: object) -> object:
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def _pruned(model: object, data: dict, sparsity: float, epochs: int) -> object:
    steps = len(data["train_x"]) // _BATCH * epochs
    schedule = tfmot.sparsity.keras.PolynomialDecay(
        initial_sparsity=0.5, final_sparsity=sparsity, begin_step=0, end_step=steps // 2
    )
    wrapped = _compiled(tfmot.sparsity.keras.prune_low_magnitude(_clone(model), pruning_schedule=schedule), 1e-3)
    wrapped.fit(
        data["train_x"],
        data["train_y"],
        batch_size=_BATCH,
        epochs=epochs,
        verbose=0,
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
    )
    return tfmot.sparsity.keras.strip_pruning(wrapped)


def _clustered(model: object, data: dict, clusters: int, epochs: int, *, sparse: bool) -> object:
    options = {
        "number_of_clusters": clusters,
        "cluster_centroids_init": tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
    }
    if sparse:
        wrapped = experimental.cluster_weights(_clone(model), preserve_sparsity=True, **options)
    else:
        wrapped = tfmot.clustering.keras.cluster_weights(_clone(model), **options)
    _compiled(wrapped, 1e-4).fit(data["train_x"], data["train_y"], batch_size=_BATCH, epochs=epochs, verbose=0)
    return tfmot.clustering.keras.strip_clustering(wrapped)


def _converted(model: object, data: dict, *, integer: bool) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if integer:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        samples = data["train_x"][:100]
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


def _accuracy(content: bytes, data: dict) -> float:
    interpreter = tf.lite.Interpreter(model_content=content)
    interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    right = 0
    for sample, label in zip(data["test_x"], data["test_y"], strict=True):
        interpreter.set_tensor(source["index"], sample[None])
        interpreter.invoke()
        right += int(np.argmax(interpreter.get_tensor(sink["index"])) == label)
    return right / len(data["test_y"])


def _row(name: str, model: object, data: dict, out: Path, *, integer: bool) -> dict:
    content = _converted(model, data, integer=integer)
    (out / f"{name}.tflite").write_bytes(content)
    weights = np.concatenate([value.numpy().ravel() for value in model.trainable_weights if value.shape.rank > 1])
    return {
        "name": name,
        "accuracy": _accuracy(content, data),
        "bytes": len(content),
        "gzip_bytes": len(gzip.compress(content, 9)),
        "zeros": float(np.mean(weights == 0)),
        "distinct": max(len(np.unique(value.numpy())) for value in model.trainable_weights if value.shape.rank > 1),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", required=True, help="`lenet5`, or a trained .h5 file")
    parser.add_argument("--data", type=Path, required=True, help=".npz: train_x, train_y, test_x, test_y; NHWC float32")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9])
    parser.add_argument("--clusters", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=10, help="of every step")
    parser.add_argument("--float-epochs", type=int, default=15)
    parser.add_argument("--float-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    with np.load(arguments.data) as file:
        data = {key: file[key] for key in file.files}
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = _lenet5() if arguments.network == "lenet5" else keras.models.load_model(arguments.network, compile=False)
    _compiled(model, arguments.float_rate).fit(
        data["train_x"], data["train_y"], batch_size=_BATCH, epochs=arguments.float_epochs, verbose=0
    )
    shape = (None, *data["train_x"].shape[1:])
    tf2onnx.convert.from_keras(
        model,
        input_signature=(tf.TensorSpec(shape, tf.float32, name="x"),),
        opset=18,
        output_path=str(arguments.out / "float.onnx"),
    )
    model.save_weights(str(arguments.out / "float.h5"))
    rows = [_row("float", model, data, arguments.out, integer=False)]
    for sparsity in arguments.sparsity:
        pruned = _pruned(model, data, sparsity, arguments.epochs)
        tag = f"pruned-{sparsity:g}"
        rows.append(_row(tag, pruned, data, arguments.out, integer=False))
        rows.append(_row(f"{tag}-int8", pruned, data, arguments.out, integer=True))
        both = _clustered(pruned, data, arguments.clusters, arguments.epochs, sparse=True)
        rows.append(_row(f"{tag}-clustered", both, data, arguments.out, integer=False))
        rows.append(_row(f"{tag}-clustered-int8", both, data, arguments.out, integer=True))
    clustered = _clustered(model, data, arguments.clusters, arguments.epochs, sparse=False)
    rows.append(_row("clustered", clustered, data, arguments.out, integer=False))
    rows.append(_row("clustered-int8", clustered, data, arguments.out, integer=True))
    (arguments.out / "rows.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
