"""Gradients of layers against finite differences, in double precision; what training changes."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from lowbit.interpreter import to_torch

GENERATOR = torch.Generator().manual_seed(0)


def real(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def places(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=GENERATOR, dtype=torch.float64) * 1.6 - 0.8


IMAGE, LINE, VOLUME = real(2, 4, 6, 5), real(2, 4, 7), real(1, 2, 4, 4, 3)
SEQUENCE = real(3, 2, 4)


def gates(count: int, directions: int = 1) -> list[torch.Tensor]:
    return [real(directions, count * 3, 4), real(directions, count * 3, 3), real(directions, count * 6)]


# name: operator, inputs with gradients, other inputs (None where left out), attributes, outputs
LAYERS = {
    "MatMul": ("MatMul", [real(2, 3, 4), real(4, 2)], [], {}, 1),
    "Gemm": ("Gemm", [real(3, 4), real(2, 4), real(2)], [], {"transB": 1, "alpha": 0.5, "beta": 2.0}, 1),
    "Conv": ("Conv", [IMAGE, real(6, 2, 3, 2), real(6)], [], {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}, 1),
    "Conv1d": ("Conv", [LINE, real(3, 4, 3)], [], {"auto_pad": "SAME_LOWER", "dilations": [2]}, 1),
    "ConvTranspose": ("ConvTranspose", [LINE, real(4, 2, 3)], [], {"strides": [2], "output_padding": [1]}, 1),
    "DeformConv": ("DeformConv", [real(1, 2, 4, 4), real(2, 2, 2, 2), places(1, 8, 3, 3)], [], {}, 1),
    "MaxPool": ("MaxPool", [IMAGE], [], {"kernel_shape": [3, 2], "ceil_mode": 1, "strides": [2, 2]}, 1),
    "AveragePool": ("AveragePool", [IMAGE], [], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]}, 1),
    "AveragePoolDilated": ("AveragePool", [IMAGE], [], {"kernel_shape": [2, 2], "dilations": [2, 2]}, 1),
    "LpPool": ("LpPool", [LINE], [], {"kernel_shape": [3], "p": 3}, 1),
    "GlobalAveragePool": ("GlobalAveragePool", [VOLUME], [], {}, 1),
    "GlobalMaxPool": ("GlobalMaxPool", [IMAGE], [], {}, 1),
    "BatchNormalization": (
        "BatchNormalization",
        [IMAGE, real(4), real(4), real(4), real(4) ** 2 + 1],
        [],
        {},
        1,
    ),
    "LayerNormalization": ("LayerNormalization", [SEQUENCE, real(4), real(4)], [], {}, 1),
    "RMSNormalization": ("RMSNormalization", [SEQUENCE, real(4)], [], {}, 1),
    "InstanceNormalization": ("InstanceNormalization", [IMAGE, real(4), real(4)], [], {}, 1),
    "GroupNormalization": ("GroupNormalization", [IMAGE, real(4), real(4)], [], {"num_groups": 2}, 1),
    "LRN": ("LRN", [IMAGE], [], {"size": 3, "alpha": 0.5}, 1),
    "LpNormalization": ("LpNormalization", [SEQUENCE], [], {"axis": 1}, 1),
    "LSTM": ("LSTM", [SEQUENCE, *gates(4, 2)], [], {"hidden_size": 3, "direction": "bidirectional"}, 3),
    "LSTMLengths": (
        "LSTM",
        [SEQUENCE, *gates(4)],
        [torch.tensor([3, 2], dtype=torch.int32), real(1, 2, 3), real(1, 2, 3), real(1, 9)],
        {"hidden_size": 3, "clip": 2.5},
        3,
    ),
    "GRU": ("GRU", [SEQUENCE, *gates(3)], [], {"hidden_size": 3, "linear_before_reset": 1}, 2),
    "GRUReverse": ("GRU", [SEQUENCE, *gates(3)], [], {"hidden_size": 3, "direction": "reverse"}, 2),
    "RNN": ("RNN", [SEQUENCE, *gates(1)], [], {"hidden_size": 3}, 2),
    "Attention": (
        "Attention",
        [real(1, 2, 3, 4), real(1, 1, 5, 4), real(1, 1, 5, 2)],
        [],
        {"is_causal": 1, "softcap": 2.0},
        1,
    ),
    "AttentionMasked": (
        "Attention",
        [real(1, 2, 3, 4), real(1, 2, 3, 4), real(1, 2, 3, 4)],
        [torch.tensor([[True, False, True], [False, False, False], [True, True, True]])],
        {},
        1,
    ),
    "RotaryEmbedding": ("RotaryEmbedding", [real(1, 2, 3, 4), real(1, 3, 2), real(1, 3, 2)], [], {}, 1),
    "GridSample": ("GridSample", [IMAGE, places(2, 3, 3, 2)], [], {"mode": "cubic"}, 1),
    "AffineGrid": ("AffineGrid", [real(1, 2, 3)], [torch.tensor([1, 2, 3, 4])], {}, 1),
    "ResizeCubic": (
        "Resize",
        [IMAGE],
        [None, torch.tensor([1, 1, 1.5, 0.7], dtype=torch.float32)],
        {"mode": "cubic", "antialias": 1},
        1,
    ),
    "ResizeLinear": (
        "Resize",
        [IMAGE],
        [None, None, torch.tensor([2, 4, 9, 3])],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        1,
    ),
    "RoiAlign": (
        "RoiAlign",
        [real(1, 2, 6, 6), torch.tensor([[0.3, 0.4, 4.1, 5.2]], dtype=torch.float64)],
        [torch.tensor([0])],
        {"output_height": 2, "output_width": 2, "sampling_ratio": 2},
        1,
    ),
    "MaxUnpool": ("MaxUnpool", [real(1, 1, 2)], [torch.tensor([[[1, 2]]])], {"kernel_shape": [2], "strides": [2]}, 1),
    "Col2Im": ("Col2Im", [real(1, 4, 6)], [torch.tensor([3, 4]), torch.tensor([2, 2])], {}, 1),
}


def layer(name: str) -> tuple[torch.nn.Module, list[torch.Tensor], list[torch.Tensor]]:
    """Return a layer as a module, its inputs that gradients are checked of, and the others."""
    op_type, learned, others, attributes, outputs = LAYERS[name]
    given = [*learned, *others]
    names = [f"i{index}" if value is not None else "" for index, value in enumerate(given)]
    present = [(key, value) for key, value in zip(names, given, strict=True) if value is not None]
    graph = helper.make_graph(
        [helper.make_node(op_type, names, [f"o{index}" for index in range(outputs)], **attributes)],
        "layer",
        [
            helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(value.numpy().dtype), tuple(value.shape))
            for key, value in present
        ],
        [helper.make_tensor_value_info(f"o{index}", onnx.TensorProto.DOUBLE, []) for index in range(outputs)],
    )
    module = to_torch(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11))
    assert module.islands == ()
    return module, learned, [value for value in others if value is not None]


@pytest.mark.parametrize("name", LAYERS)
def test_gradient(name: str) -> None:
    module, learned, others = layer(name)
    inputs = tuple(value.clone().requires_grad_() for value in learned)
    # Not all entries of the Jacobian: random directions find what is wrong as well, in a fraction of the time.
    assert torch.autograd.gradcheck(lambda *values: module(*values, *others), inputs, fast_mode=True, atol=1e-5)


def batch_normalization() -> torch.nn.Module:
    values = {"scale": real(4), "bias": real(4), "mean": real(4), "variance": real(4) ** 2 + 1}
    graph = helper.make_graph(
        [helper.make_node("BatchNormalization", ["x", *values], ["y"], momentum=0.8)],
        "layer",
        [helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, [2, 4, 6, 5])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, [2, 4, 6, 5])],
        [numpy_helper.from_array(value.numpy(), key) for key, value in values.items()],
    )
    return to_torch(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8))


def test_batch_normalization_learns_in_training_only() -> None:
    module = batch_normalization()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.eval()(IMAGE)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    (y,) = module.train()(IMAGE)
    mean = IMAGE.mean(dim=(0, 2, 3))
    torch.testing.assert_close(module.mean, 0.8 * before["mean"] + 0.2 * mean)
    spread = IMAGE.var(dim=(0, 2, 3), unbiased=False)
    torch.testing.assert_close(module.variance, 0.8 * before["variance"] + 0.2 * spread)
    torch.testing.assert_close(y.detach().mean(dim=(0, 2, 3)), before["bias"])
    y.square().sum().backward()
    assert module.scale.grad is not None
