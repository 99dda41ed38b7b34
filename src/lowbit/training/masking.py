"""Which weights stay 0 at every step: what a schedule says, and what was 0 before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.training.gradual import GradualPruning
from lowbit.training.movement import Movement

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lowbit.training.module import TrainableModel
    from lowbit.training.schedule import MaskSchedule

__all__ = ["Masking"]


class Masking:
    """Lets a schedule prune a module while it is trained; what was masked before stays so.

    Args:
        module: The module.
        schedule: Chooses masks; `None` leaves them as they are.
    """

    def __init__(self, module: TrainableModel, schedule: MaskSchedule | None) -> None:
        self._module, self._schedule = module, schedule
        self._first = {name: weight.mask.clone() for name, weight in module.weights.items() if weight.mask is not None}
        moving = isinstance(schedule, GradualPruning) and schedule.criterion == "movement"
        self._movement = Movement(module) if moving else None

    def step(self, step: int, steps: int) -> None:
        """Set the masks of the step that comes next."""
        if self._schedule is None:
            return
        weights = {name: weight.latent().detach() for name, weight in self._module.weights.items()}
        if self._movement is not None and isinstance(self._schedule, GradualPruning):
            found = self._schedule(step, steps, weights, scores=self._movement.ranked)
        else:
            found = self._schedule(step, steps, weights)
        for name, mask in (found or {}).items():
            self._module.weights[name].set_mask(mask * self._first[name] if name in self._first else mask)

    def state(self) -> dict[str, torch.Tensor] | None:
        """Return what a training that is interrupted has to know besides the module."""
        return None if self._movement is None else self._movement.scores

    def load(self, state: Mapping[str, torch.Tensor] | None) -> None:
        """Continue from what `state` returned."""
        if self._movement is not None and state is not None:
            self._movement.load(state)

    def close(self) -> None:
        """Leave the module alone from now on."""
        if self._movement is not None:
            self._movement.close()
