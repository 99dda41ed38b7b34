"""Every operator on its own: LiteRT's kernels compute what the Q/DQ graph says, to one quantization step."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
import onnx
import pytest

import lowbit
from lowbit.runtime.litert_micro import run_micro_each
from lowbit.runtime.litert_session import litert_session

from .conftest import network, quantized


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One graph: its text, the shapes of its weights, and the kernels that it should become."""

    text: str
    kernels: tuple[str, ...]
    weights: dict[str, tuple[int, ...]] = field(default_factory=dict)
    opset: int = 17
    steps: int = 1


def picture(body: str, out: str, size: str = "1, 6, 9, 8") -> str:
    return f"net (float[{size}] x) => (float[{out}] y) {{ {body} }}"


CONV = {"w": (8, 6, 3, 3), "b": (8,)}
CASES = {
    "conv": Case(
        text=picture("y = Conv <pads = [1, 1, 1, 1]> (x, w, b)", "1, 8, 9, 8"), weights=CONV, kernels=("CONV_2D",)
    ),
    "conv, valid": Case(text=picture("y = Conv (x, w)", "1, 8, 7, 6"), weights=CONV, kernels=("CONV_2D",)),
    "conv, strides that SAME puts elsewhere": Case(
        text=picture("y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)", "1, 8, 5, 4"),
        weights=CONV,
        kernels=("PAD", "CONV_2D"),
    ),
    "conv, TensorFlow's padding": Case(
        text=picture("y = Conv <pads = [1, 0, 1, 1], strides = [2, 2]> (x, w, b)", "1, 8, 5, 4"),
        weights=CONV,
        kernels=("CONV_2D",),
    ),
    "pad and conv": Case(
        text=picture("p = Pad (x, pads) y = Conv <strides = [2, 2]> (p, w, b)", "1, 8, 5, 4"),
        weights=CONV,
        kernels=("CONV_2D",),
    ),
    "conv, dilated": Case(
        text=picture("y = Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (x, w, b)", "1, 8, 9, 8"),
        weights=CONV,
        kernels=("CONV_2D",),
    ),
    "conv, depthwise": Case(
        text=picture("y = Conv <pads = [1, 1, 1, 1], group = 6> (x, w, b)", "1, 6, 9, 8"),
        weights={"w": (6, 1, 3, 3), "b": (6,)},
        kernels=("DEPTHWISE_CONV_2D",),
    ),
    "conv, depthwise with two filters a channel": Case(
        text=picture("y = Conv <pads = [1, 1, 1, 1], group = 6> (x, w, b)", "1, 12, 9, 8"),
        weights={"w": (12, 1, 3, 3), "b": (12,)},
        kernels=("DEPTHWISE_CONV_2D",),
    ),
    "conv, grouped": Case(
        text=picture("y = Conv <pads = [1, 1, 1, 1], group = 2> (x, w, b)", "1, 8, 9, 8"),
        weights={"w": (8, 3, 3, 3), "b": (8,)},
        kernels=("CONV_2D",),
    ),
    "conv of one axis": Case(
        text=picture("y = Conv <pads = [2, 2], strides = [2]> (x, w, b)", "1, 8, 10", "1, 4, 20"),
        weights={"w": (8, 4, 5), "b": (8,)},
        kernels=("RESHAPE", "PAD", "CONV_2D"),
    ),
    "conv and Relu": Case(
        text=picture("c = Conv (x, w, b) y = Relu (c)", "1, 8, 7, 6"), weights=CONV, kernels=("CONV_2D",)
    ),
    "conv and Relu6": Case(
        text=picture("c = Conv (x, w, b) y = Clip (c, zero, six)", "1, 8, 7, 6"), weights=CONV, kernels=("CONV_2D",)
    ),
    **{
        f"ConvTranspose, {name}": Case(
            text=picture(f"y = ConvTranspose <strides = [2, 2]{attributes}> (x, w, b)", f"1, 5, {size}"),
            weights={"w": (6, 5, taps, taps), "b": (5,)},
            kernels=kernels,
        )
        for name, attributes, taps, size, kernels in (
            ("whole", "", 2, "18, 16", ("TRANSPOSE_CONV",)),
            ("padded", ", pads = [1, 1, 1, 1]", 4, "18, 16", ("TRANSPOSE_CONV",)),
            ("cut", ", pads = [1, 1, 1, 1]", 3, "17, 15", ("SLICE", "TRANSPOSE_CONV")),
        )
    },
    "BatchNormalization": Case(
        text=picture("y = BatchNormalization (x, s, o, m, positive)", "1, 6, 9, 8"),
        weights={"s": (6,), "o": (6,), "m": (6,), "positive": (6,)},
        kernels=("DEPTHWISE_CONV_2D",),
    ),
    "Gemm": Case(
        text=picture("y = Gemm <transB = 1> (x, w, b)", "1, 5", "1, 12"),
        weights={"w": (5, 12), "b": (5,)},
        kernels=("FULLY_CONNECTED",),
    ),
    "MatMul of a sequence and bias": Case(
        text=picture("m = MatMul (x, w) y = Add (m, b)", "1, 7, 5", "1, 7, 12"),
        weights={"w": (12, 5), "b": (5,)},
        kernels=("FULLY_CONNECTED",),
    ),
    "Flatten of a picture and Gemm": Case(
        text=picture("c = Conv (x, w, b) f = Flatten (c) y = Gemm (f, v)", "1, 5"),
        weights={**CONV, "v": (336, 5)},
        kernels=("CONV_2D", "FULLY_CONNECTED", "RESHAPE"),
        steps=2,
    ),
    "MatMul of two tensors": Case(
        text="net (float[2, 5, 7] x, float[2, 7, 3] z) => (float[2, 5, 3] y) { y = MatMul (x, z) }",
        kernels=("BATCH_MATMUL",),
    ),
    "MatMul with a transposed tensor": Case(
        text="net (float[2, 5, 7] x, float[2, 3, 7] z) => (float[2, 5, 3] y) "
        "{ t = Transpose <perm = [0, 2, 1]> (z) y = MatMul (x, t) }",
        kernels=("BATCH_MATMUL",),
    ),
    **{
        f"{op} of two tensors": Case(
            text=f"net (float[1, 4, 5, 6] x, float[1, 4, 5, 6] z) => (float[1, 4, 5, 6] y) {{ y = {op} (x, z) }}",
            kernels=kernels,
        )
        for op, kernels in {
            "Add": ("ADD",),
            "Sub": ("SUB",),
            "Mul": ("MUL",),
            "Max": ("MAXIMUM", "QUANTIZE"),
            "Min": ("MINIMUM", "QUANTIZE"),
        }.items()
    },
    "Mul by a gate": Case(
        text="net (float[1, 4, 5, 6] x, float[1, 4, 1, 1] z) => (float[1, 4, 5, 6] y) { y = Mul (x, z) }",
        kernels=("MUL",),
    ),
    "Add of a constant": Case(
        text=picture("y = Add (x, positive)", "1, 6, 9, 8"), weights={"positive": (6, 1, 1)}, kernels=("ADD",)
    ),
    "Div by a number": Case(text=picture("d = Mul (x, eighth) y = Relu (d)", "1, 6, 9, 8"), kernels=("MUL",)),
    **{
        op: Case(text=picture(f"y = {op} (x)", "1, 6, 9, 8"), kernels=kernels, opset=opset, steps=steps)
        for op, kernels, opset, steps in (
            ("Sigmoid", ("LOGISTIC",), 17, 1),
            ("Tanh", ("TANH",), 17, 1),
            ("Softmax", ("SOFTMAX",), 17, 1),
            ("Relu", ("QUANTIZE",), 17, 1),
            ("HardSwish", ("HARD_SWISH",), 17, 1),
            ("LeakyRelu", ("LEAKY_RELU",), 17, 1),
            ("Elu", ("ADD", "CAST", "GATHER"), 17, 1),
            ("Erf", ("ADD", "CAST", "GATHER"), 17, 1),
            ("Exp", ("ADD", "CAST", "GATHER"), 17, 1),
            ("Softplus", ("ADD", "CAST", "GATHER"), 17, 1),
            ("HardSigmoid", ("ADD", "CAST", "GATHER"), 17, 1),
            ("Gelu", ("ADD", "CAST", "GATHER"), 20, 1),
        )
    },
    "Softmax over channels": Case(
        text=picture("c = Conv (x, w, b) y = Softmax <axis = 1> (c)", "1, 8, 7, 6"),
        weights=CONV,
        kernels=("CONV_2D", "SOFTMAX"),
        steps=4,
    ),
    "PRelu": Case(
        text=picture("y = PRelu (x, positive)", "1, 6, 9, 8"), weights={"positive": (6, 1, 1)}, kernels=("PRELU",)
    ),
    "x · HardSigmoid(x)": Case(
        text=picture("h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (x, h)", "1, 6, 9, 8"),
        kernels=("HARD_SWISH",),
        steps=2,
    ),
    "MaxPool": Case(
        text=picture("y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)", "1, 6, 5, 4"),
        kernels=("MAX_POOL_2D", "PADV2"),
    ),
    "AveragePool": Case(
        text=picture("y = AveragePool <kernel_shape = [3, 2], strides = [3, 2]> (x)", "1, 6, 3, 4"),
        kernels=("AVERAGE_POOL_2D",),
    ),
    "AveragePool that counts its padding": Case(
        text=picture(
            "y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x)", "1, 6, 9, 8"
        ),
        kernels=("AVERAGE_POOL_2D", "PAD"),
    ),
    "GlobalAveragePool": Case(text=picture("y = GlobalAveragePool (x)", "1, 6, 1, 1"), kernels=("MEAN",)),
    "ReduceMean": Case(text=picture("y = ReduceMean <axes = [2, 3], keepdims = 0> (x)", "1, 6"), kernels=("MEAN",)),
    "Concat of unlike ranges": Case(
        text=picture("a = Mul (x, eighth) c = Concat <axis = 1> (x, a) y = Relu (c)", "1, 12, 9, 8"),
        kernels=("CONCATENATION", "MUL", "QUANTIZE"),
        steps=2,
    ),
    "Slice": Case(
        text=picture("a = Relu (x) y = Slice (a, starts, ends, axes)", "1, 3, 9, 8"),
        kernels=("QUANTIZE", "STRIDED_SLICE"),
    ),
    "Resize to the nearest": Case(
        text=picture('a = Relu (x) y = Resize <mode = "nearest"> (a, , scales)', "1, 6, 18, 16"),
        kernels=("QUANTIZE", "RESIZE_NEAREST_NEIGHBOR"),
    ),
    "Resize between": Case(
        text=picture('a = Relu (x) y = Resize <mode = "linear"> (a, , scales)', "1, 6, 18, 16"),
        kernels=("QUANTIZE", "RESIZE_BILINEAR"),
        steps=2,
    ),
    "DepthToSpace": Case(
        text=picture("a = Relu (x) y = DepthToSpace <blocksize = 2> (a)", "1, 2, 8, 8", "1, 8, 4, 4"),
        kernels=("DEPTH_TO_SPACE", "QUANTIZE"),
    ),
    "squares": Case(text=picture("y = Pow (x, two)", "1, 6, 9, 8"), kernels=("MUL",)),
    "LayerNormalization": Case(
        text="net (float[2, 6, 16] x) => (float[2, 6, 16] y) { y = LayerNormalization (x, positive, bias) }",
        weights={"positive": (16,), "bias": (16,)},
        kernels=("ADD", "MEAN", "MUL", "QUANTIZE", "RSQRT", "SUB"),
    ),
    "embedding": Case(
        text="net (int64[1, 6] x) => (float[1, 6, 4] y) { g = Gather (positive, x) y = Mul (g, eighth) }",
        weights={"positive": (10, 4)},
        kernels=("GATHER", "MUL"),
    ),
}
NUMBERS = {
    "zero": np.float32(0),
    "two": np.float32(2),
    "six": np.float32(6),
    "eighth": np.float32(0.125),
    "pads": np.array([0, 0, 1, 0, 0, 0, 1, 1], dtype=np.int64),
    "starts": np.array([1], dtype=np.int64),
    "ends": np.array([4], dtype=np.int64),
    "axes": np.array([1], dtype=np.int64),
    "scales": np.array([1, 1, 2, 2], dtype=np.float32),
}


