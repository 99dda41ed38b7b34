"""Each pass of `clean`: what it rewrites, what it refuses, and that the numbers stay the same in ONNX Runtime."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from lowbit.graph import (
    CleanResult,
    clean,
    digest,
    infer_shapes,
    load_model,
    operators,
    opset_of,
    raise_opset,
    serialize,
)


def parse(body: str, opset: int = 17, ir_version: int = 8, **weights: Any) -> ir.Model:
    """A model from ONNX text, with float32 initializers given as arrays."""
    proto = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}]> {body}')
    for name, array in weights.items():
        array = np.asarray(array)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return load_model(proto)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def cleaned(model: ir.Model, **feeds: np.ndarray) -> CleanResult:
    """Clean and check what must hold for every graph: same outputs, argument untouched, same bytes twice, fixpoint."""
    before = digest(model)
    result = clean(model)
    assert digest(model) == before
    assert serialize(clean(model).model) == serialize(result.model)
    again = clean(result.model)
    assert digest(again.model) == digest(result.model)
    onnx.checker.check_model(onnx.ModelProto.FromString(serialize(result.model)), full_check=True)
    assert [v.name for v in result.model.graph.inputs] == [v.name for v in model.graph.inputs if not v.is_initializer()]
    assert [v.name for v in result.model.graph.outputs] == [v.name for v in model.graph.outputs]
    for expected, got in zip(run(model, feeds), run(result.model, feeds), strict=True):
        assert expected.dtype == got.dtype
        # Folding a scale into a weight rounds each product once more: a few units of float32 in the last place.
        np.testing.assert_allclose(
            got, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(expected).max(initial=0)))
        )
    return result


def count(model: ir.Model) -> dict[str, int]:
    return dict(Counter(node.op_type for _, node in operators(model)))


def notes(result: CleanResult) -> str:
    return "\n".join(result.notes)


CONV = "g (float[n, 3, 8, 8] x) => (float[n, c, h, w_] y)"
BN = {"gamma": noise(4, seed=1), "beta": noise(4, seed=2), "mean": noise(4, seed=3), "var": noise(4, seed=4) ** 2 + 0.1}


class TestAffine:
    @pytest.mark.parametrize("bias", [False, True])
    def test_batch_norm_after_conv(self, bias: bool) -> None:
        conv = "Conv(x, w, b)" if bias else "Conv(x, w)"
        weights = {"w": noise(4, 3, 3, 3), **BN} | ({"b": noise(4)} if bias else {})
        result = cleaned(
            parse(f"{CONV} {{ t = {conv} y = BatchNormalization(t, gamma, beta, mean, var) }}", **weights),
            x=noise(2, 3, 8, 8),
        )
        assert count(result.model) == {"Conv": 1}
        assert set(result.model.graph.initializers) == ({"w", "b"} if bias else {"w", "w_bias"})
        assert "1 BatchNormalization node folded into Conv" in result.notes

    @pytest.mark.parametrize("group", [1, 2])
    def test_batch_norm_after_conv_transpose(self, group: int) -> None:
        body = f"""g (float[n, 6, 5, 5] x) => (float[n, c, h, w_] y) {{
            t = ConvTranspose <group = {group}> (x, w, b)
            y = BatchNormalization <epsilon = 0.01> (t, gamma, beta, mean, var) }}"""
        result = cleaned(parse(body, w=noise(6, 4 // group, 3, 3), b=noise(4), **BN), x=noise(2, 6, 5, 5))
        assert count(result.model) == {"ConvTranspose": 1}

    @pytest.mark.parametrize("transposed", [0, 1])
    @pytest.mark.parametrize("bias", ["", ", c"])
    def test_batch_norm_after_gemm(self, transposed: int, bias: str) -> None:
        weights = {"w": noise(4, 6) if transposed else noise(6, 4), **BN} | ({"c": noise(1, 4)} if bias else {})
        result = cleaned(
            parse(
                f"g (float[n, 6] x) => (float[n, 4] y) {{ t = Gemm <transB = {transposed}, alpha = 0.5, beta = 3.0>"
                f"(x, w{bias}) y = BatchNormalization(t, gamma, beta, mean, var) }}",
                **weights,
            ),
            x=noise(5, 6),
        )
        assert count(result.model) == {"Gemm": 1}

    @pytest.mark.parametrize(
        "tail",
        [
            "a = Mul(t, s) y = Add(a, o)",
            "a = Add(o, t) y = Mul(s, a)",
            "a = Div(t, s) y = Sub(a, o)",
            "a = Mul(t, scalar) y = BatchNormalization(a, gamma, beta, mean, var)",
            "a = Mul(t, one) y = Add(a, vector)",
        ],
    )
    def test_chains_of_scales_and_shifts(self, tail: str) -> None:
        weights = {
            "w": noise(4, 3, 1, 1),
            "s": noise(1, 4, 1, 1, seed=5) + 3,
            "o": noise(4, 1, 1, seed=6),
            "scalar": np.float32(0.7),
            "one": np.full((1, 1, 1, 1), 1.5),
            "vector": noise(1, 4, 1, 1, seed=7),
            **BN,
        }
        used = {name: value for name, value in weights.items() if re.search(rf"\b{name}\b", tail) or name == "w"}
        result = cleaned(parse(f"{CONV} {{ t = Conv(x, w) {tail} }}", **used), x=noise(1, 3, 8, 8))
        assert count(result.model) == {"Conv": 1}
        assert set(result.model.graph.initializers) == {"w", "w_bias"}

    def test_shared_weight_is_left(self) -> None:
        body = "{ a = Conv(x, w) b = Conv(x, w) c = BatchNormalization(a, gamma, beta, mean, var) y = Add(c, b) }"
        result = cleaned(parse(f"{CONV} {body}", w=noise(4, 3, 3, 3), **BN), x=noise(1, 3, 8, 8))
        assert count(result.model) == {"Conv": 2, "BatchNormalization": 1, "Add": 1}
        assert "is shared" in notes(result)

    def test_shared_bias_is_split(self) -> None:
        body = "{ a = Conv(x, w, b) c = BatchNormalization(a, gamma, beta, mean, var) d = Conv(x, v, b) y = Add(c, d) }"
        result = cleaned(
            parse(f"{CONV} {body}", w=noise(4, 3, 3, 3), v=noise(4, 3, 3, 3, seed=9), b=noise(4), **BN),
            x=noise(1, 3, 8, 8),
        )
        assert count(result.model) == {"Conv": 2, "Add": 1}
        assert set(result.model.graph.initializers) == {"w", "v", "b", "w_bias"}

    def test_result_used_elsewhere(self) -> None:
        body = "{ t = Conv(x, w) c = BatchNormalization(t, gamma, beta, mean, var) y = Add(c, t) }"
        result = cleaned(parse(f"{CONV} {body}", w=noise(4, 3, 3, 3), **BN), x=noise(1, 3, 8, 8))
        assert count(result.model)["BatchNormalization"] == 1
        assert "is used elsewhere too" in notes(result)

    def test_graph_output_in_between(self) -> None:
        body = "(float[n, 3, 8, 8] x) => (float[n, c, h, w_] t, float[n, c, h, w_] y)"
        result = cleaned(
            parse(
                f"g {body} {{ t = Conv(x, w) y = BatchNormalization(t, gamma, beta, mean, var) }}",
                w=noise(4, 3, 3, 3),
                **BN,
            ),
            x=noise(1, 3, 8, 8),
        )
        assert count(result.model) == {"Conv": 1, "BatchNormalization": 1}

    @pytest.mark.parametrize(
        ("header", "body", "feeds"),
        [
            ("float[1, 4, 1, 1] s", "t = Conv(x, w) y = Mul(t, s)", {"s": noise(1, 4, 1, 1)}),
            ("float[4, 3, 1, 1] w2", "t = Conv(x, w2) y = Mul(t, k)", {"w2": noise(4, 3, 1, 1)}),
            ("float[1] z", "t = Conv(x, w) y = Mul(t, k8)", {"z": noise(1)}),
            ("float[1] z", "t = Conv(x, w) y = Add(t, k5)", {"z": noise(1)}),
        ],
    )
    def test_operands_that_do_not_fold(self, header: str, body: str, feeds: dict[str, np.ndarray]) -> None:
        """Not constant, or not one number per channel: along the width, or of a higher rank."""
        text = f"g (float[n, 3, 8, 8] x, {header}) => (float y) {{ {body} }}"
        text = text.replace("(float y)", "(float[a, n, c, h, w_] y)" if "k5" in body else "(float[n, c, h, w_] y)")
        constants = {"w": noise(4, 3, 1, 1), "k": noise(1, 4, 1, 1), "k8": noise(8), "k5": noise(2, 1, 4, 1, 1)}
        model = parse(text, **{name: array for name, array in constants.items() if f"{name})" in body})
        result = cleaned(model, x=noise(1, 3, 8, 8), **feeds)
        assert count(result.model) == count(model)

    def test_batch_norm_alone_and_in_training_mode(self) -> None:
        alone = parse(
            "g (float[n, 4] x) => (float[n, 4] y) { y = BatchNormalization(x, gamma, beta, mean, var) }", **BN
        )
        assert count(cleaned(alone, x=noise(3, 4)).model) == {"BatchNormalization": 1}
        training = parse(
            f"{CONV} {{ t = Conv(x, w) y, m, v = BatchNormalization <training_mode = 1> (t, gamma, beta, mean, var) }}",
            w=noise(4, 3, 3, 3),
            **BN,
        )
        result = clean(training)
        assert count(result.model)["BatchNormalization"] == 1
        assert "training mode" in notes(result)

    def test_not_finite(self) -> None:
        model = parse(
            f"{CONV} {{ t = Conv(x, w) y = BatchNormalization(t, gamma, beta, mean, var) }}",
            w=noise(4, 3, 3, 3),
            **{**BN, "var": np.array([-1.0, 1, 1, 1])},
        )
        result = clean(model)
        assert count(result.model) == {"Conv": 1, "BatchNormalization": 1}
        assert "not finite" in notes(result)

    def test_half_precision(self) -> None:
        half = {name: array.astype(np.float16) for name, array in BN.items()}
        model = parse(
            "g (float16[n, 3, 8, 8] x) => (float16[n, c, h, w_] y)"
            "{ t = Conv(x, w) y = BatchNormalization(t, gamma, beta, mean, var) }",
            w=noise(4, 3, 3, 3).astype(np.float16),
            **half,
        )
        weight = clean(model).model.graph.initializers["w"].const_value
        assert weight is not None
        assert weight.dtype == ir.DataType.FLOAT16

    def test_matmul_keeps_its_add(self) -> None:
        body = "g (float[n, 5, 4] x) => (float[n, 5, 3] y) { t = MatMul(x, w) y = Add(t, b) }"
        result = cleaned(parse(body, w=noise(4, 3), b=noise(3)), x=noise(2, 5, 4))
        assert count(result.model) == {"MatMul": 1, "Add": 1}


class TestPadding:
    def conv(self, pad: str, conv: str = "Conv(t, w)", **weights: Any) -> CleanResult:
        body = f"{CONV} {{ t = {pad} y = {conv} }}"
        return cleaned(parse(body, **{"w": noise(4, 3, 3, 3), **weights}), x=noise(1, 3, 8, 8))

    def test_merged_with_the_pads_of_the_conv(self) -> None:
        pads = np.array([0, 0, 1, 0, 0, 0, 2, 3])
        result = self.conv("Pad(x, p)", "Conv <pads = [1, 1, 0, 0]> (t, w)", p=pads)
        assert count(result.model) == {"Conv": 1}
        assert list(result.model.graph[0].attributes["pads"].as_ints()) == [2, 1, 2, 3]
        assert "1 Pad node merged into Conv" in result.notes

    def test_explicit_zero_axes_and_valid(self) -> None:
        weights = {"p": np.array([1, 2]), "a": np.array([-1]), "z": np.float32(0)}
        body = f'{CONV} {{ t = Pad(x, p, z, a) y = Conv <auto_pad = "VALID"> (t, w) }}'
        result = cleaned(parse(body, opset=18, w=noise(4, 3, 3, 3), **weights), x=noise(1, 3, 8, 8))
        assert list(result.model.graph[0].attributes["pads"].as_ints()) == [0, 1, 0, 2]

    @pytest.mark.parametrize(
        ("pad", "conv", "pads", "reason"),
        [
            ('Pad <mode = "reflect"> (x, p)', "Conv(t, w)", [0, 0, 1, 1, 0, 0, 1, 1], "mode is reflect"),
            ("Pad(x, p, one)", "Conv(t, w)", [0, 0, 1, 1, 0, 0, 1, 1], "constant zero"),
            ("Pad(x, p)", "Conv(t, w)", [0, 0, -1, 0, 0, 0, 0, 0], "negative"),
            ("Pad(x, p)", "Conv(t, w)", [1, 0, 0, 0, 0, 0, 0, 0], "batch"),
            ("Pad(x, p)", 'Conv <auto_pad = "SAME_UPPER"> (t, w)', [0, 0, 1, 1, 0, 0, 1, 1], "SAME_UPPER"),
        ],
    )
    def test_refusals(self, pad: str, conv: str, pads: list[int], reason: str) -> None:
        extra = {"one": np.float32(1)} if "one" in pad else {}
        result = self.conv(pad, conv, p=np.array(pads), **extra)
        assert count(result.model) == {"Pad": 1, "Conv": 1}
        assert reason in notes(result)

    def test_another_reader_keeps_it(self) -> None:
        pool = "MaxPool <kernel_shape = [3, 3]> (t)"
        body = f"{CONV} {{ t = Pad(x, p) a = Conv(t, w) b = {pool} y = Concat <axis = 1> (a, b) }}"
        model = parse(body, w=noise(4, 3, 3, 3), p=np.array([0, 0, 1, 1, 0, 0, 1, 1]))
        result = cleaned(model, x=noise(1, 3, 8, 8))
        assert count(result.model) == count(model)
        assert "MaxPool" in notes(result)


class TestConstants:
    def test_constant_nodes_become_initializers_under_their_names(self) -> None:
        body = """g (float[n, 2] x) => (float[n, 2] y) {
            w = Constant <value = float[2, 2] {1, 2, 3, 4}> ()
            b = Constant <value_floats = [0.5, 0.25]> ()
            s = Constant <value_float = 2.0> ()
            t = MatMul(x, w)
            u = Add(t, b)
            y = Mul(u, s)
        }"""
        result = cleaned(parse(body), x=noise(3, 2))
        assert list(result.model.graph.initializers) == ["w", "b", "s"]
        assert "3 Constant nodes became initializers" in result.notes

    def test_returned_constant_stays(self) -> None:
        body = (
            "g (float[2] x) => (float[2] y, float[2] k) { k = Constant <value_floats = [1.0, 2.0]> () y = Add(x, k) }"
        )
        result = cleaned(parse(body), x=noise(2))
        assert count(result.model) == {"Constant": 1, "Add": 1}

    def test_transposed_weight_is_folded_at_any_size(self) -> None:
        body = "g (float[n, 300] x) => (float[n, 300] y) { t = Transpose <perm = [1, 0]> (w) y = MatMul(x, t) }"
        result = cleaned(parse(body, w=noise(300, 300)), x=noise(2, 300))
        assert count(result.model) == {"MatMul": 1}
        assert list(result.model.graph.initializers) == ["t"]

    def test_tied_weight_stays_one(self) -> None:
        body = """g (int64[n] i) => (float[n, 300] y) {
            e = Gather(w, i) t = Transpose <perm = [1, 0]> (w) y = MatMul(e, t) }"""
        result = cleaned(parse(body, w=noise(300, 300)), i=np.array([3, 7]))
        assert list(result.model.graph.initializers) == ["w"]
        assert count(result.model)["Transpose"] == 1

    def test_large_results_are_not_stored(self) -> None:
        body = """g (float[1000, 1000] x) => (float[1000, 1000] y) {
            a = ConstantOfShape <value = float[1] {2.0}> (big)
            b = Expand(one, big)
            c = Add(a, b)
            y = Add(x, c) }"""
        result = cleaned(parse(body, big=np.array([1000, 1000]), one=np.ones((1, 1))), x=noise(1000, 1000))
        assert len(serialize(result.model)) < 10_000

    def test_quantized_parts_are_left(self) -> None:
        body = "g (float[n, 2] x) => (float[n, 2] y) { w = DequantizeLinear(q, s, z) y = MatMul(x, w) }"
        quantized = {"q": np.array([[1, 2], [3, 4]], dtype=np.int8), "s": np.float32(0.5), "z": np.int8(1)}
        assert count(cleaned(parse(body, **quantized), x=noise(3, 2)).model) == {"DequantizeLinear": 1, "MatMul": 1}

    def test_random_is_not_constant(self) -> None:
        body = "g (float[2] x) => (float[2] y) { r = RandomUniformLike(k) y = Add(x, r) }"
        assert count(clean(parse(body, k=np.ones(2))).model) == {"RandomUniformLike": 1, "Add": 1}

    def test_unused_and_chained(self) -> None:
        body = """g (float[2] x) => (float[2] y) {
            a = Add(k, k) b = Sqrt(a) c = Cast <to = 7> (b) d = Cast <to = 1> (c) u = Exp(x) y = Mul(x, d) }"""
        result = cleaned(parse(body, k=np.array([8.0, 2.0]), unused=noise(9)), x=noise(2))
        assert count(result.model) == {"Mul": 1}
        assert list(result.model.graph.initializers) == ["d"]

    def test_initializers_listed_as_inputs(self) -> None:
        proto = onnx.parser.parse_model(
            '<ir_version: 3, opset_import: ["": 13]>'
            "g (float[n, 2] x, float[2, 2] w) => (float[n, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }"
        )
        result = cleaned(load_model(proto), x=noise(3, 2))
        assert result.model.ir_version >= 7
        assert "1 initializer no longer listed as graph inputs" in result.notes

    def test_optional_input_stays_an_input(self) -> None:
        body = """g (float[2] x, float[2] s) => (float[2] y)
            <float[2] s = {1, 1}, float[2] k = {2, 2}> { t = Mul(s, k) y = Mul(x, t) }"""
        model = load_model(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {body}'))
        result = clean(model)
        assert [value.name for value in result.model.graph.inputs] == ["x", "s"]
        feeds = {"x": noise(2), "s": np.array([3, 4], dtype=np.float32)}
        np.testing.assert_array_equal(run(result.model, feeds)[0], run(model, feeds)[0])


class TestDimensions:
    def test_paddings_computed_from_static_dimensions(self) -> None:
        """What TensorFlow's converter writes: the batch is symbolic, the pads depend on height and width only."""
        body = f"""{CONV} {{
            s = Shape(x)
            h = Gather(s, two) w2 = Gather(s, three)
            ph = Sub(nine, h) pw = Sub(nine, w2)
            ph1 = Unsqueeze(ph, axis) pw1 = Unsqueeze(pw, axis)
            zero4 = ConstantOfShape <value = int64[1] {{0}}> (four)
            p = Concat <axis = 0> (zero4, zz, ph1, pw1)
            t = Pad(x, p)
            y = Conv <strides = [2, 2]> (t, w)
        }}"""
        integers = {"two": 2, "three": 3, "nine": 9}
        weights = {name: np.array(value) for name, value in integers.items()}
        model = parse(body, axis=np.array([0]), four=np.array([4]), zz=np.array([0, 0]), w=noise(4, 3, 3, 3), **weights)
        result = cleaned(model, x=noise(2, 3, 8, 8))
        assert count(result.model) == {"Conv": 1}
        assert list(result.model.graph[0].attributes["pads"].as_ints()) == [0, 0, 1, 1]

    FLATTEN = """ s = Shape(x) n0 = Slice(s, zero, one) d = Slice(s, one, four)
        p = Gather(d, zero) q = Gather(d, one) r = Gather(d, two) pq = Mul(p, q) m = Mul(pq, r)
        t = Concat <axis = 0> (n0, LAST) y = Reshape(x, t) }"""

    @pytest.mark.parametrize(
        ("batch", "last", "target"),
        [("n", "minus", [0, -1]), ("n", "m", [0, 192]), ("?", "m", [-1, 192])],
    )
    def test_flatten_by_shape_arithmetic(self, batch: str, last: str, target: list[int]) -> None:
        """The batch is copied where its name proves it; the name "?" proves nothing."""
        numbers = {"zero": [0], "one": [1], "two": [2], "four": [4], "minus": [-1]}
        body = "g (float[n, 3, 8, 8] x) => (float[a, b] y) {" + self.FLATTEN.replace("LAST", last)
        model = parse(body, **{name: np.array(number) for name, number in numbers.items()})
        model.graph.inputs[0].shape = ir.Shape([batch, 3, 8, 8])
        result = cleaned(model, x=noise(2, 3, 8, 8))
        assert count(result.model) == {"Reshape": 1}
        (shape,) = result.model.graph.initializers.values()
        assert shape.const_value is not None
        assert shape.const_value.numpy().tolist() == target

    def test_two_unknown_dimensions_stay_computed(self) -> None:
        body = """g (float[n, 3, h, w] x) => (float[a, b, c] y) {
            s = Shape(x) t = Gather(s, k) u = Add(t, z) y = Reshape(x, u) }"""
        result = cleaned(parse(body, k=np.array([2, 1, 3]), z=np.array([0, 0, 0])), x=noise(1, 3, 4, 5))
        assert count(result.model)["Shape"] == 1

    def test_division_truncates_and_slices_reverse(self) -> None:
        body = """g (float[n, 7] x) => (int64[4] y) {
            s = Shape <start = 1> (x) a = Mul(s, minus) b = Div(a, two) c = Concat <axis = 0> (s, b, a, two)
            d = Slice(c, begin, end, zero, minus) y = Identity(d) }"""
        numbers = {"minus": [-1], "two": [2], "begin": [-1], "end": [-(2**63) + 1], "zero": [0]}
        result = cleaned(parse(body, **{n: np.array(v) for n, v in numbers.items()}), x=noise(2, 7))
        assert run(result.model, {"x": noise(2, 7)})[0].tolist() == [2, -7, -3, 7]

    def test_wrong_shape_hints_of_the_exporter_change_nothing(self) -> None:
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]>'
            "g (float[n, 4] x) => (int64[2] y) { t = Relu(x) s = Shape(t) y = Identity(s) }"
        )
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, [1, 4]))
        result = cleaned(load_model(proto), x=noise(5, 4))
        assert run(result.model, {"x": noise(5, 4)})[0].tolist() == [5, 4]


