"""Layers in many configurations and in old operator sets against ONNX Runtime, on random inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from lowbit.interpreter import to_torch
from lowbit.runtime.session import open_session

RANDOM = np.random.default_rng(0)


def real(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One node: its operator, its inputs, its attributes, the operator set, and how many outputs it has."""

    op: str
    inputs: tuple[np.ndarray | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    version: int = 21
    outputs: int = 1


IMAGE, SMALL = real(2, 4, 13, 11), real(1, 2, 5, 7)
CASES: list[Case] = []

# Windows
for pads in (None, [1, 0, 2, 1], "SAME_UPPER", "SAME_LOWER", "VALID"):
    place: dict[str, Any] = {"auto_pad": pads} if isinstance(pads, str) else ({"pads": pads} if pads else {})
    for strides in ([1, 1], [2, 3]):
        shared = {**place, "strides": strides}
        CASES += [
            Case(op="Conv", inputs=(IMAGE, real(6, 2, 3, 2), real(6)), attributes={**shared, "group": 2}),
            Case(op="ConvTranspose", inputs=(SMALL, real(2, 3, 3, 3)), attributes=shared, version=11),
            Case(op="MaxPool", inputs=(IMAGE,), attributes={**shared, "kernel_shape": [3, 3]}, outputs=2),
            Case(op="AveragePool", inputs=(IMAGE,), attributes={**shared, "kernel_shape": [3, 3]}),
            Case(op="LpPool", inputs=(IMAGE,), attributes={**shared, "kernel_shape": [3, 3], "p": 3}, version=11),
        ]
        if not isinstance(pads, str):
            more = {**shared, "kernel_shape": [3, 3], "ceil_mode": 1}
            CASES += [
                Case(op="MaxPool", inputs=(IMAGE,), attributes={**more, "storage_order": 1}, outputs=2),
                Case(op="AveragePool", inputs=(IMAGE,), attributes=more),
                Case(op="AveragePool", inputs=(IMAGE,), attributes={**more, "count_include_pad": 1}),
                Case(op="MaxPool", inputs=(IMAGE,), attributes={**more, "dilations": [2, 1]}, version=12),
            ]
CASES += [
    Case(op="Conv", inputs=(real(2, 3, 9), real(4, 3, 3)), attributes={"dilations": [2]}, version=11),
    Case(op="Conv", inputs=(real(1, 2, 5, 5, 5), real(3, 2, 2, 2, 2)), attributes={"pads": [1, 0, 0, 0, 1, 1]}),
    Case(
        op="ConvTranspose",
        inputs=(SMALL, real(2, 2, 3, 3), real(4)),
        attributes={"group": 2, "strides": [3, 2], "output_padding": [2, 1], "dilations": [2, 1], "pads": [1, 2, 0, 1]},
    ),
    Case(
        op="ConvTranspose", inputs=(SMALL, real(2, 3, 3, 3)), attributes={"output_shape": [10, 15], "strides": [2, 2]}
    ),
    Case(op="AveragePool", inputs=(real(1, 2, 9),), attributes={"kernel_shape": [3], "pads": [1, 1]}, version=11),
    Case(
        op="MaxRoiPool",
        inputs=(real(2, 3, 9, 9), floats(0, 1, 1, 6, 7, 1, 0, 2, 8, 8).reshape(2, 5)),
        attributes={"pooled_shape": [3, 2], "spatial_scale": 0.9},
    ),
]

# Resizing
for mode in ("nearest", "linear", "cubic"):
    for how in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"):
        for sizes in ([1, 2, 10, 14], [1, 2, 8, 3], [1, 2, 1, 7]):
            CASES.append(
                Case(
                    op="Resize",
                    inputs=(SMALL, None, None, whole(*sizes)),
                    attributes={"mode": mode, "coordinate_transformation_mode": how},
                    version=13,
                )
            )
for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
    CASES.append(
        Case(
            op="Resize",
            inputs=(SMALL, floats(), floats(1, 1, 1.7, 0.6)),
            attributes={"nearest_mode": rounding, "coordinate_transformation_mode": "asymmetric"},
            version=11,
        )
    )
CASES += [
    Case(op="Resize", inputs=(SMALL, floats(1, 1, 2, 3)), attributes={"mode": "nearest"}, version=10),
    Case(op="Resize", inputs=(SMALL, floats(1, 1, 0.6, 0.5)), attributes={"mode": "nearest"}, version=10),
    Case(op="Resize", inputs=(SMALL, floats(1, 1, 1.5, 2)), attributes={"mode": "linear"}, version=10),
    Case(op="Upsample", inputs=(SMALL, floats(1, 1, 2, 2)), attributes={"mode": "nearest"}, version=9),
    Case(op="Upsample", inputs=(SMALL, floats(1, 1, 2, 3)), attributes={"mode": "linear"}, version=9),
    Case(
        op="Resize",
        inputs=(SMALL, None, floats(1, 1, 1.5, 0.6)),
        attributes={"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
        version=18,
    ),
    Case(op="Resize", inputs=(real(1, 3, 4, 5, 6), None, None, whole(1, 3, 6, 5, 9)), attributes={"mode": "linear"}),
]

# Sampling
for padding in ("zeros", "border", "reflection"):
    for corners in (0, 1):
        options = {"padding_mode": padding, "align_corners": corners}
        grid = (RANDOM.random((1, 4, 6, 2)) * 2.6 - 1.3).astype(np.float32)
        CASES += [
            Case(op="GridSample", inputs=(SMALL, grid), attributes={**options, "mode": mode}, version=16)
            for mode in ("bilinear", "nearest", "bicubic")
        ]
ROIS = floats(0, 0, 4, 4, 1.5, 0.5, 6.2, 3.9, 2, 2, 2.5, 2.5).reshape(3, 4)
for version, options in ((10, {}), (16, {}), (16, {"coordinate_transformation_mode": "output_half_pixel"})):
    for ratio in (0, 2):
        attributes = {**options, "output_height": 3, "output_width": 2, "sampling_ratio": ratio, "spatial_scale": 0.9}
        CASES.append(Case(op="RoiAlign", inputs=(SMALL, ROIS, whole(0, 0, 0)), attributes=attributes, version=version))

# Normalization
CASES += [
    Case(op="BatchNormalization", inputs=(IMAGE, real(4), real(4), real(4), real(4) ** 2), version=version)
    for version in (9, 14, 15)
]
CASES += [
    Case(op="LayerNormalization", inputs=(real(2, 3, 4), real(3, 4)), attributes={"axis": 1}, version=17, outputs=3),
    Case(op="InstanceNormalization", inputs=(IMAGE, real(4), real(4)), version=11),
    Case(op="GroupNormalization", inputs=(IMAGE, real(4), real(4)), attributes={"num_groups": 2}, version=21),
    Case(op="LRN", inputs=(IMAGE,), attributes={"size": 3, "alpha": 0.3, "beta": 0.6, "bias": 1.5}, version=13),
    Case(op="LpNormalization", inputs=(IMAGE,), attributes={"axis": 2, "p": 1}, version=11),
    Case(op="MeanVarianceNormalization", inputs=(IMAGE,), attributes={"axes": [0, 2]}, version=13),
]

# Recurrent layers
SEQUENCE, LENGTHS = real(5, 3, 4), np.array([5, 2, 4], np.int32)
STATES = (real(2, 3, 6), real(2, 3, 6))


def weights(gates: int, directions: int) -> tuple[np.ndarray, ...]:
    return real(directions, gates * 6, 4), real(directions, gates * 6, 6), real(directions, gates * 12)


BOTH = {"hidden_size": 6, "direction": "bidirectional"}
CASES += [
    Case(op="LSTM", inputs=(SEQUENCE, *weights(4, 2), LENGTHS, *STATES), attributes=BOTH, version=14, outputs=3),
    Case(
        op="LSTM",
        inputs=(SEQUENCE, *weights(4, 1), None, None, None, real(1, 18)),
        attributes={"hidden_size": 6, "direction": "reverse", "clip": 1.2},
        version=7,
        outputs=3,
    ),
    Case(
        op="LSTM",
        inputs=(SEQUENCE, *weights(4, 2)),
        attributes={
            **BOTH,
            "activations": ["HardSigmoid", "LeakyRelu", "ScaledTanh", "Sigmoid", "Softsign", "Affine"],
            "activation_alpha": [0.3, 0.1, 1.1, 0.7],
            "activation_beta": [0.4, 0.9, 0.2],
        },
        version=14,
        outputs=3,
    ),
    Case(op="GRU", inputs=(SEQUENCE, *weights(3, 2), LENGTHS, STATES[0]), attributes=BOTH, version=14, outputs=2),
    Case(
        op="GRU",
        inputs=(SEQUENCE, *weights(3, 1)),
        attributes={"hidden_size": 6, "linear_before_reset": 1, "clip": 1.0},
        version=7,
        outputs=2,
    ),
    Case(
        op="RNN",
        inputs=(SEQUENCE, *weights(1, 2), LENGTHS, STATES[0]),
        attributes={**BOTH, "activations": ["Relu", "Tanh"]},
        version=14,
        outputs=2,
    ),
]

# Detection
BOXES = (RANDOM.random((2, 40, 4)) * 10).astype(np.float32)
SCORES = RANDOM.random((2, 3, 40)).astype(np.float32)
CASES += [
    Case(
        op="NonMaxSuppression",
        inputs=(BOXES, SCORES, whole(12), floats(threshold), floats(0.2)),
        attributes={"center_point_box": centre},
        version=11,
    )
    for threshold in (0.1, 0.5)
    for centre in (0, 1)
]

KINDS = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.int64): onnx.TensorProto.INT64}


def model(case: Case, expected: list[np.ndarray] | None) -> onnx.ModelProto:
    names = [f"i{index}" if array is not None else "" for index, array in enumerate(case.inputs)]
    outputs = [f"o{index}" for index in range(case.outputs)]
    graph = helper.make_graph(
        [helper.make_node(case.op, names, outputs, **case.attributes)],
        "layer",
        [
            helper.make_tensor_value_info(f"i{index}", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for index, array in enumerate(case.inputs)
            if array is not None
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs]
        if expected is None
        else [
            helper.make_tensor_value_info(name, KINDS[array.dtype], array.shape)
            for name, array in zip(outputs, expected, strict=True)
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.version)], ir_version=8)


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda index: f"{CASES[index].op}-{index}")
def test_against_the_engine(index: int) -> None:
    case = CASES[index]
    feeds = {f"i{index}": array for index, array in enumerate(case.inputs) if array is not None}
    expected = open_session(model(case, None).SerializeToString(), threads=1).run(feeds)
    module = to_torch(model(case, expected)).eval()
    assert module.islands == ()
    with torch.no_grad():
        got = module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    for tensor, array in zip(got, expected, strict=True):
        assert tuple(tensor.shape) == array.shape
        np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-4, atol=2e-5)
