"""LiteRT (TensorFlow Lite) and LiteRT for Microcontrollers: graphs that compute in int8 from end to end.

The rules are those of the int8 quantization specification; `lowbit.exporters.litert` writes the file, and the engines
themselves say whether it keeps them.
"""

from __future__ import annotations

from lowbit.targets.target import OperatorSupport, Target

__all__ = ["TARGET"]

_PASSIVE = OperatorSupport(role="passive")
_BINARY = OperatorSupport(role="binary")
_UNARY = OperatorSupport(role="unary")
# Fixed by the kernels: scale 1/256 and zero point -128, scale 1/128 and zero point 0.
_PROBABILITY = OperatorSupport(role="unary", output_range=(0.0, 255 / 256))
_SIGNED_UNIT = OperatorSupport(role="unary", output_range=(-1.0, 127 / 128))

TARGET = Target(
    name="litert",
    engine="litert",
    description="LiteRT (TensorFlow Lite), XNNPACK or a microcontroller: int8 from end to end, for `lowbit export`",
    saturates=False,
    weights="int8:per-channel",
    activations="int8",
    weight_elements=("int8",),
    activation_elements=("int8", "uint8"),
    operators={
        "Conv": OperatorSupport(role="convolution"),
        "ConvTranspose": OperatorSupport(role="convolution"),
        "MatMul": OperatorSupport(role="matmul"),
        "Gemm": OperatorSupport(role="matmul"),
        **dict.fromkeys(("Add", "Sub", "Mul", "Max", "Min"), _BINARY),
        "Sigmoid": _PROBABILITY,
        "Softmax": _PROBABILITY,
        "Tanh": _SIGNED_UNIT,
        "HardSigmoid": OperatorSupport(role="unary", output_range=(0.0, 1.0), gate=True),
        # A table of 256 results computes any function of one number.
        **dict.fromkeys(
            (
                *("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "HardSwish", "Gelu", "Softplus", "Mish"),
                *("Erf", "Exp", "Sqrt", "Abs", "Neg", "BatchNormalization"),
            ),
            _UNARY,
        ),
        # Squares, and one over the square root.
        "Pow": OperatorSupport(role="unary", constants={1: (2.0, -0.5)}),
        # Only where codes become finer or coarser.
        "Identity": _UNARY,
        "GlobalAveragePool": OperatorSupport(role="global-pool"),
        "ReduceMean": OperatorSupport(role="global-pool"),
        "Concat": OperatorSupport(role="concat"),
        **dict.fromkeys(("AveragePool", "MaxPool", "GlobalMaxPool", "ReduceMax"), _PASSIVE),
        **dict.fromkeys(("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split"), _PASSIVE),
        **dict.fromkeys(("Gather", "Expand", "DepthToSpace", "SpaceToDepth"), _PASSIVE),
        "Pad": OperatorSupport(role="passive", attributes={"mode": ("constant",)}),
        "Resize": OperatorSupport(role="passive", attributes={"mode": ("nearest", "linear")}),
    },
    fused_activations=("Relu", "Clip"),
    stepwise_operators=("LayerNormalization",),
    step_activations="int16:symmetric",
    dynamic_operators=(),
    costs=None,
    measured="not timed here: files run in ai-edge-litert 2.3.0 and in tflite-micro's interpreter",
    source="https://ai.google.dev/edge/litert/models/quantization_spec",
    provider="LiteRT",
    integer_only=True,
)
