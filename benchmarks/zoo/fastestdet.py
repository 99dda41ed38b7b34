"""FastestDet, a COCO detector with a ShuffleNetV2 backbone, on photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.engine import open_session, run_all
from benchmarks.zoo.assets import data_path
from benchmarks.zoo.case import Array, Case, Feed, Outputs
from benchmarks.zoo.photographs import load_photographs

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

__all__ = ["box_iou", "decode_boxes", "load_fastestdet"]

SIZE = 352
CONFIDENCE = 0.5
CALIBRATION = 100
TEST = 100


def load_fastestdet(data: Path, cache: Path) -> Case:  # noqa: ARG001 - every loader has one signature
    """Load the case: 100 photographs and a street to calibrate, 100 and four streets to test.

    The score is F1 of the boxes above 0.5 confidence against the float model's, matched by class at IoU 0.5.
    """
    from PIL import Image

    model = data_path(data, "models/fastestdet_coco.onnx")
    photographs, _ = load_photographs(data)
    streets = [Image.open(file).convert("RGB") for file in sorted(data_path(data, "street").glob("*.jpg"))]
    images = [Image.fromarray(photograph) for photograph in photographs[: CALIBRATION + TEST]]
    calibration = [_feed(image) for image in [*images[:CALIBRATION], *streets[:1]]]
    test = [_feed(image) for image in [*images[CALIBRATION:], *streets[1:]]]
    reference = [decode_boxes(sample[0][0]) for sample in run_all(open_session(model), test)]

    def metric(outputs: Outputs) -> float:
        matched = found = expected = 0
        for boxes, sample in zip(reference, outputs, strict=True):
            candidates = decode_boxes(sample[0][0])
            matched += _matches(boxes, candidates)
            found += len(candidates)
            expected += len(boxes)
        return 2 * matched / (found + expected)

    return Case(
        name="fastestdet",
        model=model,
        calibration=calibration,
        test=test,
        metric=metric,
        metric_name="F1 of float's boxes",
        latency_feed=test[-1],
    )


def _feed(image: Image.Image) -> Feed:
    resized = np.asarray(image.resize((SIZE, SIZE)), dtype=np.float32)
    return {"input.1": np.ascontiguousarray((resized[..., ::-1] / 255.0).transpose(2, 0, 1)[None])}


def decode_boxes(output: Array) -> Array:
    """Turn a feature map into boxes, after non-maximum suppression.

    Args:
        output: `[85, H, W] float32`: object score, four box values, 80 class scores.

    Returns:
        `[boxes, 6] float64`: left, top, right, bottom as fractions of the image, confidence, class; best first.
    """
    channels, height, width = output.shape
    cells = output.reshape(channels, -1).astype(np.float64)
    # A quantized model may answer slightly below zero, which has no real power.
    confidence = np.maximum(cells[0], 0.0) ** 0.6 * np.maximum(cells[5:].max(axis=0), 0.0) ** 0.4
    row, column = np.divmod(np.arange(height * width), width)
    x, y = (np.tanh(cells[1]) + column) / width, (np.tanh(cells[2]) + row) / height
    w, h = 1.0 / (1.0 + np.exp(-cells[3])), 1.0 / (1.0 + np.exp(-cells[4]))
    kind = cells[5:].argmax(axis=0)
    boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2, confidence, kind], axis=1)
    boxes = boxes[confidence > CONFIDENCE]
    boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
    kept: list[Array] = []
    for box in boxes:
        if all(other[5] != box[5] or box_iou(other, box) < 0.45 for other in kept):
            kept.append(box)
    return np.array(kept).reshape(-1, 6)


def box_iou(first: Array, second: Array) -> float:
    """Return intersection over union of two boxes, each left, top, right, bottom first."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    both = max(0.0, float(width)) * max(0.0, float(height))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return both / (float(areas[0]) + float(areas[1]) - both)


def _matches(expected: Array, found: Array) -> int:
    """Count the boxes found that match an expected one of their class, each used once, best first."""
    free = list(range(len(expected)))
    for box in found:
        overlaps = [(box_iou(expected[i], box), i) for i in free if expected[i][5] == box[5]]
        best = max(overlaps, default=(0.0, -1))
        if best[0] >= 0.5:
            free.remove(best[1])
    return len(expected) - len(free)
