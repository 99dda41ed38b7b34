"""EfficientNet-Lite0 on 500 ImageNet photographs: depthwise convolutions, TF-style padding left as Shape chains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.zoo.assets import data_path
from benchmarks.zoo.case import Array, Case, Feed
from benchmarks.zoo.metrics import top1
from benchmarks.zoo.photographs import load_photographs

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load_efficientnet_lite0", "preprocess"]

CALIBRATION = 100


def preprocess(image: Array) -> Feed:
    """Turn `[256, 256, 3] uint8` RGB into the model's feed `[1, 3, 224, 224] float32`: centre crop, (x - 127) / 128."""
    margin = (image.shape[0] - 224) // 2
    crop = image[margin : margin + 224, margin : margin + 224].astype(np.float32)
    return {"x": np.ascontiguousarray(((crop - 127.0) / 128.0).transpose(2, 0, 1)[None])}


def load_efficientnet_lite0(data: Path, cache: Path) -> Case:  # noqa: ARG001 - every loader has one signature
    """Load the case: 100 photographs to calibrate, the other 400 to test, top-1."""
    images, labels = load_photographs(data)
    feeds = [preprocess(image) for image in images]
    return Case(
        name="efficientnet_lite0",
        model=data_path(data, "models/efficientnet_lite0.onnx"),
        calibration=feeds[:CALIBRATION],
        test=feeds[CALIBRATION:],
        metric=top1(labels[CALIBRATION:]),
        metric_name="top-1",
        latency_feed=feeds[-1],
    )
