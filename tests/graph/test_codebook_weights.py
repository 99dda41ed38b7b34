"""Weights stored as indices of levels: engines fold them into float weights that are what the codes stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit.formats import ELEMENTS, Parameters, choose_parameters, dequantize, minimum_opset, parse_format, quantize
from lowbit.graph import load_model, raise_opset, serialize
from lowbit.graph.bit_words import pack_words
from lowbit.graph.codebook_weights import looked_up_at_load
from lowbit.graph.editor import Editor
from lowbit.rounding import learned_parameters, weight_range
from lowbit.runtime.kernels import read_kernels
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

CODEBOOKS = [each.name for each in ELEMENTS.values() if each.levels]
GRANULARITIES = ("per-tensor", "per-channel", "block=16")


def model_of(weight: np.ndarray, op: str) -> ir.Model:
    """Return a model of one operator that reads `weight`."""
    x, y = {"Conv": ("N,4,6,6", "a,b,c,d"), "MatMul": ("N,64", "a,b"), "Gemm": ("N,64", "a,b")}[op]
    attributes = "<transB=1>" if op == "Gemm" else ""
    shape = ",".join(map(str, weight.shape))
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 17]> g (float[{x}] x, float[{shape}] w) => (float[{y}] y) '
        f"{{ y = {op}{attributes}(x, w) }}"
    )
    del proto.graph.input[1]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return load_model(proto)


def stored(weight: np.ndarray, op: str, text: str, axis: int) -> tuple[bytes, np.ndarray, Parameters]:
    """Return a model with its weight stored in a format, what the codes stand for, and the parameters."""
    fmt = parse_format(text, channel_axis=axis)
    parameters = (
        learned_parameters(weight, fmt) if fmt.element.learned else choose_parameters(*weight_range(weight, fmt), fmt)
    )
    codes = quantize(weight, parameters, fmt)
    model = raise_opset(model_of(weight, op), minimum_opset(fmt))
    node = next(iter(model.graph))
    value = looked_up_at_load(Editor(model), node, "w", codes, parameters, fmt)
    node.replace_input_with(1, value)
    del model.graph.initializers["w"]
    return serialize(model), dequantize(codes, parameters, fmt), parameters


@pytest.mark.parametrize("where", GRANULARITIES)
@pytest.mark.parametrize("name", CODEBOOKS)
@pytest.mark.parametrize("op", ["Conv", "MatMul", "Gemm"])
def test_the_engine_sees_what_the_codes_stand_for(op: str, name: str, where: str, tmp_path: Path) -> None:
    if op == "Conv" and where == "block=16":
        pytest.skip("a convolution's weight has no blocks")
    shape = {"Conv": (8, 4, 3, 3), "MatMul": (64, 24), "Gemm": (24, 64)}[op]
    weight = np.random.default_rng(0).standard_t(4, shape).astype(np.float32)
    data, decoded, _ = stored(weight, op, f"{name}:{where}", 1 if op == "MatMul" else 0)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    x = np.random.default_rng(1).standard_normal((3, 4, 6, 6) if op == "Conv" else (3, 64)).astype(np.float32)
    expected = open_session(serialize(model_of(decoded, op))).run({"x": x})[0]
    for optimized in (True, False):
        found = open_session(data, optimized=optimized).run({"x": x})[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    counts = []
    for label, content in (("stored", data), ("float", serialize(model_of(decoded, op)))):
        path = tmp_path / f"{label}.onnx"
        path.write_bytes(content)
        counts.append(read_kernels(path).counts())
    # Nothing of the decoding is left when the model runs.
    assert counts[0] == counts[1]


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_with_levels_of_their_own(axis: int) -> None:
    weight = np.random.default_rng(0).standard_t(4, (64, 64)).astype(np.float32)
    data, decoded, parameters = stored(weight, "Gemm" if axis == 0 else "MatMul", "codebook4:per-channel", axis)
    assert parameters.levels is not None
    assert parameters.levels.shape == (64, 4)
    x = np.eye(64, dtype=np.float32)
    found = open_session(data).run({"x": x})[0]
    np.testing.assert_array_equal(found.T if axis == 0 else found, decoded)


@pytest.mark.parametrize(("name", "bits"), [("nf2", 2.0), ("codebook8", 64 / 21), ("nf4", 4.0), ("codebook256", 8.0)])
def test_the_file_is_as_small_as_the_bits(name: str, bits: float) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 4096)).astype(np.float32)
    fmt = parse_format(name)
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N,64] x, float[64,4096] w) => (float[a,b] y) '
        "{ y = MatMul(x, w) }"
    )
    del proto.graph.input[1]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model = load_model(proto)
    node = next(iter(model.graph))
    parameters = choose_parameters(-4.0, 4.0, fmt)
    codes = quantize(weight, parameters, fmt)
    node.replace_input_with(1, looked_up_at_load(Editor(model), node, "w", codes, parameters, fmt))
    del model.graph.initializers["w"]
    assert len(serialize(model)) == pytest.approx(weight.size * bits / 8, rel=0.03)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(data=st.data(), bits=st.sampled_from([2, 3]))
def test_words_hold_every_code(data: st.DataObject, bits: int) -> None:
    codes = data.draw(hnp.arrays(np.uint8, st.integers(0, 100), elements=st.integers(0, 2**bits - 1)))
    words = pack_words(codes, bits)
    per_word = 64 // bits
    assert words.shape == (-(-len(codes) // per_word), 1)
    lanes = (words >> (np.arange(per_word, dtype=np.uint64) * np.uint64(bits))) & np.uint64(2**bits - 1)
    np.testing.assert_array_equal(lanes.reshape(-1)[: len(codes)], codes)
