"""The moving average of a model's parameters, which is steadier than they are."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Average"]


class Average:
    """Exponential moving average of what learns in a module (Polyak and Juditsky, 1992).

    Args:
        module: The module.
        decay: Share of the average that one step keeps; the first steps keep less, so that the start is forgotten.
    """

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.values = {name: one.detach().clone() for name, one in module.named_parameters() if one.requires_grad}

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        """Take the parameters of one more step into the average."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, one in module.named_parameters():
            if name in self.values:
                self.values[name].lerp_(one.detach(), 1.0 - decay)

    @contextmanager
    def applied(self, module: torch.nn.Module) -> Iterator[None]:
        """Let a module compute with the average, and with its own parameters again afterwards."""
        parameters = {name: one for name, one in module.named_parameters() if name in self.values}
        own = {name: one.detach().clone() for name, one in parameters.items()}
        self._copy(parameters, self.values)
        try:
            yield
        finally:
            self._copy(parameters, own)

    @staticmethod
    @torch.no_grad()
    def _copy(parameters: dict[str, torch.nn.Parameter], values: dict[str, torch.Tensor]) -> None:
        for name, one in parameters.items():
            one.copy_(values[name])
