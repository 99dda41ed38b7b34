"""Small models, quantized for export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import lowbit

Network = Callable[..., onnx.ModelProto]


def network(text: str, weights: dict[str, tuple[int, ...]], *, opset: int = 17, seed: int = 0) -> onnx.ModelProto:
    """Return a model from the body of an ONNX text, with random weights of the given shapes."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    generator = np.random.default_rng(seed)
    for name, shape in weights.items():
        fan = max(int(np.prod(shape[1:])), 1)
        array = (generator.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
        if name.startswith("positive"):
            array = np.abs(array) + np.float32(0.5)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def samples(proto: onnx.ModelProto, count: int = 16, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Return normally distributed inputs."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        feed: dict[str, Any] = {}
        for value in proto.graph.input:
            shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
            integer = value.type.tensor_type.elem_type == onnx.TensorProto.INT64
            numbers = generator.integers(0, 10, size=shape) if integer else generator.standard_normal(shape)
            feed[value.name] = numbers.astype(np.int64 if integer else np.float32)
        found.append(feed)
    return found


def quantized(proto: onnx.ModelProto, target: str = "litert", **recipe: Any) -> lowbit.Result:
    return lowbit.quantize(proto, data=samples(proto), target=target, measure_seconds=0, **recipe)


@pytest.fixture(autouse=True)
def _engine(request: pytest.FixtureRequest) -> None:
    if request.path.name.startswith("test_litert"):
        pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")


@pytest.fixture(scope="session")
def small() -> onnx.ModelProto:
    """Return a residual network with a depthwise convolution and an open batch."""
    return network(
        """net (float[N, 3, 12, 12] x) => (float[N, 5] y) {
            a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, stem, stem_bias)
            b = Relu (a)
            c = Conv <pads = [1, 1, 1, 1], group = 16> (b, depthwise, depthwise_bias)
            d = Relu (c)
            e = Conv (d, project, project_bias)
            f = Add (b, e)
            p = GlobalAveragePool (f)
            q = Flatten (p)
            y = Gemm <transB = 1> (q, head, head_bias)
        }""",
        {
            "stem": (16, 3, 3, 3),
            "stem_bias": (16,),
            "depthwise": (16, 1, 3, 3),
            "depthwise_bias": (16,),
            "project": (16, 16, 1, 1),
            "project_bias": (16,),
            "head": (5, 16),
            "head_bias": (5,),
        },
    )
