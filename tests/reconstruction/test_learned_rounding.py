"""Roundings that learn: they start at their codes, follow a steady gradient, and never leave the format."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowbit.reconstruction.learned_rounding import LearnedRounding
from lowbit.reconstruction.weight_grid import WeightGrid


def grid(scale: torch.Tensor, low: int, high: int) -> WeightGrid:
    return WeightGrid(scale=scale, spread=lambda one: one[:, None], low=low, high=high)


def made(seed: int = 0, low: int = -8, high: int = 7) -> tuple[torch.Tensor, torch.Tensor, LearnedRounding]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 20, generator=generator)
    scale = weight.abs().amax(dim=1) / high
    codes = torch.round(weight / scale[:, None]).clamp(low, high)
    module = LearnedRounding(weight, codes, grid(scale, low, high))
    return weight, codes, module


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (-2, 1), (-32, 31)])
def test_it_starts_at_its_codes(low: int, high: int) -> None:
    _, codes, module = made(low=low, high=high)
    assert torch.equal(module.codes(), codes)
    assert torch.allclose(module(), codes * module.scale()[:, None])
    assert torch.equal(module(), module.decoded())


def test_it_starts_at_codes_that_are_not_the_nearest() -> None:
    weight, codes, nearest = made()
    other = (codes + torch.sign(weight / nearest.scale()[:, None] - codes)).clamp(-8, 7)
    module = LearnedRounding(weight, other, grid(nearest.scale(), -8, 7))
    assert torch.equal(module.codes(), other)
    # A small step of noise changes no code.
    with torch.no_grad():
        module.position.add_(0.1 * torch.sign(torch.randn_like(module.position)))
    assert torch.equal(module.codes(), other)


def test_gradients_pass_through_rounding_and_reach_the_scale() -> None:
    _, codes, module = made()
    upstream = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    (module() * upstream).sum().backward()
    inside = (module.position >= -8) & (module.position <= 7)
    assert torch.allclose(module.position.grad, upstream * module.scale()[:, None] * inside)
    assert torch.allclose(module.log_scale.grad, (upstream * codes * module.scale()[:, None]).sum(1), rtol=1e-4)


def test_learning_restores_products_better_than_nearest() -> None:
    """The claim of learned rounding: further from the weights, closer to the outputs."""
    generator = torch.Generator().manual_seed(2)
    weight, codes, module = made()
    mixing = torch.randn(20, 20, generator=generator)
    x = torch.randn(256, 20, generator=generator) @ mixing
    exact = x @ weight.T
    nearest = codes * module.scale()[:, None]
    descent = torch.optim.Adam([module.position])
    best, learned = float("inf"), nearest
    for step in range(200):
        module.zero_grad()
        error = (x @ module().T - exact).square().mean()
        if float(error.detach()) < best:
            best, learned = float(error.detach()), module.decoded()
        error.backward()
        descent.param_groups[0]["lr"] = 0.004 * (1 - step / 200)
        descent.step()
        module.confine()
    assert (x @ learned.T - exact).square().mean() < 0.9 * (x @ nearest.T - exact).square().mean()
    assert (learned - weight).square().mean() > (nearest - weight).square().mean()
    found = module.codes()
    assert found.min() >= -8
    assert found.max() <= 7
    assert np.array_equal(found.numpy(), np.rint(found.numpy()))


def test_positions_stay_within_reach() -> None:
    weight, _, module = made()
    exact = weight / module.scale()[:, None]
    with torch.no_grad():
        module.position.add_(100.0)
    module.confine()
    assert ((module.position - exact).abs() <= 1.51).all()
