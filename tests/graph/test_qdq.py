"""Q/DQ pairs: where they go, who reads them, what the graph's interface keeps, and what they compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from lowbit.formats import Parameters, choose_parameters, dequantize, parse_format, quantize
from lowbit.graph import load_model, serialize
from lowbit.graph.clean import infer_shapes
from lowbit.graph.editor import Editor
from lowbit.graph.qdq import absorb_activations, dequantized_bias, dequantized_weight, quantize_activation
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable

UINT8 = parse_format("uint8")
COARSE = Parameters(np.float32(0.5), np.uint8(128))


def graph_of(text: str) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    onnx.checker.check_model(proto)
    return infer_shapes(load_model(proto))


def value_of(model: ir.Model, name: str) -> ir.Value:
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return next(value for value in values if value.name == name)


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op_type)


def run(model: ir.Model, **feed: np.ndarray) -> list[np.ndarray]:
    onnx.checker.check_model(onnx.load_from_string(serialize(model)), full_check=True)
    return open_session(serialize(model), threads=1, optimized=False).run(feed)


def coarse(x: np.ndarray) -> np.ndarray:
    """What a scale of 0.5 leaves: halves, ties to even, from -64 to 63.5."""
    return (np.clip(np.rint(x / 0.5), -128, 127) * 0.5).astype(np.float32)


def everyone(node: ir.Node, index: int) -> bool:
    del node, index
    return True


X = np.array([[-70.3, -1.3, -0.25, 0.0, 0.3, 0.75, 2.2, 99.0]], np.float32)


def test_an_inner_tensor() -> None:
    model = graph_of("g (float[1,8] x) => (float[1,8] y) { t = Neg(x)\n y = Neg(t) }")
    decoded = quantize_activation(Editor(model), value_of(model, "t"), COARSE, UINT8, reads_codes=everyone)
    assert [node.op_type for node in model.graph] == ["Neg", "QuantizeLinear", "DequantizeLinear", "Neg"]
    assert [use.node.op_type for use in decoded.uses()] == ["Neg"]
    assert np.array_equal(run(model, x=X)[0], -coarse(-X))


def test_a_graph_input() -> None:
    model = graph_of("g (float[1,8] x) => (float[1,8] y) { t = Neg(x)\n y = Add(t, x) }")
    quantize_activation(Editor(model), value_of(model, "x"), COARSE, UINT8, reads_codes=everyone)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [node.op_type for node in model.graph][:2] == ["QuantizeLinear", "DequantizeLinear"]
    assert np.array_equal(run(model, x=X)[0], np.zeros_like(X))


@pytest.mark.parametrize("read_inside", [False, True])
def test_a_graph_output_keeps_its_name(read_inside: bool) -> None:
    tail = "\n z = Neg(y)" if read_inside else "\n z = Neg(x)"
    model = graph_of(f"g (float[1,8] x) => (float[1,8] y, float[1,8] z) {{ y = Neg(x){tail} }}")
    quantize_activation(Editor(model), value_of(model, "y"), COARSE, UINT8, reads_codes=everyone)
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    y, z = run(model, x=X)
    assert np.array_equal(y, coarse(-X))
    assert np.array_equal(z, -coarse(-X) if read_inside else -X)


def test_only_the_chosen_readers_read_codes() -> None:
    model = graph_of("g (float[1,8] x) => (float[1,8] y, float[1,8] z) { y = Neg(x)\n z = Abs(x) }")
    quantize_activation(
        Editor(model), value_of(model, "x"), COARSE, UINT8, reads_codes=lambda node, _: node.op_type == "Neg"
    )
    y, z = run(model, x=X)
    assert np.array_equal(y, -coarse(X))
    assert np.array_equal(z, np.abs(X))


def test_an_output_stays_float_if_some_reader_does() -> None:
    model = graph_of("g (float[1,8] x) => (float[1,8] y, float[1,8] z) { y = Neg(x)\n z = Abs(y) }")
    quantize_activation(Editor(model), value_of(model, "y"), COARSE, UINT8, reads_codes=lambda *_: False)
    assert np.array_equal(run(model, x=X)[0], -X)


def test_names_never_collide() -> None:
    model = graph_of(
        "g (float[1,8] x) => (float[1,8] y) { x_codes = Neg(x)\n x_scale = Abs(x_codes)\n y = Add(x, x_scale) }"
    )
    quantize_activation(Editor(model), value_of(model, "x"), COARSE, UINT8, reads_codes=everyone)
    names = [value.name for node in model.graph for value in node.outputs] + list(model.graph.initializers)
    assert len(set(names)) == len(names)
    assert np.array_equal(run(model, x=X)[0], coarse(X) + np.abs(coarse(X)))


@pytest.mark.parametrize("chain", [("Relu",), ("Relu", "Relu")])
@pytest.mark.parametrize("output", [False, True])
def test_absorbed_activations_leave_their_name_behind(chain: tuple[str, ...], output: bool) -> None:
    lines = ["c = Neg(x)"]
    previous = "c"
    for index, op_type in enumerate(chain):
        last = index == len(chain) - 1
        lines.append(f"{'r' if last else f't{index}'} = {op_type}({previous})")
        previous = f"t{index}"
    text = "\n ".join([*lines, "y = Abs(r)"])
    outputs = "float[1,8] y, float[1,8] r" if output else "float[1,8] y"
    model = graph_of(f"g (float[1,8] x) => ({outputs}) {{ {text} }}")
    absorb_activations(Editor(model), tuple(node for node in model.graph if node.op_type == "Relu"))
    assert [node.op_type for node in model.graph] == ["Neg", "Abs"]
    assert node_of(model, "Neg").outputs[0].name == "r"
    assert [value.name for value in model.graph.outputs] == (["y", "r"] if output else ["y"])
    assert np.array_equal(run(model, x=X)[0], np.abs(X))


@pytest.mark.parametrize(
    "text",
    [
        "int8",
        "int8:per-channel",
        "int8:per-channel:asymmetric",
        "uint8:per-channel",
        "int4:block=4",
        "uint4:block=4",
        "int4",
        "int16",
        "float8_e4m3",
    ],
)
def test_the_engine_decodes_weights_as_the_format_does(text: str) -> None:
    fmt = parse_format(text, channel_axis=1, block_axis=0)
    weight = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    parameters = parameters_for(weight, text)
    codes = quantize(weight, parameters, fmt)
    model = graph_of("g (float[8,6] x) => (float[8,6] y) { y = Add(x, x) }")
    node = node_of(model, "Add")
    decoded = dequantized_weight(Editor(model), node, "w", codes, parameters, fmt)
    node.replace_input_with(0, decoded)
    node.replace_input_with(1, value_of(model, "x"))
    (got,) = run(model, x=np.zeros((8, 6), np.float32))
    assert np.array_equal(got, dequantize(codes, parameters, fmt))


def parameters_for(weight: np.ndarray, text: str) -> Parameters:
    from lowbit.rounding import weight_range

    fmt = parse_format(text, channel_axis=1, block_axis=0)
    return choose_parameters(*weight_range(weight, fmt), fmt)


@pytest.mark.parametrize("scales", ["per-channel", "per-tensor"])
def test_biases_are_integers_at_the_scale_of_the_accumulator(scales: str) -> None:
    model = graph_of("g (float[1,4] x) => (float[1,4] y) { y = Add(x, x) }")
    node = node_of(model, "Add")
    bias = np.array([0.0, 1.0, -2.5, 1e9], np.float32)
    weight_scale = np.array([0.1, 0.2, 0.3, 0.4], np.float32) if scales == "per-channel" else np.float32(0.2)
    decoded = dequantized_bias(Editor(model), node, "b", bias, np.float32(0.05), weight_scale)
    node.replace_input_with(1, decoded)
    (got,) = run(model, x=np.zeros((1, 4), np.float32))
    scale = np.broadcast_to(np.float32(0.05) * weight_scale, bias.shape)
    assert np.abs(got[0, :3] - bias[:3]).max() <= scale.max() / 2 * 1.001
    # What does not fit into int32 saturates instead of wrapping around.
    assert got[0, 3] == pytest.approx(2**31 * scale[3], rel=1e-6)
    codes = model.graph.initializers["b_codes"].const_value
    assert codes.dtype == ir.DataType.INT32


def test_taking_over_keeps_outputs_and_names() -> None:
    model = graph_of("g (float[1,8] x) => (float[1,8] y, float[1,8] z) { y = Neg(x)\n z = Abs(y) }")
    editor = Editor(model)
    old = node_of(model, "Neg")
    new = editor.node("Abs", [value_of(model, "x")], name="Neg", outputs=["new"], dtypes=[ir.DataType.FLOAT])
    model.graph.insert_before(old, new)
    editor.take_over(old.outputs[0], new.outputs[0])
    editor.drop(old)
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    y, z = run(model, x=X)
    assert np.array_equal(y, np.abs(X))
    assert np.array_equal(z, np.abs(X))


def test_names_depend_on_the_calls_alone() -> None:
    def names(build: Callable[[Editor], None]) -> list[str]:
        model = graph_of("g (float[1,8] x) => (float[1,8] y) { y = Neg(x) }")
        build(Editor(model))
        return list(model.graph.initializers)

    def build(editor: Editor) -> None:
        for _ in range(3):
            editor.constant(editor.model.graph, "c", np.zeros(1, np.float32))
        editor.constant(editor.model.graph, "y", np.zeros(1, np.float32))

    assert names(build) == names(build) == ["c", "c_1", "c_2", "y_1"]
