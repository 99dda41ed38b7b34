"""Quantized models in ONNX Runtime's own kernels and in the interpreter: the same to one step of every output."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import lowbit
from lowbit.interpreter import to_torch, with_integer_kernels
from lowbit.runtime.session import open_session

Feeds = list[dict[str, np.ndarray]]
STATIC = {"method": "static"}


def _zoo() -> dict[str, Any]:
    """Return the trained models of the end-to-end tests, and two detectors, by the names of their files."""
    path = Path(__file__).parents[1] / "end_to_end" / "test_trained_models.py"
    spec = spec_from_file_location("trained_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["trained_models"] = module
    spec.loader.exec_module(module)
    # Detectors: many branches that are joined; what they find is not looked at here.
    more = [
        ("fastestdet_coco.onnx", None, module.pictures("imagenet-sample-dev.zip", "input.1", 352, "nchw")),
        ("models/ch_PP-OCRv4_det_infer.onnx", "rapidocr_onnxruntime", module.text_lines(160, 160)),
    ]
    found = [
        module.Case(
            file=file,
            package=package,
            feeds=feeds,
            count=8,
            decibel=0,
            agreement=None,
            integers=1,
        )
        for file, package, feeds in more
    ]
    return {Path(case.file).parts[-1]: case for case in [*module.CASES, *found]}


ZOO = _zoo()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model of the zoo, quantized.

    Attributes:
        file: Its file.
        options: How it is quantized.
        samples: Number of samples for calibration.
        different: Largest share of a tensor's codes that may differ. Not zero behind a sum in floating point, which the
            engine takes in another order: a normalization's, or that of its integer Softmax over thousands of classes.
        slow: Whether it takes more than half a minute.
    """

    file: str
    options: dict[str, str] = field(default_factory=lambda: STATIC)
    samples: int = 12
    different: float = 0.0
    slow: bool = False


CASES = [
    Case(file="kws_dscnn_float.onnx"),
    Case(file="kws_dscnn_float.onnx", options={"method": "dynamic"}),
    Case(file="resnet8_cifar10.onnx"),
    Case(file="resnet8_cifar10.onnx", options={}),
    Case(file="efficientnet_lite0.onnx", slow=True),
    Case(file="ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    Case(file="ch_PP-OCRv4_rec_infer.onnx", samples=3, different=1e-4),
    Case(file="fastestdet_coco.onnx", samples=4, slow=True),
    Case(file="ch_PP-OCRv4_det_infer.onnx", samples=4, slow=True),
    Case(file="silero_vad.onnx", options={"method": "dynamic"}),
    Case(file="model.onnx", samples=8, different=0.05),
]
PARAMETERS = [
    pytest.param(
        case,
        id=f"{Path(case.file).stem}-{case.options.get('method', 'auto')}",
        marks=pytest.mark.slow if case.slow else (),
    )
    for case in CASES
]


def quantized(case: Case, folder: Path) -> tuple[onnx.ModelProto, Feeds]:
    """Return the artifact and samples for it."""
    entry = ZOO[case.file]
    feeds = entry.feeds(case.samples)
    result = lowbit.quantize(entry.path(), feeds, target="host", measure_seconds=0, **case.options)
    (path,) = result.save(folder / "artifact.onnx")
    return onnx.load(path), feeds[:2]


def with_codes_shown(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the codes of all its activations as outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    present = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0] in known and node.output[0] not in present:
            shown.graph.output.append(known[node.output[0]])
    return shown


def steps_of(model: onnx.ModelProto) -> list[float | None]:
    """Return the quantization step of every output that has one of its own."""
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    steps: list[float | None] = []
    for output in model.graph.output:
        node = producers[output.name]
        is_coded = node.op_type == "DequantizeLinear" and node.input[1] in constants
        steps.append(float(numpy_helper.to_array(constants[node.input[1]])) if is_coded else None)
    return steps


def interpreted(module: torch.nn.Module, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        outputs = module(**{name: torch.from_numpy(np.asarray(array)) for name, array in feed.items()})
    return [tensor.numpy() for tensor in outputs]


@pytest.mark.parametrize("case", PARAMETERS)
def test_one_step(case: Case, tmp_path: Path) -> None:
    model, feeds = quantized(case, tmp_path)
    shown = with_codes_shown(model)
    session = open_session(shown.SerializeToString(), threads=1)
    module = to_torch(with_integer_kernels(shown)).eval()
    assert module.islands == ()
    steps = steps_of(model)
    for feed in feeds:
        expected, got = session.run(feed), interpreted(module, feed)
        for array, result, step in zip(expected, got, steps, strict=False):
            # An output that stays in floating point has no step; it is held to that of 8 bits over its values and zero.
            limit = step if step is not None else float(max(array.max(), 0) - min(array.min(), 0)) / 255
            assert np.abs(result - array).max() <= limit * 1.001
        for array, result in zip(expected[len(steps) :], got[len(steps) :], strict=True):
            assert (result != array).mean() <= case.different


def test_one_rounding_is_what_agreement_takes(tmp_path: Path) -> None:
    """Computed as written, float sums may fall to other sides of ties, and residual layers carry that on."""
    model, feeds = quantized(Case(file="resnet8_cifar10.onnx"), tmp_path)
    shown = with_codes_shown(model)
    session = open_session(shown.SerializeToString(), threads=1)
    first = len(model.graph.output)

    def different(module: torch.nn.Module) -> float:
        pairs = [
            (result != array).mean()
            for feed in feeds
            for result, array in zip(interpreted(module, feed)[first:], session.run(feed)[first:], strict=True)
        ]
        return float(np.mean(pairs))

    as_written = different(to_torch(shown).eval())
    assert different(to_torch(with_integer_kernels(shown)).eval()) == 0
    assert as_written < 0.05
