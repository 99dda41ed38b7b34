"""Small networks written as ONNX text, with weights that are no noise, and data that they can learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = 4
NET = """g (float[n,3,12,12] x, float[8,3,3,3] w1, float[8] b1, float[8,1,3,3] w2, float[8] b2, float[8,8,1,1] w3,
           float[8] b3, float[8,8,3,3] w4, float[8] b4, float[8,4] w5, float[4] b5) => (float[n,4] y) {
    c = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(c)
    d = Conv<group=8, pads=[1,1,1,1]>(r, w2, b2)
    s = Relu(d)
    e = Conv(s, w3, b3)
    f = Conv<pads=[1,1,1,1]>(e, w4, b4)
    a = Add(e, f)
    t = Relu(a)
    p = GlobalAveragePool(t)
    q = Flatten(p)
    m = MatMul(q, w5)
    z = Add(m, b5)
    y = Softmax(z)
}"""


def parse(text: str, *, opset: int = 21, seed: int = 0) -> onnx.ModelProto:
    """Return the model of a graph text; inputs called `w…` and `b…` become weights and biases."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    generator = np.random.default_rng(seed)
    for value in [value for value in proto.graph.input if value.name[0] in "wb"]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        fan = max(int(np.prod(shape[1:])), 1) if len(shape) != 2 else shape[0]
        array = generator.standard_normal(shape) * (np.sqrt(2.0 / fan) if value.name[0] == "w" else 0.1)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), value.name))
        proto.graph.input.remove(value)
    onnx.checker.check_model(proto)
    return proto


def pictures(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures of four classes: a bright quarter each, in noise; `[count, 3, 12, 12]` float32, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    x = generator.standard_normal((count, 3, 12, 12)).astype(np.float32) * 0.25
    for index, label in enumerate(labels):
        x[index, label % 3, 6 * (label // 2) : 6 * (label // 2) + 6, 6 * (label % 2) : 6 * (label % 2) + 6] += 1.0
    return x, labels.astype(np.int64)


@pytest.fixture
def net() -> onnx.ModelProto:
    return parse(NET)


@pytest.fixture
def data() -> dict[str, Any]:
    x, y = pictures(96)
    return {"x": x, "y": y}


@pytest.fixture(name="parse")
def parse_fixture() -> Callable[..., onnx.ModelProto]:
    return parse
