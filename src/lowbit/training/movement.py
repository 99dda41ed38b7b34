"""Scores of weights by where training moves them: up where they grow, down where they shrink."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lowbit.training.module import TrainableModel
    from lowbit.training.weight import TrainableWeight

__all__ = ["Movement"]


class Movement:
    """Movement scores (Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020, equation 2).

    `S = -Σ_t w_t · ∂L/∂(m ⊙ w)_t`, over the steps of a training: the gradient is that of the masked weight, passed
    straight through the mask, so that weights that are pruned go on being scored and may come back. What was pruned
    before the training is not scored and stays so.

    Args:
        module: The module whose weights are scored, from now on until `close`.

    Attributes:
        scores: By name of a weight, like the weight, float32.
    """

    def __init__(self, module: TrainableModel) -> None:
        self._weights: Mapping[str, TrainableWeight] = dict(module.weights.items())
        self.scores: dict[str, torch.Tensor] = {}
        self._gone: dict[str, torch.Tensor] = {}
        for name, weight in self._weights.items():
            self.scores[name] = torch.zeros(weight.shape)
            if weight.mask is not None:
                self._gone[name] = weight.mask == 0
            weight.watch = self._watcher(name, weight)

    def _watcher(self, name: str, weight: TrainableWeight) -> Callable[[torch.Tensor], None]:
        def seen(gradient: torch.Tensor) -> None:
            self.scores[name].sub_((gradient.detach() * weight.unmasked().detach()).cpu())

        return seen

    def ranked(self) -> dict[str, torch.Tensor]:
        """Return the scores as pruning compares them: what goes first is lowest.

        What has never had a gradient, such as a weight of an input that is always 0, cannot matter to the loss and goes
        before all others, although its score is not negative. The paper has no such weights.
        """
        found = {}
        for name, scores in self.scores.items():
            ranked = torch.where(scores == 0, torch.full_like(scores, -torch.inf), scores)
            if name in self._gone:
                ranked[self._gone[name].to(ranked.device)] = -torch.inf
            found[name] = ranked
        return found

    def load(self, scores: Mapping[str, torch.Tensor]) -> None:
        """Continue from the scores of a training that was interrupted."""
        for name, one in scores.items():
            self.scores[name].copy_(one)

    def close(self) -> None:
        """Stop watching."""
        for weight in self._weights.values():
            weight.watch = None
