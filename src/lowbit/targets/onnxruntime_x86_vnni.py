"""ONNX Runtime's CPU provider on x86 with VNNI (AVX-VNNI or AVX-512 VNNI): exact 8-bit products, four at a time."""

from __future__ import annotations

from lowbit.targets.onnxruntime_operators import DYNAMIC_OPERATORS, FUSED_ACTIVATIONS, OPERATORS
from lowbit.targets.target import Target

__all__ = ["TARGET"]

TARGET = Target(
    name="onnxruntime-x86-vnni",
    engine="onnxruntime",
    description="ONNX Runtime CPU on x86 with AVX-VNNI or AVX-512 VNNI: uint8 activations, full-range int8 weights",
    saturates=False,
    weights="int8:per-channel",
    activations="uint8",
    weight_elements=("int8",),
    activation_elements=("uint8",),
    operators=OPERATORS,
    fused_activations=FUSED_ACTIVATIONS,
    dynamic_operators=DYNAMIC_OPERATORS,
    depth_multiple=4,
    costs=None,
    measured="ONNX Runtime 1.32.0 on an Intel Xeon with AMX: fusions and tuned plans; no constants for elsewhere",
)
