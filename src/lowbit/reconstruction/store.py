"""Tensors of many samples, in memory as far as they fit and on disk beyond."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["TensorStore"]


class TensorStore:
    """Holds one tensor per name and sample; used as a context manager, which removes what lies on disk.

    Args:
        limit: Bytes that are kept in memory.
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.used = 0
        self._kept: dict[tuple[str, int], torch.Tensor] = {}
        self._files: dict[tuple[str, int], Path] = {}
        self._written = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, name: str, sample: int, tensor: torch.Tensor) -> None:
        """Keep a tensor, in place of what has the same name and sample."""
        self.drop(name, sample)
        size = tensor.numel() * tensor.element_size()
        tensor = tensor.detach().contiguous()
        if self.used + size <= self.limit or size == 0:
            self._kept[name, sample] = tensor
            self.used += size
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="lowbit-")
        self._written += 1
        path = Path(self._folder.name) / f"{self._written}.npy"
        np.save(path, tensor.numpy())
        self._files[name, sample] = path

    def get(self, name: str, sample: int) -> torch.Tensor:
        """Return a tensor; do not change it."""
        kept = self._kept.get((name, sample))
        if kept is not None:
            return kept
        return torch.from_numpy(np.load(self._files[name, sample], allow_pickle=False))

    def drop(self, name: str, sample: int) -> None:
        """Forget one tensor, if it is there."""
        kept = self._kept.pop((name, sample), None)
        if kept is not None:
            self.used -= kept.numel() * kept.element_size()
        path = self._files.pop((name, sample), None)
        if path is not None:
            path.unlink(missing_ok=True)

    def keep_only(self, names: Iterable[str]) -> None:
        """Forget the tensors of all other names."""
        wanted = set(names)
        for name, sample in [*self._kept, *self._files]:
            if name not in wanted:
                self.drop(name, sample)