class TestIdentities:
    @pytest.mark.parametrize(
        "node",
        [
            "Identity(t)",
            "Dropout(t)",
            "Dropout(t, ratio, no)",
            "Cast <to = 1> (t)",
            "Mul(t, one)",
            "Mul(one, t)",
            "Add(t, zero)",
            "Sub(t, zero)",
            "Div(t, one)",
            "Concat <axis = 0> (t)",
            "Transpose <perm = [0, 1]> (t)",
            "Pad(t, pads)",
        ],
    )
    @pytest.mark.parametrize("tail", ["y = Neg(u)", "y = Identity(u)"])
    def test_removed(self, node: str, tail: str) -> None:
        values = {
            "ratio": np.float32(0.5),
            "no": np.array(False),
            "one": np.ones((1, 1)),
            "zero": np.zeros(3),
            "pads": np.zeros(4, dtype=np.int64),
        }
        used = {name: value for name, value in values.items() if name in node}
        result = cleaned(
            parse(f"g (float[2, 3] x) => (float[2, 3] y) {{ t = Relu(x) u = {node} {tail} }}", **used), x=noise(2, 3)
        )
        assert count(result.model) == ({"Relu": 1, "Neg": 1} if "Neg" in tail else {"Relu": 1})

    @pytest.mark.parametrize(
        "node",
        [
            "Mul(x, two)",
            "Add(x, wide)",
            "Sub(zero, x)",
            "Cast <to = 10> (x)",
            "Concat <axis = 0> (x, x)",
            "Transpose(x)",
        ],
    )
    def test_kept(self, node: str) -> None:
        values = {"two": np.float32(2), "wide": np.zeros((4, 1, 1)), "zero": np.float32(0)}
        used = {name: value for name, value in values.items() if name in node}
        kind = "float16" if "Cast" in node else "float"
        shape = "[a, b, c]" if "wide" in node else "[a, b]"
        model = parse(f"g (float[2, 3] x) => ({kind}{shape} y) {{ y = {node} }}", **used)
        assert count(cleaned(model, x=noise(2, 3)).model) == count(model)

    def test_a_cast_to_the_type_that_a_tensor_has_goes(self) -> None:
        """PyTorch's attention writes one that the types of its inputs make pointless."""
        text = "g (float[2] x) => (float[2] y) { t = Relu (x) c = CastLike (w, t) y = Mul (t, c) }"
        assert count(cleaned(parse(text, w=noise(2)), x=noise(2)).model) == {"Relu": 1, "Mul": 1}
        text = "g (float[2] x) => (int64[2] y) { t = Relu (x) y = CastLike (t, whole) }"
        kept = cleaned(parse(text, whole=np.zeros(1, np.int64)), x=noise(2)).model
        assert count(kept) == {"Relu": 1, "CastLike": 1}

    def test_link_between_input_and_output_stays(self) -> None:
        result = cleaned(parse("g (float[2] x) => (float[2] y) { y = Identity(x) }"), x=noise(2))
        assert count(result.model) == {"Identity": 1}

    def test_two_outputs_of_one_value(self) -> None:
        text = "g (float[2] x) => (float[2] y, float[2] z) { t = Relu(x) y = Identity(t) z = Identity(t) }"
        result = cleaned(parse(text), x=noise(2))
        assert count(result.model) == {"Relu": 1, "Identity": 1}

    def test_inverse_transposes(self) -> None:
        text = """g (float[2, 3, 4, 5] x) => (float[2, 3, 4, 5] y) {
            a = Transpose <perm = [0, 2, 3, 1]> (x) b = Transpose <perm = [0, 3, 1, 2]> (a) y = Relu(b) }"""
        result = cleaned(parse(text), x=noise(2, 3, 4, 5))
        assert count(result.model) == {"Relu": 1}
        assert "1 pair of inverse Transpose nodes cancelled" in result.notes

    def test_other_transposes(self) -> None:
        text = """g (float[2, 3, 4, 5] x) => (float[a, b, c, d] y) {
            a1 = Transpose <perm = [0, 2, 3, 1]> (x) b1 = Transpose <perm = [0, 2, 3, 1]> (a1) y = Relu(b1) }"""
        assert count(cleaned(parse(text), x=noise(2, 3, 4, 5)).model) == {"Transpose": 2, "Relu": 1}


