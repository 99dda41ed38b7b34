"""PP-OCRv4 of the package rapidocr-onnxruntime: detector, recognizer and orientation classifier on rendered text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.engine import open_session, run_all
from benchmarks.zoo.assets import package_file
from benchmarks.zoo.case import Array, Case, Feed, Outputs
from benchmarks.zoo.metrics import edit_distance, mask_iou, top1
from benchmarks.zoo.photographs import load_photographs
from benchmarks.zoo.text_images import draw_page, render_line

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load_ppocr_cls", "load_ppocr_det", "load_ppocr_rec"]

REQUIREMENT = "rapidocr-onnxruntime==1.4.4"
RECOGNIZER_WIDTH = 320
CLASSIFIER_WIDTH = 192
PAGE = 480


def _model(name: str) -> Path:
    return package_file("rapidocr_onnxruntime", f"models/{name}", requirement=REQUIREMENT)


def _feed(image: Array, columns: int | None = None) -> Feed:
    """Turn RGB `[H, W, 3] uint8` into BGR `[1, 3, H, W] float32` in -1 … 1; columns after `columns` are padding, 0."""
    scaled = (image[..., ::-1].astype(np.float32) / 255.0 - 0.5) / 0.5
    if columns is not None:
        scaled[:, columns:] = 0.0
    return {"x": np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])}


def load_ppocr_rec(data: Path, cache: Path) -> Case:  # noqa: ARG001 - every loader has one signature
    """Load the recognizer: 60 lines to calibrate, 200 to test, character accuracy = 1 - edit distance / length."""
    model = _model("ch_PP-OCRv4_rec_infer.onnx")
    rng = np.random.default_rng(0)
    feeds: list[Feed] = []
    texts: list[str] = []
    for _ in range(260):
        image, columns, text = render_line(rng, width=RECOGNIZER_WIDTH)
        feeds.append(_feed(image, columns))
        texts.append(text)
    characters = open_session(model).get_modelmeta().custom_metadata_map["character"].splitlines()
    # Class 0 is CTC's blank, the last one a space.
    alphabet = ["", *characters, " "]
    expected = texts[60:]

    def metric(outputs: Outputs) -> float:
        wrong = sum(
            min(edit_distance(_ctc_greedy(sample[0][0], alphabet), text), len(text))
            for sample, text in zip(outputs, expected, strict=True)
        )
        return 1.0 - wrong / sum(map(len, expected))

    return Case(
        name="ppocr_rec",
        model=model,
        calibration=feeds[:60],
        test=feeds[60:],
        metric=metric,
        metric_name="character accuracy",
        latency_feed=feeds[-1],
    )


def _ctc_greedy(probabilities: Array, alphabet: list[str]) -> str:
    """Decode `[time, classes]`: the best class of every step, repetitions merged, blanks dropped."""
    best = probabilities.argmax(axis=-1)
    keep = np.concatenate([[True], best[1:] != best[:-1]]) & (best != 0)
    return "".join(alphabet[int(index)] for index in best[keep]).strip()


def load_ppocr_cls(data: Path, cache: Path) -> Case:  # noqa: ARG001 - every loader has one signature
    """Load the orientation classifier: lines, half of them upside down; 100 to calibrate, 300 to test, accuracy."""
    rng = np.random.default_rng(1)
    feeds: list[Feed] = []
    labels: list[int] = []
    for _ in range(400):
        image, columns, _ = render_line(rng, width=CLASSIFIER_WIDTH)
        turned = int(rng.integers(2))
        if turned:
            image[:, :columns] = image[::-1, :columns][:, ::-1].copy()
        feeds.append(_feed(image, columns))
        labels.append(turned)
    return Case(
        name="ppocr_cls",
        model=_model("ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        calibration=feeds[:100],
        test=feeds[100:],
        metric=top1(labels[100:]),
        metric_name="accuracy",
        latency_feed=feeds[-1],
    )


def load_ppocr_det(data: Path, cache: Path) -> Case:  # noqa: ARG001 - every loader has one signature
    """Load the detector: pages of paper and photographs with text; 20 to calibrate, 40 to test, IoU with float."""
    from PIL import Image

    model = _model("ch_PP-OCRv4_det_infer.onnx")
    photographs, _ = load_photographs(data)
    rng = np.random.default_rng(2)
    feeds: list[Feed] = []
    for index in range(60):
        if index % 2:
            background = np.asarray(Image.fromarray(photographs[index]).resize((PAGE, PAGE)))
        else:
            background = np.full((PAGE, PAGE, 3), rng.integers(120, 256, size=3), np.uint8)
        feeds.append(_feed(draw_page(rng, background)))
    return Case(
        name="ppocr_det",
        model=model,
        calibration=feeds[:20],
        test=feeds[20:],
        metric=mask_iou(run_all(open_session(model), feeds[20:]), threshold=0.3),
        metric_name="mask IoU with float",
        latency_feed=feeds[-1],
    )
