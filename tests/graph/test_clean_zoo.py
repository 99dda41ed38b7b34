"""`clean` on trained models from several exporters: fewer nodes, the same outputs in ONNX Runtime."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lowbit.graph import clean, digest, load_model, operators, opset_of, raise_opset, serialize

if TYPE_CHECKING:
    from collections.abc import Callable

Feeds = dict[str, np.ndarray]
DATA = Path(os.environ.get("LOWBIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
rng = np.random.default_rng


def noise(name: str, *shape: int) -> Callable[[], Feeds]:
    return lambda: {name: rng(0).random(shape).astype(np.float32)}


def text(*shape: int) -> Callable[[], Feeds]:
    """Black letters on white, in [-1, 1]: a text detector answers noise with zeros, which would prove nothing."""

    def feeds() -> Feeds:
        from PIL import Image, ImageDraw, ImageFont

        height, width = shape[-2:]
        image = Image.new("RGB", (width, height), "white")
        size = min(height * 3 // 4, 60)
        ImageDraw.Draw(image).text((4, 4), "lowbit 2026", fill="black", font=ImageFont.load_default(size))
        pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
        return {"x": np.broadcast_to(pixels, shape).copy()}

    return feeds


def speech(samples: int, rate: bool) -> Callable[[], Feeds]:
    def feeds() -> Feeds:
        time = np.arange(samples) / 16000
        wave = np.sin(2 * np.pi * 180 * time) * (0.5 + 0.5 * np.sin(2 * np.pi * 5 * time)) * 0.3
        state = 0.1 * rng(1).standard_normal((2, 1, 128))
        inputs = {"input": wave[None].astype(np.float32), "state": state.astype(np.float32)}
        return inputs | ({"sr": np.array(16000)} if rate else {})

    return feeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model file, plausible inputs, and counts of operators after cleaning."""

    file: str
    package: str | None = None
    feeds: Callable[[], Feeds]
    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def path(self) -> Path:
        if self.package is None:
            path = DATA / "models" / self.file
            if not path.exists():
                pytest.skip(f"{path} is not there: set LOWBIT_DATA")
            return path
        spec = find_spec(self.package)
        if spec is None or spec.origin is None:
            pytest.skip(f"the package {self.package} is not installed")
        return Path(spec.origin).parent / self.file


CASES = [
    Case(
        file="efficientnet_lite0.onnx",
        feeds=noise("x", 1, 3, 224, 224),
        counts={"Conv": 49, "Pad": 0, "Shape": 0, "Constant": 0, "Clip": 33},
        notes=("17 Pad nodes merged into Conv",),
    ),
    Case(
        file="fastestdet_coco.onnx",
        feeds=noise("input.1", 1, 3, 352, 352),
        counts={"Conv": 70, "Relu": 48},
        notes=("opset 11 raised to 13",),
    ),
    Case(
        file="kws_dscnn_float.onnx",
        feeds=noise("input_1", 1, 49, 10, 1),
        counts={"DequantizeLinear": 5, "Conv": 9, "MatMul": 1, "Add": 1},
    ),
    Case(file="resnet8_cifar10.onnx", feeds=noise("input_1", 1, 32, 32, 3), counts={"Transpose": 1, "Conv": 9}),
    Case(
        package="rapidocr_onnxruntime",
        file="models/ch_PP-OCRv4_det_infer.onnx",
        feeds=text(1, 3, 320, 320),
        counts={"BatchNormalization": 0, "Constant": 0, "Clip": 0, "Div": 0, "Conv": 62},
        notes=("28 Mul nodes folded into Conv", "28 Add nodes folded into Conv"),
    ),
    Case(
        package="rapidocr_onnxruntime",
        file="models/ch_PP-OCRv4_rec_infer.onnx",
        feeds=text(1, 3, 48, 320),
        counts={"BatchNormalization": 0, "Shape": 0, "Cast": 0, "Softmax": 3, "Flatten": 0},
        notes=("opset 12 raised to 13",),
    ),
    Case(
        package="rapidocr_onnxruntime",
        file="models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        feeds=text(2, 3, 48, 192),
        counts={"BatchNormalization": 0, "Shape": 0, "Identity": 0, "Conv": 53, "Add": 8},
        notes=("35 BatchNormalization nodes folded into Conv",),
    ),
    Case(
        package="silero_vad",
        file="data/silero_vad.onnx",
        feeds=speech(512, rate=True),
        counts={"Constant": 0, "Conv": 12, "LSTM": 2},
    ),
    Case(package="silero_vad", file="data/silero_vad_16k_op15.onnx", feeds=speech(512, rate=True), counts={"LSTM": 1}),
    Case(package="silero_vad", file="data/silero_vad_op18_ifless.onnx", feeds=speech(512, rate=True)),
    Case(
        package="magika",
        file="models/standard_v3_3/model.onnx",
        feeds=lambda: {"bytes": rng(0).integers(0, 257, (1, 2048)).astype(np.int32)},
    ),
]


def run(model: bytes, feeds: Feeds, *, optimized: bool = False) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def close(got: list[np.ndarray], expected: list[np.ndarray], optimized: list[np.ndarray]) -> None:
    """Equal up to the rounding of float32: 1e-5, or twice what the engine's own optimizations change."""
    for a, b, c in zip(got, expected, optimized, strict=True):
        assert a.shape == b.shape
        assert float(np.abs(b).max()) > 0
        rounding = float(np.abs(b - c).max())
        assert rounding < 1e-4
        np.testing.assert_allclose(a, b, rtol=0, atol=max(1e-5 * max(1.0, float(np.abs(b).max())), 2 * rounding))


@pytest.mark.parametrize("case", CASES, ids=lambda case: Path(case.file).stem)
def test_clean_keeps_the_function(case: Case) -> None:
    path, feeds = case.path(), case.feeds()
    model = load_model(path)
    before = digest(model)
    result = clean(model)
    assert digest(model) == before
    assert serialize(clean(load_model(path)).model) == serialize(result.model)

    counts = Counter(node.op_type for _, node in operators(result.model))
    assert {name: counts[name] for name in case.counts} == case.counts
    assert set(case.notes) <= set(result.notes)
    assert counts.total() <= sum(1 for _ in operators(model))
    names = [path for path, _ in operators(result.model)]
    assert len(set(names)) == len(names)
    for old, new in (
        (model.graph.inputs, result.model.graph.inputs),
        (model.graph.outputs, result.model.graph.outputs),
    ):
        assert [value.name for value in old] == [value.name for value in new]

    expected, optimized = run(path.read_bytes(), feeds), run(path.read_bytes(), feeds, optimized=True)
    close(run(serialize(result.model), feeds), expected, optimized)
    raised = raise_opset(result.model, 21)
    assert opset_of(raised) == 21
    close(run(serialize(raised), feeds), expected, optimized)
