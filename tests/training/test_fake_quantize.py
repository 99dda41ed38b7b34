"""Fake quantization: the codec's numbers forwards, the gradients of LSQ backwards."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from lowbit.training.fake_quantize import quantize_activation, quantize_levels, quantize_signs, quantize_weight

SCALE = 0.07


def tensor(*shape: int, size: float = 0.5) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * size).requires_grad_()


def reference(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Compute the same of plain operations, whose gradients PyTorch knows, with rounding as the identity."""
    v = x / scale
    clipped = torch.minimum(torch.maximum(v, low - zero), high - zero)
    return (clipped + (torch.round(clipped) - clipped).detach()) * scale


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("zero", [0.0, 3.0])
def test_activation_gradients_are_those_of_lsq(layout: torch.memory_format, zero: float) -> None:
    x = tensor(4, 6, 5, 5).detach().contiguous(memory_format=layout).requires_grad_()
    log_scale = torch.tensor(math.log(SCALE), requires_grad=True)
    offset = torch.tensor(zero, requires_grad=True)
    weights = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(1))
    y = quantize_activation(x, log_scale, offset, 0, 15)
    (y * weights).sum().backward()
    got = x.grad.clone(), log_scale.grad.clone(), offset.grad.clone()
    x.grad = None
    twin, twin_zero = torch.tensor(math.log(SCALE), requires_grad=True), torch.tensor(zero, requires_grad=True)
    wanted = reference(x, twin.exp(), twin_zero, 0, 15)
    (wanted * weights).sum().backward()
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(got[0], x.grad)
    pace = 1.0 / math.sqrt(150 * max(15 - zero, zero))
    torch.testing.assert_close(got[1], twin.grad * pace, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[2], twin_zero.grad * pace, rtol=1e-4, atol=1e-5)


def test_weight_gradients_per_channel() -> None:
    w = tensor(6, 4, 3, 3)
    scale = torch.linspace(0.05, 0.2, 6).reshape(6, 1, 1, 1)
    log_scale = scale.log().requires_grad_()
    upstream = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    y = quantize_weight(w, log_scale, -8, 7)
    (y * upstream).sum().backward()
    got = w.grad.clone(), log_scale.grad.clone()
    w.grad = None
    twin = scale.log().requires_grad_()
    wanted = reference(w, twin.exp(), torch.zeros(()), -8, 7)
    (wanted * upstream).sum().backward()
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(got[0], w.grad)
    torch.testing.assert_close(got[1], twin.grad / math.sqrt(36 * 7), rtol=1e-4, atol=1e-5)


def test_levels_are_the_nearest() -> None:
    levels = np.unique(np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32))
    w = tensor(50, 4, size=3.0)
    y = quantize_levels(w, torch.zeros(50, 1), torch.from_numpy(levels))
    distance = np.abs(w.detach().numpy()[..., None] - levels)
    np.testing.assert_allclose(np.abs(y.detach().numpy() - w.detach().numpy()), distance.min(axis=-1), rtol=1e-6)


def test_signs_have_one_size_and_keep_zeros() -> None:
    w = torch.tensor([0.3, -0.1, 0.0, 2.5], requires_grad=True)
    log_scale = torch.tensor([math.log(0.5)], requires_grad=True)
    y = quantize_signs(w, log_scale)
    assert y.tolist() == pytest.approx([0.5, -0.5, 0.0, 0.5])
    y.sum().backward()
    assert w.grad.tolist() == [1, 1, 1, 0]  # 2.5 is further from 0 than twice the scale


def test_a_scale_learns_what_fits() -> None:
    x = tensor(4096).detach()
    log_scale = torch.tensor(math.log(1.0), requires_grad=True)
    optimizer = torch.optim.Adam([log_scale], lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        (quantize_activation(x, log_scale, 8.0, 0, 15) - x).square().sum().backward()
        optimizer.step()

    def error(scale: float) -> float:
        codes = torch.round(x / scale).clamp(-8, 7)
        return float((codes * scale - x).square().mean())

    best = min(np.geomspace(0.02, 1.0, 400), key=error)
    assert float(log_scale.detach().exp()) == pytest.approx(best, rel=0.1)
