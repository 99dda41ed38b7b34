"""The random numbers of a training: those of PyTorch, numpy and Python, whose states are the caller's otherwise."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["own_randomness", "random_state", "seed_all", "set_random_state"]


def seed_all(seed: int) -> None:
    """Seed all generators that data and models may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- augmentations of data sets draw from this one


def random_state() -> dict[str, Any]:
    """Return the state of all of them as plain values and tensors."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()  # noqa: NPY002
    kind, keys, position, has_gauss, cached = legacy
    return {
        "torch": torch.get_rng_state(),
        "python": [version, list(words), gauss],
        "numpy": [str(kind), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Continue from what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002


@contextmanager
def own_randomness() -> Iterator[None]:
    """Give the caller's random numbers back afterwards."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)
