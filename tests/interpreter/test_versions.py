"""Operators whose meaning changed between operator sets, in each of their versions, beside ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
import torch

from lowbit.interpreter import to_torch
from lowbit.interpreter.dtypes import from_array
from lowbit.runtime.session import open_session

# Operator set, what is computed from x (float[2, 3, 4]), and the rank of the result where it is not 3.
MEANINGS = [
    (11, "y = Softmax (x)"),
    (11, "y = Softmax <axis = -1> (x)"),
    (13, "y = Softmax (x)"),
    (11, "y = LogSoftmax <axis = 2> (x)"),
    (13, "y = LogSoftmax <axis = 1> (x)"),
    (11, "y = Hardmax (x)"),
    (13, "y = Hardmax (x)"),
    (7, "y = ReduceSum <axes = [1], keepdims = 0> (x)"),
    (11, "y = ReduceSum <axes = [-1]> (x)"),
    (13, "a = Constant <value = int64[1] {-1}> () y = ReduceSum (x, a)"),
    (13, "a = Constant <value = int64[0] {}> () y = ReduceSum <noop_with_empty_axes = 1> (x, a)"),
    (13, "a = Constant <value = int64[0] {}> () y = ReduceSum (x, a)"),
    (11, "y = ReduceMean <axes = [0, 2]> (x)"),
    (18, "a = Constant <value = int64[2] {0, 2}> () y = ReduceMean (x, a)"),
    (11, "y = ReduceMax <axes = [1]> (x)"),
    (18, "a = Constant <value = int64[1] {1}> () y = ReduceMax (x, a)"),
    (13, "y = ReduceL2 <axes = [1]> (x)"),
    (18, "a = Constant <value = int64[0] {}> () y = ReduceSumSquare <noop_with_empty_axes = 1> (x, a)"),
    (11, "h = Unsqueeze <axes = [0, -1]> (x) y = Squeeze <axes = [0]> (h)"),
    (
        13,
        (
            "a = Constant <value = int64[2] {0, -1}> () h = Unsqueeze (x, a)"
            " b = Constant <value = int64[1] {0}> () y = Squeeze (h, b)"
        ),
    ),
    (13, "a = Constant <value = int64[1] {1}> () h = Unsqueeze (x, a) y = Squeeze (h)"),
    (7, "y = Clip <min = -0.5, max = 0.5> (x)"),
    (7, "y = Clip <max = 0.5> (x)"),
    (11, "l = Constant <value = float {-0.5}> () y = Clip (x, l)"),
    (13, "h = Constant <value = float {0.5}> () y = Clip (x, , h)"),
    (9, "y = Slice <starts = [1, -3], ends = [3, -1], axes = [1, 2]> (x)"),
    (
        11,
        (
            "s = Constant <value = int64[1] {-1}> () e = Constant <value = int64[1] {-9}> ()"
            " a = Constant <value = int64[1] {2}> () t = Constant <value = int64[1] {-2}> ()"
            " y = Slice (x, s, e, a, t)"
        ),
    ),
    (9, 'y = Pad <mode = "reflect", pads = [0, 1, 2, 0, 0, 1]> (x)'),
    (9, "y = Pad <value = 7.0, pads = [0, 1, -1, 0, 0, 1]> (x)"),
    (
        11,
        (
            "p = Constant <value = int64[6] {0, 1, 2, 0, 0, -1}> () v = Constant <value = float {3.0}> ()"
            " y = Pad (x, p, v)"
        ),
    ),
    (18, "p = Constant <value = int64[2] {1, 2}> () a = Constant <value = int64[1] {-1}> () y = Pad (x, p, , a)"),
    (19, 'p = Constant <value = int64[6] {0, 2, 3, 0, 1, 2}> () y = Pad <mode = "wrap"> (x, p)'),
    (11, "y, z = Split <axis = 2, split = [1, 3]> (x)"),
    (11, "y, z = Split <axis = 2> (x)"),
    (13, "s = Constant <value = int64[2] {1, 3}> () y, z = Split <axis = 2> (x, s)"),
    (18, "y, z = Split <axis = 1, num_outputs = 2> (x)"),
    (9, "y, z = TopK <k = 2> (x)"),
    (10, "k = Constant <value = int64[1] {2}> () y, z = TopK <axis = 1> (x, k)"),
    (11, "k = Constant <value = int64[1] {2}> () y, z = TopK <largest = 0> (x, k)"),
    (9, "y = ArgMax <axis = 1> (x)"),
    (12, "y = ArgMax <axis = 1, select_last_index = 1> (x)"),
    (11, "y = Dropout <ratio = 0.3> (x)"),
    (12, "y = Dropout (x)"),
    (
        9,
        (
            "i = Constant <value = int64[1, 1, 2] {1, 3}> () u = Constant <value = float[1, 1, 2] {5, 6}> ()"
            " y = Scatter <axis = 2> (x, i, u)"
        ),
    ),
    (
        11,
        (
            "i = Constant <value = int64[1, 1, 2] {1, -1}> () u = Constant <value = float[1, 1, 2] {5, 6}> ()"
            " y = ScatterElements <axis = 2> (x, i, u)"
        ),
    ),
    (
        16,
        (
            "i = Constant <value = int64[1, 1, 2] {1, 1}> () u = Constant <value = float[1, 1, 2] {5, 6}> ()"
            ' y = ScatterElements <axis = 2, reduction = "add"> (x, i, u)'
        ),
    ),
    (
        18,
        (
            "i = Constant <value = int64[1, 1, 2] {1, 1}> () u = Constant <value = float[1, 1, 2] {5, 6}> ()"
            ' y = ScatterElements <axis = 2, reduction = "max"> (x, i, u)'
        ),
    ),
    (13, "s = Constant <value = int64[2] {0, -1}> () y = Reshape (x, s)"),
    (
        14,
        (
            "s = Constant <value = int64[3] {0, 3, 0}> () b = Constant <value = int64[3] {0, 3, 0}> ()"
            " e = Constant <value = int64[1] {0}> () f = Constant <value = int64[1] {0}> () h = Slice (x, e, f)"
            " y = Reshape <allowzero = 1> (h, b)"
        ),
    ),
    (13, "y = Shape (x)"),
    (15, "y = Shape <start = 1, end = -1> (x)"),
    (11, "d = Constant <value = float {0.3}> () y = Mod <fmod = 1> (x, d)"),
    (11, "y = Round (x)"),
    (11, "h = Cast <to = 6> (x) y = Cast <to = 1> (h)"),
    (11, "h = Cast <to = 9> (x) y = Cast <to = 7> (h)"),
    (11, "a = Constant <value = int64 {1}> () y = CumSum <exclusive = 1> (x, a)"),
    (12, 'y = Einsum <equation = "bij, bkj -> ik"> (x, x)'),
    (17, "a = Constant <value = int64[1] {3}> () h = Unsqueeze (x, a) y = DFT <axis = 2> (h)"),
    (
        20,
        (
            "a = Constant <value = int64[1] {3}> () h = Unsqueeze (x, a) b = Constant <value = int64 {1}> ()"
            " y = DFT (h, , b)"
        ),
    ),
    (20, 'y = Gelu <approximate = "tanh"> (x)'),
    (14, "k = Constant <value = int64 {-1}> () y = Trilu <upper = 0> (x, k)"),
]


@pytest.mark.parametrize(("opset", "body"), MEANINGS)
def test_meaning(opset: int, body: str) -> None:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}]> old (float[2, 3, 4] x) => (float y) {{ {body} }}'
    )
    for node in proto.graph.node:
        for name in set(node.output) - {"y"} & {"z"}:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    inferred = onnx.shape_inference.infer_shapes(_untyped(proto))
    expected = open_session(inferred.SerializeToString(), threads=1, optimized=False).run({"x": x})
    module = to_torch(inferred).eval()
    assert module.islands == ()
    found = module(torch.from_numpy(x))
    assert len(found) == len(expected)
    for one, other in zip(found, map(from_array, map(np.asarray, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def _untyped(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Leave the types of the outputs to inference."""
    for output in proto.graph.output:
        output.ClearField("type")
    return proto
