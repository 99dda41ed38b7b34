"""Codes, their real values and gradients through both: the formulas of learned step sizes, Esser et al. 2020."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import helper, numpy_helper

from lowbit.interpreter import to_torch, with_integer_kernels
from lowbit.interpreter.codes import limits
from lowbit.runtime.session import open_session


def fake_quantizer(
    shape: tuple[int, ...], scale: np.ndarray, zero_point: np.ndarray, kind: int, axis: int = 1, block: int = 0
) -> onnx.ModelProto:
    """Return a model of one Q/DQ pair."""
    attributes = {"axis": axis, **({"block_size": block} if block else {})}
    zero = helper.make_tensor("z", kind, zero_point.shape, zero_point.reshape(-1).tolist())
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["c"], **attributes),
            helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"], **attributes),
        ],
        "pair",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(scale, "s"), zero],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=11)


INT8, UINT8, INT4, UINT4, INT2 = (
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT4,
    onnx.TensorProto.UINT4,
    onnx.TensorProto.INT2,
)
PAIRS = [
    ((), (), 1, 0, INT8, 0),
    ((), (), 1, 0, UINT8, 117),
    ((4,), (1, 4, 1), 1, 0, INT8, 3),
    ((4,), (1, 4, 1), 1, 0, INT4, 0),
    ((3, 2, 5), None, 1, 2, UINT4, 5),
    ((3, 2, 5), None, 1, 2, INT2, 0),
]


@pytest.mark.parametrize(("scales", "spread", "axis", "block", "kind", "zero"), PAIRS)
def test_gradients_are_those_of_learned_step_sizes(
    scales: tuple[int, ...], spread: tuple[int, ...] | None, axis: int, block: int, kind: int, zero: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    low, high = (bound - zero for bound in limits(onnx_ir_type(kind)))
    step = (torch.rand(scales, generator=generator) + 0.5) * 2 / (high - low)
    proto = fake_quantizer((3, 4, 5), step.numpy(), np.full(scales, zero), kind, axis, block)
    module = to_torch(proto)
    assert isinstance(module.s, torch.nn.Parameter)
    x = torch.randn((3, 4, 5), generator=generator, requires_grad=True)
    upstream = torch.randn((3, 4, 5), generator=generator)
    (y,) = module(x)
    (y * upstream).sum().backward()

    s = step.repeat_interleave(block, dim=axis) if spread is None else step.reshape(spread)
    v = x.detach() / s
    inside = (v > low) & (v < high)
    assert inside.any()
    assert not inside.all()
    torch.testing.assert_close(y.detach(), torch.round(v.clamp(low, high)) * s)
    torch.testing.assert_close(x.grad, torch.where(inside, upstream, 0))
    by_step = upstream * torch.where(inside, torch.round(v) - v, v.clamp(low, high))
    assert module.s.grad is not None
    assert module.s.grad.shape == step.shape
    if spread is None:
        expected = by_step.reshape(3, 2, 2, 5).sum(dim=2)
    else:
        expected = by_step.sum(dim=[axis for axis in range(3) if not spread or spread[axis] == 1])
    torch.testing.assert_close(module.s.grad, expected.reshape(step.shape), rtol=1e-4, atol=1e-4)


def onnx_ir_type(kind: int) -> object:
    import onnx_ir

    return onnx_ir.DataType(kind)


def test_rounding_is_half_to_even_in_float32_as_in_the_engine() -> None:
    scale = np.array(0.1, np.float32)
    proto = fake_quantizer((100_000,), scale, np.array(3), UINT8)
    x = np.concatenate(
        [np.arange(-1000, 1000, dtype=np.float32) * np.float32(0.05), np.random.default_rng(0).normal(0, 9, 98_000)]
    ).astype(np.float32)
    with torch.no_grad():
        (y,) = to_torch(proto)(torch.from_numpy(x))
    session = open_session(proto.SerializeToString(), threads=1, optimized=False)
    np.testing.assert_array_equal(y.numpy(), session.run({"x": x})[0])


def test_int32_codes_lose_their_zero_point_before_they_are_rounded() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> m (int32[2] c) => (float[2] y)'
        " <float s = {1.0}, int32 z = {2147483600}> { y = DequantizeLinear (c, s, z) }"
    )
    codes = torch.tensor([2147483647, 2147483601], dtype=torch.int32)
    torch.testing.assert_close(to_torch(proto)(codes)[0].detach(), torch.tensor([47.0, 1.0]))


PICTURE = """
<ir_version: 10, opset_import: ["" : 21]>
m (float[1, 2, 6, 6] x) => (uint8[1, 2, 3, 3] pooled_codes, float[1, 2, 3, 3] y)
<float s = {0.05}, uint8 z = {128}>
{
  codes = QuantizeLinear (x, s, z)
  pooled_codes = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (codes)
  y = DequantizeLinear (pooled_codes, s, z)
}
"""


def test_gradients_pass_operators_on_codes_and_outputs_keep_their_type() -> None:
    module = to_torch(onnx.parser.parse_model(PICTURE))
    x = torch.randn((1, 2, 6, 6), generator=torch.Generator().manual_seed(0), requires_grad=True)
    codes, y = module(x)
    y.sum().backward()
    assert codes.dtype == torch.uint8
    assert x.grad is not None
    assert x.grad.sum() == 18  # one largest element a window
    with torch.no_grad():
        same, again = module(x)
    assert torch.equal(same, codes)
    assert torch.equal(again, y)


def test_weights_are_codes_and_learn_their_scale_only() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> m (float[3, 2] x) => (float[3, 2] y)'
        " <int8[2, 2] w = {10, -20, 30, 40}, float[2] s = {0.5, 0.25}, int8[2] z = {0, 0}>"
        " { d = DequantizeLinear <axis = 1> (w, s, z) y = MatMul (x, d) }"
    )
    module = to_torch(proto)
    assert [name for name, _ in module.named_parameters()] == ["s"]
    assert module.w.dtype == torch.int8
    module(torch.ones(3, 2))[0].sum().backward()
    torch.testing.assert_close(module.s.grad, torch.tensor([3.0 * 40, 3.0 * 20]))


RESIDUAL = """
<ir_version: 10, opset_import: ["" : 21]>
m (float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y)
<
  float s = {0.05}, uint8 z = {128}, float t = {0.1}, uint8 low = {0},
  int8[3, 2, 1, 1] w = {10, -20, 30, 40, -50, 60}, float[3] ws = {0.01, 0.02, 0.03},
  int32[3] b = {100, -200, 300}, float[3] bs = {0.0005, 0.001, 0.0015}