@functools.cache
def artifact(name: str) -> lowbit.Result:
    case = CASES[name]
    proto = network(case.text, case.weights, opset=case.opset)
    for number, value in NUMBERS.items():
        if any(number in node.input for node in proto.graph.node):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), number))
    return quantized(proto)


@pytest.fixture(autouse=True)
def _no_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arena costs a process every time; the microcontroller's own test starts one."""
    monkeypatch.setattr("lowbit.methods.export_litert.micro_is_installed", lambda: False)


@pytest.mark.parametrize("name", CASES)
def test_kernels_compute_what_the_graph_says(name: str) -> None:
    case = CASES[name]
    found = lowbit.export(artifact(name).model, samples=16)
    assert tuple(sorted(found.kernels)) == tuple(sorted(case.kernels))
    assert found.float_kernels == 0
    for agreement in found.agreements:
        assert agreement.largest <= case.steps, f"{agreement}"


@pytest.mark.skipif(find_spec("tflite_micro") is None, reason="tflite-micro is not installed")
def test_the_microcontroller_computes_the_same() -> None:
    """The reference kernels of both engines agree to the last bit, or to the rounding of a fixed-point function."""
    generator = np.random.default_rng(3)
    files, feeds = [], []
    for name in CASES:
        found = lowbit.export(artifact(name).model, samples=1)
        details = litert_session(found.model, kernels="reference").interpreter.get_input_details()
        feed = [
            generator.integers(*((0, 10) if detail["dtype"] == np.int32 else (-128, 128)), size=detail["shape"])
            for detail in details
        ]
        files.append(found.model)
        feeds.append([array.astype(detail["dtype"]) for array, detail in zip(feed, details, strict=True)])
    for name, file, feed, run in zip(
        CASES, files, feeds, run_micro_each(files, [[feed] for feed in feeds]), strict=True
    ):
        for mine, theirs in zip(litert_session(file, kernels="reference").run(feed), run.outputs[0], strict=True):
            np.testing.assert_allclose(mine.astype(int), theirs.astype(int), rtol=0, atol=1, err_msg=name)
