"""Pure maths of pruning: how much weights matter, which of them go, when, and how the others make up for it.

Knows arrays, not graphs, and neither PyTorch nor an engine; everything here can be called during a training. May import
from `lowbit.exceptions`.
"""

from __future__ import annotations

from lowbit.pruning.masks import block_mask, largest_mask, n_of_m_mask
from lowbit.pruning.reconstruction import sparse_gpt
from lowbit.pruning.refit import refit
from lowbit.pruning.schedules import constant_amount, polynomial_amount
from lowbit.pruning.scores import magnitude_scores, movement_scores, wanda_scores

__all__ = [
    "block_mask",
    "constant_amount",
    "largest_mask",
    "magnitude_scores",
    "movement_scores",
    "n_of_m_mask",
    "polynomial_amount",
    "refit",
    "sparse_gpt",
    "wanda_scores",
]
