"""The learned Q/DQ pair: the codec's numbers forwards, LSQ's gradients backwards, and rows that QDrop leaves alone."""

from __future__ import annotations

import math

import numpy as np
import torch

from lowbit.formats import Parameters, fake_quantize, parse_format
from lowbit.interpreter.registry import Call
from lowbit.reconstruction.learned_quantization import DOMAIN, OPERATOR, learned_quantize

SCALE, ZERO = 0.05, 3


def call(low: int = 0, high: int = 15) -> Call:
    return Call(op_type=OPERATOR, domain=DOMAIN, version=1, attributes={"low": low, "high": high})


def tensors(dropped: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(8, 4, 30, generator=torch.Generator().manual_seed(0)) * 0.4
    return (
        x.requires_grad_(),
        torch.tensor(math.log(SCALE), requires_grad=True),
        torch.tensor(3.0),
        torch.tensor(dropped),
    )


def test_forwards_it_is_the_codec() -> None:
    x, log_scale, zero_point, dropped = tensors()
    fmt = parse_format("uint4")
    parameters = Parameters(np.float32(SCALE), np.asarray(ZERO, dtype=fmt.element.dtype))
    wanted = fake_quantize(x.detach().numpy(), parameters, fmt)
    found = learned_quantize(call(), x, log_scale, zero_point, dropped).detach().numpy()
    # A value on the edge between two codes may fall to either side, where scales differ in the last bit.
    assert (np.abs(found - wanted) > 1e-6).mean() < 1e-3
    assert np.abs(found - wanted).max() <= SCALE * 1.001


def test_gradients_are_those_of_the_paper() -> None:
    x, log_scale, zero_point, dropped = tensors()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    y = learned_quantize(call(), x, log_scale, zero_point, dropped)
    (y * upstream).sum().backward()
    bottom, top = -ZERO * SCALE, (15 - ZERO) * SCALE
    inside = (x > bottom) & (x < top)
    assert torch.equal(x.grad, upstream * inside)
    # ∂y/∂s · s: what rounding moved, inside; the end of the range, outside.
    own = torch.where(inside, y - x, y).detach()
    assert torch.allclose(log_scale.grad, (own * upstream).sum(), rtol=1e-3)


def test_dropped_rows_stay_in_float_while_learning_only() -> None:
    x, log_scale, zero_point, dropped = tensors(0.5)
    torch.manual_seed(0)
    y = learned_quantize(call(), x, log_scale, zero_point, dropped)
    alone = torch.isclose(y, x, rtol=0, atol=0).all(dim=-1)
    assert 0 < int(alone.sum()) < alone.numel()
    y.sum().backward()
    assert torch.equal(x.grad[alone], torch.ones_like(x.grad[alone]))
    with torch.no_grad():
        quantized = learned_quantize(call(), x, log_scale, zero_point, dropped)
        assert torch.equal(quantized, learned_quantize(call(), x, log_scale, zero_point, torch.tensor(0.0)))
