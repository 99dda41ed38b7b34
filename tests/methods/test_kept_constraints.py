"""What pruning and weight sharing made is kept by quantizing: zeros stay 0, and what shares a value shares a code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import lowbit
from lowbit.graph import serialize

if TYPE_CHECKING:
    from collections.abc import Callable

NET = """g (float[N,8,10,10] x, float[16,8,3,3] w1, float[16,16,3,3] w2, float[64,10] w3) => (float[N,10] y) {
    a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1)
    b = Relu(a)
    c = Conv<pads=[1,1,1,1], strides=[3,3]>(b, w2)
    d = Relu(c)
    e = Flatten<axis=1>(d)
    y = MatMul(e, w3)
}"""
SIZES = {16 * 8 * 9, 16 * 16 * 9, 64 * 10}
HOW: dict[str, dict[str, Any]] = {
    "defaults": {},
    "gptq": {"rounding": "gptq"},
    "4 bits": {"rounding": "gptq", "weights": "int4"},
    "quantized inputs": {"rounding": "gptq", "rounding_inputs": "quantized", "weights": "int4"},
    "adaround": {"rounding": "adaround", "weights": "int4"},
    "learned": {"rounding": "learned", "weights": "int4"},
    "weight-only": {"method": "weight-only", "rounding": "gptq", "weights": "int4"},
    "saturating": {"target": "onnxruntime-x86-avx2"},
}


@pytest.fixture
def net(parse: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    return parse(NET)


def samples(count: int = 24) -> list[dict[str, np.ndarray]]:
    """Return inputs whose neighbours are alike, so that errors of one weight can make up for those of another."""
    generator = np.random.default_rng(1)
    mixing = generator.standard_normal((8, 8)) * np.geomspace(1, 0.02, 8)
    return [
        {"x": np.einsum("cd,ndhw->nchw", mixing, generator.standard_normal((1, 8, 10, 10))).astype(np.float32)}
        for _ in range(count)
    ]


def changed(net: onnx.ModelProto, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(net)
    for one in copy.graph.initializer:
        array = numpy_helper.to_array(one)
        if array.ndim > 1:
            one.CopyFrom(numpy_helper.from_array(change(array).astype(np.float32), one.name))
    return copy


def codes_of(result: lowbit.Result) -> list[np.ndarray]:
    """Return the integer weights of an artifact that are as large as the model's."""
    proto = onnx.load_model_from_string(serialize(result.model))
    found = [numpy_helper.to_array(one) for one in proto.graph.initializer]
    return [array.astype(np.int32) for array in found if array.size in SIZES and array.dtype.name in {"int8", "int4"}]


@pytest.mark.parametrize("how", HOW)
def test_zeros_stay_zero(net: onnx.ModelProto, how: str) -> None:
    generator = np.random.default_rng(2)
    pruned = changed(net, lambda array: np.where(generator.random(array.shape) < 0.7, 0, array))
    sizes = {(numpy_helper.to_array(one) == 0).sum() for one in pruned.graph.initializer if len(one.dims) > 1}
    result = lowbit.quantize(pruned, samples(), measure_seconds=0, optimize="size", **HOW[how])
    found = {(codes == 0).sum() for codes in codes_of(result)}
    assert len(found) == len(sizes) == 3
    assert all(a <= b for a, b in zip(sorted(sizes), sorted(found), strict=True))


@pytest.mark.parametrize("how", HOW)
def test_shared_values_stay_shared(net: onnx.ModelProto, how: str) -> None:
    levels = np.linspace(-1, 1, 13) ** 3

    def clustered(array: np.ndarray) -> np.ndarray:
        return np.abs(array).max() * levels[np.random.default_rng(3).integers(0, 13, array.shape)]

    shared = changed(net, clustered)
    formats = {**HOW[how]}
    formats["weights"] = formats.get("weights", "int8") + ":per-tensor"
    result = lowbit.quantize(shared, samples(), measure_seconds=0, optimize="size", **formats)
    codes = codes_of(result)
    assert len(codes) == 3
    assert all(len(np.unique(one)) <= 13 for one in codes)
