"""Pruning while a model learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowbit.exceptions import RecipeError
from lowbit.pruning import lamp
from lowbit.training.gradual import GradualPruning


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(20, 30, generator=generator),
        "b": 10 * torch.randn(8, 4, 3, 3, generator=generator),
        "vector": torch.randn(30, generator=generator),
    }


def zeros(masks: dict[str, torch.Tensor]) -> float:
    return float(np.mean(np.concatenate([mask.numpy().ravel() for mask in masks.values()]) == 0))


@pytest.mark.parametrize("across", [True, False])
def test_the_amount_is_reached_and_what_is_pruned_stays(across: bool) -> None:
    schedule = GradualPruning(amount=0.8, end=0.5, every=10, across=across)
    current, reached = weights(), {}
    for step in range(100):
        masks = schedule(step, 100, current)
        if masks is None:
            continue
        for name, mask in masks.items():
            assert name != "vector"
            assert not reached or not (mask * (1 - reached[name])).any()  # nothing comes back
            current[name] = current[name] * mask
        reached = masks
    assert zeros(reached) == pytest.approx(0.8, abs=0.005)
    assert schedule(51, 100, current) is None
    if not across:
        assert {round(float((mask == 0).float().mean()), 2) for mask in reached.values()} == {0.8}


def test_layers_compete_by_their_lamp_scores() -> None:
    current = weights()
    masks = GradualPruning(amount=0.5, begin=0.0, end=0.0)(0, 10, current)
    assert masks is not None
    scores = {name: lamp(current[name].numpy()) for name in masks}
    kept = np.concatenate([scores[name].ravel()[masks[name].numpy().ravel() == 1] for name in masks])
    gone = np.concatenate([scores[name].ravel()[masks[name].numpy().ravel() == 0] for name in masks])
    assert gone.max() <= kept.min()


def test_excluded_weights_are_left_alone() -> None:
    masks = GradualPruning(amount=0.5, end=0.0, exclude=("b*",))(0, 10, weights())
    assert masks is not None
    assert set(masks) == {"a"}


@pytest.mark.parametrize("options", [{"amount": 1.0}, {"amount": 0.5, "begin": 0.9}, {"amount": 0.5, "every": 0}])
def test_impossible_schedules_are_refused(options: dict) -> None:
    with pytest.raises(RecipeError):
        GradualPruning(**options)
