"""No pair of products saturates: proved on the codes, and measured in the engine with the worst inputs there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.formats import parse_format
from lowbit.graph import clean, load_model
from lowbit.methods.weights import channel_axis, encode_matrix, encode_weight
from lowbit.plan.sites import find_sites
from lowbit.rounding import conv_to_kn, hazards
from lowbit.runtime.kernels import read_kernels
from lowbit.runtime.session import open_session
from lowbit.targets import find_target, host_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.plan.sites import Site

TARGET = "onnxruntime-x86-avx2"
FORMATS = ("int8", "int8:per-channel", "int8:per-channel:narrow", "int8:narrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An operator alone, and which ways of quantizing it are tried."""

    text: str
    kernel: str
    methods: tuple[str, ...] = ("static", "dynamic")


CASES = {
    "conv": Case(
        text="g (float[1,16,9,9] x, float[24,16,3,3] w) => (float[1,24,7,7] y) { y = Conv(x, w) }", kernel="QLinearConv"
    ),
    "conv-odd": Case(
        text="g (float[1,7,9,9] x, float[24,7,3,3] w, float[24] b) => (float[1,24,7,7] y) { y = Conv(x, w, b) }",
        kernel="QLinearConv",
    ),
    "conv-pointwise-odd": Case(
        text="g (float[1,33,5,5] x, float[24,33,1,1] w) => (float[1,24,5,5] y) { y = Conv(x, w) }", kernel="QLinearConv"
    ),
    "conv-padded": Case(
        text="g (float[1,8,9,9] x, float[24,8,3,3] w) => (float[1,24,9,9] y) { y = Conv<pads=[1,1,1,1]>(x, w) }",
        kernel="QLinearConv",
    ),
    "conv-grouped": Case(
        text="g (float[1,18,9,9] x, float[12,9,3,3] w) => (float[1,12,7,7] y) { y = Conv<group=2>(x, w) }",
        kernel="QLinearConv",
    ),
    "conv-depthwise": Case(
        text="g (float[1,16,9,9] x, float[16,1,3,3] w) => (float[1,16,7,7] y) { y = Conv<group=16>(x, w) }",
        kernel="QLinearConv",
    ),
    "conv-depthwise-multiplier": Case(
        text="g (float[1,8,9,9] x, float[16,1,3,3] w) => (float[1,16,7,7] y) { y = Conv<group=8>(x, w) }",
        kernel="QLinearConv",
    ),
    "conv-1d": Case(
        text="g (float[1,16,30] x, float[24,16,5] w) => (float[1,24,26] y) { y = Conv(x, w) }", kernel="QLinearConv"
    ),
    "matmul": Case(
        text="g (float[4,65] x, float[65,24] w) => (float[4,24] y) { y = MatMul(x, w) }", kernel="MatMulIntegerToFloat"
    ),
    "matmul-vector": Case(
        text="g (float[1,64] x, float[64,24] w) => (float[1,24] y) { y = MatMul(x, w) }", kernel="MatMulIntegerToFloat"
    ),
    "matmul-3d": Case(
        text="g (float[2,3,64] x, float[64,24] w, float[24] b) => (float[2,3,24] y) "
        "{ m = MatMul(x, w)\n y = Add(m, b) }",
        kernel="",
    ),
    "gemm-transB": Case(
        text="g (float[4,65] x, float[24,65] w, float[24] b) => (float[4,24] y) { y = Gemm<transB=1>(x, w, b) }",
        kernel="QGemm",
    ),
}


def site_of(proto: onnx.ModelProto) -> Site:
    model = clean(load_model(proto)).model
    return find_sites(model, find_target(TARGET))[0]


def pairs(site: Site, codes: np.ndarray) -> np.ndarray:
    """Return the codes as the kernel reads them, `[K, N]`, from the definition of each operator."""
    if codes.ndim > 2:
        return conv_to_kn(codes)
    return codes.T if channel_axis(site) == 0 else codes


def worst_inputs(proto: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    """Inputs of which every element is at one end of the range: all high, alternating along each axis, and random."""
    (value,) = proto.graph.input
    shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    generator = np.random.default_rng(5)
    masks = [np.ones(shape, bool), np.zeros(shape, bool)]
    for axis in range(1, len(shape)):
        index = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        masks += [np.broadcast_to(index % 2 == 0, shape), np.broadcast_to(index % 2 == 1, shape)]
    masks += [generator.random(shape) < share for share in (0.5, 0.9)]
    return [{value.name: np.where(mask, np.float32(4.0), np.float32(0.0))} for mask in masks]


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_no_encoded_pair_can_saturate(name: str, weights: str, parse: Callable) -> None:
    site = site_of(parse(CASES[name].text))
    plain = encode_weight(site, parse_format(weights), saturates=False)
    safe = encode_weight(site, parse_format(weights), saturates=True)
    before, after = hazards(pairs(site, plain.codes)), hazards(pairs(site, safe.codes))
    if name == "conv-depthwise":
        # Its kernel does not pair: nothing is given away.
        assert np.array_equal(plain.codes, safe.codes)
        return
    assert before.any(), "the weights are too small to prove anything"
    assert not after.any()
    assert str(safe.fmt) == str(plain.fmt)
    # Repair costs little: the codes lose less than one bit (6 dB) of the worst layer.
    assert (
        np.square(safe.decode() - site.weight_array()).sum() < 4 * np.square(plain.decode() - site.weight_array()).sum()
    )
    (note,) = (note for note in safe.notes if "saturates" in note)
    assert f"({before.sum()} of {before.size} pairs could)" in note


@settings(max_examples=40)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 2),
    seed=st.integers(0, 999),
    weights=st.sampled_from(FORMATS),
    heavy=st.booleans(),
)
def test_no_matrix_can_saturate(shape: tuple[int, int], seed: int, weights: str, heavy: bool) -> None:
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if heavy:
        weight = np.sign(weight)
    encoded = encode_matrix(weight, parse_format(weights), saturates=True)
    assert not hazards(encoded.codes).any()
    assert encoded.codes.shape == shape
    assert np.abs(encoded.decode() - weight).max() <= 1.01 * np.abs(weight).max()


