"""More channels for first layers: the sum has full groups, and what the model computes stays the same."""

from __future__ import annotations

import math
import re

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.graph import load_model, serialize
from lowbit.graph.clean import infer_shapes
from lowbit.graph.clean.dead_code import remove_dead_code
from lowbit.graph.editor import Editor
from lowbit.graph.entry_channels import padded_channels, read_padded
from lowbit.runtime.kernels import read_kernels
from lowbit.runtime.session import open_session

STEP = np.float32(0.01)
PLANAR = """g (float[N,C,11,13] x, float xs, CODE xz, float[5,C,KH,KW] w, float ys, CODE yz)
    => (float[N,5,H,W] y) {
    q = QuantizeLinear(x, xs, xz)
    d = DequantizeLinear(q, xs, xz)
    c = Conv<ATTRIBUTES>(d, w)
    p = QuantizeLinear(c, ys, yz)
    y = DequantizeLinear(p, ys, yz)
}"""
# Images as cameras and TensorFlow give them.
CHANNELS_LAST = PLANAR.replace("x, float xs", "i, float xs").replace("N,C,11,13", "N,11,13,C")
CHANNELS_LAST = CHANNELS_LAST.replace("q = Q", "x = Transpose<perm=[0,3,1,2]>(i)\n    q = Q")


def build(
    text: str,
    *,
    channels: int,
    kernel: tuple[int, int] = (3, 3),
    attributes: str = "pads=[1,1,1,1]",
    codes: str = "uint8",
    zero_point: int = 77,
    batch: str = "1",
) -> ir.Model:
    """Return a convolution between codes, with weights in float: multiples of `STEP`, small enough for any kernel."""
    values = {"CODE": codes, "ATTRIBUTES": attributes, "KH": kernel[0], "KW": kernel[1], "N": batch, "C": channels}
    for name, value in {**values, "H": "h", "W": "v"}.items():
        text = re.sub(rf"\b{name}\b", str(value), text)
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    generator = np.random.default_rng(0)
    constants = {
        "w": STEP * generator.integers(-40, 41, (5, channels, *kernel)).astype(np.float32),
        "xs": np.float32(0.02),
        "xz": np.array(zero_point, codes),
        "ys": np.float32(0.0517),  # no sum of products is a tie of its rounding
        "yz": np.array(zero_point, codes),
    }
    for value in [value for value in proto.graph.input if value.name in constants]:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(constants[value.name]), value.name))
        proto.graph.input.remove(value)
    onnx.checker.check_model(proto)
    return infer_shapes(load_model(proto))


def conv_of(model: ir.Model) -> ir.Node:
    (node,) = (node for node in model.graph if node.op_type == "Conv")
    return node


def padded(model: ir.Model, channels: int) -> ir.Model:
    copy = model.clone()
    node = conv_of(copy)
    decoded = read_padded(Editor(copy), node, channels)
    assert node.inputs[0] is decoded
    assert conv_of(model).inputs[1].shape[1] < channels == node.inputs[1].shape[1]
    remove_dead_code(copy)
    return copy


def serialized(model: ir.Model) -> bytes:
    """Return the model as an artifact has it, with its weight as codes."""
    copy = model.clone()
    editor, node = Editor(copy), conv_of(copy)
    codes = np.rint(node.inputs[1].const_value.numpy() / STEP).astype(np.int8)
    inputs = [
        editor.constant(copy.graph, "codes", codes),
        editor.constant(copy.graph, "step", np.asarray(STEP)),
        editor.constant(copy.graph, "zero", np.asarray(0, np.int8)),
    ]
    decode = editor.node("DequantizeLinear", inputs, name="decode", outputs=["decoded"], dtypes=[ir.DataType.FLOAT])
    copy.graph.insert_before(node, decode)
    node.replace_input_with(1, decode.outputs[0])
    data = serialize(copy)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    return data


def image(model: ir.Model, batch: int = 1) -> dict[str, np.ndarray]:
    (value,) = model.graph.inputs
    shape = [dim if isinstance(dim, int) else batch for dim in value.shape]
    return {value.name: np.random.default_rng(1).uniform(-3, 6, shape).astype(np.float32)}


def outputs(model: ir.Model, feed: dict[str, np.ndarray], *, optimized: bool) -> np.ndarray:
    return open_session(serialized(model), threads=1, optimized=optimized).run(feed)[0]


