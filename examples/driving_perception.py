"""Detection on the street: does the small detector see what the float one sees?

    python examples/driving_perception.py --data FOLDER

FastestDet (COCO, 80 classes) is calibrated on photographs of anything. Its boxes on street photographs that it has not
seen, whole, mirrored and cut, are compared with those of the float model: a box agrees with one of its class at an
intersection over union of 0.5.
"""

from __future__ import annotations

import argparse
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

import lowbit

SIZE = 352


def feed(image: Image.Image) -> dict[str, np.ndarray]:
    """Return what the model reads: BGR from 0 to 1, `[1, 3, 352, 352] float32`."""
    codes = np.asarray(image.convert("RGB").resize((SIZE, SIZE)), np.float32)
    return {"input.1": np.ascontiguousarray((codes[..., ::-1] / 255).transpose(2, 0, 1)[None])}


def views(image: Image.Image) -> list[Image.Image]:
    """Return the photograph whole and its left, middle and right half, each also mirrored."""
    width, height = image.size
    cuts = [image, *(image.crop((x, 0, x + width // 2, height)) for x in (0, width // 4, width - width // 2))]
    return [*cuts, *(ImageOps.mirror(cut) for cut in cuts)]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return intersection over union of two boxes: left, top, right, bottom."""
    sides = np.maximum(np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2]), 0)
    both = sides[0] * sides[1]
    return float(both / (np.prod(a[2:4] - a[:2]) + np.prod(b[2:4] - b[:2]) - both))


def boxes(output: np.ndarray, least: float = 0.5) -> list[np.ndarray]:
    """Decode `[85, 22, 22]`: boxes of left, top, right, bottom, confidence and class, most confident first."""
    _, height, width = output.shape
    cells = output.reshape(len(output), -1).astype(np.float64)
    # Quantized scores may be slightly below zero, which has no real power.
    confidence = np.maximum(cells[0], 0) ** 0.6 * np.maximum(cells[5:].max(0), 0) ** 0.4
    row, column = np.divmod(np.arange(height * width), width)
    x, y = (np.tanh(cells[1]) + column) / width, (np.tanh(cells[2]) + row) / height
    w, h = 1 / (1 + np.exp(-cells[3:5])) / 2
    found = np.stack([x - w, y - h, x + w, y + h, confidence, cells[5:].argmax(0)], axis=1)
    kept: list[np.ndarray] = []
    for box in sorted(found[confidence > least], key=lambda box: -box[4]):
        if all(other[5] != box[5] or overlap(other, box) < 0.45 for other in kept):
            kept.append(box)
    return kept


def detect(path: Path, feeds: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    """Return the boxes of every picture, from ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [boxes(session.run(None, one)[0][0]) for one in feeds]


def matched(expected: list[np.ndarray], found: list[np.ndarray]) -> list[float]:
    """Return the overlaps of the boxes that agree, each box used once."""
    free, overlaps = list(expected), []
    for box in found:
        best = max(free, key=lambda other: overlap(other, box) * (other[5] == box[5]), default=None)
        if best is not None and best[5] == box[5] and overlap(best, box) >= 0.5:
            overlaps.append(overlap(best, box))
            free = [other for other in free if other is not best]
    return overlaps


def main() -> None:
    """Quantize in three ways, and count which boxes agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LOWBIT_DATA", "data")))
    parser.add_argument("--out", type=Path, default=Path("driving_perception"), help="folder for the models")
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(options.data / "imagenet-sample-dev.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg")))
        photographs = [feed(Image.open(io.BytesIO(archive.read(name)))) for name in names[::4]]
    streets = [
        feed(view) for path in sorted((options.data / "street").glob("*.jpg")) for view in views(Image.open(path))
    ]

    model = options.data / "models" / "fastestdet_coco.onnx"
    files = {"float": model, "default": out / "default.onnx", "int8": out / "int8.onnx", "W4A8": out / "w4a8.onnx"}
    # By default layers stay in float that would cost too much accuracy; the others take integers for all they can.
    lowbit.quantize(model, photographs, measure_seconds=0).save(files["default"])
    whole = {"method": "static", "measure_seconds": 0}
    lowbit.quantize(model, photographs, **whole).save(files["int8"])
    lowbit.quantize(model, photographs, weights="int4", **whole).save(files["W4A8"])

    print("| model | boxes | agree | F1 | mean overlap | .onnx | .lbz |\n|" + " --- |" * 7)
    reference = detect(model, streets)
    for name, path in files.items():
        found = detect(path, streets)
        overlaps = [value for pair in zip(reference, found, strict=True) for value in matched(*pair)]
        count, expected = sum(map(len, found)), sum(map(len, reference))
        score = 2 * len(overlaps) / max(count + expected, 1)
        mean = np.mean(overlaps) if overlaps else 0.0
        packed = lowbit.pack(path, out / f"{path.stem}.lbz", smallest=True).packed
        sizes = f"{path.stat().st_size:,} | {packed:,}"
        print(f"| {name} | {count} | {len(overlaps)} of {expected} | {score:.3f} | {mean:.3f} | {sizes} |")


if __name__ == "__main__":
    main()