@pytest.mark.parametrize("name", CASES)
def test_static_kernels_compute_what_is_simulated(name: str, parse: Callable, build: Callable) -> None:
    proto = parse(CASES[name].text)
    feeds = worst_inputs(proto)
    built = build(proto, feeds)
    if CASES[name].kernel:
        assert CASES[name].kernel in read_kernels(built.artifact_bytes).counts()
    for _, real, simulated in built.run(feeds):
        step = built.step() or 1e-4 * float(np.abs(simulated).max() + 1)
        assert np.abs(real - simulated).max() <= 1.01 * step


@pytest.mark.parametrize("name", CASES)
def test_dynamic_kernels_compute_what_is_simulated(name: str, parse: Callable, build: Callable) -> None:
    proto = parse(CASES[name].text)
    feeds = worst_inputs(proto)
    built = build(proto, feeds, method="dynamic")
    assert read_kernels(built.artifact_bytes).integer_count() == 1
    for _, real, simulated in built.run(feeds):
        assert np.abs(real - simulated).max() <= 1e-4 * (np.abs(simulated).max() + 1)
    # The kernel of a dynamic convolution does not saturate: nothing is given away there.
    (site,) = (site for site in built.applied.plan.sites if site.execution == "dynamic")
    assert bool(site.notes) == (site.op_type != "Conv")


def test_the_engine_does_saturate_full_range_weights(parse: Callable, build: Callable) -> None:
    """The reason for all this: without the repair the same inputs come out wrong here."""
    if host_target().name != TARGET:
        pytest.skip("this processor has exact 8-bit products")
    wrong = set()
    for name, case in CASES.items():
        proto = parse(case.text)
        feeds = worst_inputs(proto)
        built = build(proto, feeds, target="onnxruntime-x86-vnni")
        for _, real, simulated in built.run(feeds):
            step = built.step() or 1e-4 * float(np.abs(simulated).max() + 1)
            if np.abs(real - simulated).max() > 1.01 * step:
                wrong.add(name)
    assert wrong == set(CASES) - {"conv-depthwise"}


def test_a_dynamic_lstm_is_exact_too(parse: Callable, build: Callable) -> None:
    proto = parse(
        "g (float[6,1,33] x, float[1,48,33] w, float[1,48,12] wr, float[1,96] b) => (float[6,1,1,12] y)"
        " { y = LSTM<hidden_size=12>(x, w, wr, b) }"
    )
    feeds = worst_inputs(proto)
    built = build(proto, feeds, method="dynamic")
    assert read_kernels(built.artifact_bytes).counts()["DynamicQuantizeLSTM"] == 1
    exact = open_session(built.artifact_bytes, threads=1, options={"session.x64quantprecision": "1"})
    for feed, (_, real, _) in zip(feeds, built.run(feeds), strict=True):
        assert np.abs(real - exact.run(feed)[0]).max() <= 1e-5


def test_a_large_bias_gets_room_in_int32(parse: Callable, build: Callable) -> None:
    """With a tiny weight scale a large bias would not fit into int32 at `s_x · s_w`; the weights give way."""
    proto = parse("g (float[1,4,5,5] x, float[3,4,1,1] w, float[3] b) => (float[1,3,5,5] y) { y = Conv(x, w, b) }")
    weight, bias = proto.graph.initializer
    small = onnx.numpy_helper.to_array(weight) * np.array([1e-9, 1, 1], np.float32).reshape(3, 1, 1, 1)
    weight.CopyFrom(onnx.numpy_helper.from_array(small, weight.name))
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([5.0, 0.1, -3.0], np.float32), bias.name))
    feeds = worst_inputs(proto)
    built = build(proto, feeds, bias_correction=False)
    (conv,) = (site for site in built.applied.plan.sites if site.op_type == "Conv")
    assert any("1 channels have a bias so large" in note for note in conv.notes)
    for exact, real, simulated in built.run(feeds):
        assert np.abs(real - simulated).max() <= 1.01 * built.step()
        assert np.abs(real - exact).max() <= 3 * built.step()
