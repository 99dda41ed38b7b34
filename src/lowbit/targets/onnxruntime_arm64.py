"""ONNX Runtime's CPU provider on 64-bit ARM: exact 8-bit products (dotprod, i8mm or widening multiplies)."""

from __future__ import annotations

from lowbit.targets.onnxruntime_operators import DYNAMIC_OPERATORS, FUSED_ACTIVATIONS, OPERATORS
from lowbit.targets.target import Target

__all__ = ["TARGET"]

TARGET = Target(
    name="onnxruntime-arm64",
    engine="onnxruntime",
    description="ONNX Runtime CPU on arm64: 8-bit activations, full-range int8 weights",
    saturates=False,
    weights="int8:per-channel",
    activations="uint8",
    weight_elements=("int8",),
    activation_elements=("uint8", "int8"),
    operators=OPERATORS,
    fused_activations=FUSED_ACTIVATIONS,
    dynamic_operators=DYNAMIC_OPERATORS,
    costs=None,
    measured="not measured: the fusions are the engine's own and the same on every processor, the costs are unknown",
)
