"""Trained models from several exporters, quantized with the defaults on little data: they load and still work."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import lowbit
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable

Feeds = list[dict[str, np.ndarray]]
DATA = Path(os.environ.get("LOWBIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
TARGET = "host"


def data_file(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there: set LOWBIT_DATA")
    return path


def keywords(count: int) -> Feeds:
    with np.load(data_file("kws-mlperf-dev.npz")) as arrays:
        x = (arrays["x"][:count].astype(np.float32) - 83) * np.float32(0.5847029089927673)
    return [{"input_1": sample.reshape(1, 49, 10, 1)} for sample in x]


def pictures(archive: str, name: str, size: int, layout: str) -> Callable[[int], Feeds]:
    def feeds(count: int) -> Feeds:
        import io
        import zipfile

        from PIL import Image

        with zipfile.ZipFile(data_file(archive)) as file:
            members = sorted(item for item in file.namelist() if item.endswith((".jpg", ".JPEG", ".jpeg", ".png")))
            picked = [members[index] for index in np.linspace(0, len(members) - 1, count).astype(int)]
            images = [Image.open(io.BytesIO(file.read(item))).convert("RGB") for item in picked]
        result = []
        for image in images:
            edge = (image.width - size) // 2
            pixels = np.asarray(image.crop((edge, edge, edge + size, edge + size)), dtype=np.float32)
            result.append({name: pixels[None] if layout == "nhwc" else ((pixels - 127) / 128).transpose(2, 0, 1)[None]})
        return result

    return feeds


def text_lines(height: int, width: int) -> Callable[[int], Feeds]:
    """Random words, black on nearly white, in [-1, 1]."""

    def feeds(count: int) -> Feeds:
        from PIL import Image, ImageDraw, ImageFont

        generator = np.random.default_rng(0)
        letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
        result = []
        for _ in range(count):
            word = "".join(generator.choice(letters, generator.integers(5, 12)))
            image = Image.new("RGB", (width, height), tuple(int(v) for v in generator.integers(200, 256, 3)))
            font = ImageFont.load_default(int(generator.integers(height // 2, height * 3 // 4)))
            ImageDraw.Draw(image).text(
                (4, 4), word, fill=tuple(int(v) for v in generator.integers(0, 80, 3)), font=font
            )
            if generator.random() < 0.5:
                image = image.rotate(180)
            result.append({"x": (np.asarray(image, dtype=np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]})
        return result

    return feeds


def speech(count: int) -> Feeds:
    """A voice-like sound that comes and goes, in windows with their states as the float model leaves them."""
    session = open_session(packaged("silero_vad", "data/silero_vad.onnx"), threads=1)
    generator = np.random.default_rng(0)
    time = np.arange(512 * count) / 16000
    voice = sum(np.sin(2 * np.pi * 140 * k * time + generator.uniform(0, 6)) / k for k in range(1, 12))
    wave = voice * (np.sin(2 * np.pi * 1.3 * time) > 0) * 0.2 + generator.standard_normal(time.size) * 0.01
    state = np.zeros((2, 1, 128), np.float32)
    context = np.zeros(64)
    result = []
    for window in wave.reshape(count, 512):
        feed = {
            "input": np.concatenate([context, window])[None].astype(np.float32),
            "state": state,
            "sr": np.array(16000),
        }
        result.append(feed)
        state, context = session.run(feed)[1], window[-64:]
    return result


def files(count: int) -> Feeds:
    """The first and last bytes of Python's own files, as Magika reads them."""
    paths = sorted(Path(json.__file__).parents[1].glob("*.py"))[:count]
    result = []
    for path in paths:
        content = np.frombuffer(path.read_bytes().strip(), dtype=np.uint8).astype(np.int32)
        head, tail = content[:1024], content[-1024:]
        padded = np.full((1, 2048), 256, np.int32)
        padded[0, : head.size] = head
        padded[0, 2048 - tail.size :] = tail
        result.append({"bytes": padded})
    return result


