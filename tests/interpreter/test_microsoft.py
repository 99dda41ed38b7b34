"""com.microsoft's operators against ONNX Runtime's own kernels, on random inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from lowbit.interpreter import to_torch
from lowbit.runtime.session import open_session

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One node: inputs by position, `None` where left out.

    Attributes:
        op: The operator.
        inputs: Arrays.
        attributes: Its attributes.
        outputs: Number of outputs.
        skipped: Outputs that the engine's kernel does not give.
        steps: How far codes may differ; floats have to agree to 1e-4.
        name: What is special about it.
    """

    op: str
    inputs: tuple[Array | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    skipped: tuple[int, ...] = ()
    steps: int = 0
    name: str = "plain"


RANDOM = np.random.default_rng(0)


def real(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def codes(*shape: int, dtype: type = np.uint8) -> Array:
    info = np.iinfo(dtype)
    return RANDOM.integers(info.min, info.max + 1, shape).astype(dtype)


def scale(value: float) -> Array:
    return np.array(value, np.float32)


def zero(value: int, dtype: type = np.uint8) -> Array:
    return np.array(value, dtype)


def whole(*values: int) -> Array:
    return np.array(values, np.int32)


X = (scale(0.031), zero(117))
Y = (scale(0.017), zero(131))
ATTENTION = {"num_heads": 4}
ROTARY = (real(16, 4), real(16, 4))
WIDE_ROTARY = (real(16, 8), real(16, 8))
GROUPED = {"num_heads": 4, "kv_num_heads": 2}
LSTM = (
    codes(2, 5, 16, dtype=np.int8),
    codes(2, 4, 16, dtype=np.int8),
    real(2, 32),
    None,
    None,
    None,
    None,
    np.full(2, 0.01, np.float32),
    np.zeros(2, np.int8),
    np.full(2, 0.01, np.float32),
    np.zeros(2, np.int8),
)
PAST = (real(2, 2, 6, 16), real(2, 2, 6, 16))

CASES: list[Case] = [
    Case(op="Gelu", inputs=(real(3, 5),)),
    Case(op="BiasGelu", inputs=(real(3, 5), real(5))),
    Case(op="FastGelu", inputs=(real(3, 5), real(5))),
    Case(op="QuickGelu", inputs=(real(3, 5),)),
    Case(op="FusedMatMul", inputs=(real(2, 3, 4), real(2, 5, 4)), attributes={"transB": 1, "alpha": 0.5}),
    Case(
        op="FusedMatMul",
        inputs=(real(3, 2, 4), real(2, 4, 5)),
        attributes={"transBatchA": 1},
        name="batch-second",
    ),
    Case(
        op="FusedConv",
        inputs=(real(1, 3, 8, 8), real(4, 3, 3, 3), real(4), real(1, 4, 6, 6)),
        attributes={"activation": "Relu"},
    ),
    Case(
        op="FusedConv",
        inputs=(real(1, 3, 8, 8), real(4, 3, 3, 3), real(4)),
        attributes={"activation": "LeakyRelu", "activation_params": [0.2]},
        name="leaky",
    ),
    Case(op="FusedGemm", inputs=(real(3, 4), real(4, 5), real(5)), attributes={"activation": "Relu", "alpha": 0.5}),
    Case(
        op="SkipLayerNormalization",
        inputs=(real(2, 3, 8), real(2, 3, 8), real(8), real(8), real(8)),
        outputs=4,
        skipped=(1, 2),
    ),
    Case(
        op="SkipSimplifiedLayerNormalization",
        inputs=(real(2, 3, 8), real(2, 3, 8), real(8)),
        outputs=4,
        skipped=(1, 2),
    ),
    Case(
        op="EmbedLayerNormalization",
        inputs=(
            whole(1, 2, 3, 4).reshape(2, 2),
            whole(0, 1, 1, 0).reshape(2, 2),
            real(6, 8),
            real(4, 8),
            real(2, 8),
            real(8),
            real(8),
            whole(1, 1, 1, 0).reshape(2, 2),
        ),
        outputs=2,
    ),
    Case(op="Attention", inputs=(real(2, 5, 16), real(16, 48), real(48)), attributes=ATTENTION),
    Case(
        op="Attention",
        inputs=(real(2, 5, 16), real(16, 48), real(48), whole(3, 5)),
        attributes={**ATTENTION, "unidirectional": 1},
        name="lengths",
    ),
    Case(
        op="Attention",
        inputs=(real(2, 5, 16), real(16, 48), real(48), None, real(2, 2, 4, 2, 4)),
        attributes={**ATTENTION, "unidirectional": 1},
        outputs=2,
        name="past",
    ),
    Case(
        op="MultiHeadAttention",
        inputs=(real(2, 3, 16), real(2, 5, 16), real(2, 5, 16), real(48), None, real(1, 4, 3, 5)),
        attributes=ATTENTION,
    ),
    Case(
        op="MultiHeadAttention",
        inputs=(real(2, 3, 16), real(2, 5, 16), real(2, 5, 16), None, (codes(2, 5) > 60).astype(np.int32)),
        attributes=ATTENTION,
        name="padding",
    ),
    Case(
        op="MultiHeadAttention",
        inputs=(
            real(2, 3, 16),
            real(2, 3, 16),
            real(2, 3, 16),
            None,
            None,
            None,
            real(2, 4, 2, 4),
            real(2, 4, 2, 4),
        ),
        attributes={**ATTENTION, "unidirectional": 1},
        outputs=3,
        name="past",
    ),
    Case(
        op="GroupQueryAttention",
        inputs=(
            real(2, 5, 64),
            real(2, 5, 32),
            real(2, 5, 32),
            None,
            None,
            whole(4, 4),
            zero(5, np.int32),
            *WIDE_ROTARY,
        ),
        attributes={**GROUPED, "do_rotary": 1},
        outputs=3,
    ),
    Case(
        op="GroupQueryAttention",
        inputs=(real(2, 1, 64), real(2, 1, 32), real(2, 1, 32), *PAST, whole(3, 6), zero(7, np.int32), *WIDE_ROTARY),
        attributes={**GROUPED, "do_rotary": 1, "local_window_size": 4},
        outputs=3,
        name="past",
    ),
    Case(
        op="GroupQueryAttention",
        inputs=(real(2, 5, 128), None, None, None, None, whole(4, 4), zero(5, np.int32)),
        attributes={**GROUPED, "softcap": 2.0, "smooth_softmax": 1},
        name="packed",
    ),
    Case(
        op="RotaryEmbedding",
        inputs=(real(2, 3, 32), np.array([[1, 2, 3], [4, 5, 6]]), *ROTARY),
        attributes={"interleaved": 1},
    ),
    Case(op="RotaryEmbedding", inputs=(real(2, 4, 3, 8), np.array([2]), *ROTARY), name="offset"),
    *(
        Case(
            op="MatMulNBits",
            inputs=(real(3, 64), codes(5, 2, 32 * bits // 8), real(5, 2), codes(5, max(2 * bits // 8, 1))),
            attributes={"K": 64, "N": 5, "bits": bits, "block_size": 32},
            name=f"{bits}-bits",
        )
        for bits in (2, 4, 8)
    ),
    Case(
        op="MatMulNBits",
        inputs=(real(2, 3, 40), codes(5, 3, 8), real(15)),
        attributes={"K": 40, "N": 5, "bits": 4, "block_size": 16},
        name="symmetric",
    ),
    Case(
        op="GatherBlockQuantized",
        inputs=(codes(6, 16), np.array([[1, 4], [0, 5]]), real(6, 2), codes(6, 1)),
        attributes={"bits": 4, "block_size": 16, "quantize_axis": 1, "gather_axis": 0},
    ),
    *(
        Case(op=f"QLinear{op}", inputs=(codes(8, 500), *X, codes(8, 500), *Y, scale(step), zero(90)))
        for op, step in (("Add", 0.041), ("Mul", 0.06))
    ),
    Case(
        op="QLinearAdd",
        inputs=(
            codes(8, 500, dtype=np.int8),
            scale(0.5),
            zero(3, np.int8),
            codes(1, 500, dtype=np.int8),
            scale(0.25),
            zero(-8, np.int8),
            scale(1.0),
            zero(5, np.int8),
        ),
        name="ties",
    ),
    Case(op="QLinearSigmoid", inputs=(codes(8, 64), *X, scale(1 / 256), zero(0))),
    Case(op="QLinearLeakyRelu", inputs=(codes(8, 64), *X, *Y), attributes={"alpha": 0.2}),
    Case(op="QLinearSoftmax", inputs=(codes(50, 9), *X, scale(1 / 255), zero(0)), attributes={"axis": -1, "opset": 13}),
    Case(
        op="QLinearSoftmax",
        inputs=(codes(4, 3, 5), *X, scale(1 / 256), zero(0)),
        attributes={"axis": 1, "opset": 11},
        name="flattened",
    ),
    Case(op="QLinearGlobalAveragePool", inputs=(codes(2, 5, 7, 7), *X, *Y)),
    Case(
        op="QLinearAveragePool",
        inputs=(codes(2, 5, 9, 9), *X, *Y),
        attributes={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    ),
    Case(op="QLinearConcat", inputs=(*Y, codes(2, 5), *X, codes(2, 3), *Y), attributes={"axis": 1}),
    Case(
        op="QLinearConv",
        inputs=(codes(2, 9, 9, 8), *X, codes(6, 8, 3, 3, dtype=np.int8), scale(0.01), zero(0, np.int8), *Y),
        attributes={"channels_last": 1, "pads": [1, 1, 1, 1]},
    ),
    Case(
        op="QGemm",
        inputs=(codes(7, 12), *X, codes(5, 12, dtype=np.int8), real(5) ** 2, np.zeros(5, np.int8), whole(*range(5))),
        attributes={"transB": 1, "alpha": 1.0},
    ),
    Case(
        op="QGemm",
        inputs=(codes(7, 12), *X, codes(12, 5, dtype=np.int8), scale(0.01), zero(3, np.int8), None, *Y),
        attributes={"alpha": 1.0},
        name="codes",
    ),
    Case(
        op="MatMulIntegerToFloat",
        inputs=(
            codes(2, 7, 12),
            codes(12, 5, dtype=np.int8),
            scale(0.1),
            real(5),
            zero(9),
            np.zeros(5, np.int8),
            real(5),
        ),
    ),
    Case(op="DynamicQuantizeMatMul", inputs=(real(7, 12), codes(12, 5, dtype=np.int8), real(5), None, real(5))),
    Case(
        op="DynamicQuantizeLSTM",
        inputs=(real(6, 2, 5), *LSTM),
        attributes={"hidden_size": 4, "direction": "bidirectional"},
        outputs=3,
    ),
    Case(
        op="QuantizeLinear",
        inputs=(real(3, 50), np.array([0.01, 0.02, 0.03], np.float32), np.array([3, 4, 5], np.uint8)),
        attributes={"axis": 0},
    ),
    Case(
        op="DequantizeLinear",
        inputs=(codes(3, 50), np.array([0.01, 0.02, 0.03], np.float32), np.array([3, 4, 5], np.uint8)),
        attributes={"axis": 0},
    ),
]

# Weights and scales are constants for these kernels.
CONSTANT = {"MatMulNBits", "GatherBlockQuantized", "DynamicQuantizeLSTM", "QLinearSigmoid", "QLinearLeakyRelu"}
KINDS = {"tensor(float)": TensorProto.FLOAT, "tensor(uint8)": TensorProto.UINT8, "tensor(int8)": TensorProto.INT8}


def model(case: Case, ranks: list[tuple[int, int]] | None) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a model of one node, and what to feed it with."""
    feeds = {f"i{index}": array for index, array in enumerate(case.inputs) if array is not None}
    fixed = {name: array for name, array in feeds.items() if case.op in CONSTANT and name != "i0"}
    if case.op == "GatherBlockQuantized":
        fixed["i0"] = feeds["i0"]
        del fixed["i1"]
    names = [f"i{index}" if array is not None else "" for index, array in enumerate(case.inputs)]
    outputs = [f"o{index}" if index not in case.skipped else "" for index in range(case.outputs)]
    wanted = [name for name in outputs if name]
    infos = (
        [helper.make_tensor_value_info(name, *kind) for name, kind in zip(wanted, ranks, strict=True)]
        if ranks
        else [onnx.ValueInfoProto(name=name) for name in wanted]
    )
    graph = helper.make_graph(
        [helper.make_node(case.op, names, outputs, domain="com.microsoft", **case.attributes)],
        "node",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feeds.items()
            if name not in fixed
        ],
        infos,
        [onnx.numpy_helper.from_array(array, name) for name, array in fixed.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), {
        name: array for name, array in feeds.items() if name not in fixed
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.name}")
def test_against_the_engine(case: Case) -> None:
    written, feeds = model(case, None)
    expected = open_session(written.SerializeToString(), threads=1).run(feeds)
    kinds = [(helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim) for array in expected]
    module = to_torch(model(case, kinds)[0])
    assert not module.islands
    got = module(*(torch.from_numpy(feeds[name]) for name in module.input_names))
    for tensor, array in zip(got, expected, strict=True):
        result = tensor.detach().numpy()
        assert result.shape == array.shape
        assert result.dtype == array.dtype
        if array.dtype == np.float32:
            np.testing.assert_allclose(result, array, rtol=1e-4, atol=2e-5)
        else:
            assert np.abs(result.astype(int) - array.astype(int)).max() <= case.steps