class TestActivations:
    def result(self, body: str) -> CleanResult:
        values = {"zero": np.float32(0), "six": np.float32(6), "one": np.float32(1), "minus": np.float32(-1)}
        used = {name: value for name, value in values.items() if f"{name})" in body or f"{name}," in body}
        return cleaned(parse(f"g (float[2, 30] x) => (float[2, 30] y) {{ {body} }}", **used), x=5 * noise(2, 30))

    @pytest.mark.parametrize(
        ("body", "left"),
        [
            ("t = Relu(x) y = Relu(t)", {"Relu": 1}),
            ("t = Relu(x) y = Clip(t, zero, six)", {"Clip": 1}),
            ("t = Relu(x) y = Clip(t, one, six)", {"Clip": 1}),
            ("t = Relu(x) y = Clip(t, , six)", {"Clip": 1}),
            ("t = Relu(x) y = Clip(t, minus, six)", {"Clip": 1}),
            ("t = Clip(x, zero, six) y = Relu(t)", {"Clip": 1}),
            ("t = Clip(x, zero, one) y = Clip(t, minus, six)", {"Clip": 1}),
            ("t = Clip(x, minus, six) y = Relu(t)", {"Clip": 1, "Relu": 1}),
            ("t = Relu(x) u = Clip(t, zero, six) y = Add(t, u)", {"Relu": 1, "Clip": 1, "Add": 1}),
            ("t = Clip(x, minus, six) y = Clip(t, zero, one)", {"Clip": 2}),
        ],
    )
    def test_chains(self, body: str, left: dict[str, int]) -> None:
        assert count(self.result(body).model) == left

    def test_clip_with_attributes(self) -> None:
        model = parse("g (float[9] x) => (float[9] y) { t = Relu(x) y = Clip <min = 0.0, max = 6.0> (t) }", opset=10)
        result = cleaned(model, x=5 * noise(9))
        assert count(result.model) == {"Clip": 1}
        assert opset_of(result.model) == 13

    @pytest.mark.parametrize(
        "body",
        [
            "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
            "a = Add(three, x) c = Clip(a, zero, six) m = Mul(c, x) y = Mul(m, sixth)",
            "a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(x, d)",
        ],
    )
    def test_hard_swish(self, body: str) -> None:
        values = {"zero": np.float32(0), "six": np.float32(6), "three": np.float32(3), "sixth": np.float32(1 / 6)}
        used = {name: value for name, value in values.items() if re.search(rf"\b{name}\b", body)}
        result = cleaned(parse(f"g (float[2, 30] x) => (float[2, 30] y) {{ {body} }}", **used), x=5 * noise(2, 30))
        assert count(result.model) == {"HardSigmoid": 1, "Mul": 1}

    @pytest.mark.parametrize(
        "body",
        [
            "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, three)",
            "a = Add(x, three) c = Clip(a, three, six) m = Mul(x, c) y = Div(m, six)",
            "a = Add(x, three) c = Clip(a, zero, six) m = Mul(a, c) y = Div(m, six)",
            "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) d = Div(m, six) y = Add(d, c)",
            "a = Add(x, x) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
        ],
    )
    def test_not_a_hard_swish(self, body: str) -> None:
        values = {"zero": np.float32(0), "six": np.float32(6), "three": np.float32(3)}
        used = {name: value for name, value in values.items() if name in body}
        model = parse(f"g (float[2, 30] x) => (float[2, 30] y) {{ {body} }}", **used)
        assert count(cleaned(model, x=5 * noise(2, 30)).model) == count(model)


