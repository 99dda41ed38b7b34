"""The folder of a user who follows the documentation: a model, data in every form, and a metric."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = ("cat", "dog", "fox", "owl")
SIZE = 16


def classifier(path: Path) -> None:
    """Write a small convolutional classifier: `images` [N, 3, 16, 16] to `scores` [N, 4]."""
    import onnx
    from onnx import numpy_helper, parser

    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 13]>
        classifier (float[N, 3, {SIZE}, {SIZE}] images) => (float[N, 4] scores) {{
            stem = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (images, stem_weight, stem_bias)
            stem_relu = Relu (stem)
            body = Conv <pads = [1, 1, 1, 1]> (stem_relu, body_weight)
            body_relu = Relu (body)
            pooled = GlobalAveragePool (body_relu)
            flat = Flatten (pooled)
            scores = Gemm <transB = 1> (flat, head_weight, head_bias)
        }}
    """)
    names = ("stem_conv", "stem_relu", "body_conv", "body_relu", "pool", "flatten", "head")
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    rng = np.random.default_rng(0)
    shapes = {
        "stem_weight": (16, 3, 3, 3),
        "stem_bias": (16,),
        "body_weight": (64, 16, 3, 3),
        "head_weight": (4, 64),
        "head_bias": (4,),
    }
    for name, shape in shapes.items():
        weight = rng.normal(0.0, (2.0 / np.prod(shape[1:])) ** 0.5, size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    onnx.save(model, path)


def residual(path: Path) -> None:
    """Write a small residual network: `images` [N, 3, 16, 16] to `scores` [N, 4]."""
    import onnx
    from onnx import numpy_helper, parser

    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 13]>
        residual (float[N, 3, {SIZE}, {SIZE}] images) => (float[N, 4] scores) {{
            stem = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (images, stem_weight)
            one = Conv <pads = [1, 1, 1, 1]> (stem, one_weight)
            first = Add (stem, one)
            two = Conv <pads = [1, 1, 1, 1]> (first, two_weight)
            second = Add (first, two)
            pooled = GlobalAveragePool (second)
            flat = Flatten (pooled)
            scores = Gemm <transB = 1> (flat, head_weight)
        }}
    """)
    rng = np.random.default_rng(0)
    shapes = {"stem_weight": (16, 3, 3, 3), "one_weight": (16, 16, 3, 3), "two_weight": (16, 16, 3, 3)}
    for name, shape in (*shapes.items(), ("head_weight", (4, 16))):
        weight = rng.normal(0.0, (1.0 / np.prod(shape[1:])) ** 0.5, size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    onnx.save(model, path)


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory in which the documentation's code runs."""
    from PIL import Image

    classifier(tmp_path / "model.onnx")
    residual(tmp_path / "residual.onnx")
    rng = np.random.default_rng(1)
    for name, count in (("calib", 40), ("test", 12)):
        images = rng.normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=rng.integers(0, len(CLASSES), size=count))
    for index in range(40):
        folder = tmp_path / "photos" / CLASSES[index % len(CLASSES)]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, size=(24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted((tmp_path / "photos").rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path))
    (tmp_path / "preprocessing.yaml").write_text("crop: 16\nmean: 127\nstd: 128\n", encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text("method: auto\n", encoding="utf-8")
    (tmp_path / "my_metric.py").write_text(
        "def accuracy(outputs, labels):\n"
        "    return sum(int(sample[0].argmax() == label) for sample, label in zip(outputs, labels)) / len(outputs)\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path
