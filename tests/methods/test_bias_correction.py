"""Bias correction: the mean of every output channel stays where it was before the weights were rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lowbit.formats import parse_format
from lowbit.graph import clean, load_model
from lowbit.methods.weights import corrected_bias, encode_weight
from lowbit.plan.sites import find_sites
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.plan.sites import Site

CASES = {
    "conv": "g (float[1,8,9,9] x, float[16,8,3,3] w, float[16] b) => (float[1,16,7,7] y) { y = Conv(x, w, b) }",
    "conv-no-bias": "g (float[1,8,9,9] x, float[16,8,1,1] w) => (float[1,16,9,9] y) { y = Conv(x, w) }",
    "conv-grouped": "g (float[1,8,9,9] x, float[6,4,1,1] w) => (float[1,6,9,9] y) { y = Conv<group=2>(x, w) }",
    "conv-depthwise": "g (float[1,8,9,9] x, float[8,1,3,3] w) => (float[1,8,7,7] y) { y = Conv<group=8>(x, w) }",
    "gemm": "g (float[5,32] x, float[32,12] w, float[12] b) => (float[5,12] y) { y = Gemm(x, w, b) }",
    "gemm-transB": "g (float[5,32] x, float[12,32] w, float[12] b) => (float[5,12] y) { y = Gemm<transB=1>(x, w, b) }",
    "gemm-no-bias": "g (float[5,32] x, float[32,12] w) => (float[5,12] y) { y = Gemm(x, w) }",
    "matmul-add": "g (float[2,5,32] x, float[32,12] w, float[12] b) => (float[2,5,12] y) "
    "{ m = MatMul(x, w)\n y = Add(m, b) }",
}


def site_of(proto: onnx.ModelProto) -> Site:
    return find_sites(clean(load_model(proto)).model, find_target("onnxruntime-x86-avx2"))[0]


def layer(proto: onnx.ModelProto, weight: np.ndarray, bias: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """Compute the case's operator in float64, with the channel last: `[positions, channels]`."""
    node = proto.graph.node[0]
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type != "Conv":
        matrix = weight.T if attributes.get("transB") else weight
        y = x.reshape(-1, x.shape[-1]).astype(np.float64) @ matrix
        return y if bias is None else y + bias
    torch = pytest.importorskip("torch")
    y = torch.nn.functional.conv2d(
        torch.tensor(x, dtype=torch.float64),
        torch.tensor(weight, dtype=torch.float64),
        None if bias is None else torch.tensor(bias, dtype=torch.float64),
        groups=attributes.get("group", 1),
    ).numpy()
    return np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])


def channel_mean(x: np.ndarray, op_type: str) -> np.ndarray:
    axis = 1 if op_type == "Conv" else x.ndim - 1
    return x.astype(np.float64).mean(axis=tuple(i for i in range(x.ndim) if i != axis)).astype(np.float32)


@pytest.mark.parametrize("weights", ["int8:per-channel", "int8", "int4:per-channel"])
@pytest.mark.parametrize("name", CASES)
def test_the_mean_error_vanishes(name: str, weights: str, parse: Callable) -> None:
    proto = parse(CASES[name])
    site = site_of(proto)
    op_type = proto.graph.node[0].op_type
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    # Far from zero mean, and another mean in every channel: what rounding errors turn into a bias. Pictures of one
    # colour, because every tap of a kernel then sees the mean of its channel.
    generator = np.random.default_rng(3)
    channels = shape[1] if op_type == "Conv" else shape[-1]
    colours = (40, channels, 1, 1) if op_type == "Conv" else (40, *shape[1:])
    offsets = generator.uniform(1, 4, channels).reshape([-1 if size == channels else 1 for size in colours[1:]])
    x = np.broadcast_to(generator.standard_normal(colours) + offsets, (40, *shape[1:])).astype(np.float32)
    bias = None
    if site.bias is not None:
        bias = site.bias.const_value.numpy()
    encoded = encode_weight(site, parse_format(weights), saturates=True)
    fixed = corrected_bias(site, encoded, channel_mean(x, op_type))
    assert fixed is not None
    assert fixed.dtype == np.float32
    exact = layer(proto, site.weight_array(), bias, x).mean(axis=0)
    before = np.abs(layer(proto, encoded.decode(), bias, x).mean(axis=0) - exact)
    after = np.abs(layer(proto, encoded.decode(), fixed, x).mean(axis=0) - exact)
    assert before.max() > 1e-3
    assert after.max() < 1e-4


@pytest.mark.parametrize("name", CASES)
def test_exact_weights_are_not_corrected(name: str, parse: Callable) -> None:
    site = site_of(parse(CASES[name]))
    weight = site.weight
    assert weight is not None
    rounded = encode_weight(site, parse_format("int8:per-channel"), saturates=False)
    # A weight that lies on the grid already: nothing is rounded, nothing corrected.
    weight.const_value = ir.tensor(rounded.decode(), name=weight.name)
    channels = 8 if site.op_type == "Conv" else 32
    bias = None if site.bias is None else site.bias.const_value.numpy()
    fixed = corrected_bias(site, rounded, np.full(channels, 7.0, np.float32))
    assert np.array_equal(fixed, np.zeros_like(fixed) if bias is None else bias)


@pytest.mark.parametrize("name", CASES)
def test_without_means_the_bias_stays(name: str, parse: Callable) -> None:
    site = site_of(parse(CASES[name]))
    encoded = encode_weight(site, parse_format("int8:per-channel"), saturates=False)
    fixed = corrected_bias(site, encoded, None)
    if site.bias is None:
        assert fixed is None
    else:
        assert np.array_equal(fixed, site.bias.const_value.numpy())


def test_the_artifact_has_less_bias_with_correction(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(CASES["conv-no-bias"])
    feeds = [{"x": feed["x"] + np.float32(3)} for feed in noise(proto, count=16)]
    shift = {}
    for correct in (False, True):
        built = build(proto, feeds, bias_correction=correct)
        errors = [simulated - exact for exact, _, simulated in built.run(feeds)]
        shift[correct] = float(np.abs(np.mean(errors, axis=(0, 1, 3, 4))).max())
    assert shift[True] < 0.5 * shift[False]
