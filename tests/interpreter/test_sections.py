"""Convolutions without gradients: fused, packed and cut, they compute what the nodes compute one by one."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from lowbit.interpreter import Interpreter, batches, to_torch
from lowbit.interpreter.batches import Section

CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
chain (float[n, 3, h, w] x) => (float[n, 6, p, q] y, float[n, 4, r, s] kept)
{
    low = Constant <value_float = 0.0> ()
    high = Constant <value_float = 0.5> ()
    a = Conv <pads = [0, 0, 1, 1], strides = [2, 2]> (x, w1, b1)
    kept = Clip (a, low, high)
    d = Conv <group = 4, pads = [1, 0, 0, 2]> (kept, w2)
    e = LeakyRelu <alpha = 0.1> (d)
    f = Conv <auto_pad = "SAME_UPPER", dilations = [2, 1]> (e, w3, b1)
    g = Add (f, kept)
    i = Mul (g, factor)
    j = Conv (i, w4)
    y = HardSwish (j)
}
"""


def chain() -> Interpreter:
    proto = onnx.parser.parse_model(CHAIN)
    random = np.random.default_rng(0)
    shapes = {
        "w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 1, 2, 3), "w3": (4, 4, 3, 2), "factor": (4, 1, 1), "w4": (6, 4, 1, 1),
    }  # fmt: skip
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    )
    return to_torch(proto).eval()


def picture(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, 12, 15, generator=torch.Generator().manual_seed(1))


def assert_agrees(module: Interpreter, x: torch.Tensor) -> None:
    expected = module(x)
    assert all(value.requires_grad for value in expected)
    with torch.no_grad():
        found = module(x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-4, atol=1e-5)


def test_a_chain_is_one_section() -> None:
    (section,) = chain()._block.steps
    assert isinstance(section, Section)
    assert [type(step).__name__ for step in section.steps].count("Convolution") == 4
    assert len(section.original) == 9
    assert len(section.steps) == 6


def test_fused_is_what_the_nodes_say() -> None:
    module = chain()
    for batch in (3, 1):
        assert_agrees(module, picture(batch))
    assert_agrees(module, picture()[..., :-1])
    assert_agrees(module, picture().contiguous(memory_format=torch.channels_last))


def test_large_batches_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_PIECE", 4 * 4 * 6 * 8 * 2)
    module = chain()
    (_section,) = module._block.steps
    counts = []
    run = batches._run
    monkeypatch.setattr(batches, "_run", lambda *given: counts.append(given[1]["x"].shape[0]) or run(*given))
    for _ in range(2):
        assert_agrees(module, picture(5))
    assert counts[0] == 5
    assert sum(counts[1:]) == 5
    assert max(counts[1:]) < 5


@pytest.mark.parametrize("through_data", [False, True])
def test_changed_weights_are_packed_again(through_data: bool) -> None:
    module = chain()
    assert_agrees(module, picture())
    for parameter in module.parameters():
        if through_data:
            parameter.data.mul_(-0.5)
        else:
            with torch.no_grad():
                parameter.mul_(-0.5)
    assert_agrees(module, picture())


def test_what_a_section_cannot_run_the_nodes_run() -> None:
    module = chain().double()
    with torch.no_grad():
        y, _ = module(picture().double())
    assert y.dtype == torch.float64


def test_operands_with_a_batch_of_their_own_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_PIECE", 1)
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        own (float[2, 1, 2, 2] x) => (float[2, 1, 2, 2] y)
        <float[1, 1, 1, 1] w = {2}, float[2, 1, 1, 1] each = {1, 10}>
        { a = Conv (x, w) y = Add (a, each) }
    """)
    module = to_torch(proto)
    for _ in range(2):
        with torch.no_grad():
            assert module(torch.ones(2, 1, 2, 2))[0].flatten().tolist() == [3] * 4 + [12] * 4
