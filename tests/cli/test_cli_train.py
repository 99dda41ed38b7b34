"""`lowbit train`: few bits learned without labels, judged by samples it has not seen, continued to the same bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

from lowbit.methods.train import default_epochs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FEW = ("--data", "data.npz", "--weights", "int2", "--activations", "uint4", "--no-edges", "--measure", "0")
QUICK = ("--epochs", "6", "--batch", "8")


def error(path: Path) -> float:
    """Return the error of a model on other samples, over the power of the float model's outputs."""
    x = np.load("test.npz")["x"]
    float_out, out = (
        onnxruntime.InferenceSession(str(one), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for one in ("net.onnx", path)
    )
    return float(np.square(out - float_out).sum() / np.square(float_out).sum())


def test_a_model_learns_without_labels(folder: Path, lowbit: Callable[..., Any]) -> None:
    start = lowbit("train", "net.onnx", *FEW, "--epochs", "1", "--lr", "1e-9", "-o", "start.onnx")
    assert (start.status, start.err) == (0, "")
    done = lowbit("train", "net.onnx", *FEW, "--epochs", "20", "--batch", "8", "--save-plan", "plan.yaml")
    found = re.search(r"20 epochs, 80 steps, learning rate (\S+);", done.out)
    assert found is not None
    assert 1e-5 < float(found[1]) < 0.1
    assert (done.status, done.err) == (0, "")
    assert "wrote net.int2.onnx" in done.out
    onnx.checker.check_model(folder / "net.int2.onnx")
    assert error(folder / "net.int2.onnx") < 0.85 * error(folder / "start.onnx")
    assert "trained" in (folder / "plan.yaml").read_text(encoding="utf-8")


def test_an_interrupted_command_continues(
    folder: Path, lowbit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lowbit.training.loop import Loop

    assert lowbit("train", "net.onnx", *FEW, *QUICK, "-o", "whole.onnx", "--quiet").status == 0
    step = Loop._step

    def interrupted(self: Loop, batch: Any, number: int, *rest: Any) -> float:
        if number == 9:
            raise KeyboardInterrupt
        return step(self, batch, number, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_step", interrupted)
        stopped = lowbit("train", "net.onnx", *FEW, *QUICK, "--checkpoint", "state", "--checkpoint-every", "3")
    assert stopped.status == 130
    assert "nothing was written" in stopped.line
    assert (folder / "state").exists()
    assert not (folder / "net.int2.onnx").exists()
    done = lowbit("train", "net.onnx", *FEW, *QUICK, "--checkpoint", "state", "--checkpoint-every", "3")
    assert (done.status, done.err) == (0, "")
    assert (folder / "net.int2.onnx").read_bytes() == (folder / "whole.onnx").read_bytes()
    assert not (folder / "state").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "random"], "random numbers teach a model nothing"),
        (["--data", "data.npz", "--label-weight", "0.5"], "the data have none"),
        (["--data", "data.npz", "--label-weight", "2"], "labels is 2.0"),
        (["--data", "data.npz", "--lr", "quick"], "no learning rate"),
        (["--data", "data.npz", "--weights", "int99"], "int99"),
        (["--data", "data.npz", "--layers", "nothing"], "no operator 'nothing'"),
        (["--data", "data.npz", "--teacher", "absent.onnx"], "absent.onnx"),
        ([], "--data"),
    ],
)
def test_wrong_wishes_leave_nothing(folder: Path, lowbit: Callable[..., Any], arguments: list[str], said: str) -> None:
    before = sorted(folder.iterdir())
    done = lowbit("train", "net.onnx", "--epochs", "1", *arguments)
    assert done.status == 2
    assert said in done.line
    assert sorted(folder.iterdir()) == before


def test_epochs_by_default() -> None:
    assert default_epochs(240, 32) == 40
    assert default_epochs(3200, 32) == 5
    assert default_epochs(800, 32) == 12
    assert default_epochs(3, 32) == 40
