"""ExecuTorch files: XNNPACK runs all of them, and their outputs are the artifact's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import lowbit
from lowbit.exceptions import EngineError

from .conftest import quantized, samples

if TYPE_CHECKING:
    from pathlib import Path

    import onnx


def test_a_network_runs_in_xnnpack_alone(small: onnx.ModelProto, tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="ExecuTorch is not installed")
    result = quantized(small, "litert")
    found = lowbit.export(result.model, tmp_path / "net.pte", data=samples(small, 8, seed=5))
    assert (tmp_path / "net.pte").read_bytes() == found.contents
    assert found.kernels["xnnpack aten.convolution"] == 3
    assert found.kernels["xnnpack aten.linear"] == 1
    assert not [name for name in found.kernels if name.startswith("portable")]
    (agreement,) = found.agreements
    assert agreement.sqnr_db > 25
    assert agreement.same_top1 == 1


def test_without_executorch_the_extra_is_named(
    small: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    with pytest.raises(EngineError, match=r"lowbit\[executorch\]"):
        lowbit.export(small, tmp_path / "net.pte")
    assert list(tmp_path.iterdir()) == []
