"""Tensors of many samples: the same from memory and from disk, and nothing stays behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowbit.reconstruction.store import TensorStore


@pytest.mark.parametrize("limit", [0, 1000, 1 << 20])
def test_tensors_come_back_as_they_were(limit: int) -> None:
    tensors = {
        (name, sample): torch.randn(5, 30, generator=torch.Generator().manual_seed(sample))
        for name in ("a", "b")
        for sample in range(4)
    }
    with TensorStore(limit) as store:
        for (name, sample), tensor in tensors.items():
            store.put(name, sample, tensor)
        assert store.used <= limit
        assert all(torch.equal(store.get(name, sample), tensor) for (name, sample), tensor in tensors.items())
        store.put("a", 0, torch.zeros(3))
        assert torch.equal(store.get("a", 0), torch.zeros(3))
        store.keep_only(["b"])
        with pytest.raises(KeyError):
            store.get("a", 1)
        assert torch.equal(store.get("b", 3), tensors["b", 3])
        folder = store._folder
        path = None if folder is None else Path(folder.name)
    assert path is None or not path.exists()