class TestSubgraphs:
    BRANCHES = """y = If (c) <
        then_branch = t () => (float[2] a) {
            k = Constant <value_floats = [1.0, 2.0]> () r = Add(x, k) a = Identity(r) },
        else_branch = e () => (float[2] b) {
            k = Constant <value_floats = [3.0, 4.0]> () r = Mul(x, k) b = Identity(r) }
    >"""

    @pytest.mark.parametrize("taken", [True, False])
    def test_constant_condition(self, taken: bool) -> None:
        result = cleaned(parse(f"g (float[2] x) => (float[2] y) {{ {self.BRANCHES} }}", c=np.array(taken)), x=noise(2))
        assert count(result.model) == ({"Add": 1} if taken else {"Mul": 1})
        assert "1 If node with a constant condition inlined" in result.notes

    def test_open_condition_is_cleaned_inside(self) -> None:
        model = parse(f"g (bool c, float[2] x) => (float[2] y) {{ {self.BRANCHES} }}")
        for choice in (True, False):
            result = cleaned(model, x=noise(2), c=np.array(choice))
        assert count(result.model) == {"If": 1, "Add": 1, "Mul": 1}
        paths = [path for path, _ in operators(result.model)]
        assert paths == ["If_0", "If_0/then_branch/Add_0", "If_0/else_branch/Mul_0"]

    def test_sibling_branches_with_the_same_names(self) -> None:
        second = self.BRANCHES.replace("y = If (c)", "z = If (c)").replace("then_branch = t", "then_branch = t2")
        body = f"g (float[2] x) => (float[2] y, float[2] z) {{ {self.BRANCHES} {second} }}"
        result = cleaned(parse(body, c=np.array(True)), x=noise(2))
        assert count(result.model) == {"Add": 2}

    def test_branch_that_returns_an_outer_value(self) -> None:
        body = """g (float[2] x) => (float[2] y) { y = If (c) <
            then_branch = t () => (float[2] a) { a = Identity(x) },
            else_branch = e () => (float[2] b) { b = Neg(x) }> }"""
        assert count(cleaned(parse(body, c=np.array(True)), x=noise(2)).model) == {"Identity": 1}

    def test_loop_body(self) -> None:
        body = """g (float[2] x) => (float[2] y) { y = Loop (m, t, x) <
            body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w) {
                d = Identity(c) k = Constant <value_floats = [1.5, 2.0]> ()
                k2 = Mul(k, k) u = Mul(v, k2) w = Identity(u) }> }"""
        result = cleaned(parse(body, m=np.array(3), t=np.array(True)), x=noise(2))
        assert count(result.model) == {"Loop": 1, "Identity": 1, "Mul": 1}

    def test_functions_are_inlined(self) -> None:
        text = """<ir_version: 8, opset_import: ["": 17, "local": 1]>
            g (float[2] x) => (float[2] y) { t = local.twice(x) y = local.twice(t) }
            <opset_import: ["": 17], domain: "local">
            twice (a) => (b) { k = Constant <value_float = 2.0> () b = Mul(a, k) }"""
        result = cleaned(load_model(onnx.parser.parse_model(text)), x=noise(2))
        assert count(result.model) == {"Mul": 2}
        assert "1 model-local function inlined" in result.notes