>
{
  xc = QuantizeLinear (x, s, z)
  xd = DequantizeLinear (xc, s, z)
  wd = DequantizeLinear <axis = 0> (w, ws)
  bd = DequantizeLinear <axis = 0> (b, bs)
  c = Conv (xd, wd, bd)
  r = Relu (c)
  rc = QuantizeLinear (r, t, low)
  y = DequantizeLinear (rc, t, low)
}
"""


def operators(text: str) -> list[str]:
    return [node.op_type for node in with_integer_kernels(onnx.parser.parse_model(text)).graph]


def test_a_pattern_becomes_one_integer_operator() -> None:
    assert operators(RESIDUAL) == ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("uint8 low = {0}", "uint8 low = {7}"),  # codes below the zero point, which the Relu cuts off
        ("uint8 z = {128}", "uint8 z = {128}, float half = {0.5}"),  # control: still fuses
        ("b = {100, -200, 300}, float[3] bs = {0.0005, 0.001, 0.0015}", "bd = {0.05, -0.2, 0.45}"),  # float bias
    ],
)
def test_what_the_engine_does_not_fuse_stays(before: str, after: str) -> None:
    text = RESIDUAL.replace(before, after)
    if "bd =" in after:
        text = text.replace("int32[3] bd", "float[3] bd").replace("  bd = DequantizeLinear <axis = 0> (b, bs)\n", "")
    assert ("QLinearConv" in operators(text)) == ("half" in after)


def test_integer_kernels_run_where_gradients_are_on() -> None:
    module = to_torch(with_integer_kernels(onnx.parser.parse_model(RESIDUAL)))
    x = torch.randn((1, 2, 4, 4), generator=torch.Generator().manual_seed(0))
    (y,) = module(x)
    session = open_session(onnx.parser.parse_model(RESIDUAL).SerializeToString(), threads=1)
    np.testing.assert_allclose(y.detach().numpy(), session.run({"x": x.numpy()})[0], rtol=1e-6)
