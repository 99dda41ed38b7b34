"""Devices that are not here: what their engines accept, from their documentation; nothing of it was run.

An artifact for one of them is written to these rules, checked against them structurally, and its quality is computed as
the Q/DQ graph says, without any engine's kernels. No latency is claimed.
"""

from __future__ import annotations

from lowbit.targets.onnxruntime_operators import DYNAMIC_OPERATORS, FUSED_ACTIVATIONS, OPERATORS
from lowbit.targets.target import OperatorSupport, Target

__all__ = ["ARM64_DOTPROD", "ARM64_I8MM", "TARGETS"]

_PASSIVE = OperatorSupport(role="passive")
_UNMEASURED = "not measured here: rules from the documentation"


def _operators(*names: str) -> dict[str, OperatorSupport]:
    return {name: OPERATORS[name] for name in names}


ARM64_DOTPROD = Target(
    name="onnxruntime-arm64-dotprod",
    engine="onnxruntime",
    description="ONNX Runtime CPU on arm64 with dot product instructions (ARMv8.2): full-range int8 weights",
    saturates=False,
    weights="int8:per-channel",
    activations="uint8",
    weight_elements=("int8",),
    activation_elements=("uint8", "int8"),
    operators=OPERATORS,
    fused_activations=FUSED_ACTIVATIONS,
    dynamic_operators=DYNAMIC_OPERATORS,
    costs=None,
    measured=_UNMEASURED,
    source="https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html",
)

ARM64_I8MM = Target(
    name="onnxruntime-arm64-i8mm",
    engine="onnxruntime",
    description="ONNX Runtime CPU on arm64 with 8-bit matrix instructions (ARMv8.6): full-range int8 weights",
    saturates=False,
    weights="int8:per-channel",
    activations="uint8",
    weight_elements=("int8",),
    activation_elements=("uint8", "int8"),
    operators=OPERATORS,
    fused_activations=FUSED_ACTIVATIONS,
    dynamic_operators=DYNAMIC_OPERATORS,
    costs=None,
    measured=_UNMEASURED,
    source="https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html",
)

_XNNPACK = Target(
    name="onnxruntime-xnnpack",
    engine="onnxruntime",
    description="ONNX Runtime with the XNNPACK provider (Android, iOS): int8 activations, int8 weights per channel",
    saturates=False,
    weights="int8:per-channel",
    activations="int8",
    weight_elements=("int8",),
    activation_elements=("int8",),
    operators=_operators("Conv", "AveragePool", "MaxPool", "Softmax"),
    fused_activations=FUSED_ACTIVATIONS,
    dynamic_operators=(),
    costs=None,
    measured=_UNMEASURED,
    source="https://onnxruntime.ai/docs/execution-providers/Xnnpack-ExecutionProvider.html",
    provider="XNNPACK",
)

_NNAPI = Target(
    name="onnxruntime-nnapi",
    engine="onnxruntime",
    description="ONNX Runtime, NNAPI provider (Android): uint8 activations, int8 weights, fixed shapes",
    saturates=False,
    weights="int8:per-channel",
    activations="uint8",
    weight_elements=("int8", "uint8"),
    activation_elements=("uint8",),
    operators=_operators(
        "Conv",
        "MatMul",
        "Gemm",
        "Add",
        "Mul",
        "Sigmoid",
        "Softmax",
        "AveragePool",
        "GlobalAveragePool",
        "Concat",
        "MaxPool",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Flatten",
        "Resize",
    ),
    fused_activations=FUSED_ACTIVATIONS,
    dynamic_operators=(),
    costs=None,
    measured=_UNMEASURED,
    source="https://onnxruntime.ai/docs/execution-providers/NNAPI-ExecutionProvider.html",
    provider="NNAPI",
    fixed_shapes=True,
)

_COREML = Target(
    name="onnxruntime-coreml",
    engine="onnxruntime",
    description="ONNX Runtime with the CoreML provider (iOS, macOS): float activations, weights stored in 8 bits",
    saturates=False,
    weights="int8:per-channel",
    activations="uint8",
    weight_elements=("int8",),
    activation_elements=(),
    operators={},
    fused_activations=(),
    dynamic_operators=(),
    costs=None,
    measured=_UNMEASURED,
    source="https://onnxruntime.ai/docs/execution-providers/CoreML-ExecutionProvider.html",
    provider="CoreML",
)

_TENSORRT = Target(
    name="tensorrt",
    engine="tensorrt",
    description="TensorRT, explicit quantization: symmetric int8 activations, int8 weights, biases in float",
    saturates=False,
    weights="int8:per-channel",
    activations="int8:symmetric",
    weight_elements=("int8",),
    activation_elements=("int8",),
    operators={
        **_operators("Conv", "MatMul", "Gemm", "Add", "Concat", "AveragePool", "GlobalAveragePool"),
        **dict.fromkeys(("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"), _PASSIVE),
    },
    fused_activations=("Relu",),
    dynamic_operators=(),
    costs=None,
    measured=_UNMEASURED,
    source="https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html",
    provider="TensorRT",
    symmetric_activations=True,
    float_bias=True,
)

_QNN = Target(
    name="qnn-htp",
    engine="onnxruntime",
    description="ONNX Runtime, QNN provider (Qualcomm HTP): uint8 or uint16 activations, int8 weights, fixed shapes",
    saturates=False,
    weights="int8:per-channel",
    activations="uint8",
    weight_elements=("int8", "uint8"),
    activation_elements=("uint8", "uint16"),
    operators=OPERATORS,
    fused_activations=FUSED_ACTIVATIONS,
    dynamic_operators=(),
    costs=None,
    measured=_UNMEASURED,
    source="https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html",
    provider="QNN",
    fixed_shapes=True,
)

TARGETS: tuple[Target, ...] = (ARM64_DOTPROD, ARM64_I8MM, _XNNPACK, _NNAPI, _COREML, _TENSORRT, _QNN)