class TestNames:
    def test_missing_and_duplicate_names(self) -> None:
        model = parse("g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) c = Relu(b) y = Neg(c) }")
        for node, name in zip(model.graph, ["", "same", "Relu_0", "same"], strict=True):
            node.name = name
        result = clean(model)  # ONNX Runtime refuses the original
        run(result.model, {"x": noise(2)})
        assert [node.name for node in result.model.graph] == ["Relu_1", "same", "Relu_0", "Neg_0"]
        assert [value.name for node in result.model.graph for value in node.outputs] == ["a", "b", "c", "y"]

    def test_shapes_are_known_and_declared_output_names_stay(self) -> None:
        result = cleaned(
            parse("g (float[batch, 4] x) => (float[rows, 8] y) { t = MatMul(x, w) y = Relu(t) }", w=noise(4, 8)),
            x=noise(3, 4),
        )
        shapes = {value.name: str(value.shape) for node in result.model.graph for value in node.outputs}
        assert shapes == {"t": "[batch,8]", "y": "[rows,8]"}

    def test_infer_shapes_leaves_its_argument(self) -> None:
        model = parse("g (float[n, 4] x) => (float[a, b] y) { t = MatMul(x, w) y = Relu(t) }", w=noise(4, 8))
        assert str(infer_shapes(model).graph[0].outputs[0].shape) == "[n,8]"
        assert model.graph[0].outputs[0].shape is None