def packaged(package: str, file: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {package} is not installed")
    return Path(spec.origin).parent / file


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, data for it, and how good its artifact must be.

    Attributes:
        file: Its path, in `package` or among the data.
        package: Package that carries it.
        feeds: Gives so many samples.
        count: Number of samples; a fifth of them is verified on.
        decibel: Least SQNR of the first output.
        agreement: Least share of samples with the same decision.
        integers: Least number of integer kernels.
        size: Largest size of the artifact over the float model's.
        slow: Whether it takes more than 20 seconds.
    """

    file: str
    package: str | None = None
    feeds: Callable[[int], Feeds]
    count: int
    decibel: float
    agreement: float | None
    integers: int
    size: float = 0.9
    slow: bool = False

    def path(self) -> Path:
        if self.package is not None:
            return packaged(self.package, self.file)
        return data_file(f"models/{self.file}")


CASES = [
    # Its file holds int8 weights already: what is gained there is speed.
    Case(file="kws_dscnn_float.onnx", feeds=keywords, count=100, decibel=18, agreement=0.9, integers=8, size=1.02),
    Case(
        file="resnet8_cifar10.onnx",
        feeds=pictures("cifar10-jpeg.zip", "input_1", 32, "nhwc"),
        count=100,
        decibel=18,
        agreement=0.9,
        integers=9,
    ),
    Case(
        file="efficientnet_lite0.onnx",
        feeds=pictures("imagenet-sample-dev.zip", "x", 224, "nchw"),
        count=40,
        decibel=12,
        agreement=0.74,
        integers=40,
        slow=True,
    ),
    Case(
        package="rapidocr_onnxruntime",
        file="models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        feeds=text_lines(48, 192),
        count=40,
        decibel=10,
        agreement=0.8,
        integers=0,
    ),
    Case(
        package="rapidocr_onnxruntime",
        file="models/ch_PP-OCRv4_rec_infer.onnx",
        feeds=text_lines(48, 256),
        count=30,
        decibel=8,
        # Of six lines, where plans keep 17 dB at the output: a few steps between two letters may flip.
        agreement=0.9,
        integers=10,
    ),
    Case(
        package="silero_vad",
        file="data/silero_vad.onnx",
        feeds=speech,
        count=30,
        decibel=15,
        agreement=None,
        integers=0,
    ),
    Case(
        package="magika",
        file="models/standard_v3_3/model.onnx",
        feeds=files,
        count=20,
        decibel=10,
        agreement=0.75,
        integers=0,
    ),
]
PARAMETERS = [
    pytest.param(case, id=Path(case.file).stem, marks=pytest.mark.slow if case.slow else ()) for case in CASES
]


@pytest.mark.parametrize("case", PARAMETERS)
def test_defaults(case: Case, tmp_path: Path) -> None:
    path = case.path()
    before = path.read_bytes()
    feeds = case.feeds(case.count)
    result = lowbit.quantize(path, feeds, target=TARGET, measure_seconds=0.3)
    assert path.read_bytes() == before

    verification = result.verification
    assert verification.unfused == ()
    output = verification.outputs[0]
    # Saturation or a wrong kernel would show in every layer behind it. At the output of a classifier a handful of
    # flipped decisions outweighs everything else, in either direction.
    gaps = [layer.sqnr_simulated_db - layer.sqnr_real_db for layer in verification.layers if layer.sqnr_real_db]
    assert not gaps or np.median(gaps) < 0.5
    assert output.sqnr_real_db > min(output.sqnr_simulated_db - 4, 56)
    assert output.sqnr_real_db > case.decibel
    if case.agreement is not None:
        assert output.top1_agreement is not None
        assert output.top1_agreement >= case.agreement
    assert verification.integer_kernels >= case.integers
    assert verification.artifact_bytes < case.size * verification.float_bytes
    assert verification.latency is not None
    assert verification.float_peak_mb is not None
    assert verification.artifact_peak_mb is not None
    assert verification.artifact_peak_mb > 0
    assert all(site.reason for site in result.plan.sites)

    # What is saved loads elsewhere and is what was verified.
    (saved,) = result.save(tmp_path / "artifact.onnx")
    assert saved.stat().st_size == verification.artifact_bytes
    session, reference = open_session(saved, threads=1), open_session(path, threads=1)
    assert (session.inputs, session.outputs) == (reference.inputs, reference.outputs)
    for got, exact in zip(session.run(feeds[0]), reference.run(feeds[0]), strict=True):
        assert got.shape == exact.shape
        assert got.dtype == exact.dtype
        assert np.isfinite(got).all()
    result.save_plan(tmp_path / "plan.yaml")
    again = lowbit.quantize(path, None, test_data=feeds[:1], plan=tmp_path / "plan.yaml", measure_seconds=0)
    again.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == saved.read_bytes()


METHODS: list[dict[str, Any]] = [
    {"method": "dynamic"},
    {"method": "weight-only", "weights": "int4:block=32"},
    {"weights": "float16"},
]


@pytest.mark.parametrize("options", METHODS, ids=lambda options: "-".join(options.values()).replace(":block=", "b"))
@pytest.mark.parametrize("name", ["kws_dscnn_float.onnx", "data/silero_vad.onnx", "models/standard_v3_3/model.onnx"])
def test_other_methods(name: str, options: dict[str, Any]) -> None:
    (case,) = (case for case in CASES if case.file == name)
    result = lowbit.quantize(case.path(), case.feeds(10), target=TARGET, measure_seconds=0, **options)
    output = result.verification.outputs[0]
    assert output.sqnr_real_db > (40 if options.get("weights") == "float16" else 2)
    # Most weights of the keyword spotter arrive in 8 bits; these methods leave them so.
    assert result.verification.artifact_bytes < max(case.size, 1.15) * result.verification.float_bytes
    assert result.verification.unfused == ()
