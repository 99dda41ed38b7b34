"""Computing in float16: it loads, agrees with float32, and the graph's interface stays float32."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from lowbit.graph import clean, load_model, serialize
from lowbit.graph.editor import Editor
from lowbit.graph.half import GUARDED, convert_to_half
from lowbit.runtime.session import open_session

NETWORK = """g (float[2,8,9,9] x, float[16,8,3,3] w, float[16] b, float[784,10] wm, float[10] bm)
    => (float[2,10] y, float[2,16,7,7] r) {
    c = Conv(x, w, b)
    r = Relu(c)
    s = Sigmoid(r)
    p = Mul(r, s)
    f = Flatten(p)
    g1 = Gemm(f, wm, bm)
    y = Softmax(g1)
}"""


def parse(text: str) -> onnx.ModelProto:
    """Return the model of a graph text; inputs called `w…` and `b…` become random weights and biases."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    generator = np.random.default_rng(0)
    for value in [value for value in proto.graph.input if value.name[0] in "wb"]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = generator.standard_normal(shape).astype(np.float32) * np.float32(0.2)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        proto.graph.input.remove(value)
    return proto


def sqnr(exact: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(exact).sum() / max(np.square(got - exact).sum(), 1e-30)))


def halved(proto: onnx.ModelProto, *, floats: frozenset[str] = GUARDED) -> ir.Model:
    model = clean(load_model(proto)).model
    convert_to_half(Editor(model), [node for node in model.graph if node.op_type not in floats], "float16")
    return model


def test_a_whole_network_agrees() -> None:
    proto = parse(NETWORK)
    model = halved(proto)
    data = serialize(model)
    artifact = onnx.load_from_string(data)
    onnx.checker.check_model(artifact, full_check=True)
    for side in ("input", "output"):
        assert list(getattr(artifact.graph, side)) == list(getattr(proto.graph, side))
    x = np.random.default_rng(1).standard_normal((2, 8, 9, 9)).astype(np.float32)
    exact = open_session(proto.SerializeToString(), threads=1).run({"x": x})
    for optimized in (True, False):
        got = open_session(data, threads=1, optimized=optimized).run({"x": x})
        assert [array.dtype for array in got] == [np.float32] * 2
        for one, two in zip(exact, got, strict=True):
            assert sqnr(one, two) > 50


def test_weights_are_stored_in_half() -> None:
    model = halved(parse(NETWORK))
    kinds = {value.name: value.dtype for value in model.graph.initializers.values() if value.uses()}
    assert kinds
    assert set(kinds.values()) <= {ir.DataType.FLOAT16, ir.DataType.INT64}
    assert sum(kind == ir.DataType.FLOAT16 for kind in kinds.values()) == 4


def test_what_is_guarded_computes_in_float() -> None:
    model = halved(parse(NETWORK))
    (softmax,) = (node for node in model.graph if node.op_type == "Softmax")
    assert softmax.inputs[0].dtype == ir.DataType.FLOAT
    producer = softmax.inputs[0].producer()
    assert producer is not None
    assert producer.op_type == "Cast"


def test_every_crossing_is_cast_once() -> None:
    proto = parse(
        "g (float[2,8] x) => (float[2,8] y, float[2,8] z) { a = Neg(x)\n b2 = Abs(x)\n e = Exp(a)\n l = Log(a)\n"
        " y = Add(e, b2)\n z = Add(l, b2) }"
    )
    model = halved(proto)
    casts = [node for node in model.graph if node.op_type == "Cast"]
    # x down once for two readers, a up once for two readers, e and l down, y and z up.
    assert len(casts) == 6
    x = np.random.default_rng(1).uniform(-2, -0.5, (2, 8)).astype(np.float32)
    exact = open_session(proto.SerializeToString(), threads=1).run({"x": x})
    got = open_session(serialize(model), threads=1).run({"x": x})
    assert min(sqnr(one, two) for one, two in zip(exact, got, strict=True)) > 50


@pytest.mark.parametrize("tensor", ["a", "y"])
def test_an_output_that_is_read_inside_too(tensor: str) -> None:
    outputs = "float[2,8] a, float[2,8] y" if tensor == "a" else "float[2,8] y"
    proto = parse(f"g (float[2,8] x) => ({outputs}) {{ a = Neg(x)\n y = Abs(a) }}")
    model = halved(proto)
    assert [value.name for value in model.graph.outputs] == [value.name for value in proto.graph.output]
    x = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    got = open_session(serialize(model), threads=1).run({"x": x})
    # The engine may leave out a pair of casts, so that less is lost than asked for.
    assert np.allclose(got[0], -x if tensor == "a" else np.abs(x), rtol=2**-11, atol=0)


def test_integers_are_left_alone() -> None:
    proto = parse(
        "g (float[2,8] x, int64[2] i) => (float[2,8] y) <int64[1] s = {1}> { u = Gather<axis=0>(x, i)\n"
        " k = Add(i, s)\n m = Sub(k, s)\n y = Gather<axis=0>(u, m) }"
    )
    model = halved(proto)
    feed = {"x": np.ones((2, 8), np.float32), "i": np.array([1, 0])}
    assert np.array_equal(open_session(serialize(model), threads=1).run(feed)[0], np.ones((2, 8), np.float32))
