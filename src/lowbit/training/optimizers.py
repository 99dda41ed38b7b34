"""The optimizers of a training: one for what is computed with, and Adam for scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lowbit.training.module import TrainableModel
    from lowbit.training.settings import Settings

__all__ = ["optimizers_of", "scale_rate"]

_SCALE_RATE = 1e-3


def scale_rate(lr: float) -> float:
    """Return the learning rate of the logarithms of scales beside that of weights."""
    return min(_SCALE_RATE, lr * 10)


def optimizers_of(module: TrainableModel, settings: Settings) -> list[torch.optim.Optimizer]:
    """Return the optimizers of everything that learns in a module, with the learning rates at their highest.

    Args:
        module: The module.
        settings: Of the training.
    """
    groups = module.parameter_groups(
        settings.lr,
        weight_decay=settings.weight_decay,
        scale_lr=scale_rate(settings.lr),
        relative=settings.optimizer == "adamw",
    )
    if settings.optimizer == "adamw":
        return [torch.optim.AdamW(groups)]
    found: list[torch.optim.Optimizer] = []
    weights = [group for group in groups if group["name"] != "scales"]
    scales = [group for group in groups if group["name"] == "scales"]
    if weights:
        found.append(torch.optim.SGD(weights, lr=settings.lr, momentum=0.9, nesterov=True))
    if scales:
        found.append(torch.optim.Adam(scales))
    return found
