"""OpenVINO's CPU plugin on x86, with and without VNNI.

The contract differs from ONNX Runtime's: a kernel writes float as easily as codes, and takes the activation functions
and conversions behind it along, so that boundaries between float and integers cost little. Each entry was found by
compiling the pattern and reading the runtime graph back, and `tests/targets` keeps it so.
"""

from __future__ import annotations

import dataclasses

from lowbit.targets.target import OperatorSupport, Target

__all__ = ["AVX2", "VNNI"]

_PASSIVE = OperatorSupport(role="passive")

_OPERATORS: dict[str, OperatorSupport] = {
    "Conv": OperatorSupport(role="convolution", float_output=True),
    "MatMul": OperatorSupport(role="matmul", float_output=True),
    "Gemm": OperatorSupport(role="matmul", float_output=True),
    "Add": OperatorSupport(role="binary", float_output=True),
    "Concat": OperatorSupport(role="concat"),
    "MaxPool": _PASSIVE,
    "Reshape": _PASSIVE,
    "Transpose": _PASSIVE,
    "Squeeze": _PASSIVE,
    "Unsqueeze": _PASSIVE,
    "Flatten": _PASSIVE,
}

AVX2 = Target(
    name="openvino-x86-avx2",
    engine="openvino",
    description="OpenVINO CPU on x86 with AVX2, without VNNI: uint8 activations, int8 weights that cannot saturate",
    saturates=True,
    pairs="tap",
    weights="int8:per-channel",
    activations="uint8",
    weight_elements=("int8",),
    activation_elements=("uint8",),
    operators=_OPERATORS,
    fused_activations=("Relu", "Clip"),
    dynamic_operators=(),
    costs=None,
    measured="on each machine by `lowbit probe`; docs/engines.md has OpenVINO 2026.4 on AMD EPYC (Zen 3)",
)

VNNI = dataclasses.replace(
    AVX2,
    name="openvino-x86-vnni",
    description="OpenVINO CPU on x86 with AVX-VNNI or AVX-512 VNNI: uint8 activations, full-range int8 weights",
    saturates=False,
    measured="not measured: the fusions are the engine's own and the same on every processor, the costs are unknown",
)
