"""Batches of a training as the data that calibration and verification take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lowbit.training.batches import Batches

__all__ = ["calibration_batches", "verification_batches"]

_CALIBRATING = 500
_VERIFYING = 2000


def calibration_batches(batches: Batches) -> list[Any]:
    """Return the first batches as calibration data."""
    found: list[Any] = []
    samples = 0
    for inputs, target in batches:
        values = {name: tensor.numpy() for name, tensor in inputs.items()}
        if isinstance(target, torch.Tensor) and target.ndim == 1:
            values["labels"] = target.numpy()
        found.append(values)
        samples += len(next(iter(inputs.values())))
        if samples >= _CALIBRATING:
            break
    return found


def verification_batches(validation: Any, tests: Batches | None) -> Any:
    """Return the first batches of validation as verification data; `None` without validation."""
    if tests is None or validation is None:
        return None
    found, samples = [], 0
    for inputs, target in tests:
        values = {name: tensor.numpy() for name, tensor in inputs.items()}
        if isinstance(target, torch.Tensor) and target.ndim == 1 and not target.is_floating_point():
            values["labels"] = target.numpy()
        found.append(values)
        samples += len(next(iter(inputs.values())))
        if samples >= _VERIFYING:
            break
    return found