class TestOpset:
    def test_raised_only_when_needed(self) -> None:
        for opset, expected in ((7, 13), (11, 13), (13, 13), (17, 17), (21, 21)):
            result = cleaned(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=opset), x=noise(2))
            assert opset_of(result.model) == expected
            assert (f"opset {opset} raised to 13" in result.notes) == (opset < 13)
        assert opset_of(clean(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"), minimum_opset=21).model) == 21

    def test_ir_version_follows(self) -> None:
        model = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=11, ir_version=6)
        assert clean(model).model.ir_version == 7
        raised = raise_opset(model, 21)
        assert raised.ir_version == 10
        assert opset_of(model) == 11

    def test_changed_operators(self) -> None:
        """Axes became inputs in opset 13 and 18, and Softmax changed its meaning."""
        body = """g (float[2, 3, 4] x) => (float[2, 1, 4] y) {
            a = Softmax <axis = 2> (x) b = Unsqueeze <axes = [0]> (a) c = Squeeze <axes = [0]> (b)
            d = ReduceSum <axes = [1]> (c) y = ReduceMean <axes = [1]> (d) }"""
        model = parse(body, opset=11)
        result = cleaned(model, x=noise(2, 3, 4))
        assert count(result.model) == count(model)
        feeds = {"x": noise(2, 3, 4)}
        raised = raise_opset(result.model, 21)
        np.testing.assert_allclose(run(raised, feeds)[0], run(model, feeds)[0], rtol=1e-6)

    def test_large_weights_survive(self) -> None:
        model = parse(
            "g (float[n, 90] x) => (float[n, 90] y) { t = MatMul(x, w) y = Dropout <ratio = 0.3> (t) }",
            opset=11,
            w=noise(90, 90),
        )
        result = cleaned(model, x=noise(2, 90))
        assert list(result.model.graph.initializers) == ["w"]
        assert [value.name for value in result.model.graph.inputs] == ["x"]

    def test_other_domains_stay(self) -> None:
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 12, "com.microsoft": 1]>'
            "g (float[2, 4] x) => (float[2, 4] y) {"
            't = com.microsoft.FusedGemm <activation = "Relu"> (x, w) y = Relu(t) }'
        )
        proto.graph.initializer.append(onnx.numpy_helper.from_array(noise(4, 4), "w"))
        model = load_model(proto)
        result = clean(model)
        assert count(result.model)["FusedGemm"] == 1
        feeds = {"x": noise(2, 4)}
        np.testing.assert_allclose(run(result.model, feeds)[0], run(model, feeds)[0], rtol=1e-6)

    def test_conversion_that_fails_leaves_a_usable_model_and_a_note(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("no adapter for this")

        monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
        model = parse("g (float[2] x) => (float[2] y) { t = Identity(x) y = Relu(t) }", opset=11)
        result = clean(model)
        assert opset_of(result.model) == 11
        assert count(result.model) == {"Relu": 1}
        assert "opset 11 kept" in notes(result)
        assert "no adapter for this" in notes(result)


@pytest.mark.parametrize(
    ("sizes", "positions", "shapes"),
    [
        (np.array([1, 2, 4], np.int64), (0, 1, 2), (1, 2, 4)),
        (np.array([3, 4], np.int64), (-1, 0), (4, 3)),  # counted from the end
        (np.array(3, np.int64), (0, 2), (3, 1)),  # chunks: the last is shorter, one is not read
        (np.array(7, np.int64), (0, 0), (7, 7)),  # the same part twice
    ],
)
def test_parts_of_a_split_need_no_sequence(
    sizes: np.ndarray, positions: tuple[int, ...], shapes: tuple[int, ...]
) -> None:
    body = "s = SplitToSequence <axis = -1> (x, sizes)\n" + "\n".join(
        f"p{number} = SequenceAt (s, at{number}) y{number} = Relu (p{number})" for number in range(len(positions))
    )
    outputs = ", ".join(f"float[N, {size}] y{number}" for number, size in enumerate(shapes))
    places = {f"at{number}": np.array(position, np.int64) for number, position in enumerate(positions)}
    model = parse(f"net (float[N, 7] x) => ({outputs}) {{ {body} }}", sizes=sizes, **places)
    result = cleaned(model, x=noise(2, 7))
    assert Counter(node.op_type for node in result.model.graph) == Counter(["Split"] + ["Relu"] * len(positions))
    assert any("through a sequence" in note for note in result.notes)


def test_parts_of_a_split_that_the_graph_returns_keep_their_names() -> None:
    model = parse(
        "net (float[N, 4] x) => (float[N, 2] a, float[N, 2] b, float[N, 2] c) "
        "{ s = SplitToSequence <axis = 1> (x, sizes) a = SequenceAt (s, zero) b = SequenceAt (s, one) "
        "c = SequenceAt (s, one) }",
        sizes=np.array([2, 2], np.int64),
        zero=np.array(0, np.int64),
        one=np.array(1, np.int64),
    )
    result = cleaned(model, x=noise(3, 4))
    assert Counter(node.op_type for node in result.model.graph) == Counter(["Split", "Identity"])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("s = SplitToSequence <axis = 0> (x, two) y = SequenceAt (s, one)", "parts of an open axis"),
        ("s = SplitToSequence <axis = 1> (x, two) y = SequenceAt (s, i)", "a position that the run decides"),
        ("s = SplitToSequence <axis = 1> (x, two) y = ConcatFromSequence <axis = 0> (s)", "the whole sequence"),
    ],
)
def test_sequences_that_are_more_than_a_split_stay(body: str, reason: str) -> None:
    model = parse(
        f"net (float[N, 4] x, int64 i) => (float[M, K] y) {{ {body} }}",
        two=np.array(2, np.int64),
        one=np.array(1, np.int64),
    )
    result = cleaned(model, x=noise(4, 4), i=np.array(1, np.int64))
    assert any(node.op_type == "SplitToSequence" for node in result.model.graph), reason
