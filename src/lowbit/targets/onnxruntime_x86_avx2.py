"""ONNX Runtime's CPU provider on x86 with AVX2 and without VNNI, where u8×s8 products saturate in pairs."""

from __future__ import annotations

from lowbit.targets.onnxruntime_operators import DYNAMIC_OPERATORS, FUSED_ACTIVATIONS, OPERATORS
from lowbit.targets.target import CostModel, Target

__all__ = ["TARGET"]

# Fitted to single kernels, one thread; `docs/engines.md` has the figures and the command that measures them again.
_COSTS = CostModel(
    float_pointwise_mac=0.0235,
    float_conv_mac=0.0195,
    float_conv_out=0.08,
    float_conv_tap=2.0,
    float_entry_mac=0.0350,
    float_matmul_mac=0.0240,
    float_matvec_weight=0.13,
    int_conv_mac=0.0118,
    int_conv_out=0.20,
    int_conv_tap=4.4,
    int_matmul_mac=0.0125,
    int_matmul_out=0.30,
    int_matvec_weight=0.05,
    float_depthwise_out=0.0,
    float_depthwise_mac=0.055,
    float_depthwise_border=10.0,
    int_depthwise_out=0.50,
    int_depthwise_mac=0.065,
    float_elementwise={
        "Add": 0.20,
        "Mul": 0.32,
        "Sigmoid": 0.45,
        "LeakyRelu": 0.25,
        "Softmax": 0.80,
        "GlobalAveragePool": 0.25,
        "AveragePool": 0.12,
        "MaxPool": 0.15,
        "Concat": 0.40,
        "Transpose": 0.40,
        "Slice": 0.30,
        "Gather": 0.30,
        "Split": 0.30,
        "Expand": 0.30,
        "Resize": 0.60,
    },
    int_elementwise={
        "Add": 0.24,
        "Mul": 0.34,
        "Sigmoid": 0.50,
        "LeakyRelu": 0.36,
        "Softmax": 3.70,
        "GlobalAveragePool": 0.10,
        "AveragePool": 2.50,
        "MaxPool": 2.00,
        "Concat": 0.18,
        "Transpose": 0.20,
        "Slice": 0.15,
        "Gather": 0.15,
        "Split": 0.15,
        "Expand": 0.15,
        "Resize": 0.30,
    },
    quantize=0.40,
    dequantize=0.25,
    layout=0.30,
    dynamic_quantize=0.60,
    node=3000.0,
)

TARGET = Target(
    name="onnxruntime-x86-avx2",
    engine="onnxruntime",
    description="ONNX Runtime CPU on x86 with AVX2, without VNNI: uint8 activations, int8 weights that cannot saturate",
    saturates=True,
    weights="int8:per-channel",
    activations="uint8",
    weight_elements=("int8",),
    activation_elements=("uint8",),
    operators=OPERATORS,
    fused_activations=FUSED_ACTIVATIONS,
    dynamic_operators=DYNAMIC_OPERATORS,
    depth_multiple=4,
    costs=_COSTS,
    measured="ONNX Runtime 1.32.0 on AMD EPYC (Zen 3), one thread",
)
