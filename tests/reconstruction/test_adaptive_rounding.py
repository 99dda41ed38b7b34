"""AdaRound: it starts at nearest, decides for one of two neighbours, and comes close to the best of all choices."""

from __future__ import annotations

import itertools

import pytest
import torch

from lowbit.reconstruction.adaptive_rounding import AdaptiveRounding, rectified_sigmoid
from lowbit.reconstruction.weight_grid import WeightGrid

LOW, HIGH = -4, 3


def grid(scale: torch.Tensor, zero_point: int = 0) -> WeightGrid:
    """Return codes with a scale for every row, moved by a zero point."""
    offset = torch.full_like(scale, zero_point) if zero_point else None
    return WeightGrid(
        scale=scale, spread=lambda one: one[:, None], low=LOW + zero_point, high=HIGH + zero_point, zero_point=offset
    )


def made(inputs: int, outputs: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, AdaptiveRounding]:
    """Return a weight `[outputs, inputs]`, correlated inputs `[256, inputs]` and the weight's AdaRound."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    scale = weight.abs().amax(dim=1) / HIGH
    x = torch.randn(256, inputs, generator=generator) + 1.5 * torch.randn(256, 1, generator=generator)
    return weight, x, AdaptiveRounding(weight, grid(scale))


def learn(module: AdaptiveRounding, weight: torch.Tensor, x: torch.Tensor, steps: int = 400) -> None:
    exact = x @ weight.T
    first = float((x @ module.decoded().T - exact).square().mean())
    descent = torch.optim.Adam([module.position], lr=0.03)
    for step in range(steps):
        descent.zero_grad()
        undecided = module.undecided(step / steps)
        assert undecided is not None
        loss = (x @ module().T - exact).square().mean() / first + 100 * undecided / weight.numel()
        loss.backward()
        descent.step()


def test_it_starts_at_the_weight_and_decodes_nearest() -> None:
    weight, _, module = made(20)
    scale = module.scale()[:, None]
    assert torch.allclose(module(), weight, atol=1e-6)
    assert torch.equal(module.codes(), torch.round(weight / scale).clamp(LOW, HIGH))
    assert torch.equal(module.decoded(), module.codes() * scale)
    assert module.scales() == []


def test_codes_stay_within_the_ends() -> None:
    weight, _, _ = made(20)
    clipped = AdaptiveRounding(weight, grid(weight.abs().amax(dim=1) / 8))
    with torch.no_grad():
        clipped.position.fill_(9.0)
    assert clipped.codes().max() == HIGH
    assert clipped.codes().min() == LOW
    assert torch.equal(clipped(), clipped.decoded())


def test_zero_points_move_the_codes_alone() -> None:
    weight, _, plain = made(20)
    moved = AdaptiveRounding(weight, grid(plain.scale(), zero_point=5))
    assert torch.equal(moved.codes(), plain.codes() + 5)
    assert torch.allclose(moved.decoded(), plain.decoded())


def test_the_rectified_sigmoid_reaches_its_ends() -> None:
    V = torch.tensor([-3.0, 0.0, 3.0])
    assert torch.equal(rectified_sigmoid(V), torch.tensor([0.0, 0.5, 1.0]))


@torch.no_grad()
def test_the_regularizer_wakes_up_and_sharpens() -> None:
    _, _, module = made(20)
    assert float(module.undecided(0.1)) == 0.0
    early, late = float(module.undecided(0.25)), float(module.undecided(1.0))
    # With β = 20 all but decided weights cost 1 each; with β = 2 what is nearly decided costs little.
    assert 0 < late < early <= module.position.numel()
    h = rectified_sigmoid(module.position)
    assert late == pytest.approx(float((1 - (2 * h - 1).square()).sum()), rel=1e-5)
    module.position.copy_(torch.where(module.position > 0, 9.0, -9.0))
    assert float(module.undecided(0.6)) == 0.0


def test_it_comes_close_to_the_best_of_all_choices() -> None:
    """The oracle tries every rounding down or up of eight weights."""
    weight, x, module = made(8, outputs=32)
    exact = x @ weight.T

    def error(decoded: torch.Tensor) -> torch.Tensor:
        return (x @ decoded.T - exact).square().mean(dim=0)

    nearest = error(module.decoded())
    scale = module.scale()[:, None]
    floor = torch.floor(weight / scale)
    best = torch.stack(
        [
            error((floor + torch.tensor(choice)).clamp(LOW, HIGH) * scale)
            for choice in itertools.product((0.0, 1.0), repeat=8)
        ]
    ).amin(dim=0)
    learn(module, weight, x)
    found = error(module.decoded())
    assert (found >= best * 0.999).all()
    assert found.sum() < 0.75 * nearest.sum()
    assert (found - best).sum() < 0.35 * (nearest - best).sum()
    # Everything is decided, and for one of the two neighbours.
    h = rectified_sigmoid(module.position.detach())
    assert ((h < 0.01) | (h > 0.99)).float().mean() > 0.95
    assert set((module.codes() - floor).unique().tolist()) <= {0.0, 1.0}