@given(
    st.integers(1, 8),
    st.integers(1, 40),
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.sampled_from([1, 2, 4, 8, 16]),
)
def test_the_sum_fills_whole_groups_with_as_few_channels_as_possible(
    out: int, channels: int, kernel: list[int], multiple: int
) -> None:
    found = padded_channels((out, channels, *kernel), multiple)
    positions = math.prod(kernel)
    assert found >= channels
    assert found * positions % multiple == 0
    assert all(fewer * positions % multiple for fewer in range(channels, found))


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((32, 3, 3, 3), 4), ((32, 1, 5, 5), 4), ((64, 3, 7, 7), 4), ((8, 3, 2, 2), 3), ((8, 2, 3, 2), 2), ((8, 3, 1), 4)],
)
def test_usual_first_layers_get_full_groups_of_four(shape: tuple[int, ...], channels: int) -> None:
    assert padded_channels(shape, 4) == channels


@pytest.mark.parametrize("text", [PLANAR, CHANNELS_LAST], ids=["planar", "channels last"])
@pytest.mark.parametrize(
    ("channels", "kernel", "attributes"),
    [
        (3, (3, 3), "pads=[1,1,1,1]"),
        (3, (3, 3), "strides=[2,2], pads=[0,0,1,1]"),
        (1, (5, 5), "pads=[2,2,2,2]"),
        (2, (7, 3), "pads=[3,1,3,1], dilations=[1,2]"),
        (3, (1, 1), "strides=[1,1]"),
        (3, (3, 3), 'auto_pad="SAME_UPPER"'),
    ],
)
@pytest.mark.parametrize(("codes", "zero_point"), [("uint8", 77), ("uint8", 0), ("int8", -9)])
def test_a_padded_model_computes_the_same(
    text: str, channels: int, kernel: tuple[int, int], attributes: str, codes: str, zero_point: int
) -> None:
    before = build(text, channels=channels, kernel=kernel, attributes=attributes, codes=codes, zero_point=zero_point)
    after = padded(before, padded_channels((5, channels, *kernel), 4))
    feed = image(before)
    expected = outputs(before, feed, optimized=False)
    assert len(np.unique(expected)) > 10
    # As the graph is written, and in integer kernels, which may not read the added channels otherwise than as zeros.
    np.testing.assert_array_equal(outputs(after, feed, optimized=False), expected)
    np.testing.assert_array_equal(outputs(after, feed, optimized=True), outputs(before, feed, optimized=True))
    np.testing.assert_array_equal(outputs(after, feed, optimized=True), expected)


@pytest.mark.parametrize("text", [PLANAR, CHANNELS_LAST], ids=["planar", "channels last"])
def test_the_kernel_stays_an_integer_one_and_reads_full_groups(text: str) -> None:
    before = build(text, channels=3)
    after = padded(before, 4)
    plain = read_kernels(serialized(before)).counts()
    counts = read_kernels(serialized(after)).counts()
    assert plain["QLinearConv"] == counts["QLinearConv"] == 1
    assert "Conv" not in counts
    # Where the engine has taken a Transpose away, it still does.
    assert counts["Transpose"] == plain["Transpose"]
    assert counts["QuantizeLinear"] == counts["DequantizeLinear"] == 1
    out, channels, *kernel = conv_of(after).inputs[1].shape
    assert (out, channels * math.prod(kernel) % 4) == (5, 0)


def test_the_batch_may_stay_open() -> None:
    before = build(PLANAR, channels=3, batch="b")
    after = padded(before, 4)
    for batch in (1, 3):
        feed = image(before, batch)
        assert next(iter(feed.values())).shape == (batch, 3, 11, 13)
        found = outputs(after, feed, optimized=True)
        np.testing.assert_array_equal(found, outputs(before, feed, optimized=True))
        assert len(found) == batch


def test_another_reader_of_the_image_still_gets_the_image() -> None:
    text = PLANAR.replace("=> (float[N,5,H,W] y)", "=> (float[N,5,H,W] y, float[N,C,11,13] s)").replace(
        "c = Conv", "s = Sigmoid(d)\n    c = Conv"
    )
    before = build(text, channels=3)
    after = padded(before, 4)
    feed = image(before)
    plain, changed = (
        open_session(serialized(model), threads=1, optimized=False).run(feed) for model in (before, after)
    )
    assert changed[1].shape == (1, 3, 11, 13)
    np.testing.assert_array_equal(changed[1], plain[1])
    np.testing.assert_array_equal(changed[0], plain[0])
