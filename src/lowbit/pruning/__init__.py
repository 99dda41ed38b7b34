"""Which weights of a layer may go: scores, masks, schedules, and what the others have to become.

Pure maths on arrays; a weight here is `[K, N]`, inputs by outputs, unless said otherwise.
"""

from __future__ import annotations

from lowbit.pruning.masks import Pattern, mask_of, parse_pattern
from lowbit.pruning.reconstruct import prune_and_reconstruct
from lowbit.pruning.refit import refit, refit_inputs, refit_residual
from lowbit.pruning.schedule import polynomial_sparsity
from lowbit.pruning.scores import lamp, magnitude, movement, wanda

__all__ = [
    "Pattern",
    "lamp",
    "magnitude",
    "mask_of",
    "movement",
    "parse_pattern",
    "polynomial_sparsity",
    "prune_and_reconstruct",
    "refit",
    "refit_inputs",
    "refit_residual",
    "wanda",
]
