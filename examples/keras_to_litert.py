"""A Keras model as a LiteRT file that computes in int8 from end to end, by way of ONNX.

    python examples/keras_to_litert.py --data FOLDER --python tf-env/bin/python

Keras file -> ONNX -> quantized ONNX -> `.tflite`, and the answers after every step. The ResNet-8 of MLPerf Tiny on
CIFAR-10. TensorFlow lives in an environment of its own, whose interpreter is named; LiteRT comes with
`pip install "lowbit[litert]"`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from mobile_images import pictures

import lowbit

KERAS = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1], compile=False)
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))
"""


def in_keras(python: Path, model: Path, x: np.ndarray, folder: Path) -> np.ndarray:
    """Return what Keras itself answers, in its own environment."""
    np.save(folder / "x.npy", x)
    files = [model, folder / "x.npy", folder / "keras.npy"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [python, "-c", KERAS, *files]
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)  # noqa: S603 - the user's own
    return np.load(folder / "keras.npy")


def in_onnxruntime(path: Path, x: np.ndarray) -> np.ndarray:
    """Return the answers of an ONNX file, one picture after the other."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: picture[None]})[0] for picture in x])


def in_litert(path: Path, x: np.ndarray) -> np.ndarray:
    """Return the answers of a LiteRT file, whose input and output are int8 codes."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    given, wanted = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero = given["quantization"]
    answers = []
    for picture in x:
        codes = np.clip(np.rint(picture / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(given["index"], codes.reshape(given["shape"]))
        interpreter.invoke()
        answers.append(interpreter.get_tensor(wanted["index"]))
    scale, zero = wanted["quantization"]
    return (np.concatenate(answers).astype(np.float32) - zero) * scale


def main() -> None:
    """Convert, quantize, export, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LOWBIT_DATA", "data")))
    parser.add_argument("--out", type=Path, default=Path("keras_to_litert"), help="folder for the models")
    parser.add_argument(
        "--python", type=Path, default=os.environ.get("LOWBIT_TENSORFLOW_PYTHON"), help="with TensorFlow"
    )
    options = parser.parse_args()
    if options.python is None:
        parser.error("name the interpreter that has TensorFlow: --python, or LOWBIT_TENSORFLOW_PYTHON")
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(options.data / "cifar10-jpeg.zip") as archive:
        calibration, _ = pictures(archive, "train", 20)
        test, labels = pictures(archive, "test", 200)

    source = options.data / "models" / "resnet8_cifar10.h5"
    imported = lowbit.import_model(source, python=options.python)
    imported.save(out / "float.onnx")
    name = str(imported.model.graph.inputs[0].name)
    samples = [{name: picture[None]} for picture in calibration]
    result = lowbit.quantize(out / "float.onnx", samples, target="litert", measure_seconds=0)
    result.save(out / "int8.onnx")
    lowbit.export(result.model, out / "model.tflite", data=samples)

    float_answers = in_keras(options.python, source, test, out)
    answers = {
        "Keras": (source, float_answers),
        "ONNX, float": (out / "float.onnx", in_onnxruntime(out / "float.onnx", test)),
        "ONNX, int8": (out / "int8.onnx", in_onnxruntime(out / "int8.onnx", test)),
        "LiteRT, int8": (out / "model.tflite", in_litert(out / "model.tflite", test)),
    }
    print("| model | top-1 | same class as Keras | bytes |\n| --- | --- | --- | --- |")
    for step, (path, found) in answers.items():
        top1 = 100 * np.mean(found.argmax(1) == labels)
        same = 100 * np.mean(found.argmax(1) == float_answers.argmax(1))
        print(f"| {step} | {top1:.2f} % | {same:.2f} % | {path.stat().st_size:,} |")
    # Probabilities of 8 bits tie now and then: both classes are right then.
    litert, onnx = answers["LiteRT, int8"][1], answers["ONNX, int8"][1]
    same = np.mean(litert[np.arange(len(litert)), onnx.argmax(1)] == litert.max(1))
    print(f"\nOn {100 * same:.2f} % of the pictures LiteRT has no class above that of the int8 ONNX file.")


if __name__ == "__main__":
    main()
