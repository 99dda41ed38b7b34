"""A training set as `lowbit.qat` reads it: augmented anew in every epoch, the same for the same seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from benchmarks.training.float_training import Pace, batches

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["AugmentedLoader"]


class AugmentedLoader:
    """Yields `(x, y)` batches; the order and the shifts of an epoch follow PyTorch's own random state.

    Args:
        x: Normalized pictures, `[N, C, H, W]`.
        y: Their classes.
        pace: Size of batches and augmentation.
    """

    def __init__(self, x: NDArray[np.float32], y: NDArray[np.int64], pace: Pace) -> None:
        self.x, self.y, self.pace = x, y, pace

    def __len__(self) -> int:
        return len(self.x) // self.pace.batch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ()).item()))
        yield from batches(self.x, self.y, self.pace, generator)
