"""Two MLPerf Tiny models: keyword spotting (DS-CNN, partly quantized as it arrives) and CIFAR-10 (ResNet-8, NHWC)."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.zoo.assets import data_path
from benchmarks.zoo.case import Case, Feed
from benchmarks.zoo.metrics import top1

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load_keyword_spotting", "load_keyword_spotting_float", "load_resnet8_cifar10"]


def load_keyword_spotting(data: Path, cache: Path) -> Case:  # noqa: ARG001 - every loader has one signature
    """Load the case: 100 stimuli to calibrate, the other 400 to test, top-1 of 12 words."""
    archive = np.load(data_path(data, "kws-mlperf-dev.npz"))
    order = np.random.default_rng(0).permutation(len(archive["y"]))
    # The stimuli are stored as the reference int8 model takes them: zero point 83, scale 0.5847.
    spectrograms = ((archive["x"][order].astype(np.float32) - 83.0) * np.float32(0.5847029089927673))[..., None]
    feeds: list[Feed] = [{"input_1": sample[None]} for sample in spectrograms]
    labels = [int(label) for label in archive["y"][order]]
    return Case(
        name="keyword_spotting",
        model=data_path(data, "models/kws_dscnn_float.onnx"),
        calibration=feeds[:100],
        test=feeds[100:],
        metric=top1(labels[100:]),
        metric_name="top-1",
        latency_feed=feeds[-1],
    )


def load_keyword_spotting_float(data: Path, cache: Path) -> Case:
    """Load the same with every weight in float32: decoded once, as whoever trains the model has it."""
    import onnx
    from onnx import numpy_helper

    case = load_keyword_spotting(data, cache)
    path = cache / "kws_dscnn_all_float.onnx"
    if not path.exists():
        model = onnx.load(case.model)
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in [node for node in model.graph.node if node.op_type == "DequantizeLinear"]:
            codes, scale, *rest = (constants[name] for name in node.input)
            zero_point = rest[0].astype(np.float32) if rest else np.float32(0)
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            shape = [-1 if index == axis % codes.ndim else 1 for index in range(codes.ndim)]
            scale, zero_point = (part.reshape(shape) if part.size > 1 else part for part in (scale, zero_point))
            decoded = ((codes.astype(np.float32) - zero_point) * scale).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(decoded, node.output[0]))
            model.graph.node.remove(node)
        used = {name for node in model.graph.node for name in node.input}
        for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
            model.graph.initializer.remove(tensor)
        onnx.checker.check_model(model)
        onnx.save(model, path)
    return replace(case, name="keyword_spotting_float", model=path)


def load_resnet8_cifar10(data: Path, cache: Path) -> Case:  # noqa: ARG001 - every loader has one signature
    """Load the case: 20 training images a class to calibrate, 200 test images a class to test, top-1."""
    with zipfile.ZipFile(data_path(data, "cifar10-jpeg.zip")) as archive:
        calibration, _ = _cifar10(archive, "train", per_class=20)
        test, labels = _cifar10(archive, "test", per_class=200)
    return Case(
        name="resnet8_cifar10",
        model=data_path(data, "models/resnet8_cifar10.onnx"),
        calibration=calibration,
        test=test,
        metric=top1(labels),
        metric_name="top-1",
        latency_feed=test[-1],
    )


def _cifar10(archive: zipfile.ZipFile, split: str, *, per_class: int) -> tuple[list[Feed], list[int]]:
    """Draw the same number of images from every class, and shuffle them."""
    from PIL import Image

    names = sorted(name for name in archive.namelist() if name.startswith(f"{split}/") and name.endswith(".jpg"))
    classes = sorted({name.split("/")[1] for name in names})
    rng = np.random.default_rng(0)
    drawn: list[tuple[str, int]] = []
    for index, label in enumerate(classes):
        members = [name for name in names if name.split("/")[1] == label]
        drawn += [(members[i], index) for i in rng.permutation(len(members))[:per_class]]
    drawn = [drawn[i] for i in rng.permutation(len(drawn))]
    feeds: list[Feed] = []
    for name, _ in drawn:
        image = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"), dtype=np.float32)
        feeds.append({"input_1": image[None]})
    return feeds, [label for _, label in drawn]
