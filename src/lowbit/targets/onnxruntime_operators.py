"""Which operators ONNX Runtime's CPU provider runs in integers; the same on every instruction set.

Each entry was found by loading the pattern and reading the optimized graph back, and `tests/targets` keeps it so.
"""

from __future__ import annotations

from lowbit.targets.target import OperatorSupport

__all__ = ["DYNAMIC_OPERATORS", "FUSED_ACTIVATIONS", "OPERATORS"]

_PASSIVE = OperatorSupport(role="passive")

OPERATORS: dict[str, OperatorSupport] = {
    "Conv": OperatorSupport(role="convolution"),
    "MatMul": OperatorSupport(role="matmul", float_output=True),
    "Gemm": OperatorSupport(role="matmul", float_output=True),
    "Add": OperatorSupport(role="binary"),
    "Mul": OperatorSupport(role="binary"),
    "Sigmoid": OperatorSupport(role="unary", output_range=(0.0, 1.0)),
    "LeakyRelu": OperatorSupport(role="unary"),
    # Its integer kernel multiplies by the whole part of 1 / scale: 1/255 would be 254, 0.4 % too little.
    "Softmax": OperatorSupport(role="unary", output_range=(0.0, 255 / 256)),
    "GlobalAveragePool": OperatorSupport(role="global-pool"),
    "AveragePool": OperatorSupport(role="pool"),
    "Concat": OperatorSupport(role="concat"),
    "MaxPool": _PASSIVE,
    "Reshape": _PASSIVE,
    "Transpose": _PASSIVE,
    "Squeeze": _PASSIVE,
    "Unsqueeze": _PASSIVE,
    "Flatten": _PASSIVE,
    "Slice": _PASSIVE,
    "Gather": _PASSIVE,
    "Split": _PASSIVE,
    "Expand": _PASSIVE,
    "Resize": OperatorSupport(role="passive", attributes={"mode": ("nearest",)}),
}

FUSED_ACTIVATIONS = ("Relu", "Clip")

DYNAMIC_OPERATORS = ("MatMul", "Gemm", "Conv", "LSTM")
