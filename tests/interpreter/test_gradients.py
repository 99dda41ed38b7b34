"""Gradients of every differentiable family against finite differences, in double precision."""

from __future__ import annotations

import onnx.parser
import pytest
import torch

from lowbit.interpreter import to_torch

# What is computed from x, double[2, 3, 4] of values between 0.1 and 0.9 that differ by at least 0.01.
EXPRESSIONS = {
    "Abs": "y = Abs (x)",
    "Add": "y = Add (x, x)",
    "Sub": "h = Exp (x) y = Sub (x, h)",
    "Mul": "y = Mul (x, x)",
    "Div": "h = Exp (x) y = Div (h, x)",
    "Pow": "y = Pow (x, x)",
    "Sqrt": "y = Sqrt (x)",
    "Log": "y = Log (x)",
    "Reciprocal": "y = Reciprocal (x)",
    "Erf": "y = Erf (x)",
    "Sin": "y = Sin (x)",
    "Atan": "y = Atan (x)",
    "Asinh": "y = Asinh (x)",
    "Atanh": "y = Atanh (x)",
    "Max": "h = Sin (x) g = Sqrt (x) y = Max (x, h, g)",
    "Min": "g = Mul (x, x) y = Min (x, g)",
    "Mean": "g = Mul (x, x) y = Mean (x, g)",
    "Clip": "low = Constant <value = double {0.31}> () y = Clip (x, low)",
    "Mod": "d = Constant <value = double {0.36}> () y = Mod <fmod = 1> (x, d)",
    "Relu": "h = Log (x) g = Add (h, x) y = Relu (g)",
    "LeakyRelu": "h = Log (x) y = LeakyRelu (h)",
    "PRelu": "h = Log (x) y = PRelu (h, x)",
    "Elu": "h = Log (x) y = Elu (h)",
    "Selu": "h = Log (x) y = Selu (h)",
    "Celu": "h = Log (x) y = Celu (h)",
    "Softplus": "y = Softplus (x)",
    "Softsign": "y = Softsign (x)",
    "HardSigmoid": "y = HardSigmoid (x)",
    "HardSwish": "y = HardSwish (x)",
    "Mish": "y = Mish (x)",
    "Gelu": "y = Gelu (x)",
    "GeluTanh": 'y = Gelu <approximate = "tanh"> (x)',
    "ThresholdedRelu": "y = ThresholdedRelu <alpha = 0.49> (x)",
    "Shrink": "y = Shrink <lambd = 0.49> (x)",
    "Softmax": "y = Softmax <axis = 1> (x)",
    "LogSoftmax": "y = LogSoftmax (x)",
    "Cast": "h = Cast <to = 11> (x) y = Exp (h)",
    "ReduceSum": "y = ReduceSum (x)",
    "ReduceMean": "a = Constant <value_ints = [1]> () y = ReduceMean <keepdims = 0> (x, a)",
    "ReduceProd": "a = Constant <value_ints = [0, 2]> () y = ReduceProd (x, a)",
    "ReduceMax": "a = Constant <value_ints = [2]> () y = ReduceMax (x, a)",
    "ReduceMin": "y = ReduceMin (x)",
    "ReduceL1": "y = ReduceL1 (x)",
    "ReduceL2": "a = Constant <value_ints = [-1]> () y = ReduceL2 (x, a)",
    "ReduceLogSum": "y = ReduceLogSum (x)",
    "ReduceLogSumExp": "y = ReduceLogSumExp (x)",
    "ReduceSumSquare": "y = ReduceSumSquare (x)",
    "CumSum": "a = Constant <value_int = 1> () y = CumSum <exclusive = 1, reverse = 1> (x, a)",
    "TopK": "k = Constant <value_ints = [2]> () y, i = TopK (x, k)",
    "Gather": "i = Constant <value_ints = [2, 0, -1, 2]> () y = Gather <axis = 1> (x, i)",
    "GatherElements": "i = Constant <value = int64[1, 1, 3] {3, 0, -1}> () y = GatherElements <axis = 2> (x, i)",
    "GatherND": "i = Constant <value = int64[2, 2] {0, 1, 1, 2}> () y = GatherND (x, i)",
    "ScatterElements": (
        "i = Constant <value = int64[1, 1, 2] {1, 3}> () u = Constant <value = double[1, 1, 2] {7, 8}> ()"
        ' h = Mul (x, x) y = ScatterElements <axis = 2, reduction = "add"> (h, i, u)'
    ),
    "ScatterND": (
        "i = Constant <value = int64[3, 1] {1, 0, 1}> () e = Constant <value_ints = [3, 3, 4]> ()"
        " a = Constant <value_ints = [0]> () r = ReduceMean (x, a) u = Expand (r, e)"
        ' y = ScatterND <reduction = "mul"> (x, i, u)'
    ),
    "Where": "h = Constant <value = double {0.49}> () c = Less (x, h) g = Exp (x) y = Where (c, x, g)",
    "Trilu": "k = Constant <value_int = -1> () y = Trilu (x, k)",
    "Compress": "c = Constant <value = bool[3] {1, 0, 1}> () y = Compress <axis = 1> (x, c)",
    "Reshape": "s = Constant <value_ints = [0, -1]> () y = Reshape (x, s)",
    "Transpose": "y = Transpose <perm = [2, 0, 1]> (x)",
    "Concat": "y = Concat <axis = 1> (x, x)",
    "Split": "s = Constant <value_ints = [1, 3]> () a, b = Split <axis = 2> (x, s) y = Mul (a, b)",
    "Slice": (
        "s = Constant <value_ints = [3]> () e = Constant <value_ints = [-5]> () a = Constant <value_ints = [2]> ()"
        " t = Constant <value_ints = [-2]> () y = Slice (x, s, e, a, t)"
    ),
    "Expand": "s = Constant <value_ints = [2, 1, 3, 4]> () y = Expand (x, s)",
    "Tile": "s = Constant <value_ints = [1, 2, 1]> () y = Tile (x, s)",
    "Pad": 'p = Constant <value_ints = [0, 1, 2, 0, 1, 1]> () y = Pad <mode = "reflect"> (x, p)',
    "PadCut": "p = Constant <value_ints = [0, -1, 2, 0, 1, -1]> () y = Pad (x, p)",
    "CenterCropPad": "s = Constant <value_ints = [4, 2]> () y = CenterCropPad <axes = [1, 2]> (x, s)",
    "DepthToSpace": (
        "s = Constant <value_ints = [1, 4, 2, 3]> () h = Reshape (x, s) y = DepthToSpace <blocksize = 2> (h)"
    ),
    "Einsum": 'y = Einsum <equation = "bij, bkj -> bik"> (x, x)',
    "Det": (
        "s = Constant <value_ints = [0]> () e = Constant <value_ints = [3]> () a = Constant <value_ints = [2]> ()"
        " h = Slice (x, s, e, a) y = Det (h)"
    ),
    "DFT": "a = Constant <value_ints = [3]> () h = Unsqueeze (x, a) y = DFT (h)",
    "STFT": (
        "s = Constant <value_ints = [0, 1, 2]> () t = Constant <value_int = 2> () n = Constant <value_int = 4> ()"
        " r = Constant <value_ints = [2, 12, 1]> () h = Reshape (x, r) y = STFT (h, t, , n)"
    ),
    "SoftmaxCrossEntropyLoss": (
        "t = Constant <value = int64[2, 4] {0, 1, 2, 0, 1, 1, 2, 0}> () y, p = SoftmaxCrossEntropyLoss (x, t)"
    ),
    "NegativeLogLikelihoodLoss": (
        "t = Constant <value = int64[2, 4] {0, 1, 2, 0, 1, 1, 2, 0}> () w = Constant <value = double[3] {1, 2, 3}> ()"
        " h = Log (x) y = NegativeLogLikelihoodLoss <ignore_index = 2> (h, t, w)"
    ),
    "ReverseSequence": (
        "l = Constant <value_ints = [2, 3]> () y = ReverseSequence <batch_axis = 0, time_axis = 1> (x, l)"
    ),
    "SequenceMap": (
        "s = SplitToSequence <axis = 1> (x)"
        " m = SequenceMap <body = square (double[2, 1, 4] a) => (double[2, 1, 4] b) { b = Mul (a, a) }> (s)"
        " y = ConcatFromSequence <axis = 0> (m)"
    ),
    "If": (
        "c = Constant <value = bool {1}> ()"
        " y = If (c) <then_branch = one () => (double[2, 3, 4] a) { a = Mul (x, x) },"
        " else_branch = two () => (double[2, 3, 4] b) { b = Exp (x) }>"
    ),
    "Loop": (
        "n = Constant <value_int = 3> () g = Constant <value = bool {1}> ()"
        " z, y = Loop (n, g, x) <body = step (int64 i, bool c, double[2, 3, 4] h)"
        " => (bool c_out, double[2, 3, 4] h_out, double[2, 3, 4] out)"
        " { c_out = Identity (c) h_out = Mul (h, x) out = Sin (h_out) }>"
    ),
    "Scan": (
        "a = Constant <value_ints = [0]> () o = ReduceSum <keepdims = 0> (x, a)"
        " z, y = Scan (o, x) <num_scan_inputs = 1, scan_input_directions = [1],"
        " body = step (double[3, 4] s, double[3, 4] e) => (double[3, 4] s_out, double[3, 4] out)"
        " { s_out = Mul (s, e) out = Exp (s_out) }>"
    ),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_gradient(name: str) -> None:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> checked (double[2, 3, 4] x) => (double y) {{ {EXPRESSIONS[name]} }}'
    )
    module = to_torch(proto)
    assert module.islands == ()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    x = (0.1 + 0.8 * order.to(torch.float64) / 24).reshape(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda value: module(value)[0], (x,), eps=1e-7, atol=1e-5)
