"""Image classification for a phone: 4-bit weights and activations, trained briefly on pictures as phones keep them.

    python examples/mobile_images.py --data FOLDER

The ResNet-8 of MLPerf Tiny was trained on CIFAR-10 without compression; here the pictures are JPEG, which costs it
accuracy. A short training teaches it both at once: few bits, and JPEG.
"""

from __future__ import annotations

import argparse
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

import lowbit


def pictures(archive: zipfile.ZipFile, part: str, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Return as many pictures of each class, `[N, 32, 32, 3] float32` from 0 to 255, and their classes."""
    names = sorted(name for name in archive.namelist() if name.startswith(f"{part}/") and name.endswith(".jpg"))
    classes = sorted({name.split("/")[1] for name in names})
    drawn = []
    for label, kind in enumerate(classes):
        members = [name for name in names if name.split("/")[1] == kind]
        order = np.random.default_rng(label).permutation(len(members))[:per_class]
        drawn += [(members[index], label) for index in order]
    x = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"), np.float32) for name, _ in drawn]
    return np.stack(x), np.array([label for _, label in drawn])


def accuracy(path: Path, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of the pictures that a file classifies rightly in ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [int(np.argmax(session.run(None, {name: picture[None]})[0])) for picture in x]
    return float(np.mean(np.array(found) == y))


def main() -> None:
    """Quantize without and with training, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LOWBIT_DATA", "data")))
    parser.add_argument("--out", type=Path, default=Path("mobile_images"), help="folder for the models")
    parser.add_argument("--per-class", type=int, default=500, help="training pictures of each class")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(options.data / "cifar10-jpeg.zip") as archive:
        x, y = pictures(archive, "train", options.per_class)
        test, labels = pictures(archive, "test", 200)
    model = options.data / "models" / "resnet8_cifar10.onnx"
    calibration = [{"input_1": picture[None]} for picture in x[:: max(len(x) // 200, 1)]]
    few = {"weights": "int4", "activations": "uint4"}
    learning = {"epochs": options.epochs, "batch": 64, "measure_seconds": 0}

    files = {"float": model, "int8, after training": out / "int8.onnx", "W4A4, not trained": out / "w4a4.ptq.onnx"}
    lowbit.quantize(model, calibration, measure_seconds=0).save(out / "int8.onnx")
    # The same bits for the same layers, as they are before the first step.
    start = lowbit.trainable(model, data={"input_1": x[::25]}, **few)
    lowbit.finalize(start, measure_seconds=0).save(out / "w4a4.ptq.onnx")
    for name, path, bits in (
        ("float, trained on JPEG", out / "float.jpeg.onnx", {"quantized": False}),
        ("W4A4, trained on JPEG", out / "w4a4.qat.onnx", few),
    ):
        lowbit.qat(model, {"input_1": x, "labels": y}, **bits, **learning).result.save(path)
        files[name] = path

    print("| model | top-1 | .onnx | .lbz |\n| --- | --- | --- | --- |")
    for name, path in files.items():
        packed = lowbit.pack(path, out / f"{path.stem}.lbz", smallest=True).packed
        print(f"| {name} | {100 * accuracy(path, test, labels):.1f} % | {path.stat().st_size:,} | {packed:,} |")


if __name__ == "__main__":
    main()
