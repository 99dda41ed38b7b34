"""The example with a loop of one's own does what it says."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_with_a_plain_loop.py"


def test_the_plain_loop(
    net: onnx.ModelProto, data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    onnx.save(net, tmp_path / "net.onnx")
    np.savez(tmp_path / "train.npz", x=data["x"], labels=data["y"])
    arguments = [str(tmp_path / "net.onnx"), str(tmp_path / "train.npz"), "-o", str(tmp_path / "out.onnx")]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments, "--epochs", "2"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    losses = [float(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert losses[1] < losses[0]
    assert open_session(tmp_path / "out.onnx", threads=1).run({"x": data["x"]})[0].shape == (96, 4)
